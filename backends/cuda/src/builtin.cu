// The built-ins copy, fill and add over strided operands, for devices without NVRTC. What every device offers so that it
// can be tested; fast kernels live above the layer.
//
// A grid of blocks of 256 threads, each of which takes every n-th element in logical order. A layout's axes beyond `rank`
// are not looked at; strides count elements.
//
// builtin.ptx is made of this file: see tests/nvrtc.rs.

typedef unsigned char b1;
typedef unsigned short b2;
typedef unsigned int b4;
typedef unsigned long long b8;

struct Layout {
    b8 elements;
    b8 rank;
    b8 shape[8];
    b8 strides[3][8];  // of the operands in their order
};

// The places of element `i` of up to three operands.
struct At {
    b8 of[3];
};

static __device__ __forceinline__ At at(const Layout &layout, b8 i) {
    At at = {{0, 0, 0}};
#pragma unroll 1
    for (int axis = (int)layout.rank - 1; axis >= 0; axis--) {
        b8 extent = layout.shape[axis], index = i % extent;
        i /= extent;
        for (int operand = 0; operand < 3; operand++) at.of[operand] += index * layout.strides[operand][axis];
    }
    return at;
}

#define EACH(i, layout)                                                          \
    for (b8 i = (b8)blockIdx.x * blockDim.x + threadIdx.x; i < (layout).elements; \
         i += (b8)gridDim.x * blockDim.x)

#define COPY(T)                                                                                          \
    extern "C" __global__ void halite_copy_##T(const T *input, T *out, const Layout layout) { \
        EACH(i, layout) {                                                                                \
            At place = at(layout, i);                                                                    \
            out[place.of[1]] = input[place.of[0]];                                                       \
        }                                                                                                \
    }                                                                                                    \
    extern "C" __global__ void halite_fill_##T(T *out, b8 value, const Layout layout) { \
        EACH(i, layout) out[at(layout, i).of[0]] = (T)value;                                             \
    }

COPY(b1)
COPY(b2)
COPY(b4)
COPY(b8)

#define ADD(name, T, SUM)                                                                                     \
    extern "C" __global__ void halite_add_##name(const T *lhs, const T *rhs, T *out,                          \
                                                 const Layout layout) {                     \
        EACH(i, layout) {                                                                                     \
            At place = at(layout, i);                                                                         \
            T a = lhs[place.of[0]], b = rhs[place.of[1]];                                                     \
            out[place.of[2]] = SUM;                                                                           \
        }                                                                                                     \
    }

static __device__ __forceinline__ float f16_to_f32(b2 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
static __device__ __forceinline__ b2 f32_to_f16(float value) {
    b2 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
static __device__ __forceinline__ float bf16_to_f32(b2 bits) { return __uint_as_float((b4)bits << 16); }
// To the nearest, ties to even; a NaN stays one.
static __device__ __forceinline__ b2 f32_to_bf16(float value) {
    b4 bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (b2)((bits >> 16) | 0x40);
    return (b2)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Integers wrap. Sums of halves are exact enough in f32 that rounding twice is rounding once: it has more than twice
// their digits and two.
ADD(b1, b1, (b1)(a + b))
ADD(b2, b2, (b2)(a + b))
ADD(b4, b4, a + b)
ADD(b8, b8, a + b)
ADD(f16, b2, f32_to_f16(f16_to_f32(a) + f16_to_f32(b)))
ADD(bf16, b2, f32_to_bf16(bf16_to_f32(a) + bf16_to_f32(b)))
ADD(f32, float, a + b)
ADD(f64, double, a + b)

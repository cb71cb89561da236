// The dialect of the kernels in this folder, in CUDA C as NVRTC takes it: no header is needed. See prelude.cl.

template <typename T> struct alignas(2 * sizeof(T)) pack2 { T s0, s1; };
template <typename T> struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) pack4 { T s0, s1, s2, s3; };
template <typename T> struct alignas(8 * sizeof(T) < 16 ? 8 * sizeof(T) : 16) pack8 {
    T s0, s1, s2, s3, s4, s5, s6, s7;
};

#define PACKED(ours, theirs)       \
    typedef theirs ours;           \
    typedef pack2<theirs> ours##x2; \
    typedef pack4<theirs> ours##x4; \
    typedef pack8<theirs> ours##x8;

PACKED(i8, signed char)
PACKED(u8, unsigned char)
PACKED(i16, short)
PACKED(u16, unsigned short)
PACKED(i32, int)
PACKED(u32, unsigned int)
PACKED(i64, long long)
PACKED(u64, unsigned long long)
PACKED(f32, float)
PACKED(f64, double)

#define KERNEL(x, y) extern "C" __global__ __launch_bounds__((x) * (y))
#define FN static __device__ __forceinline__

#define GLOBAL
#define RESTRICT __restrict__
#define LOCAL_ARRAY(type, name, len) __shared__ type name[len]
#define BARRIER() __syncthreads()

#define GROUP_X blockIdx.x
#define GROUP_Y blockIdx.y
#define GROUP_Z blockIdx.z
#define LOCAL_X threadIdx.x
#define LOCAL_Y threadIdx.y

#define U64(digits) digits##ULL
#define f32_from_bits(bits) __uint_as_float((u32)(bits))
#define f32_to_bits(x) __float_as_uint((f32)(x))
#define f64_from_bits(bits) __longlong_as_double((i64)(bits))
#define f64_to_bits(x) ((u64)__double_as_longlong((f64)(x)))
#define LEADING_ZEROS(x) __clzll((i64)(x))

#define MULTIPLY_ADD(a, b, c) multiply_add(a, b, c)
FN f32 multiply_add(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
FN f64 multiply_add(f64 a, f64 b, f64 c) { return fma(a, b, c); }
FN u32 multiply_add(u32 a, u32 b, u32 c) { return a * b + c; }
FN u64 multiply_add(u64 a, u64 b, u64 c) { return a * b + c; }

#define f32_fmod(a, b) fmodf(a, b)
#define f64_fmod(a, b) fmod(a, b)

FN f32 f16_from_bits_(u16 bits) {
    f32 x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
FN u16 f16_to_bits_(f32 x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#define f16_from_bits(bits) f16_from_bits_((u16)(bits))
#define f16_to_bits(x) f16_to_bits_((f32)(x))

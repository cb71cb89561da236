// The dialect of the kernels in this folder, in OpenCL C 1.2. prelude.cu defines the same names in CUDA C, numeric.cl
// builds on both, and no other file here uses anything of either language that is not in C and in these.
//
// HAS_F64: the program uses f64. HAS_F16: the device converts half precision in registers (cl_khr_fp16). CONTRACT: where
// the device is as fast at it, a * b + c is fused.

#ifdef CONTRACT
#pragma OPENCL FP_CONTRACT ON
#else
#pragma OPENCL FP_CONTRACT OFF
#endif
#ifdef HAS_F64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#ifdef HAS_F16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif

#define PACKED(ours, theirs)       \
    typedef theirs ours;           \
    typedef theirs##2 ours##x2;    \
    typedef theirs##4 ours##x4;    \
    typedef theirs##8 ours##x8;    \
    typedef theirs##16 ours##x16;

PACKED(i8, char)
PACKED(u8, uchar)
PACKED(i16, short)
PACKED(u16, ushort)
PACKED(i32, int)
PACKED(u32, uint)
PACKED(i64, long)
PACKED(u64, ulong)
PACKED(f32, float)
#ifdef HAS_F64
PACKED(f64, double)
#endif

// A kernel of x * y threads a workgroup, and a function that kernels call.
#define KERNEL(x, y) __kernel __attribute__((reqd_work_group_size(x, y, 1)))
#define FN static inline

#define GLOBAL __global
#define RESTRICT restrict
#define LOCAL_ARRAY(type, name, len) __local type name[len]
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)

#define GROUP_X get_group_id(0)
#define GROUP_Y get_group_id(1)
#define GROUP_Z get_group_id(2)
#define LOCAL_X get_local_id(0)
#define LOCAL_Y get_local_id(1)

#define U64(digits) digits##UL
#define f32_from_bits(bits) as_float((u32)(bits))
#define f32_to_bits(x) as_uint((f32)(x))
#define f64_from_bits(bits) as_double((u64)(bits))
#define f64_to_bits(x) as_ulong((f64)(x))
#define LEADING_ZEROS(x) ((i32)clz((u64)(x)))

#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))

// NOTE: PoCL 3.1 computes fmod as a - trunc(a / b) * b, which is wrong in the last places.
#define REMAINDER(T, infinity, not_a_number)                                                       \
    FN T T##_fmod(T a, T b) {                                                                      \
        T rest = fabs(a), divisor = fabs(b);                                                       \
        const u8 is_number = divisor > 0 && rest < (infinity);                                     \
        if (!is_number) return not_a_number;                                                       \
        if (rest < divisor) return a;                                                              \
        /* Doubling is exact, and so is a difference of numbers within a factor of two. */         \
        T multiple = divisor;                                                                      \
        while (multiple <= rest / 2) multiple *= 2;                                                \
        for (; multiple >= divisor; multiple /= 2) rest = rest >= multiple ? rest - multiple : rest; \
        return copysign(rest, a);                                                                  \
    }
REMAINDER(f32, f32_from_bits(0x7f800000u), f32_from_bits(0x7fc00000u))
#ifdef HAS_F64
REMAINDER(f64, f64_from_bits(U64(0x7ff0000000000000)), f64_from_bits(U64(0x7ff8000000000000)))
#endif

#ifdef HAS_F16
#define f16_from_bits(bits) convert_float(as_half((u16)(bits)))
#define f16_to_bits(x) as_ushort(convert_half_rte((f32)(x)))
#endif

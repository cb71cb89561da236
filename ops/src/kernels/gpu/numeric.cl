// The numerics policy in the common dialect: what C leaves open, one definition for every device.
//
// Values of f16 and bf16 stand in registers as f32 that the narrow type can hold; memory holds their bits as u16.

// ---- half precision ----

#ifndef f16_from_bits
FN f32 f16_from_bits(u16 bits) {
    u32 magnitude = bits & 0x7fffu;
    // The exponent's bias grows from 15 to 127; infinity and NaN lie as far above the finite numbers again.
    u32 normal = (magnitude << 13) + (magnitude < 0x7c00u ? 0x38000000u : 0x70000000u);
    u32 subnormal = f32_to_bits((f32)(i32)magnitude * f32_from_bits(0x33800000u));
    return f32_from_bits((magnitude < 0x400u ? subnormal : normal) | (u32)(bits & 0x8000u) << 16);
}

FN u16 f16_to_bits(f32 x) {
    u32 bits = f32_to_bits(x), magnitude = bits & 0x7fffffffu;
    u32 normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // Half a unit of 1/2 is half the smallest subnormal number, so the addition rounds to a whole number of those.
    u32 subnormal = f32_to_bits(f32_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    u32 finite = magnitude < 0x38800000u ? subnormal : normal;
    u32 special = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : 0x7c00u;
    return (u16)((magnitude < 0x477ff000u ? finite : special) | (bits >> 16 & 0x8000u));
}
#endif

FN f32 bf16_from_bits(u16 bits) { return f32_from_bits((u32)bits << 16); }

FN u16 bf16_to_bits(f32 x) {
    u32 bits = f32_to_bits(x);
    u32 rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return (u16)((x != x ? bits | 0x400000u : rounded) >> 16);
}

FN f32 f16_round(f32 x) { return f16_from_bits(f16_to_bits(x)); }
FN f32 bf16_round(f32 x) { return bf16_from_bits(bf16_to_bits(x)); }

// To f32 with an inexact result made odd, so that rounding it once more to 11 bits or fewer is as good as rounding the
// original (S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57(4), 2008).
FN f32 u64_to_odd(u64 x) {
    i32 excess = 40 - LEADING_ZEROS(x | 1);
    u64 lost = excess > 0 ? ((u64)1 << excess) - 1 : 0;
    return (f32)((x & ~lost) | ((x & lost) != 0 ? lost + 1 : 0));
}
FN f32 i64_to_odd(i64 x) { return x < 0 ? -u64_to_odd(0 - (u64)x) : u64_to_odd((u64)x); }

#ifdef HAS_F64
FN f32 f64_to_odd(f64 x) {
    f32 near = (f32)x;
    f64 back = (f64)near;
    u32 bits = f32_to_bits(near);
    // One step towards zero if `near` lies beyond x; infinity stands beyond every finite number.
    u32 truncated = fabs(back) > fabs(x) ? bits - 1 : bits;
    return back == x || x != x ? near : f32_from_bits(truncated | 1);
}
#endif

// ---- casts of floats to integers: saturating, NaN as 0 ----

#define SATURATE(F, T, low, high, least, greatest)                                                            \
    FN T F##_to_##T(F x) {                                                                                    \
        return x != x ? (T)0 : x <= (F)(low) ? (T)(least) : x >= (F)(high) ? (T)(greatest) : (T)x;            \
    }
#define SATURATES(F)                                                                                          \
    SATURATE(F, i8, -128.0f, 127.0f, -128, 127)                                                               \
    SATURATE(F, u8, 0.0f, 255.0f, 0, 255)                                                                     \
    SATURATE(F, i16, -32768.0f, 32767.0f, -32768, 32767)                                                      \
    SATURATE(F, u16, 0.0f, 65535.0f, 0, 65535)                                                                \
    SATURATE(F, i32, -2147483648.0f, 2147483648.0f, -2147483647 - 1, 2147483647)                              \
    SATURATE(F, u32, 0.0f, 4294967296.0f, 0, 0xffffffffu)                                                     \
    SATURATE(F, i64, -9223372036854775808.0f, 9223372036854775808.0f, U64(0x8000000000000000),                \
             U64(0x7fffffffffffffff))                                                                         \
    SATURATE(F, u64, 0.0f, 18446744073709551616.0f, 0, U64(0xffffffffffffffff))

SATURATES(f32)
#ifdef HAS_F64
SATURATES(f64)
#endif

// ---- arithmetic ----

// The larger and the smaller one, NaN if either is.
#define LARGER(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define SMALLER(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))

#define SIGN(T, x) ((x) > 0 ? (T)1 : (x) < 0 ? (T)-1 : (x))

// Quotients truncate; by zero they and remainders are 0, and the least number by -1 wraps.
#define DIVIDE_UNSIGNED(T)                                        \
    FN T T##_div(T a, T b) { return b == 0 ? (T)0 : (T)(a / b); } \
    FN T T##_rem(T a, T b) { return b == 0 ? (T)0 : (T)(a % b); }
#define DIVIDE_SIGNED(T, wide)                                                                            \
    FN T T##_div(T a, T b) { return b == 0 ? (T)0 : b == -1 ? (T)(0 - (wide)a) : (T)(a / b); }            \
    FN T T##_rem(T a, T b) { return b == 0 || b == -1 ? (T)0 : (T)(a % b); }

DIVIDE_SIGNED(i8, u32)
DIVIDE_SIGNED(i16, u32)
DIVIDE_SIGNED(i32, u32)
DIVIDE_SIGNED(i64, u64)
DIVIDE_UNSIGNED(u8)
DIVIDE_UNSIGNED(u16)
DIVIDE_UNSIGNED(u32)
DIVIDE_UNSIGNED(u64)

// Shifts by the width or more, and by negative amounts, move every bit out. `wide` is the unsigned type of at least 32
// bits in which a narrow number is moved.
#define SHIFT_LEFT(T, U, wide, bits, a, b) ((U)(b) < bits ? (T)((wide)(a) << ((b) & (bits - 1))) : (T)0)
#define SHIFT_RIGHT(T, U, bits, a, b) ((T)((U)(b) < bits ? (a) >> ((b) & (bits - 1)) : (a) < 0 ? (T)-1 : (T)0))

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

// ---- quotients and square roots of f32, correctly rounded ----

#ifdef ROUND_DIVISION
// Where the compiler does not promise it (OpenCL allows errors of 2.5 and 3 units in the last place), the device's result is
// an estimate of 26 bits, which whole numbers put right: the remainder says exactly how far off it is. Subnormal numbers
// are handled as bits, so that units which flush them do no harm.

// The significand of a finite number above 0 as a whole number of 24 bits; the number is it times 2^(*exponent - 150).
FN u32 f32_significand(u32 magnitude, i32* exponent) {
    const i32 shift = magnitude < 0x800000u ? LEADING_ZEROS((u64)magnitude) - 40 : 0;
    *exponent = magnitude < 0x800000u ? 1 - shift : (i32)(magnitude >> 23);
    return magnitude < 0x800000u ? magnitude << shift : (magnitude & 0x7fffffu) | 0x800000u;
}

// The bits of `significand` * 2^(exponent - 152), rounded to nearest, ties to even. It has 26 bits, of which the last one
// also says whether anything was left behind it.
FN u32 f32_assemble(u32 significand, i32 exponent) {
    if (exponent >= 255) return 0x7f800000u;
    const i32 shift = exponent > 0 ? 0 : exponent < -26 ? 27 : 1 - exponent;
    const u32 lost = significand & ((1u << shift) - 1);
    const u32 kept = significand >> shift | (u32)(lost != 0);
    // The first bit of a normal number counts as 1 of the exponent.
    const u32 bits = (exponent > 0 ? (u32)(exponent - 1) << 23 : 0) + (kept >> 2);
    return bits + (u32)((kept & 3u) + (bits & 1u) > 2);
}

FN f32 f32_quotient(f32 a, f32 b) {
    const u32 sign = (f32_to_bits(a) ^ f32_to_bits(b)) & 0x80000000u, infinity = 0x7f800000u;
    const u32 x = f32_to_bits(a) & 0x7fffffffu, y = f32_to_bits(b) & 0x7fffffffu;
    const u8 is_none = x > infinity || y > infinity || (x == infinity && y == infinity) || (x == 0 && y == 0);
    if (is_none) return f32_from_bits(0x7fc00000u);
    if (x == infinity || y == 0) return f32_from_bits(sign | infinity);
    if (x == 0 || y == infinity) return f32_from_bits(sign);
    i32 exponent_of_x, exponent_of_y;
    u32 numerator = f32_significand(x, &exponent_of_x);
    const u32 denominator = f32_significand(y, &exponent_of_y);
    i32 exponent = exponent_of_x - exponent_of_y + 127;
    if (numerator < denominator) {
        numerator <<= 1;
        exponent--;
    }
    i64 quotient = (i64)((f32)numerator / (f32)denominator * 33554432.0f);
    i64 rest = ((i64)numerator << 25) - quotient * denominator;
    for (; rest < 0; rest += denominator) quotient--;
    for (; rest >= denominator; rest -= denominator) quotient++;
    return f32_from_bits(sign | f32_assemble((u32)quotient | (u32)(rest != 0), exponent));
}

FN f32 f32_root(f32 a) {
    const u32 x = f32_to_bits(a);
    if ((x & 0x7fffffffu) == 0 || x == 0x7f800000u) return a;
    if (x > 0x7f800000u) return f32_from_bits(0x7fc00000u);
    i32 exponent;
    u32 significand = f32_significand(x, &exponent);
    // Of an even power of two, below.
    if (exponent % 2 == 0) {
        significand <<= 1;
        exponent--;
    }
    i64 root = (i64)sqrt((f32)significand * 134217728.0f);
    i64 rest = ((i64)significand << 27) - root * root;
    for (; rest < 0; rest += 2 * root + 1) root--;
    for (; rest > 2 * root; root++) rest -= 2 * root + 1;
    return f32_from_bits(f32_assemble((u32)root | (u32)(rest != 0), (exponent + 127) / 2));
}
#else
#define f32_quotient(a, b) ((a) / (b))
#define f32_root(a) sqrt(a)
#endif

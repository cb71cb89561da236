//! Elementwise arithmetic of the vector unit, on slices of one chunk.
//!
//! Float functions compute in f64 and round once, so their error is at most a little above half a unit in
//! the last place; f16 and bf16 are widened to f32 before and rounded after.

use halite_npu_isa::{BinaryOp, CompareOp, UnaryOp};

/// The greater, NaN if either is NaN, +0 above -0.
pub(super) fn maximum(lhs: f32, rhs: f32) -> f32 {
    if lhs > rhs {
        lhs
    } else if rhs > lhs {
        rhs
    } else if lhs == rhs {
        // Equal bits except for zeros: the sum of -0 and +0 is +0, of equal zeros itself.
        if lhs == 0.0 { lhs + rhs } else { lhs }
    } else {
        f32::NAN
    }
}

/// The lesser, NaN if either is NaN, -0 below +0.
pub(super) fn minimum(lhs: f32, rhs: f32) -> f32 {
    -maximum(-lhs, -rhs)
}

/// `out = lhs op rhs` on floats. The verifier lets no bitwise operation come here.
pub(super) fn binary_f32(op: BinaryOp, lhs: &[f32], rhs: &[f32], out: &mut [f32]) {
    let each = |out: &mut [f32], f: &dyn Fn(f32, f32) -> f32| {
        for ((out, &lhs), &rhs) in out.iter_mut().zip(lhs).zip(rhs) {
            *out = f(lhs, rhs);
        }
    };
    // The cheap ones inline their loop; the others hide the indirect call behind their own cost.
    macro_rules! inline {
        ($f:expr) => {
            for ((out, &lhs), &rhs) in out.iter_mut().zip(lhs).zip(rhs) {
                *out = $f(lhs, rhs);
            }
        };
    }
    match op {
        BinaryOp::Add => inline!(|a: f32, b: f32| a + b),
        BinaryOp::Sub => inline!(|a: f32, b: f32| a - b),
        BinaryOp::Mul => inline!(|a: f32, b: f32| a * b),
        BinaryOp::Div => inline!(|a: f32, b: f32| a / b),
        BinaryOp::Max => inline!(maximum),
        BinaryOp::Min => inline!(minimum),
        BinaryOp::Rem => each(out, &|a, b| a % b),
        BinaryOp::Pow => each(out, &|a, b| f64::from(a).powf(f64::from(b)) as f32),
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr | BinaryOp::MulHigh => {
            unreachable!("the verifier refuses bitwise operations on floats")
        }
    }
}

/// `out = op src` on floats. The verifier lets no bitwise operation come here.
pub(super) fn unary_f32(op: UnaryOp, src: &[f32], out: &mut [f32]) {
    macro_rules! each {
        ($f:expr) => {
            for (out, &x) in out.iter_mut().zip(src) {
                *out = $f(x);
            }
        };
    }
    macro_rules! wide {
        ($f:expr) => {
            each!(|x: f32| $f(f64::from(x)) as f32)
        };
    }
    match op {
        UnaryOp::Neg => each!(|x: f32| -x),
        UnaryOp::Abs => each!(f32::abs),
        UnaryOp::Sign => each!(|x: f32| if x > 0.0 {
            1.0
        } else if x < 0.0 {
            -1.0
        } else {
            x
        }),
        UnaryOp::Floor => each!(f32::floor),
        UnaryOp::Ceil => each!(f32::ceil),
        UnaryOp::Round => each!(f32::round_ties_even),
        UnaryOp::Trunc => each!(f32::trunc),
        UnaryOp::Sqrt => each!(f32::sqrt),
        UnaryOp::Relu => each!(|x: f32| if x < 0.0 { 0.0 } else { x }),
        UnaryOp::Recip => each!(|x: f32| 1.0 / x),
        UnaryOp::Rsqrt => wide!(|x: f64| 1.0 / x.sqrt()),
        UnaryOp::Exp => wide!(f64::exp),
        UnaryOp::Expm1 => wide!(f64::exp_m1),
        UnaryOp::Log => wide!(f64::ln),
        UnaryOp::Log1p => wide!(f64::ln_1p),
        UnaryOp::Sin => wide!(f64::sin),
        UnaryOp::Cos => wide!(f64::cos),
        UnaryOp::Tanh => wide!(f64::tanh),
        UnaryOp::Erf => wide!(libm::erf),
        UnaryOp::Not => unreachable!("the verifier refuses bitwise operations on floats"),
    }
}

/// An integer element.
pub(super) trait Int: bytemuck::Pod + PartialOrd {
    const LOWEST: Self;
    const HIGHEST: Self;
    const ONE: Self;
    fn binary(op: BinaryOp, lhs: Self, rhs: Self) -> Self;
    fn unary(op: UnaryOp, value: Self) -> Self;
    fn add(self, rhs: Self) -> Self;
    fn mul(self, rhs: Self) -> Self;
    fn wrap(value: i64) -> Self;
    fn wide(self) -> i64;
}

macro_rules! int {
    ($($ty:ident $wide:ident $bits:literal)*) => {
        $(impl Int for $ty {
            const LOWEST: Self = $ty::MIN;
            const HIGHEST: Self = $ty::MAX;
            const ONE: Self = 1;

            #[inline(always)]
            fn binary(op: BinaryOp, lhs: Self, rhs: Self) -> Self {
                #[allow(unused_comparisons, reason = "half of the types are unsigned")]
                let oversized = rhs < 0 || rhs as u64 >= $bits;
                match op {
                    BinaryOp::Add => lhs.wrapping_add(rhs),
                    BinaryOp::Sub => lhs.wrapping_sub(rhs),
                    BinaryOp::Mul => lhs.wrapping_mul(rhs),
                    BinaryOp::Div => if rhs == 0 { 0 } else { lhs.wrapping_div(rhs) },
                    BinaryOp::Rem => if rhs == 0 { 0 } else { lhs.wrapping_rem(rhs) },
                    BinaryOp::Pow => power(lhs, rhs),
                    BinaryOp::Max => lhs.max(rhs),
                    BinaryOp::Min => lhs.min(rhs),
                    BinaryOp::And => lhs & rhs,
                    BinaryOp::Or => lhs | rhs,
                    BinaryOp::Xor => lhs ^ rhs,
                    BinaryOp::Shl => if oversized { 0 } else { lhs << rhs },
                    #[allow(unused_comparisons, reason = "half of the types are unsigned")]
                    BinaryOp::Shr => if !oversized { lhs >> rhs } else if lhs < 0 { lhs >> ($bits - 1) } else { 0 },
                    BinaryOp::MulHigh => ((lhs as $wide * rhs as $wide) >> $bits) as $ty,
                }
            }

            #[inline(always)]
            fn unary(op: UnaryOp, value: Self) -> Self {
                #[allow(unused_comparisons, reason = "half of the types are unsigned")]
                let negative = value < 0;
                match op {
                    UnaryOp::Neg => value.wrapping_neg(),
                    UnaryOp::Abs => if negative { value.wrapping_neg() } else { value },
                    UnaryOp::Sign => if negative { (0 as $ty).wrapping_sub(1) } else { (value != 0) as $ty },
                    UnaryOp::Relu => if negative { 0 } else { value },
                    // A byte holds a boolean, see the instruction.
                    _ => if $bits == 8 { (value == 0) as $ty } else { !value },
                }
            }

            fn add(self, rhs: Self) -> Self {
                self.wrapping_add(rhs)
            }

            fn mul(self, rhs: Self) -> Self {
                self.wrapping_mul(rhs)
            }

            fn wrap(value: i64) -> Self {
                value as $ty
            }

            fn wide(self) -> i64 {
                self as i64
            }
        })*
    };
}

int! { i32 i64 32 u32 u64 32 u8 u16 8 i64 i128 64 }

/// Wrapping power; a negative exponent gives the true value rounded towards zero, and 0 for a zero base.
fn power<T: Int>(base: T, exponent: T) -> T {
    let zero = T::wrap(0);
    if exponent < zero {
        let minus_one = T::wrap(-1);
        return if base == T::ONE {
            T::ONE
        } else if base == minus_one {
            let is_odd = T::binary(BinaryOp::And, exponent, T::ONE) == T::ONE;
            if is_odd { minus_one } else { T::ONE }
        } else {
            zero
        };
    }
    let (mut result, mut square, mut left) = (T::ONE, base, exponent);
    while left > zero {
        if T::binary(BinaryOp::And, left, T::ONE) == T::ONE {
            result = result.mul(square);
        }
        square = square.mul(square);
        left = T::binary(BinaryOp::Shr, left, T::ONE);
    }
    result
}

/// `out = lhs op rhs` on integers.
pub(super) fn binary_int<T: Int>(op: BinaryOp, lhs: &[T], rhs: &[T], out: &mut [T]) {
    // One loop for each operation, so that each can be vectorised.
    macro_rules! each {
        ($($op:ident)*) => {
            match op {
                $(BinaryOp::$op => {
                    for ((out, &lhs), &rhs) in out.iter_mut().zip(lhs).zip(rhs) {
                        *out = T::binary(BinaryOp::$op, lhs, rhs);
                    }
                })*
            }
        };
    }
    each!(Add Sub Mul Div Rem Pow Max Min And Or Xor Shl Shr MulHigh);
}

/// `out = src / by`, or the remainder, for a positive divisor: a product with its reciprocal instead of a division.
pub(super) fn divide_i32(src: &[i32], by: i32, remainder: bool, out: &mut [i32]) {
    let by = by.unsigned_abs();
    // With 2^(l-1) < by <= 2^l and m = ceil(2^(31+l) / by), n * m / 2^(31+l) is n / by plus less than n / 2^31 / by,
    // so for n <= 2^31 rounding down gives the quotient. m <= 2^32, so the product fits in 64 bits.
    let shift = 31 + by.next_power_of_two().trailing_zeros();
    let m = (1_u64 << shift).div_ceil(by.into());
    for (out, &value) in out.iter_mut().zip(src) {
        let quotient = ((u64::from(value.unsigned_abs()) * m) >> shift) as i32;
        let quotient = if value < 0 { quotient.wrapping_neg() } else { quotient };
        *out = if remainder { value.wrapping_sub(quotient.wrapping_mul(by as i32)) } else { quotient };
    }
}

/// `out = op src` on integers.
pub(super) fn unary_int<T: Int>(op: UnaryOp, src: &[T], out: &mut [T]) {
    for (out, &value) in out.iter_mut().zip(src) {
        *out = T::unary(op, value);
    }
}

/// `out = lhs op rhs` as 0 or 1.
pub(super) fn compare<T: PartialOrd + Copy>(op: CompareOp, lhs: &[T], rhs: &[T], out: &mut [u8]) {
    macro_rules! each {
        ($($op:ident)*) => {
            match op {
                $(CompareOp::$op => {
                    for ((out, &lhs), &rhs) in out.iter_mut().zip(lhs).zip(rhs) {
                        *out = u8::from(CompareOp::$op.holds(lhs, rhs));
                    }
                })*
            }
        };
    }
    each!(Eq Ne Lt Le Gt Ge);
}

const LANES: usize = 16;

/// Folds in 16 lanes which then combine pairwise.
pub(super) fn fold<T: Copy>(values: &[T], start: T, combine: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = combine(*lane, value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane = combine(*lane, value);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Position of the first value that `precedes` says comes before all others; what is not equal to itself wins.
pub(super) fn position<T: PartialOrd + Copy>(values: &[T], precedes: impl Fn(T, T) -> bool) -> usize {
    let mut best = 0;
    for (at, &value) in values.iter().enumerate() {
        #[allow(clippy::eq_op, reason = "only NaN differs from itself")]
        if value != value {
            return at;
        }
        if precedes(value, values[best]) {
            best = at;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_and_min_keep_nan_and_order_zeros() {
        assert!(maximum(f32::NAN, 1.0).is_nan() && maximum(1.0, f32::NAN).is_nan());
        assert!(minimum(f32::NAN, 1.0).is_nan() && minimum(1.0, f32::NAN).is_nan());
        assert!(maximum(-0.0, 0.0).is_sign_positive() && maximum(0.0, -0.0).is_sign_positive());
        assert!(minimum(-0.0, 0.0).is_sign_negative() && minimum(0.0, -0.0).is_sign_negative());
        assert!(maximum(-0.0, -0.0).is_sign_negative());
        assert_eq!(maximum(2.0, f32::INFINITY), f32::INFINITY);
        assert_eq!(minimum(2.0, -3.0), -3.0);
    }

    #[test]
    fn division_by_reciprocal_is_division() {
        let values: Vec<i32> = (-70..70)
            .chain([i32::MIN, i32::MIN + 1, i32::MAX, i32::MAX - 1])
            .chain((0..2000).map(|i| i * 1_048_583))
            .collect();
        let mut out = vec![0; values.len()];
        for by in (1..300).chain([4096, 65_535, 65_537, 1 << 30, i32::MAX - 1, i32::MAX]) {
            divide_i32(&values, by, false, &mut out);
            assert!(values.iter().zip(&out).all(|(value, out)| value / by == *out), "by {by}");
            divide_i32(&values, by, true, &mut out);
            assert!(values.iter().zip(&out).all(|(value, out)| value % by == *out), "by {by}");
        }
    }

    #[test]
    fn integers_have_defined_results_everywhere() {
        use BinaryOp::*;
        let of = |op, lhs: i32, rhs: i32| i32::binary(op, lhs, rhs);
        assert_eq!(of(Add, i32::MAX, 1), i32::MIN);
        assert_eq!((of(Div, 7, 0), of(Rem, 7, 0), of(Div, i32::MIN, -1)), (0, 0, i32::MIN));
        assert_eq!((of(Shl, 1, 32), of(Shl, 1, -1), of(Shl, 1, 31)), (0, 0, i32::MIN));
        assert_eq!((of(Shr, -8, 40), of(Shr, 8, 40), of(Shr, -8, 1)), (-1, 0, -4));
        assert_eq!((of(Pow, 3, 4), of(Pow, 2, 33), of(Pow, -1, -3), of(Pow, 5, -1)), (81, 0, -1, 0));
        assert_eq!(of(MulHigh, i32::MAX, 4), 1);
        assert_eq!(u32::binary(MulHigh, u32::MAX, u32::MAX), u32::MAX - 1);
        assert_eq!(u32::binary(Shr, u32::MAX, 32), 0);
        assert_eq!(i64::binary(Mul, i64::MAX, 2), -2);
        assert_eq!((u8::unary(UnaryOp::Not, 7), u8::unary(UnaryOp::Not, 0)), (0, 1));
        assert_eq!(i32::unary(UnaryOp::Abs, i32::MIN), i32::MIN);
    }
}

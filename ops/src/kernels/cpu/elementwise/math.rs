//! Elementary functions of f32, written without branches so that a block of them becomes vector code.
//!
//! They use no fused multiply-add, so every instruction set gives the same bits. Largest errors against f64, which
//! the tests below assert over the whole range: `exp` and `log` 2 ULP, `tanh` 2.5 ULP, `sin`, `cos` and `pow` 1 ULP.
//! Polynomials of `exp`, `log` and `tanh`: S. L. Moshier, Cephes Mathematical Library (single precision); of `sin`
//! and `cos`: Sun Microsystems, fdlibm, `k_sin.c` and `k_cos.c`.

#![allow(clippy::excessive_precision, reason = "the digits are the sources'")]

use super::lanes::LANES;

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the significand.
const ROUND_F32: f32 = 12_582_912.0;
/// 1.5 * 2^52, for f64.
const ROUND_F64: f64 = 6_755_399_441_055_744.0;

/// ln 2 in two parts, the first of which has 9 bits, so that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^x; 0 below -104, infinity above 88.73.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = if x < -104.0 { -104.0 } else { x };
    let clamped = if clamped > 89.0 { 89.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND_F32;
    let n = shifted - ROUND_F32;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // Two factors, since 2^128 and 2^-150 have no f32 of their own.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND_F32.to_bits() as i32);
    let half = n >> 1;
    let y = y * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    if x.is_nan() { x } else { y }
}

/// 2^n for a normal result.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// Natural logarithm.
#[inline(always)]
pub(crate) fn log(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let scaled = if subnormal { x * 33_554_432.0 } else { x };
    let bits = scaled.to_bits();
    let exponent = (bits >> 23) as i32 - 126 - if subnormal { 25 } else { 0 };
    let m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let low = m < std::f32::consts::FRAC_1_SQRT_2;
    let e = (exponent - i32::from(low)) as f32;
    let m = if low { m + m } else { m } - 1.0;
    let z = m * m;
    let mut p = 7.037_683_6e-2;
    p = p * m - 1.151_461e-1;
    p = p * m + 1.167_699_9e-1;
    p = p * m - 1.242_014_1e-1;
    p = p * m + 1.424_932_3e-1;
    p = p * m - 1.666_805_7e-1;
    p = p * m + 2.000_071_5e-1;
    p = p * m - 2.499_999_4e-1;
    p = p * m + 3.333_333_1e-1;
    let y = p * m * z + e * LN2_LOW - 0.5 * z;
    let y = m + y + e * LN2_HIGH;
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// Hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x.abs();
    let s = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * s + 2.063_908_9e-2;
    p = p * s - 5.373_971_5e-2;
    p = p * s + 1.333_144_2e-1;
    p = p * s - 3.333_328_2e-1;
    let small = p * s * x + x;
    let large = (1.0 - 2.0 / (exp(z + z) + 1.0)).copysign(x);
    let y = if z < 0.625 { small } else { large };
    // Keeps the sign of zero.
    if x.is_nan() || x == 0.0 { x } else { y }
}

/// Sine of a block.
#[inline(always)]
pub(crate) fn sin(x: [f32; LANES]) -> [f32; LANES] {
    trigonometric(x, 0, f64::sin)
}

/// Cosine of a block.
#[inline(always)]
pub(crate) fn cos(x: [f32; LANES]) -> [f32; LANES] {
    trigonometric(x, 1, f64::cos)
}

/// Arguments from here on need more bits of pi than two f64 hold, and take the standard library's way.
const LARGE_ANGLE: f32 = 1_048_576.0;

#[inline(always)]
fn trigonometric(x: [f32; LANES], quarter_turns: u64, exact: fn(f64) -> f64) -> [f32; LANES] {
    let mut y = std::array::from_fn(|lane| reduced_sine(x[lane], quarter_turns));
    if x.iter().fold(false, |any, x| any | (x.abs() >= LARGE_ANGLE)) {
        large_angles(&x, &mut y, exact);
    }
    y
}

#[cold]
#[inline(never)]
fn large_angles(x: &[f32; LANES], y: &mut [f32; LANES], exact: fn(f64) -> f64) {
    for (x, y) in x.iter().zip(y).filter(|(x, _)| x.abs() >= LARGE_ANGLE) {
        *y = exact(f64::from(*x)) as f32;
    }
}

/// sin(x + quarter_turns * pi / 2) for |x| below [`LARGE_ANGLE`].
#[inline(always)]
fn reduced_sine(x: f32, quarter_turns: u64) -> f32 {
    let wide = f64::from(x);
    let shifted = wide * std::f64::consts::FRAC_2_PI + ROUND_F64;
    let n = shifted - ROUND_F64;
    // pi / 2 in two parts; the first has 33 bits, so that its product with n is exact.
    let r = wide - n * 1.570_796_326_734_125_6 - n * 6.077_100_506_506_192e-11;
    let z = r * r;
    let mut s = 1.589_690_995_211_55e-10;
    s = s * z - 2.505_076_025_340_686_3e-8;
    s = s * z + 2.755_731_370_707_006_8e-6;
    s = s * z - 1.984_126_982_985_795e-4;
    s = s * z + 8.333_333_333_322_49e-3;
    s = s * z - 1.666_666_666_666_663_2e-1;
    let sine = r + r * z * s;
    let mut c = -1.135_964_755_778_819_5e-11;
    c = c * z + 2.087_572_321_298_175e-9;
    c = c * z - 2.755_731_435_139_066_3e-7;
    c = c * z + 2.480_158_728_947_673e-5;
    c = c * z - 1.388_888_888_887_411e-3;
    c = c * z + 4.166_666_666_666_66e-2;
    let cosine = 1.0 - 0.5 * z + z * z * c;
    let quadrant = shifted.to_bits().wrapping_add(quarter_turns);
    let y = if quadrant & 1 == 0 { sine } else { cosine };
    let y = if quadrant & 2 == 0 { y } else { -y };
    // Keeps the sign of zero.
    if quarter_turns == 0 && x == 0.0 { x } else { y as f32 }
}

/// x^y, computed in f64, with the special cases of IEEE 754 (`pow`).
#[inline(always)]
pub(crate) fn pow(x: f32, y: f32) -> f32 {
    let base = f64::from(x.abs());
    let bits = base.to_bits();
    let m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    let high = m > std::f64::consts::SQRT_2;
    let m = if high { m * 0.5 } else { m };
    let biased = f64::from_bits((bits >> 52) | ROUND_F64.to_bits()) - ROUND_F64;
    let exponent = biased - if high { 1022.0 } else { 1023.0 };
    let f = (m - 1.0) / (m + 1.0);
    let s = f * f;
    let mut p = 1.0 / 19.0;
    p = p * s + 1.0 / 17.0;
    p = p * s + 1.0 / 15.0;
    p = p * s + 1.0 / 13.0;
    p = p * s + 1.0 / 11.0;
    p = p * s + 1.0 / 9.0;
    p = p * s + 1.0 / 7.0;
    p = p * s + 1.0 / 5.0;
    p = p * s + 1.0 / 3.0;
    p = p * s + 1.0;
    let log2 = exponent + 2.0 * f * p * std::f64::consts::LOG2_E;
    let t = f64::from(y) * log2;
    let t = if t > 300.0 { 300.0 } else { t };
    let t = if t < -300.0 { -300.0 } else { t };
    let shifted = t + ROUND_F64;
    let r = (t - (shifted - ROUND_F64)) * std::f64::consts::LN_2;
    let mut q = 1.0 / 479_001_600.0;
    q = q * r + 1.0 / 39_916_800.0;
    q = q * r + 1.0 / 3_628_800.0;
    q = q * r + 1.0 / 362_880.0;
    q = q * r + 1.0 / 40_320.0;
    q = q * r + 1.0 / 5_040.0;
    q = q * r + 1.0 / 720.0;
    q = q * r + 1.0 / 120.0;
    q = q * r + 1.0 / 24.0;
    q = q * r + 1.0 / 6.0;
    q = q * r + 0.5;
    q = q * r + 1.0;
    q = q * r + 1.0;
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let magnitude = (q * scale) as f32;

    let ax = x.abs();
    let to_edge = if y > 0.0 { 0.0 } else { f32::INFINITY };
    let from_edge = if y > 0.0 { f32::INFINITY } else { 0.0 };
    let magnitude = if ax == 0.0 { to_edge } else { magnitude };
    let magnitude = if ax == f32::INFINITY { from_edge } else { magnitude };
    let magnitude = if ax == 1.0 { 1.0 } else { magnitude };
    let integer = y.trunc() == y;
    let half = y * 0.5;
    let odd = integer && half.trunc() != half;
    let negative = x.is_sign_negative();
    let signed = if negative && odd { -magnitude } else { magnitude };
    let undefined = x < 0.0 && ax != f32::INFINITY && !integer;
    let signed = if undefined || x.is_nan() || y.is_nan() { f32::NAN } else { signed };
    if x == 1.0 || y == 0.0 { 1.0 } else { signed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXP_LOG_ULP: f64 = 2.0;
    const TANH_ULP: f64 = 2.5;
    /// Computed in f64: half an ULP from the final rounding, and next to nothing before it.
    const WIDE_ULP: f64 = 1.0;

    /// Distance of `got` from `exact` in units of the last place of an f32 near `exact`.
    fn ulp_error(got: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if nearest.is_nan() || nearest.is_infinite() || got.is_nan() || got.is_infinite() {
            let same = nearest.is_nan() && got.is_nan() || nearest == got;
            // A result that rounds to infinity may also stop at the largest finite number.
            let edge = nearest.abs() == f32::INFINITY && got.abs() == f32::MAX
                || got.abs() == f32::INFINITY && nearest.abs() == f32::MAX;
            return if same {
                0.0
            } else if edge {
                1.0
            } else {
                f64::INFINITY
            };
        }
        let exponent = ((nearest.abs().to_bits() >> 23) as i32).max(1) - 127;
        (f64::from(got) - exact).abs() / 2f64.powi(exponent - 23)
    }

    /// Every 1499th f32 of either sign, and the special ones.
    fn sweep() -> impl Iterator<Item = f32> {
        let special = [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE];
        special.into_iter().chain((0..u32::MAX).step_by(1499).map(f32::from_bits))
    }

    fn worst(got: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f32) {
        sweep()
            .map(|x| (ulp_error(got(x), exact(f64::from(x))), x))
            .fold((0.0, 0.0), |worst, one| if one.0 > worst.0 { one } else { worst })
    }

    #[test]
    fn exp_and_log_stay_within_two_ulp_everywhere() {
        let (error, at) = worst(exp, f64::exp);
        assert!(error <= EXP_LOG_ULP, "exp is {error} ULP off at {at:e}");
        let (error, at) = worst(log, f64::ln);
        assert!(error <= EXP_LOG_ULP, "log is {error} ULP off at {at:e}");
    }

    #[test]
    fn exp_and_log_stay_within_two_ulp_where_programs_use_them() {
        for step in 0..400_000 {
            let x = -20.0 + step as f32 * 1e-4;
            let error = ulp_error(exp(x), f64::from(x).exp());
            assert!(error <= EXP_LOG_ULP, "exp is {error} ULP off at {x}");
            let x = 0.5 + step as f32 * 5e-6;
            let error = ulp_error(log(x), f64::from(x).ln());
            assert!(error <= EXP_LOG_ULP, "log is {error} ULP off at {x}");
        }
    }

    #[test]
    fn tanh_stays_within_its_bound_and_keeps_the_sign_of_zero() {
        let (error, at) = worst(tanh, f64::tanh);
        assert!(error <= TANH_ULP, "tanh is {error} ULP off at {at:e}");
        assert!(tanh(-0.0).is_sign_negative());
    }

    #[test]
    fn sine_and_cosine_are_right_to_the_last_place_at_any_angle() {
        let (error, at) = worst(|x| sin([x; LANES])[3], f64::sin);
        assert!(error <= WIDE_ULP, "sin is {error} ULP off at {at:e}");
        let (error, at) = worst(|x| cos([x; LANES])[0], f64::cos);
        assert!(error <= WIDE_ULP, "cos is {error} ULP off at {at:e}");
        assert!(sin([-0.0; LANES])[0].is_sign_negative());
    }

    #[test]
    fn pow_agrees_with_f64_on_ordinary_and_special_arguments() {
        let edges = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -0.5,
            2.0,
            -2.0,
            3.0,
            -3.0,
            1e-40,
            -1e-40,
            1e38,
            16_777_217.0,
            33_554_433.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        let check = |x: f32, y: f32| {
            let exact = f64::from(x).powf(f64::from(y));
            let got = pow(x, y);
            let error = ulp_error(got, exact);
            assert!(error <= WIDE_ULP, "pow({x:e}, {y:e}) = {got:e}, expected {exact:e}");
            assert!(
                exact.is_nan() || got.is_sign_negative() == exact.is_sign_negative(),
                "pow({x:e}, {y:e})"
            );
        };
        for x in edges {
            edges.iter().for_each(|y| check(x, *y));
            sweep().step_by(97).for_each(|y| {
                check(x, y);
                check(y, x);
            });
        }
        for step in 0..100_000 {
            let t = step as f32 * 1e-3;
            check(t, 40.0 - t);
        }
    }
}

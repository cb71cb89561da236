//! Conversions between types, and between half-precision memory and the f32 that programs compute in.

use super::Rep;
use super::lanes::{KernelFn, LANES, Loop, Map1, Operands, kernel1, run};
use crate::kernels::cpu::simd::{Portable, Simd};
use half::f16;
use std::hint::black_box;
use std::marker::PhantomData;

/// A cast to `U` as Rust's `as` defines it: floats to integers saturate with NaN as 0, integers wrap.
struct As<U>(PhantomData<U>);

macro_rules! as_casts {
    ($($from:ty => $($to:ty),*;)*) => {$($(
        impl Map1<$from> for As<$to> {
            type Out = $to;
            #[inline(always)]
            fn map(x: $from) -> $to { x as $to }
        }
    )*)*};
}

as_casts! {
    i8 => u16, u32, u64, f32, f64;
    u8 => u16, u32, u64, f32, f64;
    i16 => u8, u32, u64, f32, f64;
    u16 => u8, u32, u64, f32, f64;
    i32 => u8, u16, u64, f32, f64;
    u32 => u8, u16, u64, f32, f64;
    i64 => u8, u16, u32, f32, f64;
    u64 => u8, u16, u32, f32, f64;
    f32 => i8, u8, i16, u16, u32, i64, u64, f64;
    f64 => i8, u8, i16, u16, i32, u32, i64, u64, f32;
}

impl Map1<f32> for As<i32> {
    type Out = i32;

    /// As `x as i32`, in a form that becomes vector code.
    #[inline(always)]
    fn map(x: f32) -> i32 {
        let low = if x < -2_147_483_648.0 { -2_147_483_648.0 } else { x };
        let number = if low.is_nan() { 0.0 } else { low };
        let above = number >= 2_147_483_648.0;
        let inside = if above { 0.0 } else { number };
        // SAFETY: not NaN, at least -2^31 and below 2^31.
        let converted = unsafe { inside.to_int_unchecked::<i32>() };
        if above { i32::MAX } else { converted }
    }
}

/// Whether the element is not zero.
struct NonZero;

macro_rules! non_zero {
    ($($ty:ty),*) => {$(
        impl Map1<$ty> for NonZero {
            type Out = u8;
            #[inline(always)]
            fn map(x: $ty) -> u8 { u8::from(x != 0 as $ty) }
        }
    )*};
}

non_zero! { u8, u16, u32, u64, f32, f64 }

/// To f32 with an inexact result made odd, so that rounding it once more to 11 bits or fewer is as good as rounding
/// the original (S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57(4), 2008).
struct Odd;

impl Map1<f64> for Odd {
    type Out = f32;

    #[inline(always)]
    fn map(x: f64) -> f32 {
        let near = x as f32;
        let back = f64::from(near);
        let bits = near.to_bits();
        // One step towards zero if `near` lies beyond `x`; infinity stands beyond every finite number.
        let truncated = if back.abs() > x.abs() { bits.wrapping_sub(1) } else { bits };
        if back == x || x.is_nan() { near } else { f32::from_bits(truncated | 1) }
    }
}

macro_rules! odd_from_integer {
    ($($ty:ty),*) => {$(
        impl Map1<$ty> for Odd {
            type Out = f32;
            #[inline(always)]
            fn map(x: $ty) -> f32 { <Odd as Map1<f64>>::map(x as f64) }
        }
    )*};
}

odd_from_integer! { i32, u32 }

impl Map1<i64> for Odd {
    type Out = f32;

    #[inline(always)]
    fn map(x: i64) -> f32 {
        let magnitude = <Odd as Map1<u64>>::map(x.unsigned_abs());
        if x < 0 { -magnitude } else { magnitude }
    }
}

impl Map1<u64> for Odd {
    type Out = f32;

    #[inline(always)]
    fn map(x: u64) -> f32 {
        // The low bits of large numbers become one sticky bit, which leaves 53 bits: exact in f64.
        let sticky = (x & !0x7ff) | (u64::from(x & 0x7ff != 0) << 11);
        let exact = if x >> 53 == 0 { x } else { sticky };
        <Odd as Map1<f64>>::map(exact as f64)
    }
}

/// Rounds to bf16, as f32.
struct RoundBf16;
/// The bits of a bf16 as f32.
struct WidenBf16;
/// The bf16 of an f32 that is one already.
struct NarrowBf16;

impl Map1<f32> for RoundBf16 {
    type Out = f32;

    #[inline(always)]
    fn map(x: f32) -> f32 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
        f32::from_bits(if x.is_nan() { (bits | 0x0040_0000) & 0xffff_0000 } else { rounded })
    }
}

impl Map1<u16> for WidenBf16 {
    type Out = f32;

    #[inline(always)]
    fn map(x: u16) -> f32 {
        f32::from_bits(u32::from(x) << 16)
    }
}

impl Map1<f32> for NarrowBf16 {
    type Out = u16;

    #[inline(always)]
    fn map(x: f32) -> u16 {
        (x.to_bits() >> 16) as u16
    }
}

/// f16 in memory to f32.
struct WidenF16;
/// f32 to f16 in memory, rounded to nearest even.
struct NarrowF16;
/// Rounds to f16, as f32.
struct RoundF16;

impl Loop for WidenF16 {
    #[inline(always)]
    unsafe fn run<S: Simd>(operands: &Operands, n: usize) {
        let mut at = 0;
        while at < n {
            // SAFETY: the caller vouches for `n` elements, and LANES is a multiple of the vector's lanes.
            unsafe {
                let x = operands.load::<u16>(0, at);
                let mut out = [0f32; LANES];
                for lane in (0..LANES).step_by(S::LANES) {
                    S::store(out.as_mut_ptr().add(lane), S::load_f16(x.as_ptr().add(lane).cast::<f16>()));
                }
                operands.store(at, out);
            }
            at += LANES;
            black_box(());
        }
    }
}

impl Loop for NarrowF16 {
    #[inline(always)]
    unsafe fn run<S: Simd>(operands: &Operands, n: usize) {
        let mut at = 0;
        while at < n {
            // SAFETY: as in `WidenF16`.
            unsafe {
                let x = operands.load::<f32>(0, at);
                let mut out = [f16::ZERO; LANES];
                for lane in (0..LANES).step_by(S::LANES) {
                    S::store_f16(out.as_mut_ptr().add(lane), S::load(x.as_ptr().add(lane)));
                }
                operands.store(at, out);
            }
            at += LANES;
            black_box(());
        }
    }
}

impl Loop for RoundF16 {
    #[inline(always)]
    unsafe fn run<S: Simd>(operands: &Operands, n: usize) {
        let mut at = 0;
        while at < n {
            // SAFETY: as in `WidenF16`.
            unsafe {
                let mut x = operands.load::<f32>(0, at);
                let mut half = [f16::ZERO; LANES];
                for lane in (0..LANES).step_by(S::LANES) {
                    S::store_f16(half.as_mut_ptr().add(lane), S::load(x.as_ptr().add(lane)));
                    S::store(x.as_mut_ptr().add(lane), S::load_f16(half.as_ptr().add(lane)));
                }
                operands.store(at, x);
            }
            at += LANES;
            black_box(());
        }
    }
}

/// Half precision formats, which programs hold as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    F16,
    Bf16,
}

/// The loop from memory of a half format to f32.
pub(super) fn widen<S: Simd>(half: Half) -> KernelFn {
    match half {
        Half::F16 => run::<S, WidenF16>,
        Half::Bf16 => kernel1::<S, u16, WidenBf16>(),
    }
}

/// The loop from f32 that are values of a half format to its memory.
pub(super) fn narrow<S: Simd>(half: Half) -> KernelFn {
    match half {
        Half::F16 => run::<S, NarrowF16>,
        Half::Bf16 => kernel1::<S, f32, NarrowBf16>(),
    }
}

/// The loop that rounds f32 to values of a half format.
pub(super) fn round<S: Simd>(half: Half) -> KernelFn {
    match half {
        Half::F16 => run::<S, RoundF16>,
        Half::Bf16 => kernel1::<S, f32, RoundBf16>(),
    }
}

/// The loop that maps every non-zero element to 1.
pub(super) fn non_zero<S: Simd>(from: Rep) -> KernelFn {
    match from {
        Rep::F32 => kernel1::<S, f32, NonZero>(),
        Rep::F64 => kernel1::<Portable, f64, NonZero>(),
        _ => match from.size() {
            1 => kernel1::<Portable, u8, NonZero>(),
            2 => kernel1::<Portable, u16, NonZero>(),
            4 => kernel1::<Portable, u32, NonZero>(),
            _ => kernel1::<Portable, u64, NonZero>(),
        },
    }
}

/// The loop that converts to f32 for a second rounding to a half format; `None` where f32 holds every value.
pub(super) fn to_odd(from: Rep) -> Option<KernelFn> {
    Some(match from {
        Rep::I32 => kernel1::<Portable, i32, Odd>(),
        Rep::U32 => kernel1::<Portable, u32, Odd>(),
        Rep::I64 => kernel1::<Portable, i64, Odd>(),
        Rep::U64 => kernel1::<Portable, u64, Odd>(),
        Rep::F64 => kernel1::<Portable, f64, Odd>(),
        _ => return None,
    })
}

/// The loop of a conversion that changes the representation; `None` where the bits stay the same.
pub(super) fn convert<S: Simd>(from: Rep, to: Rep) -> Option<KernelFn> {
    // An integer of another width: the signedness of the source alone decides.
    macro_rules! integer {
        ($from:ty; $($size:literal $to:ty),*) => {
            match (to, to.size()) {
                (Rep::F32, _) => Some(kernel1::<S, $from, As<f32>>()),
                (Rep::F64, _) => Some(kernel1::<Portable, $from, As<f64>>()),
                $((_, $size) => Some(kernel1::<Portable, $from, As<$to>>()),)*
                _ => None,
            }
        };
    }
    macro_rules! float {
        ($from:ty; $($to:ident $ty:ty),*) => {
            match to {
                Rep::I32 => Some(kernel1::<S, $from, As<i32>>()),
                $(Rep::$to => Some(kernel1::<Portable, $from, As<$ty>>()),)*
                _ => None,
            }
        };
    }
    match from {
        Rep::I8 => integer!(i8; 2 u16, 4 u32, 8 u64),
        Rep::U8 => integer!(u8; 2 u16, 4 u32, 8 u64),
        Rep::I16 => integer!(i16; 1 u8, 4 u32, 8 u64),
        Rep::U16 => integer!(u16; 1 u8, 4 u32, 8 u64),
        Rep::I32 => integer!(i32; 1 u8, 2 u16, 8 u64),
        Rep::U32 => integer!(u32; 1 u8, 2 u16, 8 u64),
        Rep::I64 => integer!(i64; 1 u8, 2 u16, 4 u32),
        Rep::U64 => integer!(u64; 1 u8, 2 u16, 4 u32),
        Rep::F32 => float!(f32; I8 i8, U8 u8, I16 i16, U16 u16, U32 u32, I64 i64, U64 u64, F64 f64),
        Rep::F64 => float!(f64; I8 i8, U8 u8, I16 i16, U16 u16, U32 u32, I64 i64, U64 u64, F32 f32),
    }
}

//! The functions of a step on single elements, per type, and the table that finds their loops.
//!
//! Loops over f32, 32-bit integers and `bool` are compiled for every instruction set; those over other types, which
//! networks seldom compute in, are portable, since each of these hundreds of loops takes its time to compile.

use super::Rep;
use super::lanes::{KernelFn, LANES, Map1, Map2, Map3, Map4, kernel1, kernel2, kernel3, kernel4};
use super::math;
use crate::cluster::{BinaryOp, CompareOp, UnaryOp};
use crate::kernels::cpu::simd::{Portable, Simd};

/// Defines unit structs that are functions of one element.
macro_rules! map1 {
    ($($name:ident: $($ty:ty),+ => |$x:ident| -> $out:ty { $body:expr })*) => {$($(
        impl Map1<$ty> for $name {
            type Out = $out;
            #[inline(always)]
            fn map($x: $ty) -> $out { $body }
        }
    )+)*};
    ($($name:ident: $($ty:ty),+ => |$x:ident| { $body:expr })*) => {$($(
        impl Map1<$ty> for $name {
            type Out = $ty;
            #[inline(always)]
            fn map($x: $ty) -> $ty { $body }
        }
    )+)*};
}

/// Defines unit structs that are functions of two elements.
macro_rules! map2 {
    ($($name:ident: $($ty:ty),+ => |$a:ident, $b:ident| -> $out:ty { $body:expr })*) => {$($(
        impl Map2<$ty> for $name {
            type Out = $out;
            #[inline(always)]
            fn map($a: $ty, $b: $ty) -> $out { $body }
        }
    )+)*};
    ($($name:ident: $($ty:ty),+ => |$a:ident, $b:ident| { $body:expr })*) => {$($(
        impl Map2<$ty> for $name {
            type Out = $ty;
            #[inline(always)]
            fn map($a: $ty, $b: $ty) -> $ty { $body }
        }
    )+)*};
}

/// The code of a function, by name.
macro_rules! functions { ($($name:ident)*) => {$( pub(crate) struct $name; )*}; }

functions! {
    Neg Abs Sign Floor Ceil Round Exp Log Sqrt Rsqrt Sin Cos Tanh Not NotBool
    Add Sub Mul Div Rem Pow Max Min And Or Xor Shl Shr Eq Lt Le Select Copy
}

map1! {
    Neg: f32, f64 => |x| { -x }
    Neg: u8, u16, u32, u64 => |x| { x.wrapping_neg() }
    Abs: f32, f64 => |x| { x.abs() }
    Abs: i8, i16, i32, i64 => |x| { x.wrapping_abs() }
    Abs: u8, u16, u32, u64 => |x| { x }
    Sign: f32, f64 => |x| { if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x } }
    Sign: i8, i16, i32, i64 => |x| { if x > 0 { 1 } else if x < 0 { -1 } else { 0 } }
    Sign: u8, u16, u32, u64 => |x| { if x > 0 { 1 } else { 0 } }
    Floor: f32, f64 => |x| { x.floor() }
    Ceil: f32, f64 => |x| { x.ceil() }
    Round: f32, f64 => |x| { x.round_ties_even() }
    Sqrt: f32, f64 => |x| { x.sqrt() }
    Rsqrt: f32, f64 => |x| { 1.0 / x.sqrt() }
    Exp: f32 => |x| { math::exp(x) }
    Log: f32 => |x| { math::log(x) }
    Tanh: f32 => |x| { math::tanh(x) }
    Exp: f64 => |x| { x.exp() }
    Log: f64 => |x| { x.ln() }
    Tanh: f64 => |x| { x.tanh() }
    Sin: f64 => |x| { x.sin() }
    Cos: f64 => |x| { x.cos() }
    Not: u8, u16, u32, u64 => |x| { !x }
    NotBool: u8 => |x| { x ^ 1 }
    Copy: u8, u16, u32, u64 => |x| { x }
}

impl Map1<f32> for Sin {
    type Out = f32;

    #[inline(always)]
    fn map(x: f32) -> f32 {
        math::sin([x; LANES])[0]
    }

    #[inline(always)]
    fn block(x: [f32; LANES]) -> [f32; LANES] {
        math::sin(x)
    }
}

impl Map1<f32> for Cos {
    type Out = f32;

    #[inline(always)]
    fn map(x: f32) -> f32 {
        math::cos([x; LANES])[0]
    }

    #[inline(always)]
    fn block(x: [f32; LANES]) -> [f32; LANES] {
        math::cos(x)
    }
}

map2! {
    Add: f32, f64 => |a, b| { a + b }
    Sub: f32, f64 => |a, b| { a - b }
    Mul: f32, f64 => |a, b| { a * b }
    Div: f32, f64 => |a, b| { a / b }
    Rem: f32, f64 => |a, b| { a % b }
    Pow: f32 => |a, b| { math::pow(a, b) }
    Pow: f64 => |a, b| { a.powf(b) }
    Max: f32, f64 => |a, b| { if a > b || a.is_nan() { a } else { b } }
    Min: f32, f64 => |a, b| { if a < b || a.is_nan() { a } else { b } }
    Add: u8, u16, u32, u64 => |a, b| { a.wrapping_add(b) }
    Sub: u8, u16, u32, u64 => |a, b| { a.wrapping_sub(b) }
    Mul: u8, u16, u32, u64 => |a, b| { a.wrapping_mul(b) }
    And: u8, u16, u32, u64 => |a, b| { a & b }
    Or: u8, u16, u32, u64 => |a, b| { a | b }
    Xor: u8, u16, u32, u64 => |a, b| { a ^ b }
    Div: i8, i16, i32, i64, u8, u16, u32, u64 => |a, b| { if b == 0 { 0 } else { a.wrapping_div(b) } }
    Rem: i8, i16, i32, i64, u8, u16, u32, u64 => |a, b| { if b == 0 { 0 } else { a.wrapping_rem(b) } }
    Max: i8, i16, i32, i64, u8, u16, u32, u64 => |a, b| { if a > b { a } else { b } }
    Min: i8, i16, i32, i64, u8, u16, u32, u64 => |a, b| { if a < b { a } else { b } }
}

/// Shifts; an amount that is negative counts as larger than the width.
macro_rules! shifts {
    ($($signed:ty, $unsigned:ty);*) => {$(
        impl Map2<$unsigned> for Shl {
            type Out = $unsigned;
            #[inline(always)]
            fn map(a: $unsigned, b: $unsigned) -> $unsigned {
                if b < <$unsigned>::BITS as $unsigned { a.wrapping_shl(b as u32) } else { 0 }
            }
        }
        impl Map2<$unsigned> for Shr {
            type Out = $unsigned;
            #[inline(always)]
            fn map(a: $unsigned, b: $unsigned) -> $unsigned {
                if b < <$unsigned>::BITS as $unsigned { a.wrapping_shr(b as u32) } else { 0 }
            }
        }
        impl Map2<$signed> for Shr {
            type Out = $signed;
            #[inline(always)]
            fn map(a: $signed, b: $signed) -> $signed {
                let last = <$unsigned>::BITS as $unsigned - 1;
                let amount = if (b as $unsigned) < last { b as $unsigned } else { last };
                a.wrapping_shr(amount as u32)
            }
        }
    )*};
}

shifts! { i8, u8; i16, u16; i32, u32; i64, u64 }

map2! {
    Eq: f32, f64, u8, u16, u32, u64 => |a, b| -> u8 { u8::from(a == b) }
    Lt: f32, f64, i8, i16, i32, i64, u8, u16, u32, u64 => |a, b| -> u8 { u8::from(a < b) }
    Le: f32, f64, i8, i16, i32, i64, u8, u16, u32, u64 => |a, b| -> u8 { u8::from(a <= b) }
}

macro_rules! select {
    ($($ty:ty),*) => {$(
        impl Map3<u8, $ty> for Select {
            #[inline(always)]
            fn map(condition: u8, a: $ty, b: $ty) -> $ty {
                if condition != 0 { a } else { b }
            }
        }
    )*};
}

select! { u8, u16, u32, u64 }

/// `F` on two elements, then `G` on its result (first) and a third element.
pub(super) struct Then<F, G>(F, G);
/// `F` on two elements, then `G` on a third element (first) and its result.
pub(super) struct ThenReversed<F, G>(F, G);
/// `F` on two elements, then the function `G` of one.
pub(super) struct ThenOne<F, G>(F, G);
/// The third of four elements where the comparison `F` of the first two holds, else the fourth.
pub(super) struct CompareSelect<F>(F);

impl<F: Map2<f32, Out = f32>, G: Map2<f32, Out = f32>> Map3<f32, f32> for Then<F, G> {
    #[inline(always)]
    fn map(a: f32, b: f32, c: f32) -> f32 {
        G::map(F::map(a, b), c)
    }
}

impl<F: Map2<f32, Out = f32>, G: Map2<f32, Out = f32>> Map3<f32, f32> for ThenReversed<F, G> {
    #[inline(always)]
    fn map(a: f32, b: f32, c: f32) -> f32 {
        G::map(c, F::map(a, b))
    }
}

impl<F: Map2<f32, Out = f32>, G: Map1<f32, Out = f32>> Map2<f32> for ThenOne<F, G> {
    type Out = f32;

    #[inline(always)]
    fn map(a: f32, b: f32) -> f32 {
        G::map(F::map(a, b))
    }
}

impl<F: Map2<f32, Out = u8>> Map4<f32> for CompareSelect<F> {
    #[inline(always)]
    fn map(a: f32, b: f32, c: f32, d: f32) -> f32 {
        if F::map(a, b) != 0 { c } else { d }
    }
}

/// Finds the loop of a function of one element.
pub(super) fn unary<S: Simd>(op: UnaryOp, rep: Rep, is_bool: bool) -> Option<KernelFn> {
    macro_rules! float {
        ($f:ident) => {
            match rep {
                Rep::F32 => kernel1::<S, f32, $f>(),
                Rep::F64 => kernel1::<Portable, f64, $f>(),
                _ => return None,
            }
        };
    }
    macro_rules! any {
        ($f:ident) => {
            match rep {
                Rep::I8 => kernel1::<Portable, i8, $f>(),
                Rep::U8 => kernel1::<Portable, u8, $f>(),
                Rep::I16 => kernel1::<Portable, i16, $f>(),
                Rep::U16 => kernel1::<Portable, u16, $f>(),
                Rep::I32 => kernel1::<S, i32, $f>(),
                Rep::U32 => kernel1::<S, u32, $f>(),
                Rep::I64 => kernel1::<Portable, i64, $f>(),
                Rep::U64 => kernel1::<Portable, u64, $f>(),
                Rep::F32 => kernel1::<S, f32, $f>(),
                Rep::F64 => kernel1::<Portable, f64, $f>(),
            }
        };
    }
    macro_rules! bits {
        ($f:ident) => {
            match rep.size() {
                1 => kernel1::<Portable, u8, $f>(),
                2 => kernel1::<Portable, u16, $f>(),
                4 => kernel1::<S, u32, $f>(),
                _ => kernel1::<Portable, u64, $f>(),
            }
        };
    }
    Some(match op {
        UnaryOp::Neg if rep.is_float() => float!(Neg),
        UnaryOp::Neg => bits!(Neg),
        UnaryOp::Abs => any!(Abs),
        UnaryOp::Sign => any!(Sign),
        UnaryOp::Floor => float!(Floor),
        UnaryOp::Ceil => float!(Ceil),
        UnaryOp::Round => float!(Round),
        UnaryOp::Exp => float!(Exp),
        UnaryOp::Log => float!(Log),
        UnaryOp::Sqrt => float!(Sqrt),
        UnaryOp::Rsqrt => float!(Rsqrt),
        UnaryOp::Sin => float!(Sin),
        UnaryOp::Cos => float!(Cos),
        UnaryOp::Tanh => float!(Tanh),
        UnaryOp::Not if is_bool => kernel1::<S, u8, NotBool>(),
        UnaryOp::Not if rep.is_float() => return None,
        UnaryOp::Not => bits!(Not),
    })
}

/// Loops of a function of two elements by the kinds of types that it is written for.
macro_rules! by_kind2 {
    ($rep:expr, float, $f:ident) => {
        match $rep {
            Rep::F32 => kernel2::<S, f32, $f>(),
            Rep::F64 => kernel2::<Portable, f64, $f>(),
            _ => return None,
        }
    };
    ($rep:expr, bits, $f:ident) => {
        match $rep.size() {
            1 => kernel2::<S, u8, $f>(),
            2 => kernel2::<Portable, u16, $f>(),
            4 => kernel2::<S, u32, $f>(),
            _ => kernel2::<Portable, u64, $f>(),
        }
    };
    ($rep:expr, integer, $f:ident) => {
        match $rep {
            Rep::I8 => kernel2::<Portable, i8, $f>(),
            Rep::U8 => kernel2::<Portable, u8, $f>(),
            Rep::I16 => kernel2::<Portable, i16, $f>(),
            Rep::U16 => kernel2::<Portable, u16, $f>(),
            Rep::I32 => kernel2::<S, i32, $f>(),
            Rep::U32 => kernel2::<S, u32, $f>(),
            Rep::I64 => kernel2::<Portable, i64, $f>(),
            Rep::U64 => kernel2::<Portable, u64, $f>(),
            _ => return None,
        }
    };
}

/// Finds the loop of a function of two elements.
pub(super) fn binary<S: Simd>(op: BinaryOp, rep: Rep) -> Option<KernelFn> {
    let float = rep.is_float();
    Some(match op {
        BinaryOp::Add if float => by_kind2!(rep, float, Add),
        BinaryOp::Add => by_kind2!(rep, bits, Add),
        BinaryOp::Sub if float => by_kind2!(rep, float, Sub),
        BinaryOp::Sub => by_kind2!(rep, bits, Sub),
        BinaryOp::Mul if float => by_kind2!(rep, float, Mul),
        BinaryOp::Mul => by_kind2!(rep, bits, Mul),
        BinaryOp::Div if float => by_kind2!(rep, float, Div),
        BinaryOp::Div => by_kind2!(rep, integer, Div),
        BinaryOp::Rem if float => by_kind2!(rep, float, Rem),
        BinaryOp::Rem => by_kind2!(rep, integer, Rem),
        BinaryOp::Pow => by_kind2!(rep, float, Pow),
        BinaryOp::Max if float => by_kind2!(rep, float, Max),
        BinaryOp::Max => by_kind2!(rep, integer, Max),
        BinaryOp::Min if float => by_kind2!(rep, float, Min),
        BinaryOp::Min => by_kind2!(rep, integer, Min),
        _ if float => return None,
        BinaryOp::And => by_kind2!(rep, bits, And),
        BinaryOp::Or => by_kind2!(rep, bits, Or),
        BinaryOp::Xor => by_kind2!(rep, bits, Xor),
        BinaryOp::Shl => by_kind2!(rep, bits, Shl),
        BinaryOp::Shr => by_kind2!(rep, integer, Shr),
    })
}

/// Finds the loop of a comparison.
pub(super) fn compare<S: Simd>(op: CompareOp, rep: Rep) -> Option<KernelFn> {
    let float = rep.is_float();
    Some(match op {
        CompareOp::Eq if float => by_kind2!(rep, float, Eq),
        CompareOp::Eq => by_kind2!(rep, bits, Eq),
        CompareOp::Lt if float => by_kind2!(rep, float, Lt),
        CompareOp::Lt => by_kind2!(rep, integer, Lt),
        CompareOp::Le if float => by_kind2!(rep, float, Le),
        CompareOp::Le => by_kind2!(rep, integer, Le),
    })
}

/// The loop that selects elements of `size` bytes by a `bool`.
pub(super) fn select<S: Simd>(size: usize) -> KernelFn {
    match size {
        1 => kernel3::<S, u8, u8, Select>(),
        2 => kernel3::<Portable, u8, u16, Select>(),
        4 => kernel3::<S, u8, u32, Select>(),
        _ => kernel3::<Portable, u8, u64, Select>(),
    }
}

/// The loop that copies elements of `size` bytes.
pub(super) fn copy<S: Simd>(size: usize) -> KernelFn {
    match size {
        1 => kernel1::<S, u8, Copy>(),
        2 => kernel1::<S, u16, Copy>(),
        4 => kernel1::<S, u32, Copy>(),
        _ => kernel1::<S, u64, Copy>(),
    }
}

/// The loop that compares two f32 and selects one of two others.
pub(super) fn compare_select<S: Simd>(op: CompareOp) -> KernelFn {
    match op {
        CompareOp::Eq => kernel4::<S, f32, CompareSelect<Eq>>(),
        CompareOp::Lt => kernel4::<S, f32, CompareSelect<Lt>>(),
        CompareOp::Le => kernel4::<S, f32, CompareSelect<Le>>(),
    }
}

/// The loop of `first` on two f32 followed by `second` on the result and a third; with `reversed`, on the third and
/// the result. Each rounds on its own, as the two loops would.
pub(super) fn then<S: Simd>(first: BinaryOp, second: BinaryOp, reversed: bool) -> Option<KernelFn> {
    macro_rules! second {
        ($f:ident) => {
            match (second, reversed) {
                (BinaryOp::Add, _) => kernel3::<S, f32, f32, Then<$f, Add>>(),
                (BinaryOp::Mul, _) => kernel3::<S, f32, f32, Then<$f, Mul>>(),
                (BinaryOp::Max, false) => kernel3::<S, f32, f32, Then<$f, Max>>(),
                (BinaryOp::Max, true) => kernel3::<S, f32, f32, ThenReversed<$f, Max>>(),
                (BinaryOp::Sub, false) => kernel3::<S, f32, f32, Then<$f, Sub>>(),
                (BinaryOp::Sub, true) => kernel3::<S, f32, f32, ThenReversed<$f, Sub>>(),
                (BinaryOp::Div, false) => kernel3::<S, f32, f32, Then<$f, Div>>(),
                (BinaryOp::Div, true) => kernel3::<S, f32, f32, ThenReversed<$f, Div>>(),
                _ => return None,
            }
        };
    }
    Some(match first {
        BinaryOp::Add => second!(Add),
        BinaryOp::Sub => second!(Sub),
        BinaryOp::Mul => second!(Mul),
        BinaryOp::Div => second!(Div),
        _ => return None,
    })
}

/// The loop of `first` on two f32 followed by `second` on the result.
pub(super) fn then_one<S: Simd>(first: BinaryOp, second: UnaryOp) -> Option<KernelFn> {
    macro_rules! first {
        ($g:ident) => {
            match first {
                BinaryOp::Add => kernel2::<S, f32, ThenOne<Add, $g>>(),
                BinaryOp::Sub => kernel2::<S, f32, ThenOne<Sub, $g>>(),
                BinaryOp::Mul => kernel2::<S, f32, ThenOne<Mul, $g>>(),
                _ => return None,
            }
        };
    }
    Some(match second {
        UnaryOp::Sqrt => first!(Sqrt),
        UnaryOp::Exp => first!(Exp),
        _ => return None,
    })
}

//! The loops of a reduction: folding a run of elements to one, and folding it into a row of accumulators.

use crate::kernels::cpu::elementwise::Rep;
use crate::kernels::cpu::elementwise::functions::{Add, Max, Min, Mul};
use crate::kernels::cpu::elementwise::lanes::{LANES, Map2};
use crate::kernels::cpu::simd::{Isa, Portable, Simd, Task};
use crate::lower::ReduceKind;
use std::hint::black_box;
use std::marker::PhantomData;

/// Blocks that are folded side by side, so that additions need not wait for each other.
const CHAINS: usize = 8;

/// An accumulator type by its bits, so that callers need not know it.
pub(super) trait Bits: Copy + 'static {
    fn to_bits64(self) -> u64;
    fn from_bits64(bits: u64) -> Self;
}

macro_rules! bits {
    ($($ty:ty: $unsigned:ty, $to:expr, $from:expr;)*) => {$(
        impl Bits for $ty {
            #[inline(always)]
            fn to_bits64(self) -> u64 {
                let to: fn($ty) -> $unsigned = $to;
                u64::from(to(self))
            }
            #[inline(always)]
            fn from_bits64(bits: u64) -> Self {
                let from: fn($unsigned) -> $ty = $from;
                from(bits as $unsigned)
            }
        }
    )*};
}

bits! {
    i8: u8, |x| x as u8, |b| b as i8;
    u8: u8, |x| x, |b| b;
    i16: u16, |x| x as u16, |b| b as i16;
    u16: u16, |x| x, |b| b;
    i32: u32, |x| x as u32, |b| b as i32;
    u32: u32, |x| x, |b| b;
    i64: u64, |x| x as u64, |b| b as i64;
    u64: u64, |x| x, |b| b;
    f32: u32, f32::to_bits, f32::from_bits;
    f64: u64, f64::to_bits, f64::from_bits;
}

/// The loops of one kind of reduction on one type. Types that networks seldom reduce have portable loops alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loops {
    /// Folds `n` elements, which follow each other (step 1) or are one block (step 0), beginning with the identity.
    ///
    /// # Safety
    /// The elements are valid, and the instruction set is available.
    pub(super) fold: unsafe fn(*const u8, usize, usize, u64) -> u64,
    /// Combines `n` elements with as many accumulators, one by one.
    ///
    /// # Safety
    /// The elements and the accumulators are valid and do not overlap, and the instruction set is available.
    pub(super) accumulate: unsafe fn(*mut u8, *const u8, usize, usize),
    /// Folds `rows` rows of `length` elements, which follow each other, each in order, and writes the results.
    ///
    /// # Safety
    /// The elements and the results are valid and do not overlap, and the instruction set is available.
    pub(super) fold_rows: unsafe fn(*const u8, usize, usize, u64, *mut u8),
    /// Combines two.
    pub(super) combine: fn(u64, u64) -> u64,
}

impl Loops {
    /// For `kind` on `rep`; `ArgMax` gets those of `Max`.
    pub(super) fn new(isa: Isa, kind: ReduceKind, rep: Rep) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self::of::<crate::kernels::cpu::simd::Avx512>(kind, rep),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self::of::<crate::kernels::cpu::simd::Avx2>(kind, rep),
            _ => Self::of::<Portable>(kind, rep),
        }
    }

    fn of<S: Simd>(kind: ReduceKind, rep: Rep) -> Self {
        match kind {
            // Wrapping sums and products do not depend on the sign.
            ReduceKind::Sum | ReduceKind::Prod if !rep.is_float() => {
                let sum = kind == ReduceKind::Sum;
                match (sum, rep.size()) {
                    (true, 1) => Self::typed::<Portable, u8, Add>(),
                    (true, 2) => Self::typed::<Portable, u16, Add>(),
                    (true, 4) => Self::typed::<S, u32, Add>(),
                    (true, _) => Self::typed::<Portable, u64, Add>(),
                    (false, 1) => Self::typed::<Portable, u8, Mul>(),
                    (false, 2) => Self::typed::<Portable, u16, Mul>(),
                    (false, 4) => Self::typed::<S, u32, Mul>(),
                    (false, _) => Self::typed::<Portable, u64, Mul>(),
                }
            }
            ReduceKind::Sum if rep == Rep::F64 => Self::typed::<Portable, f64, Add>(),
            ReduceKind::Sum => Self::typed::<S, f32, Add>(),
            ReduceKind::Prod if rep == Rep::F64 => Self::typed::<Portable, f64, Mul>(),
            ReduceKind::Prod => Self::typed::<S, f32, Mul>(),
            ReduceKind::Min => Self::ordered::<S, Min>(rep),
            ReduceKind::Max | ReduceKind::ArgMax => Self::ordered::<S, Max>(rep),
        }
    }

    fn ordered<S: Simd, F>(rep: Rep) -> Self
    where
        F: Map2<i8, Out = i8> + Map2<u8, Out = u8> + Map2<i16, Out = i16> + Map2<u16, Out = u16>,
        F: Map2<i32, Out = i32> + Map2<u32, Out = u32> + Map2<i64, Out = i64> + Map2<u64, Out = u64>,
        F: Map2<f32, Out = f32> + Map2<f64, Out = f64> + 'static,
    {
        match rep {
            Rep::I8 => Self::typed::<Portable, i8, F>(),
            Rep::U8 => Self::typed::<Portable, u8, F>(),
            Rep::I16 => Self::typed::<Portable, i16, F>(),
            Rep::U16 => Self::typed::<Portable, u16, F>(),
            Rep::I32 => Self::typed::<S, i32, F>(),
            Rep::U32 => Self::typed::<Portable, u32, F>(),
            Rep::I64 => Self::typed::<Portable, i64, F>(),
            Rep::U64 => Self::typed::<Portable, u64, F>(),
            Rep::F32 => Self::typed::<S, f32, F>(),
            Rep::F64 => Self::typed::<Portable, f64, F>(),
        }
    }

    fn typed<S: Simd, T: Bits, F: Map2<T, Out = T> + 'static>() -> Self {
        Self {
            fold: |from, step, n, identity| {
                let task = Fold::<T, F> {
                    from: from.cast(),
                    step,
                    n,
                    identity: T::from_bits64(identity),
                    kind: PhantomData,
                };
                // SAFETY: the caller of the loop vouches for the elements and the instruction set.
                unsafe { S::invoke(task) }.to_bits64()
            },
            accumulate: |to, from, step, n| {
                let task =
                    Accumulate::<T, F> { to: to.cast(), from: from.cast(), step, n, kind: PhantomData };
                // SAFETY: as above.
                unsafe { S::invoke(task) }
            },
            fold_rows: |from, rows, length, identity, to| {
                let identity = T::from_bits64(identity);
                let task = FoldRows::<T, F> {
                    from: from.cast(),
                    rows,
                    length,
                    identity,
                    to: to.cast(),
                    kind: PhantomData,
                };
                // SAFETY: as above.
                unsafe { S::invoke(task) }
            },
            combine: |a, b| F::map(T::from_bits64(a), T::from_bits64(b)).to_bits64(),
        }
    }
}

struct Fold<T, F> {
    from: *const T,
    step: usize,
    n: usize,
    identity: T,
    kind: PhantomData<F>,
}

/// Combines two blocks lane by lane.
#[inline(always)]
fn lanewise<T: Copy, F: Map2<T, Out = T>>(mut a: [T; LANES], b: [T; LANES]) -> [T; LANES] {
    for lane in 0..LANES {
        a[lane] = F::map(a[lane], b[lane]);
    }
    a
}

impl<T: Copy, F: Map2<T, Out = T>> Task for Fold<T, F> {
    type Out = T;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> T {
        let Self { from, step, n, identity, .. } = self;
        // SAFETY: `at + LANES <= n` wherever a block is read.
        let block = |at: usize| unsafe { from.add(at * step).cast::<[T; LANES]>().read_unaligned() };
        let mut chains = [[identity; LANES]; CHAINS];
        let mut at = 0;
        while at + CHAINS * LANES <= n {
            for (chain, total) in chains.iter_mut().enumerate() {
                *total = lanewise::<T, F>(*total, block(at + chain * LANES));
            }
            at += CHAINS * LANES;
            black_box(());
        }
        while at + LANES <= n {
            chains[0] = lanewise::<T, F>(chains[0], block(at));
            at += LANES;
            black_box(());
        }
        if at < n {
            let mut rest = [identity; LANES];
            for (lane, rest) in rest.iter_mut().enumerate().take(n - at) {
                // SAFETY: `at + lane < n`; a block of equal elements has LANES of them.
                *rest = unsafe { from.add(at * step + lane).read_unaligned() };
            }
            chains[1] = lanewise::<T, F>(chains[1], rest);
        }
        let total = chains[1..].iter().fold(chains[0], |total, chain| lanewise::<T, F>(total, *chain));
        let mut lanes = total;
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] = F::map(lanes[lane], lanes[lane + width]);
            }
            width /= 2;
        }
        lanes[0]
    }
}

struct FoldRows<T, F> {
    from: *const T,
    rows: usize,
    length: usize,
    identity: T,
    to: *mut T,
    kind: PhantomData<F>,
}

impl<T: Copy, F: Map2<T, Out = T>> Task for FoldRows<T, F> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { from, rows, length, identity, to, .. } = self;
        let mut row = 0;
        while row < rows {
            // Rows side by side do not wait for each other; a missing one repeats the last.
            let mut totals = [identity; LANES];
            let last = rows - 1 - row;
            for at in 0..length {
                for (lane, total) in totals.iter_mut().enumerate() {
                    // SAFETY: the row is below `rows`, and `at` below `length`.
                    let element = unsafe { from.add((row + lane.min(last)) * length + at).read_unaligned() };
                    *total = F::map(*total, element);
                }
                black_box(());
            }
            for (lane, total) in totals.iter().enumerate().take(last + 1) {
                // SAFETY: `lane <= last`, so that the row is below `rows`.
                unsafe { to.add(row + lane).write_unaligned(*total) };
            }
            row += LANES;
        }
    }
}

struct Accumulate<T, F> {
    to: *mut T,
    from: *const T,
    step: usize,
    n: usize,
    kind: PhantomData<F>,
}

impl<T: Copy, F: Map2<T, Out = T>> Task for Accumulate<T, F> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { to, from, step, n, .. } = self;
        let mut at = 0;
        while at + LANES <= n {
            // SAFETY: `at + LANES <= n`, and the caller vouches for `n` elements on both sides.
            unsafe {
                let place = to.add(at).cast::<[T; LANES]>();
                let block = from.add(at * step).cast::<[T; LANES]>().read_unaligned();
                place.write_unaligned(lanewise::<T, F>(place.read_unaligned(), block));
            }
            at += LANES;
            black_box(());
        }
        while at < n {
            // SAFETY: `at < n`.
            unsafe {
                let place = to.add(at);
                place.write_unaligned(F::map(place.read_unaligned(), from.add(at * step).read_unaligned()));
            }
            at += 1;
            black_box(());
        }
    }
}

/// Finds the first element that is `largest`, as `ArgMax` sees it, among `n` of `rep`: a NaN is equal to any NaN.
///
/// # Safety
/// The elements are valid; with step 0 all of them are the first.
pub(super) unsafe fn position(from: *const u8, step: usize, n: usize, rep: Rep, largest: u64) -> usize {
    /// # Safety
    /// As above.
    unsafe fn find<T: Copy>(from: *const u8, n: usize, is: impl Fn(T) -> bool) -> usize {
        let from = from.cast::<T>();
        // SAFETY: `at < n`.
        (0..n).find(|at| is(unsafe { from.add(*at).read_unaligned() })).unwrap_or(0)
    }
    if step == 0 {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe {
        match rep {
            Rep::F32 => {
                let largest = f32::from_bits(largest as u32);
                find::<f32>(from, n, |x| x == largest || x.is_nan() && largest.is_nan())
            }
            Rep::F64 => {
                let largest = f64::from_bits(largest);
                find::<f64>(from, n, |x| x == largest || x.is_nan() && largest.is_nan())
            }
            _ => match rep.size() {
                1 => find::<u8>(from, n, |x| x == largest as u8),
                2 => find::<u16>(from, n, |x| x == largest as u16),
                4 => find::<u32>(from, n, |x| x == largest as u32),
                _ => find::<u64>(from, n, |x| x == largest),
            },
        }
    }
}

/// Whether `new` is larger than `best`, where a NaN is larger than any number and equal to any NaN.
pub(super) fn is_larger(rep: Rep, new: u64, best: u64) -> bool {
    match rep {
        Rep::F32 => {
            let (new, best) = (f32::from_bits(new as u32), f32::from_bits(best as u32));
            new > best || new.is_nan() && !best.is_nan()
        }
        Rep::F64 => {
            let (new, best) = (f64::from_bits(new), f64::from_bits(best));
            new > best || new.is_nan() && !best.is_nan()
        }
        Rep::I8 => new as i8 > best as i8,
        Rep::I16 => new as i16 > best as i16,
        Rep::I32 => new as i32 > best as i32,
        Rep::I64 => new as i64 > best as i64,
        Rep::U8 | Rep::U16 | Rep::U32 | Rep::U64 => new > best,
    }
}

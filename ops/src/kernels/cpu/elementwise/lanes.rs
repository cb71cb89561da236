//! Loops over chunks: one generic source per number of operands, compiled for every instruction set.
//!
//! A loop works in blocks of [`LANES`] elements, and loads a block of every operand before it stores one, so the
//! destination may be the very memory of an operand of the same size. An operand either advances with the
//! destination or is a block of equal elements that is read again and again (step 0).

use super::super::simd::{Simd, Task};
use std::hint::black_box;
use std::marker::PhantomData;

/// Elements of a block; every chunk is processed in whole blocks.
pub(crate) const LANES: usize = 16;

/// Where an instruction reads and writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    /// First element of the result.
    pub(crate) dst: *mut u8,
    /// First elements of the operands.
    pub(crate) src: [*const u8; 4],
    /// 1 for an operand that advances, 0 for one that is the same block everywhere.
    pub(crate) step: [usize; 4],
}

/// Runs an instruction over `n` elements, a multiple of [`LANES`].
///
/// # Safety
/// The operands that the instruction uses are valid for `n` elements (or one block, with step 0), the destination
/// for `n`; it equals an operand of the same element size or overlaps none. The instruction set is available.
pub(crate) type KernelFn = unsafe fn(&Operands, usize);

/// A function of one element.
pub(crate) trait Map1<T> {
    /// Type of the result.
    type Out: Copy + Default;

    /// The function.
    fn map(x: T) -> Self::Out;

    /// The function on a block, for those that treat rare elements apart.
    #[inline(always)]
    fn block(x: [T; LANES]) -> [Self::Out; LANES]
    where
        T: Copy,
    {
        let mut out = [Self::Out::default(); LANES];
        for lane in 0..LANES {
            out[lane] = Self::map(x[lane]);
        }
        out
    }
}

/// A function of two elements.
pub(crate) trait Map2<T> {
    /// Type of the result.
    type Out: Copy + Default;

    /// The function.
    fn map(a: T, b: T) -> Self::Out;
}

/// A function of three elements, the first of which may be of another type.
pub(crate) trait Map3<M, T> {
    /// The function.
    fn map(a: M, b: T, c: T) -> T;
}

/// A function of four elements.
pub(crate) trait Map4<T> {
    /// The function.
    fn map(a: T, b: T, c: T, d: T) -> T;
}

/// The loop over a [`Map1`].
pub(crate) fn kernel1<S: Simd, T: Copy + 'static, F: Map1<T> + 'static>() -> KernelFn {
    run::<S, Loop1<T, F>>
}

/// The loop over a [`Map2`].
pub(crate) fn kernel2<S: Simd, T: Copy + 'static, F: Map2<T> + 'static>() -> KernelFn {
    run::<S, Loop2<T, F>>
}

/// The loop over a [`Map3`].
pub(crate) fn kernel3<S: Simd, M: Copy + 'static, T: Copy + 'static, F: Map3<M, T> + 'static>() -> KernelFn {
    run::<S, Loop3<M, T, F>>
}

/// The loop over a [`Map4`].
pub(crate) fn kernel4<S: Simd, T: Copy + 'static, F: Map4<T> + 'static>() -> KernelFn {
    run::<S, Loop4<T, F>>
}

/// The loop `L` in code for `S`.
///
/// # Safety
/// As for [`KernelFn`].
pub(crate) unsafe fn run<S: Simd, L: Loop>(operands: &Operands, n: usize) {
    // SAFETY: the caller's promise is the loop's.
    unsafe { S::invoke(Run::<L> { operands, n, kind: PhantomData }) }
}

/// A loop over blocks.
pub(crate) trait Loop {
    /// Processes `n` elements.
    ///
    /// # Safety
    /// As for [`KernelFn`], with the element types of the loop.
    unsafe fn run<S: Simd>(operands: &Operands, n: usize);
}

struct Run<'a, L> {
    operands: &'a Operands,
    n: usize,
    kind: PhantomData<L>,
}

impl<L: Loop> Task for Run<'_, L> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise is the loop's.
        unsafe { L::run::<S>(self.operands, self.n) }
    }
}

impl Operands {
    /// The block of operand `index` for the elements from `at` on.
    ///
    /// # Safety
    /// The operand holds `T`s, and these elements lie inside.
    #[inline(always)]
    pub(crate) unsafe fn load<T: Copy>(&self, index: usize, at: usize) -> [T; LANES] {
        // SAFETY: the caller's promise.
        unsafe {
            self.src[index].cast::<T>().add(at * self.step[index]).cast::<[T; LANES]>().read_unaligned()
        }
    }

    /// Stores a block of the result from element `at` on.
    ///
    /// # Safety
    /// The destination holds `T`s, and these elements lie inside.
    #[inline(always)]
    pub(crate) unsafe fn store<T: Copy>(&self, at: usize, block: [T; LANES]) {
        // SAFETY: the caller's promise.
        unsafe { self.dst.cast::<T>().add(at).cast::<[T; LANES]>().write_unaligned(block) }
    }
}

struct Loop1<T, F>(PhantomData<(T, F)>);
struct Loop2<T, F>(PhantomData<(T, F)>);
struct Loop3<M, T, F>(PhantomData<(M, T, F)>);
struct Loop4<T, F>(PhantomData<(T, F)>);

// NOTE: `black_box(())` ends each block. Without it the loop vectoriser widens the loop over blocks once more, with
// run-time checks and gathers, instead of leaving the unrolled block to become one vector instruction.

impl<T: Copy, F: Map1<T>> Loop for Loop1<T, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(operands: &Operands, n: usize) {
        let mut at = 0;
        while at < n {
            // SAFETY: `at + LANES <= n`, since `n` is a multiple of LANES; the rest is the caller's promise.
            unsafe { operands.store(at, F::block(operands.load::<T>(0, at))) };
            at += LANES;
            black_box(());
        }
    }
}

impl<T: Copy, F: Map2<T>> Loop for Loop2<T, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(operands: &Operands, n: usize) {
        let mut at = 0;
        while at < n {
            // SAFETY: as in `Loop1`.
            unsafe {
                let (a, b) = (operands.load::<T>(0, at), operands.load::<T>(1, at));
                let mut out = [F::Out::default(); LANES];
                for lane in 0..LANES {
                    out[lane] = F::map(a[lane], b[lane]);
                }
                operands.store(at, out);
            }
            at += LANES;
            black_box(());
        }
    }
}

impl<M: Copy, T: Copy, F: Map3<M, T>> Loop for Loop3<M, T, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(operands: &Operands, n: usize) {
        let mut at = 0;
        while at < n {
            // SAFETY: as in `Loop1`.
            unsafe {
                let a = operands.load::<M>(0, at);
                let (mut b, c) = (operands.load::<T>(1, at), operands.load::<T>(2, at));
                for lane in 0..LANES {
                    b[lane] = F::map(a[lane], b[lane], c[lane]);
                }
                operands.store(at, b);
            }
            at += LANES;
            black_box(());
        }
    }
}

impl<T: Copy, F: Map4<T>> Loop for Loop4<T, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(operands: &Operands, n: usize) {
        let mut at = 0;
        while at < n {
            // SAFETY: as in `Loop1`.
            unsafe {
                let (mut a, b) = (operands.load::<T>(0, at), operands.load::<T>(1, at));
                let (c, d) = (operands.load::<T>(2, at), operands.load::<T>(3, at));
                for lane in 0..LANES {
                    a[lane] = F::map(a[lane], b[lane], c[lane], d[lane]);
                }
                operands.store(at, a);
            }
            at += LANES;
            black_box(());
        }
    }
}

//! Lane arrays in plain Rust, which the compiler vectorises for whatever target it builds.

use half::f16;

use super::{Element, Simd, Task};

/// Eight lanes: two SSE or NEON registers.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

const LANES: usize = 8;

/// A fused multiply-add where the build target has one; elsewhere two roundings, since the fused form
/// would be a library call for each lane.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };
    const TILE_VECTORS: usize = 1;
    const ACCUMULATORS: usize = if cfg!(target_arch = "aarch64") { 12 } else { 6 };
    type V = [f32; LANES];

    #[inline(never)]
    unsafe fn invoke<K: Task>(task: K) -> K::Out {
        // SAFETY: portable code runs everywhere; the rest is the caller's promise.
        unsafe { task.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn relu(v: Self::V) -> Self::V {
        v.map(|x| if x < 0.0 { 0.0 } else { x })
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| mul_add(a[i], b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller has `LANES` elements at `p`.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller has room for `LANES` elements at `p`.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize) -> Self::V {
        let mut v = [0.0; LANES];
        // SAFETY: `len <= LANES`, and the caller has `len` elements at `p`.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), len) };
        v
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, len: usize) {
        // SAFETY: `len <= LANES`, and the caller has room for `len` elements at `p`.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, len) };
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller has `LANES` elements at `p`.
        unsafe { p.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Self::V) {
        // SAFETY: the caller has room for `LANES` elements at `p`.
        unsafe { p.cast::<[f16; LANES]>().write_unaligned(v.map(f16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn transpose<T: Element, U: Element>(
        src: *const T,
        src_stride: isize,
        dst: *mut U,
        dst_stride: usize,
        rows: usize,
        cols: usize,
    ) {
        for r in 0..rows {
            for c in 0..cols {
                // SAFETY: the caller has the whole block at `src` and at `dst`.
                unsafe {
                    let x = *src.offset(r as isize * src_stride + c as isize);
                    *dst.add(c * dst_stride + r) = U::from_f32(x.to_f32());
                }
            }
        }
    }
}

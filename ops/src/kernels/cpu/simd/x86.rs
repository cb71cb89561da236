//! AVX2 with FMA, and AVX-512, through `std::arch`.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use half::f16;

use super::{Element, Simd, Task};

/// Eight lanes, sixteen registers.
#[derive(Debug, Clone, Copy)]
pub struct Avx2;

/// Sixteen lanes, thirty-two registers.
#[derive(Debug, Clone, Copy)]
pub struct Avx512;

pub(super) fn has_avx2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    })
}

pub(super) fn has_avx512() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        has_avx2()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    })
}

/// Ones in the first `n` lanes, read from the middle of a constant.
#[inline(always)]
fn mask_source(n: usize) -> *const i32 {
    static MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(n <= 8);
    MASK[8 - n..].as_ptr()
}

// Every intrinsic below is sound under the contract of `Simd`: the processor has the features, and the
// pointers cover the lanes; so each body is one unsafe block.
impl Simd for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;
    const ACCUMULATORS: usize = 12;
    type V = __m256;

    #[inline(always)]
    unsafe fn invoke<K: Task>(task: K) -> K::Out {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn enter<K: Task>(task: K) -> K::Out {
            // SAFETY: this function is only called where the features are there.
            unsafe { task.run::<Avx2>() }
        }
        // SAFETY: the contract of `Simd`.
        unsafe { enter(task) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn relu(v: __m256) -> __m256 {
        // NOTE: `maxps` returns its second operand when one is NaN.
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_max_ps(_mm256_setzero_ps(), v) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        // SAFETY: the contract of `Simd`.
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize) -> __m256 {
        // SAFETY: the contract of `Simd`; the mask covers `len` elements, and its table has 8 from there on.
        unsafe { _mm256_maskload_ps(p, _mm256_loadu_si256(mask_source(len).cast())) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m256, len: usize) {
        // SAFETY: the contract of `Simd`; the mask covers `len` elements, and its table has 8 from there on.
        unsafe { _mm256_maskstore_ps(p, _mm256_loadu_si256(mask_source(len).cast()), v) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m256 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: __m256) {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
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
        // SAFETY: the contract of `Simd`; rows past `rows` are not read, lanes past `cols` neither, and
        // only the block is written.
        unsafe {
            let zero = _mm256_setzero_ps();
            let mut v = [zero; 8];
            for (r, v) in v.iter_mut().enumerate() {
                if r < rows {
                    let p = src.offset(r as isize * src_stride);
                    *v = if cols == 8 { T::load::<Self>(p) } else { T::load_first::<Self>(p, cols) };
                }
            }
            let mut w = [zero; 8];
            for i in 0..4 {
                w[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
                w[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
            }
            for i in 0..2 {
                let (a, b, c, d) = (w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
                v[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
                v[4 * i + 1] = _mm256_shuffle_ps::<0xEE>(a, c);
                v[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                v[4 * i + 3] = _mm256_shuffle_ps::<0xEE>(b, d);
            }
            for i in 0..4 {
                w[i] = _mm256_permute2f128_ps::<0x20>(v[i], v[i + 4]);
                w[i + 4] = _mm256_permute2f128_ps::<0x31>(v[i], v[i + 4]);
            }
            for (c, &w) in w.iter().enumerate() {
                if c < cols {
                    let p = dst.add(c * dst_stride);
                    if rows == 8 { U::store::<Self>(p, w) } else { U::store_first::<Self>(p, w, rows) }
                }
            }
        }
    }
}

#[inline(always)]
fn mask16(len: usize) -> __mmask16 {
    debug_assert!(len <= 16);
    ((1u32 << len) - 1) as __mmask16
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 8;
    const TILE_VECTORS: usize = 3;
    const ACCUMULATORS: usize = 28;
    type V = __m512;

    #[inline(always)]
    unsafe fn invoke<K: Task>(task: K) -> K::Out {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn enter<K: Task>(task: K) -> K::Out {
            // SAFETY: this function is only called where the features are there.
            unsafe { task.run::<Avx512>() }
        }
        // SAFETY: the contract of `Simd`.
        unsafe { enter(task) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn relu(v: __m512) -> __m512 {
        // NOTE: `maxps` returns its second operand when one is NaN.
        // SAFETY: the contract of `Simd`.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        // SAFETY: the contract of `Simd`.
        unsafe { Avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize) -> __m512 {
        // SAFETY: the contract of `Simd`; the mask covers `len` elements.
        unsafe { _mm512_maskz_loadu_ps(mask16(len), p) }
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m512, len: usize) {
        // SAFETY: the contract of `Simd`; the mask covers `len` elements.
        unsafe { _mm512_mask_storeu_ps(p, mask16(len), v) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m512 {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: __m512) {
        // SAFETY: the contract of `Simd`.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
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
        // SAFETY: the contract of `Simd`; rows past `rows` are not read, lanes past `cols` neither, and
        // only the block is written.
        unsafe {
            let zero = _mm512_setzero_ps();
            let mut v = [zero; 16];
            for (r, v) in v.iter_mut().enumerate() {
                if r < rows {
                    let p = src.offset(r as isize * src_stride);
                    *v = if cols == 16 { T::load::<Self>(p) } else { T::load_first::<Self>(p, cols) };
                }
            }
            let mut w = [zero; 16];
            for i in 0..8 {
                w[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
                w[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
            }
            for i in 0..4 {
                let (a, b, c, d) = (w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
                v[4 * i] = _mm512_shuffle_ps::<0x44>(a, c);
                v[4 * i + 1] = _mm512_shuffle_ps::<0xEE>(a, c);
                v[4 * i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                v[4 * i + 3] = _mm512_shuffle_ps::<0xEE>(b, d);
            }
            // Now v[4 * i + j] holds, in 128-bit lane l, column 4 * l + j of rows 4 * i ... 4 * i + 3.
            for j in 0..4 {
                let (a, b, c, d) = (v[j], v[4 + j], v[8 + j], v[12 + j]);
                let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0xDD>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0xDD>(c, d);
                w[j] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
                w[8 + j] = _mm512_shuffle_f32x4::<0xDD>(ab_even, cd_even);
                w[4 + j] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
                w[12 + j] = _mm512_shuffle_f32x4::<0xDD>(ab_odd, cd_odd);
            }
            for (c, &w) in w.iter().enumerate() {
                if c < cols {
                    let p = dst.add(c * dst_stride);
                    if rows == 16 { U::store::<Self>(p, w) } else { U::store_first::<Self>(p, w, rows) }
                }
            }
        }
    }
}

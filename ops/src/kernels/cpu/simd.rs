//! Instruction sets and the vector vocabulary that the contraction kernels are written in.
//!
//! A kernel is a [`Task`]: one generic `run` over a [`Simd`] type. [`Isa::invoke`] enters it through a
//! function compiled with that instruction set's features, and everything below it is inlined there,
//! so one source serves AVX-512, AVX2 with FMA, and portable lane arrays, which any target vectorises.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::f16;

pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Lane arrays in plain Rust: whatever the build target offers (SSE2, NEON, ...).
    Portable,
    /// AVX2 with FMA and F16C, 8 lanes.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL), 16 lanes.
    Avx512,
}

impl Isa {
    /// Every instruction set that the kernels know, the plainest first.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The widest instruction set that this processor has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// Whether this processor can run code for `self`.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::has_avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }

    /// `self` if the processor has it, otherwise [`Isa::Portable`].
    pub fn or_portable(self) -> Self {
        if self.is_available() { self } else { Isa::Portable }
    }

    /// The name that profiles use: `portable`, `avx2`, `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// f32 lanes of one vector.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Portable => Portable::LANES,
            Isa::Avx2 => 8,
            Isa::Avx512 => 16,
        }
    }

    /// Runs `task` in code compiled for this instruction set.
    ///
    /// # Safety
    /// `self` must be available on this processor, and the task's own requirements must hold.
    #[inline]
    pub unsafe fn invoke<K: Task>(self, task: K) -> K::Out {
        // SAFETY: the caller guarantees that the instruction set is there and that the task may run.
        unsafe {
            match self {
                Isa::Portable => Portable::invoke(task),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => Avx2::invoke(task),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => Avx512::invoke(task),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx2 | Isa::Avx512 => Portable::invoke(task),
            }
        }
    }
}

/// Work that is compiled once per instruction set.
pub trait Task {
    /// What the work returns.
    type Out;

    /// Does the work. Implementations are `#[inline(always)]`, or the vector code would be compiled
    /// without the features of `S`.
    ///
    /// # Safety
    /// The processor must have the instruction set of `S`; the rest is the task's own contract.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// Vectors of f32 in one instruction set.
///
/// # Safety
/// Every method requires that the processor has the instruction set, and that the pointers given to
/// loads and stores are valid for the elements they name; no alignment is required.
#[allow(clippy::missing_safety_doc, reason = "one contract for all methods, stated above")]
pub trait Simd: Copy + 'static {
    /// f32 lanes of a vector.
    const LANES: usize;
    /// Rows of the widest register tile whose rows are [`Simd::TILE_VECTORS`] vectors.
    const TILE_ROWS: usize;
    /// Vectors in a row of a register tile.
    const TILE_VECTORS: usize;
    /// Accumulator registers that a kernel may hold beside its operands.
    const ACCUMULATORS: usize;
    /// A vector.
    type V: Copy;

    /// Runs `task` inside a function that has this instruction set's features enabled.
    unsafe fn invoke<K: Task>(task: K) -> K::Out;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Lane-wise sum.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `max(v, 0)` that keeps NaN.
    unsafe fn relu(v: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the instruction set has a fused form.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of all lanes, in a fixed order.
    unsafe fn sum(v: Self::V) -> f32;

    /// Loads [`Simd::LANES`] elements.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Stores [`Simd::LANES`] elements.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Loads `len <= LANES` elements; the other lanes are zero.
    unsafe fn load_first(p: *const f32, len: usize) -> Self::V;
    /// Stores the first `len <= LANES` lanes.
    unsafe fn store_first(p: *mut f32, v: Self::V, len: usize);

    /// Loads [`Simd::LANES`] half-precision elements.
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// Stores [`Simd::LANES`] elements, rounded to nearest even.
    unsafe fn store_f16(p: *mut f16, v: Self::V);

    /// Transposes a block of at most `LANES x LANES`: `dst[c * dst_stride + r] = src[r * src_stride + c]`
    /// for `r < rows`, `c < cols`.
    unsafe fn transpose<T: Element, U: Element>(
        src: *const T,
        src_stride: isize,
        dst: *mut U,
        dst_stride: usize,
        rows: usize,
        cols: usize,
    );
}

/// A storage type that the vector kernels compute on in f32.
#[allow(clippy::missing_safety_doc, reason = "the contract of `Simd` holds for these as well")]
pub trait Element: Copy + Send + Sync + 'static {
    /// Whether the storage is f32 itself, so that operands can be used where they lie.
    const IS_F32: bool;

    /// The value as f32.
    fn to_f32(self) -> f32;
    /// The nearest value of this type.
    fn from_f32(x: f32) -> Self;
    /// Loads [`Simd::LANES`] elements.
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    /// Stores [`Simd::LANES`] elements.
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V);
    /// Loads `len <= LANES` elements; the other lanes are zero.
    unsafe fn load_first<S: Simd>(p: *const Self, len: usize) -> S::V;
    /// Stores the first `len <= LANES` lanes.
    unsafe fn store_first<S: Simd>(p: *mut Self, v: S::V, len: usize);
}

impl Element for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: the caller upholds the contract of `Simd`.
        unsafe { S::load(p) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V) {
        // SAFETY: the caller upholds the contract of `Simd`.
        unsafe { S::store(p, v) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(p: *const Self, len: usize) -> S::V {
        // SAFETY: the caller upholds the contract of `Simd`.
        unsafe { S::load_first(p, len) }
    }

    #[inline(always)]
    unsafe fn store_first<S: Simd>(p: *mut Self, v: S::V, len: usize) {
        // SAFETY: the caller upholds the contract of `Simd`.
        unsafe { S::store_first(p, v, len) }
    }
}

/// The most lanes of any instruction set, for buffers on the stack.
pub const MAX_LANES: usize = 16;

impl Element for f16 {
    const IS_F32: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: the caller upholds the contract of `Simd`.
        unsafe { S::load_f16(p) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V) {
        // SAFETY: the caller upholds the contract of `Simd`.
        unsafe { S::store_f16(p, v) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(p: *const Self, len: usize) -> S::V {
        let mut lanes = [f16::ZERO; MAX_LANES];
        // SAFETY: `len <= LANES <= MAX_LANES`, and the caller has `len` elements at `p`.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), len);
            S::load_f16(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_first<S: Simd>(p: *mut Self, v: S::V, len: usize) {
        let mut lanes = [f16::ZERO; MAX_LANES];
        // SAFETY: `len <= LANES <= MAX_LANES`, and the caller has room for `len` elements at `p`.
        unsafe {
            S::store_f16(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, len);
        }
    }
}

/// A bump allocator over a thread's scratch memory.
#[derive(Debug)]
pub struct Scratch<'a> {
    rest: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    /// Every allocation starts on a cache line.
    pub const ALIGN: usize = 64;

    /// Bytes to reserve for an allocation of `len` f32, whatever the alignment of the memory.
    pub const fn bytes_for(len: usize) -> usize {
        len * size_of::<f32>() + 2 * Self::ALIGN
    }

    /// Hands out pieces of `memory`, which holds old bytes: nothing is cleared.
    pub fn new(memory: &'a mut [u8]) -> Self {
        Self { rest: memory }
    }

    /// Takes `len` f32 with whatever values they have.
    ///
    /// # Panics
    /// If the memory is smaller than the plan's `scratch_bytes`.
    pub fn take(&mut self, len: usize) -> &'a mut [f32] {
        let rest = std::mem::take(&mut self.rest);
        let pad = rest.as_ptr().align_offset(Self::ALIGN);
        let bytes = len * size_of::<f32>();
        assert!(pad + bytes <= rest.len(), "scratch memory must hold the plan's scratch_bytes()");
        let (taken, rest) = rest[pad..].split_at_mut(bytes);
        self.rest = rest;
        // SAFETY: `taken` is exclusively borrowed, is aligned to 64 bytes, holds `len` f32, and any bits
        // are a valid f32.
        unsafe { std::slice::from_raw_parts_mut(taken.as_mut_ptr().cast(), len) }
    }
}

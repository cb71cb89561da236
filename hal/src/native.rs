//! Native kernels: Rust functions that the CPU backend runs over a grid of workgroups.

use crate::kernel::{Access, Signature};
use crate::{Element, Scalar};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// The body of a native kernel: called once per workgroup, possibly from many threads at once.
///
/// It returns when the workgroup's work is done, and may not wait for work of its own device: handles refuse that
/// with `InvalidArgument`. An error string, like a panic, poisons the stream and is reported as `Fault`.
pub type NativeFn = dyn Fn(&mut Workgroup<'_>) -> Result<(), String> + Send + Sync;

/// A Rust function with the signature that its launches are checked against.
#[derive(Clone)]
pub struct NativeKernel {
    /// `{op}_{dtypes}_{variant}`.
    pub name: String,
    /// Arguments and limits.
    pub signature: Signature,
    /// Bytes of scratch memory that each thread needs; handed to every workgroup, with unspecified contents.
    pub scratch_bytes: usize,
    /// CPU features that the function uses (`avx512f`); checked before it is loaded.
    pub requires: Vec<String>,
    /// The function.
    pub run: Arc<NativeFn>,
}

impl NativeKernel {
    /// A kernel without scratch memory or required features.
    pub fn new(
        name: impl Into<String>,
        signature: Signature,
        run: impl Fn(&mut Workgroup<'_>) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let name = name.into();
        Self { name, signature, scratch_bytes: 0, requires: Vec::new(), run: Arc::new(run) }
    }
}

impl fmt::Debug for NativeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NativeKernel({})", self.name)
    }
}

/// One argument as a workgroup sees it.
#[derive(Debug, Clone, Copy)]
pub enum NativeArg {
    /// Memory of `len_bytes` from `ptr`.
    Buffer {
        /// First byte; aligned for the argument's dtype unless the length is 0.
        ptr: *mut u8,
        /// Length in bytes.
        len_bytes: usize,
        /// What the signature allows.
        access: Access,
    },
    /// A number.
    Scalar(Scalar),
}

// SAFETY: the pointer is only read through `Workgroup`, whose creator promised that the memory is valid and that
// distinct workgroups may use it from distinct threads.
unsafe impl Send for NativeArg {}
// SAFETY: as above.
unsafe impl Sync for NativeArg {}

/// What the function sees of its launch: where it is in the grid, its arguments, and scratch memory.
///
/// It belongs to the thread that runs the workgroup, for the length of the call. Nothing here blocks. Errors are
/// strings for the function to pass on: they mean that the kernel does not fit its own signature.
pub struct Workgroup<'a> {
    index: [u32; 3],
    count: [u32; 3],
    args: &'a [NativeArg],
    in_place: bool,
    scratch: &'a mut [u8],
}

impl<'a> Workgroup<'a> {
    /// Builds the view of one workgroup. For backends.
    ///
    /// # Safety
    /// Every buffer argument is valid for `len_bytes` bytes of its access, aligned to its dtype, initialised, and
    /// untouched by anyone but this launch until the launch is done; the launch has passed
    /// [`Signature::check`], which rules out overlaps between written and other arguments unless `in_place`.
    pub unsafe fn new(
        index: [u32; 3],
        count: [u32; 3],
        args: &'a [NativeArg],
        in_place: bool,
        scratch: &'a mut [u8],
    ) -> Self {
        Self { index, count, args, in_place, scratch }
    }

    /// This workgroup's place in the grid.
    pub fn index(&self) -> [u32; 3] {
        self.index
    }

    /// The grid.
    pub fn count(&self) -> [u32; 3] {
        self.count
    }

    /// This workgroup's number when the grid is counted with the first axis innermost.
    pub fn linear_index(&self) -> u64 {
        let [x, y, _] = self.count.map(u64::from);
        let [i, j, k] = self.index.map(u64::from);
        i + x * (j + y * k)
    }

    /// Scratch memory of this thread; contents are unspecified.
    pub fn scratch(&mut self) -> &mut [u8] {
        self.scratch
    }

    /// Takes the scratch memory out, so that it can be used beside the arguments. A second call gets nothing.
    pub fn take_scratch(&mut self) -> &'a mut [u8] {
        std::mem::take(&mut self.scratch)
    }

    /// A scalar argument.
    ///
    /// # Errors
    /// When argument `arg` is no scalar.
    pub fn scalar(&self, arg: usize) -> Result<Scalar, String> {
        match self.args.get(arg) {
            Some(NativeArg::Scalar(scalar)) => Ok(*scalar),
            _ => Err(format!("argument {arg} is no scalar")),
        }
    }

    /// A buffer that is only read, as elements.
    ///
    /// # Errors
    /// When the argument is written by the launch (in-place kernels use [`pointer`](Self::pointer)), or is none of
    /// `T`.
    pub fn read<T: Element>(&self, arg: usize) -> Result<&'a [T], String> {
        let (ptr, len, access) = self.elements::<T>(arg)?;
        if access != Access::Read || self.in_place {
            return Err(format!("argument {arg} may change during the launch; read it through its pointer"));
        }
        // SAFETY: `new` promised validity, initialisation and alignment; `access` is Read and the kernel is not in
        // place, so by the launch check nothing writes the range while the launch runs.
        Ok(unsafe { slice_from(ptr, len) })
    }

    /// A written buffer as a whole, for launches of a single workgroup.
    ///
    /// # Errors
    /// When the grid has several workgroups, the kernel is in place, or the argument is not written or none of `T`.
    pub fn write_all<T: Element>(&mut self, arg: usize) -> Result<&mut [T], String> {
        if self.count != [1, 1, 1] {
            return Err(format!("argument {arg} is shared by several workgroups; use write_chunk"));
        }
        self.write_chunk(arg, usize::MAX)
    }

    /// This workgroup's share of a written buffer, when it is dealt out in chunks of `chunk` elements: those from
    /// `linear_index * chunk` on. The last share may be shorter, or empty.
    ///
    /// Shares of distinct workgroups are disjoint as long as all pass the same `chunk`, which the caller's code
    /// must do with a value that does not depend on the workgroup.
    ///
    /// # Errors
    /// When the kernel is in place, or the argument is not written or none of `T`.
    pub fn write_chunk<T: Element>(&mut self, arg: usize, chunk: usize) -> Result<&mut [T], String> {
        let out = self.output::<T>(arg)?;
        let start =
            usize::try_from(self.linear_index()).unwrap_or(usize::MAX).saturating_mul(chunk).min(out.len);
        let end = start.saturating_add(chunk).min(out.len);
        // SAFETY: `&mut self` excludes a second view from this workgroup; other workgroups of the launch get other
        // chunks because the linear index is unique (see the contract above).
        unsafe { out.range_mut(start..end) }
    }

    /// A written buffer that workgroups share by ranges.
    ///
    /// # Errors
    /// When the kernel is in place, or the argument is not written or none of `T`.
    pub fn output<T: Element>(&self, arg: usize) -> Result<Output<'a, T>, String> {
        let (ptr, len, access) = self.elements::<T>(arg)?;
        if !access.writes() || self.in_place {
            return Err(format!("argument {arg} is not exclusively written; check the kernel's signature"));
        }
        Ok(Output { ptr, len, lifetime: PhantomData })
    }

    /// Address and number of elements of any buffer argument; for in-place kernels and intrinsics.
    ///
    /// # Errors
    /// When the argument is no buffer of whole `T`s.
    pub fn pointer<T: Element>(&self, arg: usize) -> Result<(*mut T, usize), String> {
        self.elements::<T>(arg).map(|(ptr, len, _)| (ptr, len))
    }

    fn elements<T: Element>(&self, arg: usize) -> Result<(*mut T, usize, Access), String> {
        match self.args.get(arg) {
            Some(NativeArg::Buffer { ptr, len_bytes, access }) => {
                if len_bytes % size_of::<T>() != 0 || (*len_bytes > 0 && !ptr.cast::<T>().is_aligned()) {
                    return Err(format!("argument {arg} does not hold whole, aligned {}", T::DTYPE));
                }
                Ok((ptr.cast(), len_bytes / size_of::<T>(), *access))
            }
            _ => Err(format!("argument {arg} is no buffer")),
        }
    }
}

/// A written buffer of a launch; each workgroup takes ranges of its own.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a, T> {
    ptr: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> Output<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First element; dangling when empty.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.ptr
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other view of an overlapping range may live at the same time, in this workgroup or in any other of the
    /// launch.
    ///
    /// # Errors
    /// When the range does not lie inside.
    pub unsafe fn range_mut(&self, range: Range<usize>) -> Result<&'a mut [T], String> {
        if range.start > range.end || range.end > self.len {
            return Err(format!("elements {range:?} do not lie in the {} of the buffer", self.len));
        }
        if range.is_empty() {
            return Ok(&mut []);
        }
        // SAFETY: in bounds by the check above, valid and aligned by `Workgroup::new`, exclusive by this function's
        // own contract.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) })
    }
}

/// A slice that may be empty with a null or dangling pointer.
///
/// # Safety
/// For `len > 0`, `ptr` is valid for `len` initialised, aligned elements that nobody writes during `'a`.
unsafe fn slice_from<'a, T>(ptr: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the function's own contract.
    unsafe { std::slice::from_raw_parts(ptr, len) }
}

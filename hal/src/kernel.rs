//! Loaded code, what it is loaded from, and the signature that launches are checked against.

use crate::buffer::fresh_id;
use crate::builtin::BuiltinOp;
use crate::native::NativeKernel;
use crate::{BufferSlice, DType, DeviceId, DeviceInfo, Error, Result, Scalar};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// What a kernel does with a buffer argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads only.
    Read,
    /// Writes only; what was there is not looked at.
    Write,
    /// Reads and writes.
    ReadWrite,
}

impl Access {
    /// Whether the kernel looks at what was there.
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether the kernel changes the buffer.
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// The type of one kernel argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArgType {
    /// A range of device memory that holds elements of `dtype`.
    Buffer {
        /// Type of the elements.
        dtype: DType,
        /// What the kernel does with it.
        access: Access,
    },
    /// A number passed by value.
    Scalar(DType),
}

/// The arguments that a kernel takes, and the limits of its launches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    /// Argument types in order.
    pub args: Vec<ArgType>,
    /// Whether a written range may be the very range of a read one; element `i` must then depend on element `i`
    /// alone. Ranges that overlap in part are refused all the same.
    pub in_place: bool,
    /// Workgroups per axis that the kernel accepts; `None` leaves it to the device's limit.
    pub max_grid: Option<[u32; 3]>,
}

impl Signature {
    /// A signature of these arguments, without further limits.
    pub fn new(args: Vec<ArgType>) -> Self {
        Self { args, ..Self::default() }
    }

    /// Checks a launch of the kernel `name` against this signature and the device's limits. Asks no driver.
    ///
    /// # Errors
    /// `InvalidArgument` that names the argument, what was expected and what came.
    pub fn check(&self, name: &str, info: &DeviceInfo, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        self.check_shape(name, info, grid, args.len())?;
        for (index, (arg, expected)) in args.iter().zip(&self.args).enumerate() {
            check_arg(name, info, index, arg, *expected)?;
        }
        let slice = |arg: usize| match &args[arg] {
            Arg::Buffer(slice) => Some(slice),
            Arg::Scalar(_) => None,
        };
        self.check_aliasing(name, |i, j| match (slice(i), slice(j)) {
            (Some(a), Some(b)) if a.overlaps(b) => {
                if a.range() == b.range() {
                    Overlap::Same
                } else {
                    Overlap::Partial
                }
            }
            _ => Overlap::None,
        })
    }

    /// Checks the grid and the number of arguments alone.
    pub(crate) fn check_shape(
        &self,
        name: &str,
        info: &DeviceInfo,
        grid: [u32; 3],
        args: usize,
    ) -> Result<()> {
        let limit = self.max_grid.unwrap_or(info.limits.max_grid);
        for axis in 0..3 {
            let limit = limit[axis].min(info.limits.max_grid[axis]);
            if grid[axis] > limit {
                return Err(Error::invalid(format!(
                    "kernel '{name}' got {} workgroups on axis {axis}, but at most {limit} fit; split the launch",
                    grid[axis]
                )));
            }
        }
        let most = info.limits.max_args as usize;
        if args > most {
            return Err(Error::invalid(format!(
                "kernel '{name}' got {args} arguments, but the device takes {most}"
            )));
        }
        if args != self.args.len() {
            let expected = self.args.len();
            return Err(Error::invalid(format!("kernel '{name}' takes {expected} arguments, got {args}")));
        }
        Ok(())
    }

    /// Refuses written arguments that share memory with others, but for whole ranges of in-place kernels.
    pub(crate) fn check_aliasing(&self, name: &str, overlap: impl Fn(usize, usize) -> Overlap) -> Result<()> {
        let writes = |arg: usize| matches!(self.args[arg], ArgType::Buffer { access, .. } if access.writes());
        for i in (0..self.args.len()).filter(|&i| writes(i)) {
            for j in (0..self.args.len()).filter(|&j| j != i) {
                let allowed = match overlap(i, j) {
                    Overlap::None => true,
                    Overlap::Same => self.in_place && !writes(j),
                    Overlap::Partial => false,
                };
                if !allowed {
                    return Err(Error::invalid(format!(
                        "kernel '{name}' writes argument {i}, which overlaps argument {j}; give it memory of its own"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// How two arguments share memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlap {
    None,
    Same,
    Partial,
}

fn check_arg(name: &str, info: &DeviceInfo, index: usize, arg: &Arg, expected: ArgType) -> Result<()> {
    let problem = match (arg, expected) {
        (Arg::Buffer(slice), ArgType::Buffer { dtype, .. }) => {
            let align = info.limits.offset_alignment_bytes.max(dtype.size() as u64);
            let owner = slice.buffer().device();
            if !owner.is_same_opening(&info.id) {
                format!("lies on {}; copy it to {} first", owner.beside(&info.id), info.id)
            } else if slice.len_bytes() % dtype.size() as u64 != 0 {
                format!("has {} bytes, which is no whole number of {dtype}", slice.len_bytes())
            } else if slice.len_bytes() > 0 && slice.offset() % align != 0 {
                format!("starts at byte {}, but the device wants multiples of {align}", slice.offset())
            } else {
                return Ok(());
            }
        }
        (Arg::Scalar(scalar), ArgType::Scalar(dtype)) if scalar.dtype() == dtype => return Ok(()),
        (Arg::Scalar(scalar), ArgType::Scalar(dtype)) => format!("must be {dtype}, got {}", scalar.dtype()),
        (Arg::Scalar(_), ArgType::Buffer { dtype, .. }) => {
            format!("must be a buffer of {dtype}, got a scalar")
        }
        (Arg::Buffer(_), ArgType::Scalar(dtype)) => format!("must be a scalar of {dtype}, got a buffer"),
    };
    Err(Error::invalid(format!("argument {index} of kernel '{name}' {problem}")))
}

/// One argument of a launch.
#[derive(Debug, Clone)]
pub enum Arg {
    /// A range of device memory; the stream holds it until the launch is done.
    Buffer(BufferSlice),
    /// A number.
    Scalar(Scalar),
}

impl From<BufferSlice> for Arg {
    fn from(slice: BufferSlice) -> Self {
        Self::Buffer(slice)
    }
}

impl From<Scalar> for Arg {
    fn from(scalar: Scalar) -> Self {
        Self::Scalar(scalar)
    }
}

/// What [`Device::load`](crate::Device::load) takes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum KernelSource {
    /// A Rust function; format `native`.
    Native(NativeKernel),
    /// Text in a language that the driver compiles; the format is the language's name.
    Text {
        /// `opencl-c` or `cuda-c`.
        language: &'static str,
        /// The source text.
        source: Arc<str>,
        /// The function to launch.
        entry: String,
        /// Options for the compiler.
        options: String,
        /// Threads per workgroup.
        workgroup: [u32; 3],
        /// Arguments and limits.
        signature: Signature,
        /// Features that the device must have.
        requires: Vec<String>,
    },
    /// Compiled code; the format names its kind.
    Binary {
        /// `cubin`, `npu-program`.
        format: &'static str,
        /// The file's bytes.
        bytes: Arc<[u8]>,
        /// The function to launch.
        entry: String,
        /// Threads per workgroup; `[1, 1, 1]` where the machine has none.
        workgroup: [u32; 3],
        /// Arguments and limits.
        signature: Signature,
        /// Features that the device must have.
        requires: Vec<String>,
    },
    /// An operation that the vendor's own library implements, for given operands; format `builtin`.
    Builtin(BuiltinOp),
}

impl KernelSource {
    /// The kernel's name, for messages and traces.
    pub fn name(&self) -> &str {
        match self {
            Self::Native(kernel) => &kernel.name,
            Self::Text { entry, .. } | Self::Binary { entry, .. } => entry,
            Self::Builtin(op) => op.name(),
        }
    }

    /// The format's name, as [`DeviceInfo::kernel_formats`] lists it.
    pub fn format(&self) -> &str {
        match self {
            Self::Native(_) => "native",
            Self::Text { language, .. } => language,
            Self::Binary { format, .. } => format,
            Self::Builtin(_) => "builtin",
        }
    }

    /// Features that the device must have.
    pub fn requires(&self) -> &[String] {
        match self {
            Self::Native(kernel) => &kernel.requires,
            Self::Text { requires, .. } | Self::Binary { requires, .. } => requires,
            Self::Builtin(_) => &[],
        }
    }
}

/// Loaded code of one device. Clones are handles to the same code.
///
/// 1. [`Device::load`](crate::Device::load) makes it, with the signature that launches are checked against.
/// 2. It is immutable, and may be launched from any thread, on any stream of its device, any number of times at once.
/// 3. It is unloaded when the last handle (enqueued launches hold one) is dropped.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

struct Inner {
    id: u64,
    device: DeviceId,
    name: String,
    signature: Signature,
    workspace_bytes: u64,
    object: Box<dyn Any + Send + Sync>,
}

/// What [`Kernel::attach`] puts into the new handle. The attachment goes before the code does.
struct Attached {
    attachment: Box<dyn Any + Send + Sync>,
    inner: Kernel,
}

impl Kernel {
    /// Wraps a backend's code. For backends. `object` unloads it when dropped, which may be on any thread.
    pub fn new(
        device: DeviceId,
        name: impl Into<String>,
        signature: Signature,
        workspace_bytes: u64,
        object: Box<dyn Any + Send + Sync>,
    ) -> Self {
        let name = name.into();
        Self(Arc::new(Inner { id: fresh_id(), device, name, signature, workspace_bytes, object }))
    }

    /// A handle to the same code, under the same id, that carries `attachment`. For layers, which give it out in place
    /// of the one that they got.
    ///
    /// The attachment is found by [`object`](Self::object) beside the backend's object, and dropped with the last
    /// such handle, of which enqueued launches may hold one, and so on any thread.
    #[must_use]
    pub fn attach(self, attachment: Box<dyn Any + Send + Sync>) -> Self {
        let Inner { id, device, name, signature, workspace_bytes, .. } = &*self.0;
        let inner = Inner {
            id: *id,
            device: device.clone(),
            name: name.clone(),
            signature: signature.clone(),
            workspace_bytes: *workspace_bytes,
            object: Box::new(Attached { attachment, inner: self.clone() }),
        };
        Self(Arc::new(inner))
    }

    /// A number that no other code or object of this process has had.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The device that the code runs on.
    pub fn device(&self) -> &DeviceId {
        &self.0.device
    }

    /// The kernel's name, for messages and traces.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Arguments and limits.
    pub fn signature(&self) -> &Signature {
        &self.0.signature
    }

    /// Bytes of scratch memory that a built-in wants as its last argument (a writable buffer of `u8`); 0 for none.
    pub fn workspace_bytes(&self) -> u64 {
        self.0.workspace_bytes
    }

    /// The backend's object or a layer's attachment, if it is a `T`. For backends and layers.
    pub fn object<T: Any>(&self) -> Option<&T> {
        self.0.object.downcast_ref().or_else(|| {
            let attached: &Attached = self.0.object.downcast_ref()?;
            attached.attachment.downcast_ref().or_else(|| attached.inner.object())
        })
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel#{}({}, {})", self.id(), self.device(), self.name())
    }
}

//! The border between the graph and the kernels: what a kernel variant is asked for, and what it answers.
//!
//! `plan.rs` turns fused graph nodes into [`KernelOp`]s. For each it asks the profile for a
//! [`KernelVariant`], whose `lower` function answers with launches. Variants live in `kernels/{cpu,gpu,npu}`;
//! other crates add theirs to a [`Catalog`](crate::Catalog).

use crate::cluster::{Cluster, Literal};
use halite_hal::{DType, DeviceInfo, KernelSource, Scalar};
use halite_profiles::{Parameters, Size};
use std::fmt;
use std::sync::Arc;

/// The type in which kernels keep sums over elements of `dtype`: at least f32 for floats, the type itself for others.
pub const fn accumulation(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// How a reduction combines elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ReduceKind {
    /// Sum; 0 over nothing. f16 and bf16 accumulate in f32; integers wrap.
    Sum,
    /// Product; 1 over nothing.
    Prod,
    /// Largest element; NaN if any is; -inf (or the least integer) over nothing.
    Max,
    /// Smallest element; NaN if any is; +inf (or the greatest integer) over nothing.
    Min,
    /// Index of the first largest element (a NaN counts as larger than any number), as `i32`; 0 over nothing.
    ArgMax,
}

impl ReduceKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Sum, Self::Prod, Self::Max, Self::Min, Self::ArgMax];

    /// The primitive's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Max => "reduce_max",
            Self::Min => "reduce_min",
            Self::ArgMax => "argmax",
        }
    }
}

/// A reduction of the single output of an elementwise program.
///
/// The program's iteration space is `[kept axes..., reduced axes...]`; the output is dense and row-major over the
/// kept axes. `ArgMax` counts row-major over the reduced axes. Kernel arguments: the program's inputs, the
/// output, the program's scalars.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reduction {
    /// How elements are combined.
    pub kind: ReduceKind,
    /// What is reduced; has one output.
    pub program: Cluster,
    /// Axes of the iteration space that are kept; the others are reduced.
    pub kept_rank: usize,
    /// Type of the result: the program's, or `i32` for `ArgMax`.
    pub dtype: DType,
}

/// A matrix operand inside a buffer; strides in elements.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatrixView {
    /// First element.
    pub offset: i64,
    /// Per batch axis.
    pub batch_strides: Vec<i64>,
    /// Between rows.
    pub row_stride: i64,
    /// Between columns.
    pub col_stride: i64,
}

/// What is applied to each element of a contraction before it is stored: `relu(x + bias)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epilogue {
    /// A vector that is added, as one more input behind the operands.
    pub bias: Option<BiasAxis>,
    /// Whether negative results become 0 (NaN stays NaN).
    pub relu: bool,
}

/// What a bias vector runs along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BiasAxis {
    /// One element per row of a matrix product.
    Row,
    /// One element per column of a matrix product.
    Column,
    /// One element per output channel of a convolution.
    Channel,
}

/// `out[b, m, n] = sum over k of lhs[b, m, k] * rhs[b, k, n]`, accumulated in f32 for f16, bf16 and f32 (in f64 for
/// f64, wrapping for integers). `k = 0` gives zeros.
///
/// Kernel arguments: lhs, rhs, the bias if any, out (dense, row-major `[batch..., m, n]`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dot {
    /// Extents of the batch axes, outermost first; may be empty.
    pub batch: Vec<usize>,
    /// Rows of lhs and out.
    pub m: usize,
    /// Columns of rhs and out.
    pub n: usize,
    /// Columns of lhs, rows of rhs.
    pub k: usize,
    /// How lhs lies in its buffer: rows m, columns k.
    pub lhs: MatrixView,
    /// How rhs lies in its buffer: rows k, columns n.
    pub rhs: MatrixView,
    /// Type of both operands.
    pub dtype: DType,
    /// Type of the result: the operands', or f32.
    pub out_dtype: DType,
    /// Applied before the store.
    pub epilogue: Epilogue,
}

/// Which of the three operands of a convolution is computed from the other two.
///
/// A convolution is a trilinear form in its input, filter and output; each of the three is the derivative with
/// respect to one of them, so the set is closed under differentiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConvOperand {
    /// `output[n,o,p] = sum input[n,c,p*stride + i*dilation - pad] * filter[o,c,i]`. Inputs: input, filter.
    Output,
    /// The input's gradient from the output's and the filter. Inputs: output gradient, filter.
    Input,
    /// The filter's gradient from the output's and the input. Inputs: output gradient, input.
    Filter,
}

/// Sizes of a convolution over any number of spatial axes; the last axis is innermost.
///
/// Layouts are dense and row-major: input `[batch, in_channels, spatial...]`, filter
/// `[out_channels, in_channels / groups, kernel...]`, output `[batch, out_channels, out...]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// Images.
    pub batch: usize,
    /// Channels of the input, in all groups.
    pub in_channels: usize,
    /// Channels of the output, in all groups.
    pub out_channels: usize,
    /// Groups of channels that do not mix.
    pub groups: usize,
    /// Spatial extents of the input.
    pub input: Vec<usize>,
    /// Spatial extents of the filter.
    pub kernel: Vec<usize>,
    /// Spatial extents of the output.
    pub output: Vec<usize>,
    /// Input steps per output step.
    pub stride: Vec<usize>,
    /// Input steps per filter step.
    pub dilation: Vec<usize>,
    /// Zeros before the input.
    pub pad_low: Vec<usize>,
    /// Zeros behind the input.
    pub pad_high: Vec<usize>,
}

/// A convolution, solved for one of its operands; accumulates as [`Dot`] does.
///
/// Kernel arguments: the two inputs in the order of [`ConvOperand`], the bias if any (operand `Output` alone), out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Conv {
    /// What is computed.
    pub operand: ConvOperand,
    /// Sizes.
    pub geometry: ConvGeometry,
    /// Type of both inputs.
    pub dtype: DType,
    /// Type of the result: the inputs', or f32.
    pub out_dtype: DType,
    /// Applied before the store.
    pub epilogue: Epilogue,
}

/// What happens in each window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WindowKind {
    /// Largest element (NaN if any is; padding is not looked at). Inputs: x. Out: one per window.
    Max,
    /// Sum; padding counts as 0. Inputs: x. Out: one per window.
    Sum,
    /// Adds each window's value to the place of its first largest element. Inputs: x, values. Out: like x.
    ScatterToMax,
    /// Takes from the place of each window's first largest element of x. Inputs: x, source (like x). Out: one per
    /// window.
    GatherAtMax,
    /// Adds each window's value to every place of the window: the transpose of `Sum`. Inputs: values. Out: like x.
    Spread,
}

impl WindowKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Max, Self::Sum, Self::ScatterToMax, Self::GatherAtMax, Self::Spread];

    /// The primitive's name; the profile's key is `window_reduce` for all of them.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Max => "window_max",
            Self::Sum => "window_sum",
            Self::ScatterToMax => "window_scatter",
            Self::GatherAtMax => "window_gather",
            Self::Spread => "window_spread",
        }
    }
}

/// Windows that slide over the last axes of a dense tensor `[outer..., spatial...]`; every window contains at least
/// one element that is not padding.
///
/// "First" is row-major within the window; a NaN counts as larger than any number. Sums and scattered additions of
/// f16 and bf16 accumulate in f32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Window {
    /// What happens in each window.
    pub kind: WindowKind,
    /// Product of the leading extents.
    pub outer: usize,
    /// Extents of x along the axes that windows slide over.
    pub input: Vec<usize>,
    /// Windows per axis.
    pub output: Vec<usize>,
    /// Extents of a window.
    pub window: Vec<usize>,
    /// Steps between windows.
    pub stride: Vec<usize>,
    /// Padding before.
    pub pad_low: Vec<usize>,
    /// Padding behind.
    pub pad_high: Vec<usize>,
    /// Type of all operands.
    pub dtype: DType,
}

/// Puts a dense tensor into a larger one that is filled with a constant:
/// `out[low + i * (interior + 1)] = x[i]` on every axis; elements that would lie outside (negative `low` or `high`)
/// are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pad {
    /// Extents of x.
    pub input: Vec<usize>,
    /// Extents of out.
    pub output: Vec<usize>,
    /// Elements before the first; negative cuts.
    pub low: Vec<i64>,
    /// Elements behind the last; negative cuts.
    pub high: Vec<i64>,
    /// Elements between neighbours.
    pub interior: Vec<usize>,
    /// What fills the gaps.
    pub value: Literal,
}

/// An operation of another crate, for its own kernel variants.
#[derive(Clone)]
pub struct CustomCall {
    /// The operation, with its attributes.
    pub op: Arc<dyn crate::CustomOp>,
}

impl CustomCall {
    /// The operation if it is a `T`, for its attributes; `None` for another operation of the same name.
    pub fn op_as<T: crate::CustomOp>(&self) -> Option<&T> {
        (self.op.as_ref() as &dyn std::any::Any).downcast_ref()
    }
}

impl fmt::Debug for CustomCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CustomCall({})", self.op.name())
    }
}

/// What a kernel variant is asked to do. Fused and canonical: views are resolved, sizes are fixed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum KernelOp {
    /// A fused elementwise program.
    Elementwise(Cluster),
    /// A reduction with its elementwise producer.
    Reduce(Reduction),
    /// A batched matrix product.
    Dot(Dot),
    /// A convolution, for one of its operands.
    Conv(Conv),
    /// A sliding window.
    Window(Window),
    /// Padding.
    Pad(Pad),
    /// An operation of another crate.
    Custom(CustomCall),
}

impl KernelOp {
    /// The name under which profiles and variants know the operation.
    pub fn name(&self) -> &str {
        match self {
            Self::Elementwise(_) => "elementwise",
            Self::Reduce(_) => "reduce",
            Self::Dot(_) => "dot_general",
            Self::Conv(_) => "conv_general",
            Self::Window(_) => "window_reduce",
            Self::Pad(_) => "pad",
            Self::Custom(call) => call.op.name(),
        }
    }

    /// The names of the sizes that a profile's `when` may use for the op of this name (`bits` being an element's); none for an operation of another
    /// crate.
    pub fn variable_names(op: &str) -> &'static [&'static str] {
        match op {
            "elementwise" => &["n", "steps"],
            "reduce" => &["n", "k"],
            "dot_general" => &["m", "n", "k", "batch", "bits"],
            "conv_general" => &["batch", "in_channels", "out_channels", "groups", "pixels", "kernel", "bits"],
            "window_reduce" => &["n", "window"],
            "pad" => &["n"],
            _ => &[],
        }
    }

    /// The sizes that a profile's `when` may use, by their [names](Self::variable_names).
    pub fn variables(&self) -> Vec<(&'static str, i64)> {
        let product = |extents: &[usize]| extents.iter().product::<usize>();
        let values = match self {
            Self::Elementwise(c) => vec![c.points(), c.steps.len()],
            Self::Reduce(r) => {
                let (kept, reduced) = r.program.shape.split_at(r.kept_rank);
                vec![product(kept), product(reduced)]
            }
            Self::Dot(d) => vec![d.m, d.n, d.k, product(&d.batch), 8 * d.dtype.size()],
            Self::Conv(Conv { geometry: g, dtype, .. }) => {
                let (pixels, taps, bits) = (product(&g.output), product(&g.kernel), 8 * dtype.size());
                vec![g.batch, g.in_channels, g.out_channels, g.groups, pixels, taps, bits]
            }
            Self::Window(w) => vec![w.outer, product(&w.window)],
            Self::Pad(p) => vec![product(&p.output)],
            Self::Custom(_) => Vec::new(),
        };
        let names = if matches!(self, Self::Custom(_)) { &[] } else { Self::variable_names(self.name()) };
        debug_assert_eq!(names.len(), values.len(), "{}", self.name());
        names.iter().zip(values).map(|(name, value)| (*name, value as i64)).collect()
    }
}

/// Type and shape of an operand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Type of the elements.
    pub dtype: DType,
    /// Extent per axis; empty for a single element.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// Of `dtype` and `shape`.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.to_vec() }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a dense tensor of this type.
    pub fn len_bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

/// What a variant's `lower` is given.
#[derive(Debug, Clone, Copy)]
pub struct LowerRequest<'a> {
    /// The operation.
    pub op: &'a KernelOp,
    /// The buffers that it reads, each dense and row-major (views are inside `op`).
    pub inputs: &'a [TensorType],
    /// The buffers that it writes, each dense and row-major. None has zero elements.
    pub outputs: &'a [TensorType],
    /// Tile sizes and the like that the profile chose for this variant; may be empty.
    pub parameters: &'a Parameters,
    /// Whether kernels that have the choice should stage operands in memory of the workgroup; `None` where the profile
    /// does not say.
    pub local_staging: Option<bool>,
    /// The device.
    pub device: &'a DeviceInfo,
}

/// An argument of a launch, before buffers are placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LaunchArg {
    /// The whole of input `n`.
    Input(usize),
    /// The whole of output `n`.
    Output(usize),
    /// A range of the workspace, in bytes.
    Workspace {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Runtime scalar `n` of the operation's program.
    Scalar(usize),
    /// A number fixed when the plan is made.
    Literal(Scalar),
}

/// One launch of a loaded kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    /// What is loaded.
    pub source: KernelSource,
    /// Workgroups (NPU: blocks on the first axis).
    pub grid: [u32; 3],
    /// Arguments in the kernel's order.
    pub args: Vec<LaunchArg>,
}

/// A variant's answer: launches in order, and the scratch memory that they share.
#[derive(Debug, Clone, Default)]
pub struct Lowered {
    /// Launches in order; a later one sees what an earlier one wrote.
    pub launches: Vec<Launch>,
    /// Bytes of scratch memory; contents are unspecified at the start.
    pub workspace_bytes: u64,
}

impl Lowered {
    /// A single launch without workspace.
    pub fn single(launch: Launch) -> Self {
        Self { launches: vec![launch], workspace_bytes: 0 }
    }
}

/// Why a variant does not serve a request: the reason stands in the list of fallbacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unservable(pub String);

impl Unservable {
    /// With a reason such as `f64 is not a dtype of the cube`.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// The function that turns a request into launches.
pub type LowerFn = dyn Fn(&LowerRequest<'_>) -> Result<Lowered, Unservable> + Send + Sync;

/// One way to run an operation on devices that accept its format and have what it requires.
#[derive(Clone)]
pub struct KernelVariant {
    /// The operation, as [`KernelOp::name`] tells it.
    pub op: String,
    /// The variant's name, unique per operation and format; profiles choose by it.
    pub name: String,
    /// Kernel format: `native`, `npu-program`.
    pub format: String,
    /// Device features that it needs.
    pub requires: Vec<String>,
    /// The sizes that `lower` reads from [`LowerRequest::parameters`]; `None` where nobody said.
    pub sizes: Option<Vec<Size>>,
    /// Sizes that tuning tries, beside those of the device's profile.
    pub candidates: Vec<Parameters>,
    /// Turns a request into launches.
    pub lower: Arc<LowerFn>,
}

impl KernelVariant {
    /// A variant of `op` named `name`.
    pub fn new(
        op: &str,
        name: &str,
        format: &str,
        requires: &[&str],
        lower: impl Fn(&LowerRequest<'_>) -> Result<Lowered, Unservable> + Send + Sync + 'static,
    ) -> Self {
        Self {
            op: op.to_owned(),
            name: name.to_owned(),
            format: format.to_owned(),
            requires: requires.iter().map(|&feature| feature.to_owned()).collect(),
            sizes: None,
            candidates: Vec::new(),
            lower: Arc::new(lower),
        }
    }

    /// The same with the sizes that `lower` reads: `[Size::Tile(3), Size::Chunk]`, none for a kernel without a choice.
    /// A list that may have one length or another is named once for each: `[Size::Threads(1), Size::Threads(2)]`.
    ///
    /// [`Catalog::check`](crate::Catalog::check) then refuses a user's profile that gives the variant any other size,
    /// which would be without effect, with file and line. A variant that declares nothing takes whatever it is given.
    /// [`candidates`](Self::candidates) must be of these sizes.
    #[must_use]
    pub fn with_sizes(mut self, sizes: impl IntoIterator<Item = Size>) -> Self {
        self.sizes = Some(sizes.into_iter().collect());
        self
    }

    /// The same with sizes for tuning to try.
    #[must_use]
    pub fn with_candidates(mut self, candidates: impl IntoIterator<Item = Parameters>) -> Self {
        self.candidates = candidates.into_iter().collect();
        self
    }
}

impl fmt::Debug for KernelVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KernelVariant({}.{}, {})", self.op, self.name, self.format)
    }
}

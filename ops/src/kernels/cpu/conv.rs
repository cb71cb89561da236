//! Two-dimensional convolution in NCHW with OIHW weights, and its two gradients.
//!
//! ```text
//! forward          y[n, o, p, q]  = sum over c, i, j of x[n, c, p*s + i*d - pad, q*s + j*d - pad] * w[o, c, i, j]
//! input gradient   dx             = the same sum, read for x, given dy and w
//! weight gradient  dw             = the same sum, read for w, given x and dy
//! ```
//!
//! All tensors are dense; one-dimensional convolution has a height of 1. A [`ConvPlan`] works in phases of
//! independent groups. Forward and input gradient are one computation with different taps
//! (`conv/geometry.rs`) and two kernels: output channels in the lanes (`conv/direct.rs`) or pixels in the
//! lanes (`conv/unfold.rs`), whichever wastes fewer. Weight gradients are in `conv/weight.rs`.

mod direct;
mod geometry;
mod plain;
mod unfold;
mod weight;
mod window;

use std::marker::PhantomData;
use std::mem::size_of;

use half::f16;

use super::simd::{Element, Isa, Scratch, Simd, Task};
use geometry::{Axis, AxisPhase, Correlation, Tap, share};
use weight::{WeightGroup, WeightJob, WeightPlan};
use window::{Planes, Window};

/// Which of the three sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConvOp {
    /// `(x, w) -> y`, with bias and ReLU where the spec asks for them.
    Forward,
    /// `(dy, w) -> dx`.
    InputGradient,
    /// `(x, dy) -> dw`.
    WeightGradient,
}

/// The forward convolution; pairs are `[height, width]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConvSpec {
    /// Images.
    pub batch: usize,
    /// Channels of x, a multiple of `groups`.
    pub in_channels: usize,
    /// Channels of y, a multiple of `groups`.
    pub out_channels: usize,
    /// Groups of channels; each output channel sees the input channels of its group.
    pub groups: usize,
    /// Size of x.
    pub input: [usize; 2],
    /// Size of the kernel, at least 1.
    pub kernel: [usize; 2],
    /// Input elements between neighbouring outputs, at least 1.
    pub stride: [usize; 2],
    /// Input elements between neighbouring kernel elements, at least 1.
    pub dilation: [usize; 2],
    /// Zeros before the input.
    pub pad_low: [usize; 2],
    /// Zeros after the input.
    pub pad_high: [usize; 2],
    /// Whether the forward pass adds `bias[out_channels]`.
    pub bias: bool,
    /// Whether the forward pass takes `max(y, 0)` at the end, keeping NaN.
    pub relu: bool,
}

impl ConvSpec {
    /// A square kernel with stride 1 that keeps the size of the input (if `kernel` is odd).
    pub fn same(
        batch: usize,
        in_channels: usize,
        out_channels: usize,
        input: [usize; 2],
        kernel: usize,
    ) -> Self {
        Self {
            batch,
            in_channels,
            out_channels,
            groups: 1,
            input,
            kernel: [kernel; 2],
            stride: [1; 2],
            dilation: [1; 2],
            pad_low: [kernel / 2; 2],
            pad_high: [kernel / 2; 2],
            bias: false,
            relu: false,
        }
    }

    /// Size of y, `[height, width]`; 0 where the kernel does not fit.
    pub fn output(&self) -> [usize; 2] {
        std::array::from_fn(|axis| {
            let padded = self.input[axis] + self.pad_low[axis] + self.pad_high[axis];
            let extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            if padded < extent { 0 } else { (padded - extent) / self.stride[axis] + 1 }
        })
    }

    /// Multiply-adds of any of the three operations, counting those with padding.
    pub fn macs(&self) -> usize {
        let [h, w] = self.output();
        let taps = self.in_channels / self.groups * self.kernel[0] * self.kernel[1];
        self.batch * self.out_channels * h * w * taps
    }
}

/// Operands of a [`ConvPlan`], whose elements are as many as the spec says.
#[derive(Debug, Clone, Copy)]
pub struct ConvArgs<T> {
    /// x of a forward pass or weight gradient, dy of an input gradient.
    pub lhs: *const T,
    /// w of a forward pass or input gradient, dy of a weight gradient.
    pub rhs: *const T,
    /// `bias[out_channels]`; read only by a forward pass whose spec has a bias.
    pub bias: *const T,
    /// The result: written only, and entirely.
    pub out: *mut T,
    /// [`ConvPlan::workspace_bytes`], aligned to 4 bytes, shared by all groups of all phases.
    pub workspace: *mut u8,
}

/// A storage type that can be convolved: f32 and f16 (accumulated in f32), and f64.
///
/// Implemented here for those three; the method is an internal of [`ConvPlan`].
pub trait ConvElement: Copy + Send + Sync + 'static {
    /// Runs one group of one phase.
    ///
    /// # Safety
    /// As [`ConvPlan::run_group`].
    #[doc(hidden)]
    unsafe fn run(
        plan: &ConvPlan<Self>,
        phase: usize,
        group: usize,
        args: ConvArgs<Self>,
        scratch: &mut [u8],
    ) where
        Self: Sized;
}

/// A convolution or one of its gradients, split into phases of groups.
///
/// 1. [`ConvPlan::new`] once per shape.
/// 2. For each phase in order: [`ConvPlan::run_group`] for every group in `0..phases()[phase]`, in any
///    order, on any threads, each thread with its own scratch memory of [`ConvPlan::scratch_bytes`].
///    A phase starts when the one before it has finished.
///
/// The result does not depend on the number of threads or the order of groups. NaN and infinities in the
/// tensors propagate as IEEE 754 says. Products with padding are left out where that is faster, so
/// whether padding times a NaN or an infinity makes NaN is not specified.
#[derive(Debug, Clone)]
pub struct ConvPlan<T> {
    isa: Isa,
    op: ConvOp,
    spec: ConvSpec,
    kind: Kind,
    groups: [u32; 2],
    phases: usize,
    dtype: PhantomData<fn(T)>,
}

#[derive(Debug, Clone)]
enum Kind {
    Correlation(CorrelationPlan),
    Weight(WeightPlan),
    /// Planes in one group.
    Plain(usize),
}

/// Which index is in the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// Output channels.
    Direct,
    /// Pixels.
    Unfold,
}

/// Multiply-adds below which a second group costs more than it saves (about 4 us of one core).
const MIN_GROUP_MACS: usize = 1 << 17;

/// The longest row of outputs for which two images are computed side by side: it alone leaves the
/// multiply-adds waiting for each other.
const PAIR_PIXELS: usize = 8;

/// Elements of a window, unless one row of outputs needs more: half of a small L2 cache.
pub(crate) const WINDOW: usize = 1 << 16;

/// Chooses by vector operations for each output pixel: multiply-adds, transposing a finished pixel, and
/// unfolding its taps. The two factors were measured on Zen 4.
fn method_for(corr: &Correlation, lanes: usize) -> Method {
    const TRANSPOSE: f64 = 4.5;
    const UNFOLD: f64 = 2.5;
    let depth = (corr.src_planes * corr.kernel) as f64;
    let vectors = corr.out_planes.div_ceil(lanes) as f64;
    let direct = vectors * (depth + TRANSPOSE);
    let pixels = corr.out_plane().max(1);
    let waste = (pixels.next_multiple_of(lanes) / pixels) as f64;
    let unfold = depth * (corr.out_planes as f64 * waste + UNFOLD) / lanes as f64;
    if direct <= unfold { Method::Direct } else { Method::Unfold }
}

/// The taps of a pair of phases, x fastest.
fn window_taps(window: &Window, y_phase: &AxisPhase, x_phase: &AxisPhase, kernel_x: usize) -> Vec<Tap> {
    let mut taps = Vec::with_capacity(y_phase.taps.len() * x_phase.taps.len());
    for y in &y_phase.taps {
        for x in &x_phase.taps {
            let row = (y.offset - y_phase.low) as usize * window.row;
            taps.push(Tap {
                index: y.index * kernel_x + x.index,
                window: row + window.column(x.offset),
                x: x.offset,
            });
        }
    }
    taps
}

impl<T: ConvElement> ConvPlan<T> {
    /// Plans `op` of `spec` for `isa` (or portable code, if the processor lacks it), in at least as many
    /// groups as pay off on `threads` threads.
    ///
    /// # Panics
    /// If a kernel size, stride, dilation or the number of groups is 0, or the channels are not multiples
    /// of the groups: a shape rule must have refused those.
    pub fn new(isa: Isa, op: ConvOp, spec: ConvSpec, threads: usize) -> Self {
        Self::with_window(isa, op, spec, threads, WINDOW)
    }

    /// As [`ConvPlan::new`], for bands of rows that read at most `window` elements, or one row of outputs. Weight
    /// gradients and f64 do not look at it.
    ///
    /// # Panics
    /// As [`ConvPlan::new`].
    pub fn with_window(isa: Isa, op: ConvOp, spec: ConvSpec, threads: usize, window: usize) -> Self {
        let positive = spec.kernel.iter().chain(&spec.stride).chain(&spec.dilation).all(|&size| size > 0);
        assert!(positive, "convolution needs kernel, stride and dilation of at least 1, got {spec:?}");
        assert!(
            spec.groups > 0
                && spec.in_channels.is_multiple_of(spec.groups)
                && spec.out_channels.is_multiple_of(spec.groups),
            "convolution needs channels that are multiples of its groups, got {spec:?}"
        );
        let isa = isa.or_portable();
        let kind = if size_of::<T>() == size_of::<f64>() {
            Kind::Plain(share(output_planes(op, &spec), threads.max(1) * 4))
        } else {
            match op {
                ConvOp::Forward => {
                    Kind::Correlation(CorrelationPlan::new(correlation(op, &spec), isa, threads, window))
                }
                ConvOp::InputGradient => {
                    Kind::Correlation(CorrelationPlan::new(correlation(op, &spec), isa, threads, window))
                }
                ConvOp::WeightGradient => {
                    Kind::Weight(WeightPlan::new(correlation(ConvOp::Forward, &spec), isa.lanes()))
                }
            }
        };
        let groups = match &kind {
            Kind::Correlation(plan) => [plan.groups(), 0],
            Kind::Weight(plan) => plan.phases(),
            Kind::Plain(planes) => [output_planes(op, &spec).div_ceil(*planes), 0],
        };
        let groups = groups.map(|groups| u32::try_from(groups).expect("groups are cut to a few per thread"));
        let phases = if groups[1] > 0 { 2 } else { 1 };
        Self { isa, op, spec, kind, groups, phases, dtype: PhantomData }
    }

    /// Groups of each phase.
    pub fn phases(&self) -> &[u32] {
        &self.groups[..self.phases]
    }

    /// Bytes of scratch memory that each thread needs, of any alignment.
    pub fn scratch_bytes(&self) -> usize {
        match &self.kind {
            Kind::Correlation(plan) => plan.scratch_bytes(self.isa.lanes()),
            Kind::Weight(plan) => plan.scratch_bytes(),
            Kind::Plain(_) => 0,
        }
    }

    /// Bytes of memory that all groups of all phases share; its contents need not be initialised.
    pub fn workspace_bytes(&self) -> usize {
        match &self.kind {
            Kind::Weight(plan) => plan.workspace_len() * size_of::<f32>(),
            Kind::Correlation(_) | Kind::Plain(_) => 0,
        }
    }

    /// The instruction set that the plan uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Computes one group of one phase.
    ///
    /// # Safety
    /// The pointers of `args` must be valid for the sizes of the spec and for the workspace, and `out` and
    /// `workspace` must overlap nothing else. Every group of a phase must have finished before a group of
    /// the next one starts.
    ///
    /// # Panics
    /// If `group` is not below `phases()[phase]`, or `scratch` is smaller than
    /// [`ConvPlan::scratch_bytes`].
    pub unsafe fn run_group(&self, phase: usize, group: u32, args: ConvArgs<T>, scratch: &mut [u8]) {
        let groups = self.phases()[phase];
        assert!(group < groups, "group {group} of a phase with {groups} groups");
        // SAFETY: the caller vouches for the operands and the order of phases.
        unsafe { T::run(self, phase, group as usize, args, scratch) }
    }
}

/// Planes of the result that plain loops compute one by one.
fn output_planes(op: ConvOp, spec: &ConvSpec) -> usize {
    match op {
        ConvOp::Forward => spec.batch * spec.out_channels,
        ConvOp::InputGradient => spec.batch * spec.in_channels,
        ConvOp::WeightGradient => spec.out_channels,
    }
}

/// The forward pass or the input gradient as a sum over taps.
fn correlation(op: ConvOp, spec: &ConvSpec) -> Correlation {
    let out = spec.output();
    let (c, o) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    let kernel = spec.kernel[0] * spec.kernel[1];
    let forward = op == ConvOp::Forward;
    let axis = |i: usize| {
        let make = if forward { Axis::forward } else { Axis::input_gradient };
        make(spec.input[i], out[i], spec.kernel[i], spec.stride[i], spec.dilation[i], spec.pad_low[i])
    };
    Correlation {
        batch: spec.batch,
        channel_groups: spec.groups,
        src_planes: if forward { c } else { o },
        out_planes: if forward { o } else { c },
        y: axis(0),
        x: axis(1),
        w_out: if forward { c * kernel } else { kernel },
        w_src: if forward { kernel } else { c * kernel },
        kernel_x: spec.kernel[1],
        kernel,
    }
}

/// How a sum over taps is cut: items (a band of rows of one image) and parts of the output planes.
#[derive(Debug, Clone)]
struct CorrelationPlan {
    corr: Correlation,
    method: Method,
    window: Window,
    /// Taps of every pair of phases, x fastest.
    taps: Vec<Vec<Tap>>,
    band_rows: usize,
    bands: usize,
    /// Images that an item has side by side, and such blocks of the batch.
    block_images: usize,
    blocks: usize,
    items: usize,
    item_parts: usize,
    plane_parts: usize,
    part_planes: usize,
}

/// Operands of a sum over taps.
#[derive(Debug, Clone, Copy)]
struct CorrelationJob<'a, T> {
    corr: &'a Correlation,
    src: *const T,
    weights: *const T,
    out: *mut T,
    /// Null where there is none.
    bias: *const T,
    relu: bool,
}

/// One band of rows of a block of images and one pair of phases.
struct Item<'a> {
    window: &'a Window,
    images: usize,
    /// Window elements from one image to the next.
    image_window: usize,
    y_phase: &'a AxisPhase,
    x_phase: &'a AxisPhase,
    taps: &'a [Tap],
    /// First output plane of the first image, counted in the tensor, and how many.
    plane: usize,
    planes: usize,
    /// First output plane, counted in its image.
    bias_at: usize,
    /// Rows of the phase.
    row0: usize,
    rows: usize,
}

impl Item<'_> {
    /// The start of the item's output plane `plane` in its image `image`.
    ///
    /// # Safety
    /// `out` is the whole output tensor.
    #[inline(always)]
    unsafe fn out_at<T>(&self, out: *mut T, corr: &Correlation, image: usize, plane: usize) -> *mut T {
        let image = image * corr.channel_groups * corr.out_planes;
        // SAFETY: the plane is one of the item's, inside the tensor.
        unsafe { out.add((self.plane + image + plane) * corr.out_plane()) }
    }
}

impl CorrelationPlan {
    fn new(corr: Correlation, isa: Isa, threads: usize, most: usize) -> Self {
        let lanes = isa.lanes();
        let method = method_for(&corr, lanes);
        let rows = corr.y.phases.iter().map(|phase| phase.len).max().unwrap_or(0);
        let images = corr.batch * corr.channel_groups * corr.y.phases.len();
        let depth = corr.src_planes * corr.kernel;
        let macs = corr.batch * corr.channel_groups * corr.out_planes * corr.src_plane() * depth;
        let threads = threads.max(1);
        let per_thread = (macs / threads / (64 * MIN_GROUP_MACS)).clamp(2, 4);
        let wanted = (threads * per_thread).min(macs / MIN_GROUP_MACS).max(1);

        let per_row = Window::new(&corr.x, corr.y.step).plane * corr.src_planes;
        let fitting = (most / per_row.max(1)).clamp(1, rows.max(1));
        let band_rows = fitting.min(share(rows, wanted.div_ceil(images.max(1))));
        let bands = rows.div_ceil(band_rows);
        let longest = corr.x.phases.iter().map(|phase| phase.len).max().unwrap_or(0);
        let short = bands == 1 && longest <= PAIR_PIXELS && 2 * rows * longest <= direct::TILE_PIXELS;
        let block_images = if method == Method::Direct && short { 2 } else { 1 };
        let blocks = corr.batch.div_ceil(block_images);
        let items = blocks * corr.channel_groups * corr.y.phases.len() * bands;
        let item_parts = items.min(wanted);
        let vectors = corr.out_planes.div_ceil(lanes);
        let plane_parts = wanted.div_ceil(item_parts.max(1)).min(vectors).max(1);
        let part_planes = share(vectors, plane_parts) * lanes;
        let plane_parts = corr.out_planes.div_ceil(part_planes);
        let spans = corr.y.phases.iter().map(|phase| corr.y.span(phase, band_rows));
        let window = Window::new(&corr.x, spans.max().unwrap_or(0));
        let pairs = corr.y.phases.iter().flat_map(|y| corr.x.phases.iter().map(move |x| (y, x)));
        let taps = pairs.map(|(y, x)| window_taps(&window, y, x, corr.kernel_x)).collect();
        Self {
            method,
            window,
            taps,
            band_rows,
            bands,
            block_images,
            blocks,
            items: if corr.out_plane() == 0 { 0 } else { items },
            item_parts,
            plane_parts,
            part_planes,
            corr,
        }
    }

    fn groups(&self) -> usize {
        if self.items == 0 { 0 } else { self.item_parts * self.plane_parts }
    }

    fn scratch_bytes(&self, lanes: usize) -> usize {
        let planes = self.part_planes.min(self.corr.out_planes);
        let window = Scratch::bytes_for(self.window.len(self.corr.src_planes) * self.block_images);
        let rest: usize = match self.method {
            Method::Direct => {
                direct::scratch_len(&self.corr, lanes, planes).into_iter().map(Scratch::bytes_for).sum()
            }
            Method::Unfold => unfold::scratch_len(&self.corr, planes, self.band_rows)
                .into_iter()
                .map(Scratch::bytes_for)
                .sum(),
        };
        window + rest
    }
}

/// One group: a range of items for a part of the output planes.
struct CorrelationGroup<'a, T> {
    plan: &'a CorrelationPlan,
    job: CorrelationJob<'a, T>,
    group: usize,
    scratch: Scratch<'a>,
}

impl<T: Element> Task for CorrelationGroup<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { plan, job, group, mut scratch } = self;
        let corr = &plan.corr;
        let first = group % plan.plane_parts * plan.part_planes;
        let planes = plan.part_planes.min(corr.out_planes - first);
        let part = group / plan.plane_parts;
        let items = part * plan.items / plan.item_parts..(part + 1) * plan.items / plan.item_parts;
        let most = plan.part_planes.min(corr.out_planes);
        let image_window = plan.window.len(corr.src_planes);
        let window = scratch.take(image_window * plan.block_images).as_mut_ptr();
        let [packed, tile, wide] = match plan.method {
            Method::Direct => {
                let (packed, tile) = direct::take(&mut scratch, corr, S::LANES, most);
                [packed, tile, tile]
            }
            Method::Unfold => unfold::take(&mut scratch, corr, most, plan.band_rows),
        };
        let mut packed_for = None;
        for index in items {
            // Items are ordered so that the weights change seldom: group of channels, phase, images, band.
            let (block, band) = (index / plan.bands, index % plan.bands);
            let (set, image) = (block / plan.blocks, block % plan.blocks * plan.block_images);
            let images = plan.block_images.min(corr.batch - image);
            let (channels, y) = (set / corr.y.phases.len(), set % corr.y.phases.len());
            let y_phase = &corr.y.phases[y];
            let row0 = band * plan.band_rows;
            if row0 >= y_phase.len {
                continue;
            }
            let rows = plan.band_rows.min(y_phase.len - row0);
            let pair = |x: usize| &plan.taps[y * corr.x.phases.len() + x];
            let packed_len = |x: usize| pair(x).len() * corr.src_planes * planes.next_multiple_of(S::LANES);
            // SAFETY: the item is inside the tensors that the caller vouches for; the buffers were taken
            // with the sizes that the plan computed for its largest item.
            unsafe {
                if packed_for != Some(set) {
                    packed_for = Some(set);
                    let weights = job.weights.add(channels * corr.weights());
                    let mut to = packed;
                    for x in 0..corr.x.phases.len() {
                        match plan.method {
                            Method::Direct => {
                                direct::pack_weights::<S, T>(corr, weights, pair(x), first, planes, to);
                                to = to.add(packed_len(x));
                            }
                            Method::Unfold => {
                                unfold::pack_weights::<T>(corr, weights, pair(x), first, planes, to);
                                to = to.add(pair(x).len() * corr.src_planes * planes);
                            }
                        }
                    }
                }
                let set_plane = image * corr.channel_groups + channels;
                let first_row = (row0 * corr.y.step) as isize + y_phase.low;
                for image in 0..images {
                    let plane = (set_plane + image * corr.channel_groups) * corr.src_planes;
                    let src = Planes {
                        src: job.src.add(plane * corr.src_plane()),
                        count: corr.src_planes,
                        height: corr.y.src,
                        width: corr.x.src,
                    };
                    let to = window.add(image * image_window);
                    plan.window.fill::<S, T>(to, src, first_row, corr.y.span(y_phase, rows));
                }
                let mut weights = packed.cast_const();
                for (x, x_phase) in corr.x.phases.iter().enumerate() {
                    let item = Item {
                        window: &plan.window,
                        images,
                        image_window,
                        y_phase,
                        x_phase,
                        taps: pair(x),
                        plane: set_plane * corr.out_planes + first,
                        planes,
                        bias_at: channels * corr.out_planes + first,
                        row0,
                        rows,
                    };
                    match plan.method {
                        Method::Direct => {
                            direct::run::<S, T>(&job, &item, window, weights, tile);
                            weights = weights.add(packed_len(x));
                        }
                        Method::Unfold => {
                            unfold::run::<S, T>(&job, &item, window, weights, tile, wide);
                            weights = weights.add(pair(x).len() * corr.src_planes * planes);
                        }
                    }
                }
            }
        }
    }
}

/// Runs one group of a plan whose elements are computed in f32.
unsafe fn run_vector<T: Element>(
    plan: &ConvPlan<T>,
    phase: usize,
    group: usize,
    args: ConvArgs<T>,
    scratch: &mut [u8],
) {
    let scratch = Scratch::new(scratch);
    // SAFETY: the plan holds an available instruction set; the caller vouches for the operands.
    unsafe {
        match &plan.kind {
            Kind::Correlation(correlation) => {
                let forward = plan.op == ConvOp::Forward;
                let job = CorrelationJob {
                    corr: &correlation.corr,
                    src: args.lhs,
                    weights: args.rhs,
                    out: args.out,
                    bias: if forward && plan.spec.bias { args.bias } else { std::ptr::null() },
                    relu: forward && plan.spec.relu,
                };
                plan.isa.invoke(CorrelationGroup { plan: correlation, job, group, scratch });
            }
            Kind::Weight(weight) => {
                let workspace = args.workspace.cast();
                let job = WeightJob { x: args.lhs, dy: args.rhs, dw: args.out, workspace };
                plan.isa.invoke(WeightGroup { plan: weight, job, phase, group, scratch });
            }
            Kind::Plain(_) => unreachable!("plain loops are planned for f64 alone"),
        }
    }
}

impl ConvElement for f32 {
    unsafe fn run(plan: &ConvPlan<f32>, phase: usize, group: usize, args: ConvArgs<f32>, scratch: &mut [u8]) {
        // SAFETY: the caller vouches for the operands.
        unsafe { run_vector(plan, phase, group, args, scratch) }
    }
}

impl ConvElement for f16 {
    unsafe fn run(plan: &ConvPlan<f16>, phase: usize, group: usize, args: ConvArgs<f16>, scratch: &mut [u8]) {
        // SAFETY: the caller vouches for the operands.
        unsafe { run_vector(plan, phase, group, args, scratch) }
    }
}

impl ConvElement for f64 {
    unsafe fn run(
        plan: &ConvPlan<f64>,
        _phase: usize,
        group: usize,
        args: ConvArgs<f64>,
        _scratch: &mut [u8],
    ) {
        let Kind::Plain(planes) = plan.kind else { unreachable!("f64 is planned as plain loops") };
        let planes = group * planes..((group + 1) * planes).min(output_planes(plan.op, &plan.spec));
        let bias = if plan.spec.bias { args.bias } else { std::ptr::null() };
        // SAFETY: the planes are inside the result; the caller vouches for the operands.
        unsafe { plain::run(plan.op, &plan.spec, planes, [args.lhs, args.rhs, bias], args.out) }
    }
}

#[cfg(test)]
mod tests;

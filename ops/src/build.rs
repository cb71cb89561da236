//! From fused nodes to kernel ops: programs of clusters and reductions, canonical contractions.

use crate::access::{Access, Source, ValueIndex, merge_axes};
use crate::cluster::{BinaryOp, Cluster, Literal, Step, StepOp, ValueId, View};
use crate::fuse::{Built, Fuser, PlanNode};
use crate::hash::IdMap;
use crate::lower::{
    Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, MatrixView, Pad, ReduceKind, Reduction, Window,
    WindowKind,
};
use crate::op::{DotAxes, Op, WindowAttributes};
use crate::random::{Words, threefry2x32};
use halite_hal::DType;
use std::collections::HashMap;

/// The program of `nodes` (in order) over `shape`, storing the values of `wanted`.
pub(crate) fn build_cluster(
    fuser: &Fuser<'_>,
    nodes: &[usize],
    wanted: &[usize],
    shape: &[usize],
    axes: Option<&[usize]>,
) -> Built {
    let mut builder = ProgramBuilder::new(shape, axes);
    let mut step_of: IdMap<ValueId> = IdMap::default();
    for &node in nodes {
        let step = builder.node(fuser, node, &step_of);
        step_of.insert(node as u64, step);
    }
    let outputs = wanted.iter().map(|&node| step_of[&(node as u64)]).collect();
    let mut built = builder.finish(outputs);
    if axes.is_none() {
        built.cluster.collapse(None);
    }
    built
}

/// The program that copies a view to a dense value.
pub(crate) fn build_copy(access: &Access) -> Built {
    let mut builder = ProgramBuilder::new(&access.shape, None);
    let step = builder.load(access);
    let mut built = builder.finish(vec![step]);
    built.cluster.collapse(None);
    built
}

/// A reduction of `input` over `axes`; with `absorbed`, of the cluster of these nodes that computes it.
pub(crate) fn build_reduction(
    fuser: &Fuser<'_>,
    kind: ReduceKind,
    axes: &[usize],
    input: &Access,
    absorbed: Option<&[usize]>,
    dtype: DType,
) -> (Reduction, Built) {
    // Axes of extent 1 are not part of the iteration space; the others are numbered anew.
    let long: Vec<usize> = (0..input.shape.len()).filter(|&axis| input.shape[axis] != 1).collect();
    let (reduced, kept): (Vec<usize>, Vec<usize>) = (0..long.len()).partition(|&i| axes.contains(&long[i]));
    let kept_rank = kept.len();
    let order = [kept, reduced].concat();
    let mut built = match absorbed {
        Some(nodes) => {
            let value = input.value().expect("an absorbed cluster computes the input");
            let node = fuser.elementwise_node(value).expect("clusters hold elementwise nodes");
            build_cluster(fuser, nodes, &[node], &input.shape, Some(&order))
        }
        None => {
            let mut builder = ProgramBuilder::new(&input.shape, Some(&order));
            let step = builder.load(input);
            builder.finish(vec![step])
        }
    };
    let kept_rank = built.cluster.collapse(Some(kept_rank)).unwrap_or(kept_rank);
    (Reduction { kind, program: built.cluster.clone(), kept_rank, dtype }, built)
}

struct ProgramBuilder {
    /// Extents without axes of extent 1, before reordering.
    shape: Vec<usize>,
    /// Iteration axis `i` is squeezed axis `order[i]`.
    order: Vec<usize>,
    steps: Vec<Step>,
    known: HashMap<Step, ValueId>,
    inputs: Vec<ValueIndex>,
    views: Vec<View>,
    scalars: Vec<usize>,
    scalar_dtypes: Vec<DType>,
}

impl ProgramBuilder {
    fn new(shape: &[usize], axes: Option<&[usize]>) -> Self {
        let shape: Vec<usize> = shape.iter().copied().filter(|&extent| extent != 1).collect();
        let order = axes.map_or_else(|| (0..shape.len()).collect(), <[usize]>::to_vec);
        Self {
            shape,
            order,
            steps: Vec::new(),
            known: HashMap::new(),
            inputs: Vec::new(),
            views: Vec::new(),
            scalars: Vec::new(),
            scalar_dtypes: Vec::new(),
        }
    }

    fn push(&mut self, op: StepOp, dtype: DType) -> ValueId {
        let step = Step { op, dtype };
        if let Some(&known) = self.known.get(&step) {
            return known;
        }
        let id = self.steps.len() as ValueId;
        self.steps.push(step);
        self.known.insert(step, id);
        id
    }

    fn node(&mut self, fuser: &Fuser<'_>, index: usize, step_of: &IdMap<ValueId>) -> ValueId {
        let node = fuser.node(index);
        let operands: Vec<ValueId> = node
            .inputs
            .iter()
            .map(|&input| {
                let access = fuser.access(input);
                let inside = access
                    .value()
                    .and_then(|value| fuser.elementwise_node(value))
                    .and_then(|producer| step_of.get(&(producer as u64)).copied());
                inside.unwrap_or_else(|| self.load(access))
            })
            .collect();
        let op = match &node.op {
            Op::Unary(op) => StepOp::Unary(*op, operands[0]),
            Op::Binary(op) => StepOp::Binary(*op, operands[0], operands[1]),
            Op::Compare(op) => StepOp::Compare(*op, operands[0], operands[1]),
            Op::Select => StepOp::Select(operands[0], operands[1], operands[2]),
            Op::Cast => StepOp::Cast(operands[0]),
            Op::Bitcast => StepOp::Bitcast(operands[0]),
            Op::RandomBits => return self.random_bits([operands[0], operands[1]]),
            op => unreachable!("{} is not computed by a cluster", op.name()),
        };
        self.push(op, node.dtype)
    }

    /// The step that reads `access` at the current point.
    fn load(&mut self, access: &Access) -> ValueId {
        match access.source {
            Source::Constant(literal) => self.push(StepOp::Constant(literal), literal.dtype),
            Source::Scalar(node) => {
                let slot = self.scalars.iter().position(|&own| own == node).unwrap_or_else(|| {
                    self.scalars.push(node);
                    self.scalar_dtypes.push(access.dtype);
                    self.scalars.len() - 1
                });
                self.push(StepOp::Scalar(slot as u32), access.dtype)
            }
            Source::Position => self.position(access),
            Source::Value(value) => {
                let view = View {
                    dtype: access.dtype,
                    offset: access.offset,
                    strides: self.ordered_strides(access),
                };
                let known = (0..self.views.len()).find(|&i| self.inputs[i] == value && self.views[i] == view);
                let slot = known.unwrap_or_else(|| {
                    self.inputs.push(value);
                    self.views.push(view);
                    self.views.len() - 1
                });
                self.push(StepOp::Load(slot as u32), access.dtype)
            }
        }
    }

    /// `offset + sum(index * stride)`, wrapping in the access's integer dtype.
    fn position(&mut self, access: &Access) -> ValueId {
        let dtype = access.dtype;
        // Wrapped to the dtype's bits, as the sums are.
        let mask = u64::MAX >> (64 - 8 * dtype.size());
        let constant = |value: i64| StepOp::Constant(Literal { dtype, bits: value as u64 & mask });
        let mut sum = None;
        for (axis, stride) in self.ordered_strides(access).into_iter().enumerate().filter(|(_, s)| *s != 0) {
            let mut term = self.push(StepOp::Index(axis as u32), dtype);
            // A negative step is added as a wrapped product, which unsigned types need.
            if stride.unsigned_abs() != 1 {
                let factor = self.push(constant(stride.abs()), dtype);
                term = self.push(StepOp::Binary(BinaryOp::Mul, term, factor), dtype);
            }
            sum = Some(match (sum, stride < 0) {
                (None, false) => term,
                (None, true) => {
                    let zero = self.push(constant(0), dtype);
                    self.push(StepOp::Binary(BinaryOp::Sub, zero, term), dtype)
                }
                (Some(sum), false) => self.push(StepOp::Binary(BinaryOp::Add, sum, term), dtype),
                (Some(sum), true) => self.push(StepOp::Binary(BinaryOp::Sub, sum, term), dtype),
            });
        }
        let offset = (access.offset != 0 || sum.is_none()).then(|| self.push(constant(access.offset), dtype));
        match (sum, offset) {
            (Some(sum), Some(offset)) => self.push(StepOp::Binary(BinaryOp::Add, sum, offset), dtype),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => unreachable!("without a sum there is an offset"),
        }
    }

    /// Strides of an access over the squeezed and reordered iteration space.
    fn ordered_strides(&self, access: &Access) -> Vec<i64> {
        let long: Vec<i64> = (0..access.shape.len())
            .filter(|&axis| access.shape[axis] != 1)
            .map(|axis| access.strides[axis])
            .collect();
        self.order.iter().map(|&axis| long[axis]).collect()
    }

    /// Threefry of the linear index, which is the index along the only axis.
    fn random_bits(&mut self, key: [ValueId; 2]) -> ValueId {
        let zero = self.push(StepOp::Constant(Literal::new(DType::U32, 0.0)), DType::U32);
        let index = if self.shape.is_empty() { zero } else { self.push(StepOp::Index(0), DType::U32) };
        threefry2x32(self, key, [index, zero])[0]
    }

    fn finish(self, outputs: Vec<ValueId>) -> Built {
        let cluster = Cluster {
            shape: self.order.iter().map(|&axis| self.shape[axis]).collect(),
            inputs: self.views,
            scalars: self.scalar_dtypes,
            steps: self.steps,
            outputs,
        };
        Built { cluster, inputs: self.inputs, scalars: self.scalars }
    }
}

impl Words for ProgramBuilder {
    type Word = ValueId;

    fn constant(&mut self, value: u32) -> ValueId {
        self.push(StepOp::Constant(Literal::new(DType::U32, f64::from(value))), DType::U32)
    }

    fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.push(StepOp::Binary(BinaryOp::Add, a, b), DType::U32)
    }

    fn xor(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.push(StepOp::Binary(BinaryOp::Xor, a, b), DType::U32)
    }

    fn rotate(&mut self, a: ValueId, by: u32) -> ValueId {
        let (left, right) = (self.constant(by), self.constant(32 - by));
        let high = self.push(StepOp::Binary(BinaryOp::Shl, a, left), DType::U32);
        let low = self.push(StepOp::Binary(BinaryOp::Shr, a, right), DType::U32);
        self.push(StepOp::Binary(BinaryOp::Or, high, low), DType::U32)
    }
}

/// A matrix operand of a contraction: the axes in three roles, and how each role's axes merge.
struct MatrixOperand {
    access: Access,
    batch: Vec<usize>,
    free: Vec<usize>,
    contract: Vec<usize>,
}

impl MatrixOperand {
    fn new(access: &Access, batch: &[usize], contract: &[usize]) -> Self {
        let free = (0..access.shape.len())
            .filter(|axis| !batch.contains(axis) && !contract.contains(axis))
            .collect();
        Self { access: access.clone(), batch: batch.to_vec(), free, contract: contract.to_vec() }
    }

    fn pick(&self, axes: &[usize]) -> (Vec<usize>, Vec<i64>) {
        axes.iter().map(|&axis| (self.access.shape[axis], self.access.strides[axis])).unzip()
    }

    /// Whether the operand is a view of a value whose free and contracted axes are regularly spaced.
    fn is_matrix(&self) -> bool {
        let single = |axes: &[usize]| {
            let (extents, strides) = self.pick(axes);
            merge_axes(&extents, &[strides]).0.len() <= 1
        };
        self.access.value().is_some() && single(&self.free) && single(&self.contract)
    }

    /// The same operand as a dense copy `[batch.., free.., contract..]`.
    fn copied(&self, fuser: &mut Fuser<'_>) -> Self {
        let order = [&self.batch[..], &self.free, &self.contract].concat();
        let value = fuser.dense_value(&self.access, Some(&order));
        let permuted = self.access.permuted(&order);
        let access = Access::dense(Source::Value(value), permuted.dtype, &permuted.shape);
        let (b, f) = (self.batch.len(), self.free.len());
        Self {
            access,
            batch: (0..b).collect(),
            free: (b..b + f).collect(),
            contract: (b + f..order.len()).collect(),
        }
    }

    /// Extent and stride of a role's merged axis; an extent of 1 has stride 0.
    fn merged(&self, axes: &[usize]) -> (usize, i64) {
        let (extents, strides) = self.pick(axes);
        let (extents, strides) = merge_axes(&extents, &[strides]);
        (extents.first().copied().unwrap_or(1), strides[0].first().copied().unwrap_or(0))
    }
}

/// A contraction in canonical form. Operands that are no strided matrices are copied into some.
pub(crate) fn dot(
    fuser: &mut Fuser<'_>,
    axes: &DotAxes,
    operands: &[Access],
    node: &PlanNode,
) -> (KernelOp, Vec<ValueIndex>) {
    let mut sides = [
        MatrixOperand::new(&operands[0], &axes.lhs_batch, &axes.lhs_contract),
        MatrixOperand::new(&operands[1], &axes.rhs_batch, &axes.rhs_contract),
    ];
    for side in &mut sides {
        if !side.is_matrix() {
            *side = side.copied(fuser);
        }
    }
    let [lhs, rhs] = &sides;
    let (m, lhs_row) = lhs.merged(&lhs.free);
    let (n, rhs_col) = rhs.merged(&rhs.free);
    let (k, lhs_col) = lhs.merged(&lhs.contract);
    let (_, rhs_row) = rhs.merged(&rhs.contract);
    let (batch, batch_strides) =
        merge_axes(&lhs.pick(&lhs.batch).0, &[lhs.pick(&lhs.batch).1, rhs.pick(&rhs.batch).1]);
    let view = |side: &MatrixOperand, batch_strides: &[i64], row_stride, col_stride| MatrixView {
        offset: side.access.offset,
        batch_strides: batch_strides.to_vec(),
        row_stride,
        col_stride,
    };
    let op = KernelOp::Dot(Dot {
        batch,
        m,
        n,
        k,
        lhs: view(lhs, &batch_strides[0], lhs_row, lhs_col),
        rhs: view(rhs, &batch_strides[1], rhs_row, rhs_col),
        dtype: operands[0].dtype,
        out_dtype: node.dtype,
        epilogue: Epilogue::default(),
    });
    let value = |side: &MatrixOperand| side.access.value().expect("is_matrix or a copy");
    (op, vec![value(lhs), value(rhs)])
}

/// A convolution over dense operands.
pub(crate) fn conv(
    operand: ConvOperand,
    geometry: &ConvGeometry,
    operands: &[Access],
    node: &PlanNode,
) -> KernelOp {
    KernelOp::Conv(Conv {
        operand,
        geometry: geometry.clone(),
        dtype: operands[0].dtype,
        out_dtype: node.dtype,
        epilogue: Epilogue::default(),
    })
}

/// A window op over dense operands.
pub(crate) fn window(
    kind: WindowKind,
    attributes: &WindowAttributes,
    node: &PlanNode,
    operands: &[Access],
) -> KernelOp {
    let leading = node.shape.len() - attributes.window.len();
    KernelOp::Window(Window {
        kind,
        outer: node.shape[..leading].iter().product(),
        input: attributes.input.clone(),
        output: attributes.output(),
        window: attributes.window.clone(),
        stride: attributes.stride.clone(),
        pad_low: attributes.pad_low.clone(),
        pad_high: attributes.pad_high.clone(),
        dtype: operands[0].dtype,
    })
}

/// Padding of a dense operand.
pub(crate) fn pad(
    low: &[i64],
    high: &[i64],
    interior: &[usize],
    value: Literal,
    operand: &Access,
    node: &PlanNode,
) -> KernelOp {
    KernelOp::Pad(Pad {
        input: operand.shape.clone(),
        output: node.shape.clone(),
        low: low.to_vec(),
        high: high.to_vec(),
        interior: interior.to_vec(),
        value,
    })
}

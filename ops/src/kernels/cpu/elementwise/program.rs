//! Compiles a [`Cluster`] to instructions over chunks.
//!
//! Every value lives in a *slot*: a register (a chunk in scratch memory), a block of equal elements, or memory of an
//! argument that is read or written where it lies. Half-precision values are held as f32 and rounded after each
//! step. Pairs of f32 steps become one instruction where that changes no bit.

use super::Rep;
use super::build::Builder;
use super::lanes::{KernelFn, LANES};
use crate::cluster::{Cluster, Step, StepOp, ValueId, View};
use crate::kernels::cpu::simd::Isa;
use crate::lower::Unservable;
use halite_hal::DType;

/// Bytes that the registers of a program should not exceed, so that they stay in the nearest caches.
const REGISTER_BYTES: usize = 48 << 10;

/// Most points of a chunk, unless the profile says otherwise.
const CHUNK: usize = 2048;

/// Points of a chunk of programs without values between their steps, which the cache does not limit.
const STREAM: usize = 4096;

/// Where a value lies while a chunk is processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// A chunk in scratch memory.
    Register(u16),
    /// A block of equal elements, filled once per workgroup.
    Splat(u16),
    /// An input whose elements lie in the order of the points.
    Input(u16),
    /// An input whose elements lie in order within the current row.
    Row(u16),
    /// A block of equal elements, filled from an input for each row.
    RowSplat(u16),
    /// The place of the points in an output.
    Output(u16),
}

impl Slot {
    /// Whether the slot is memory of an argument, which ends with the last point.
    pub(super) fn is_exact(self) -> bool {
        matches!(self, Self::Input(_) | Self::Row(_) | Self::Output(_))
    }
}

/// What fills a block of equal elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splat {
    /// A constant's bits.
    Constant(u64),
    /// A runtime scalar.
    Scalar(u16),
    /// The only element of an input that is read.
    Input(u16),
    /// The element of an input that the whole of the current row reads.
    Row(u16),
}

/// What an instruction does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// Runs a loop over the operands.
    Map(KernelFn),
    /// Collects the elements of an input that lie anywhere.
    Gather(u16),
    /// Writes the index along an axis.
    Index(u16, Rep),
}

/// One instruction; slots by their number in [`Program::slots`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Instruction {
    pub(super) work: Work,
    pub(super) dst: u16,
    /// Operands; unused ones name the destination.
    pub(super) src: [u16; 4],
    /// Bytes per element of the destination and of the operands.
    pub(super) dst_size: u8,
    pub(super) src_size: [u8; 4],
    pub(super) operands: u8,
    /// Whether a slot ends with the last point, so that a ragged end must not be rounded up.
    pub(super) exact: bool,
}

/// An input that must be copied away before a chunk's outputs are written, if it is the memory of this output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hazard {
    pub(super) output: u16,
    pub(super) input: u16,
    /// The input's slot, and the register that stands in for it.
    pub(super) slot: u16,
    pub(super) register: u16,
}

/// A compiled cluster.
#[derive(Debug)]
pub(crate) struct Program {
    /// The iteration space, after neighbouring axes were merged.
    pub(super) shape: Vec<usize>,
    /// Its number of points, and those along the innermost axis.
    pub(crate) points: usize,
    pub(crate) row: usize,
    /// Whether a chunk must lie inside one row.
    pub(crate) by_rows: bool,
    /// Most points of a chunk, a multiple of [`LANES`].
    pub(crate) chunk: usize,
    pub(super) views: Vec<View>,
    /// Elements of each input buffer, as they were checked against the views.
    pub(super) input_elements: Vec<usize>,
    pub(super) output_dtypes: Vec<DType>,
    pub(super) scalars: usize,
    pub(super) slots: Vec<Slot>,
    pub(super) code: Vec<Instruction>,
    pub(super) splats: Vec<(Splat, Rep)>,
    pub(super) registers: usize,
    /// Bytes of an element that every register has room for.
    pub(super) register_size: usize,
    pub(super) hazards: Vec<Hazard>,
    /// Slot and type of the first output, where it is not stored but handed to a reduction.
    pub(super) result: (u16, Rep),
}

/// What happens with the outputs of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outputs {
    /// They are stored in the output buffers.
    Store,
    /// The first is left in a slot for the caller.
    Keep,
}

impl Program {
    /// Compiles `cluster`, which reads buffers of `input_elements`, for `isa`; `chunk` is the profile's wish.
    ///
    /// # Errors
    /// When the cluster is malformed, reads outside its buffers, or has a step that no loop is written for.
    pub(crate) fn compile(
        isa: Isa,
        cluster: Cluster,
        input_elements: &[usize],
        chunk: Option<u32>,
        outputs: Outputs,
    ) -> Result<Self, Unservable> {
        let points = check(&cluster, input_elements)?;
        let row = cluster.shape.last().copied().unwrap_or(1);
        let mut builder = Builder::new(isa, &cluster, row);
        let result = builder.build(outputs)?;
        let mut program = builder.finish(result);
        program.points = points;
        program.input_elements = input_elements.to_vec();
        program.scalars = cluster.scalars.len();
        if outputs == Outputs::Store {
            program.output_dtypes = (0..cluster.outputs.len()).map(|n| cluster.output_dtype(n)).collect();
        }
        let fitting = REGISTER_BYTES / (program.registers * program.register_size).max(1);
        let chunk = match chunk {
            _ if program.registers == 0 => STREAM,
            None => fitting.clamp(128, CHUNK),
            Some(wish) => (wish as usize).clamp(1, 1 << 16),
        };
        program.chunk = chunk.next_multiple_of(LANES);
        program.shape = cluster.shape;
        program.views = cluster.inputs;
        Ok(program)
    }

    /// Bytes of scratch memory that a workgroup needs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        ALIGN + self.registers * self.register_stride() + self.splats.len() * SPLAT_BYTES
    }

    /// Bytes from one register to the next.
    pub(super) fn register_stride(&self) -> usize {
        (self.chunk * self.register_size).next_multiple_of(ALIGN)
    }

    /// Number of instructions that each chunk runs.
    pub(crate) fn instructions(&self) -> usize {
        self.code.len()
    }

    /// Number of input buffers.
    pub(crate) fn inputs(&self) -> usize {
        self.views.len()
    }

    /// Representation of the value that is kept for a reduction.
    pub(crate) fn result_rep(&self) -> Rep {
        self.result.1
    }
}

/// Alignment of registers.
pub(super) const ALIGN: usize = 64;
/// Bytes of a block of equal elements of the largest type.
pub(super) const SPLAT_BYTES: usize = LANES * 8;

/// Checks that the program is well formed and that no view leaves its buffer; returns the number of points.
fn check(cluster: &Cluster, input_elements: &[usize]) -> Result<usize, Unservable> {
    let rank = cluster.shape.len();
    let points = cluster.shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
    let points = points
        .filter(|points| isize::try_from(*points).is_ok())
        .ok_or_else(|| Unservable::new(format!("shape {:?} has too many points", cluster.shape)))?;
    let most = usize::from(u16::MAX) / 8;
    if cluster.steps.len() > most || cluster.inputs.len() > most || cluster.outputs.len() > most {
        return Err(Unservable::new(format!("the program has more than {most} steps, inputs or outputs")));
    }
    if cluster.inputs.len() != input_elements.len() {
        return Err(Unservable::new(format!(
            "the program reads {} inputs, but {} were given",
            cluster.inputs.len(),
            input_elements.len()
        )));
    }
    for (input, (view, elements)) in cluster.inputs.iter().zip(input_elements).enumerate() {
        if view.strides.len() != rank {
            return Err(Unservable::new(format!(
                "the view of input {input} has {} strides over {rank} axes",
                view.strides.len()
            )));
        }
        let (mut first, mut last) = (i128::from(view.offset), i128::from(view.offset));
        for (stride, extent) in view.strides.iter().zip(&cluster.shape) {
            let reach = i128::from(*stride) * (extent.saturating_sub(1) as i128);
            first += reach.min(0);
            last += reach.max(0);
        }
        if points > 0 && (first < 0 || last >= *elements as i128) {
            return Err(Unservable::new(format!(
                "the view of input {input} reads elements {first} to {last} of a buffer of {elements}"
            )));
        }
    }
    for (id, step) in cluster.steps.iter().enumerate() {
        check_step(cluster, id, step)
            .map_err(|reason| Unservable::new(format!("step {id} of the program {reason}")))?;
    }
    match cluster.outputs.iter().find(|output| **output as usize >= cluster.steps.len()) {
        Some(output) => {
            Err(Unservable::new(format!("the program stores step {output}, which it does not have")))
        }
        None => Ok(points),
    }
}

fn check_step(cluster: &Cluster, id: usize, step: &Step) -> Result<(), String> {
    if let Some(late) = step.op.operands().find(|operand| *operand as usize >= id) {
        return Err(format!("uses step {late}, which is not earlier"));
    }
    let dtype = |value: ValueId| cluster.steps[value as usize].dtype;
    let agree = |expected: DType, got: DType| {
        if expected == got { Ok(()) } else { Err(format!("is {got} where it must be {expected}")) }
    };
    match step.op {
        StepOp::Load(input) => match cluster.inputs.get(input as usize) {
            Some(view) => agree(view.dtype, step.dtype),
            None => Err(format!("loads input {input}, which the program does not have")),
        },
        StepOp::Scalar(scalar) => match cluster.scalars.get(scalar as usize) {
            Some(given) => agree(*given, step.dtype),
            None => Err(format!("reads scalar {scalar}, which the program does not have")),
        },
        StepOp::Constant(literal) => agree(literal.dtype, step.dtype),
        StepOp::Index(axis) if axis as usize >= cluster.shape.len() => {
            Err(format!("counts along axis {axis} of a space of rank {}", cluster.shape.len()))
        }
        StepOp::Index(_) | StepOp::Cast(_) => Ok(()),
        StepOp::Unary(op, a) => {
            agree(step.dtype, dtype(a))?;
            if op.accepts(step.dtype) { Ok(()) } else { Err(format!("is {} of {}", op.name(), step.dtype)) }
        }
        StepOp::Binary(op, a, b) => {
            agree(step.dtype, dtype(a))?;
            agree(step.dtype, dtype(b))?;
            if op.accepts(step.dtype) { Ok(()) } else { Err(format!("is {} of {}", op.name(), step.dtype)) }
        }
        StepOp::Compare(_, a, b) => {
            agree(DType::Bool, step.dtype)?;
            agree(dtype(a), dtype(b))
        }
        StepOp::Select(condition, a, b) => {
            agree(DType::Bool, dtype(condition))?;
            agree(step.dtype, dtype(a))?;
            agree(step.dtype, dtype(b))
        }
        StepOp::Bitcast(a) if dtype(a).size() != step.dtype.size() => {
            Err(format!("views {} as {}, which has another size", dtype(a), step.dtype))
        }
        StepOp::Bitcast(_) => Ok(()),
    }
}

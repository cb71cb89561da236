//! Fused elementwise programs.
//!
//! `lower` compiles a [`Cluster`] to a short list of vector instructions (`program.rs`); each workgroup interprets it
//! chunk by chunk (`machine.rs`), so that values between the steps never leave the L1 cache. Operands that lie in the
//! order of the points are read where they are, and results are written where they belong.
//!
//! Copies that move the innermost axis go through square blocks (`transpose.rs`).
//!
//! Launch: a grid `[groups, 1, 1]`; group `g` computes an equal share of the points, in row-major order. In place:
//! a chunk's elements of an input are read before the output's elements that may lie there are written. Scratch: the
//! chunk's registers, at most 48 KiB by default. Parameters: `chunk`, points per chunk of a program that has values
//! between its steps.

mod build;
mod casts;
pub(crate) mod functions;
pub(crate) mod lanes;
pub(crate) mod machine;
pub(crate) mod math;
pub(crate) mod program;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;
mod transpose;

use super::simd::Isa;
use super::{requirements, supports};
use crate::cluster::{Cluster, Step, StepOp, View};
use crate::lower::{KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite_hal::{Access, ArgType, DType, KernelSource, NativeKernel, Signature, Workgroup};
use halite_profiles::{Parameters, Size};
use lanes::LANES;
use machine::Machine;
use program::{Outputs, Program};
use std::sync::Arc;

/// Points times instructions that are worth a workgroup of their own: about 5 us of one core.
const GROUP_WORK: usize = 1 << 17;

/// Most workgroups per core, so that a core that is held up leaves work to the others.
const GROUPS_PER_CORE: usize = 8;

/// The type that values of a dtype are computed in: `bool` as 0 or 1 in a `u8`, half precision in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rep {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl Rep {
    /// For values of `dtype`.
    pub(crate) const fn of(dtype: DType) -> Self {
        match dtype {
            DType::I8 => Self::I8,
            DType::Bool | DType::U8 => Self::U8,
            DType::I16 => Self::I16,
            DType::U16 => Self::U16,
            DType::I32 => Self::I32,
            DType::U32 => Self::U32,
            DType::I64 => Self::I64,
            DType::U64 => Self::U64,
            DType::F16 | DType::BF16 | DType::F32 => Self::F32,
            _ => Self::F64,
        }
    }

    /// Bytes of an element.
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Whether the type holds floating-point numbers.
    pub(crate) const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// Points per chunk for tuning to try.
pub(crate) fn chunks() -> Vec<Parameters> {
    [128, 256, 512, 1024, 2048, 4096].map(|chunk| Parameters::default().with_chunk(chunk)).to_vec()
}

/// The variants of `elementwise`, best first.
pub fn variants() -> Vec<KernelVariant> {
    let of = |isa: Isa| {
        KernelVariant::new("elementwise", isa.name(), "native", requirements(isa), move |request| {
            let KernelOp::Elementwise(cluster) = request.op else {
                return Err(Unservable::new(format!("{} is not elementwise", request.op.name())));
            };
            lower(isa, cluster, request)
        })
        .with_sizes([Size::Chunk])
        .with_candidates(chunks())
    };
    Isa::ALL.into_iter().rev().map(of).collect()
}

fn lower(isa: Isa, cluster: &Cluster, request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    supports(isa)?;
    let mut collapsed = cluster.clone();
    well_shaped(cluster)?;
    collapsed.collapse(None);
    let elements: Vec<usize> = request.inputs.iter().map(|tensor| tensor.elements()).collect();
    let program =
        Program::compile(isa, collapsed, &elements, request.parameters.int("chunk"), Outputs::Store)?;
    if program.points == 0 || cluster.outputs.is_empty() {
        return Ok(Lowered::default());
    }
    let cores = request.device.compute_units as usize;
    if let Some(transpose) = transpose::Transpose::find(cluster) {
        return Ok(Lowered::single(transpose.launch(isa, elements[0], cores)));
    }
    let (groups, share) = shares(program.points, program.instructions(), cores);
    let in_place = cluster.inputs.iter().any(|view| {
        view.is_contiguous(&cluster.shape)
            && (0..cluster.outputs.len()).any(|n| cluster.output_dtype(n).size() == view.dtype.size())
    });
    let (inputs, outputs) = (cluster.inputs.len(), cluster.outputs.len());
    let buffer = |dtype, access| ArgType::Buffer { dtype, access };
    let mut arg_types: Vec<ArgType> =
        cluster.inputs.iter().map(|view| buffer(view.dtype, Access::Read)).collect();
    arg_types.extend((0..outputs).map(|n| buffer(cluster.output_dtype(n), Access::Write)));
    arg_types.extend(cluster.scalars.iter().map(|dtype| ArgType::Scalar(*dtype)));
    let mut args: Vec<LaunchArg> = (0..inputs).map(LaunchArg::Input).collect();
    args.extend((0..outputs).map(LaunchArg::Output));
    args.extend((0..cluster.scalars.len()).map(LaunchArg::Scalar));

    let name = format!("elementwise_{}_{}", cluster.output_dtype(0), isa.name());
    let scratch_bytes = program.scratch_bytes();
    let program = Arc::new(program);
    let run = move |group: &mut Workgroup<'_>| run_share(&program, group, inputs, inputs + outputs, share);
    let signature = Signature { args: arg_types, in_place, max_grid: None };
    let mut kernel = NativeKernel::new(name, signature, run);
    kernel.scratch_bytes = scratch_bytes;
    kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
    Ok(Lowered::single(Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args }))
}

/// A launch that converts `n` elements, or copies them.
pub(crate) fn cast_launch(
    isa: Isa,
    n: usize,
    (from, from_dtype): (LaunchArg, DType),
    (to, to_dtype): (LaunchArg, DType),
    cores: usize,
) -> Result<Launch, Unservable> {
    let mut cluster = Cluster::copy(&[n], View::contiguous(from_dtype, &[n]));
    cluster.steps.push(Step { op: StepOp::Cast(0), dtype: to_dtype });
    cluster.outputs = vec![1];
    let program = Program::compile(isa, cluster, &[n], None, Outputs::Store)?;
    let (groups, share) = shares(n, program.instructions(), cores);
    let buffer = |dtype, access| ArgType::Buffer { dtype, access };
    let signature = Signature::new(vec![buffer(from_dtype, Access::Read), buffer(to_dtype, Access::Write)]);
    let scratch_bytes = program.scratch_bytes();
    let run = move |group: &mut Workgroup<'_>| run_share(&program, group, 1, 2, share);
    let name = format!("elementwise_{from_dtype}_{to_dtype}_{}", isa.name());
    let mut kernel = NativeKernel::new(name, signature, run);
    kernel.scratch_bytes = scratch_bytes;
    kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
    Ok(Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args: vec![from, to] })
}

/// Whether every view has a stride per axis, which merging axes relies on.
pub(crate) fn well_shaped(cluster: &Cluster) -> Result<(), Unservable> {
    match cluster.inputs.iter().position(|view| view.strides.len() != cluster.shape.len()) {
        None => Ok(()),
        Some(input) => Err(Unservable::new(format!(
            "the view of input {input} has {} strides over {} axes",
            cluster.inputs[input].strides.len(),
            cluster.shape.len()
        ))),
    }
}

/// Splits `points` into equal shares of whole blocks: how many, and how long each is.
pub(crate) fn shares(points: usize, instructions: usize, cores: usize) -> (u32, usize) {
    let work = points.saturating_mul(instructions.max(1));
    let wanted = (work / GROUP_WORK).clamp(1, cores.max(1).saturating_mul(GROUPS_PER_CORE));
    let share = points.div_ceil(wanted).next_multiple_of(LANES * 4);
    (u32::try_from(points.div_ceil(share)).unwrap_or(u32::MAX), share)
}

fn run_share(
    program: &Program,
    group: &mut Workgroup<'_>,
    first_output: usize,
    first_scalar: usize,
    share: usize,
) -> Result<(), String> {
    let start = usize::try_from(group.linear_index()).unwrap_or(usize::MAX).saturating_mul(share);
    let end = start.saturating_add(share).min(program.points);
    let scratch = group.take_scratch();
    let mut machine = Machine::new(program, group, first_output, first_scalar, scratch)?;
    let mut at = start;
    while at < end {
        let n = next_chunk(program, at, end);
        // SAFETY: `n` points from `at` on are inside this workgroup's share, which no other workgroup touches, and
        // inside one row where they must be. The launch check excludes overlaps but for updates in place.
        unsafe { machine.chunk(at, n) };
        at += n;
    }
    Ok(())
}

/// Points of the chunk that starts at `at`, so that it ends at a row's end where the program goes by rows.
pub(crate) fn next_chunk(program: &Program, at: usize, end: usize) -> usize {
    let mut left = end - at;
    if program.by_rows {
        left = left.min(program.row - at % program.row);
    }
    // Equal pieces rather than a long one and a rest.
    let pieces = left.div_ceil(program.chunk);
    left.div_ceil(pieces).next_multiple_of(LANES).min(left)
}

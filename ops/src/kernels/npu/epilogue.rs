//! `relu(x + bias)` behind a contraction: in the cube where it can, otherwise as a second launch.
//!
//! The cube adds a f32 vector along the columns and applies relu on the way out. Any other bias is added by the vector
//! unit, which reads the contraction's f32 results from the workspace.

use crate::cluster::{BinaryOp, Cluster, Literal, Step, StepOp, View};
use crate::lower::{Epilogue, Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite_hal::DType;

use super::elementwise;

/// The bias is the third input.
const BIAS_INPUT: usize = 2;

/// What the cube's kernel does itself.
#[derive(Clone, Copy)]
pub(super) struct InCube {
    /// Adds the f32 vector of [`LaunchArg::Input`] 2 along the columns.
    pub(super) bias: bool,
    pub(super) relu: bool,
    pub(super) out_dtype: DType,
    pub(super) out: LaunchArg,
}

/// Lowers a contraction: `launch` builds the cube's kernel, `shape` is the result's, and `bias_strides` says how the bias
/// runs over it; `is_column` tells whether that is along the cube's columns.
pub(super) fn lower(
    request: &LowerRequest<'_>,
    epilogue: Epilogue,
    (dtype, out_dtype): (DType, DType),
    shape: &[usize],
    (bias_strides, is_column): (Vec<i64>, bool),
    launch: impl Fn(InCube) -> Result<Launch, Unservable>,
) -> Result<Lowered, Unservable> {
    let bias_dtype = request.inputs.get(BIAS_INPUT).map_or(dtype, |input| input.dtype);
    let has_bias = epilogue.bias.is_some();
    if !has_bias || is_column && bias_dtype == DType::F32 {
        let in_cube = InCube { bias: has_bias, relu: epilogue.relu, out_dtype, out: LaunchArg::Output(0) };
        return Ok(Lowered::single(launch(in_cube)?));
    }
    let len = 4 * shape.iter().product::<usize>() as u64;
    let out = LaunchArg::Workspace { offset: 0, len };
    let contraction = launch(InCube { bias: false, relu: false, out_dtype: DType::F32, out })?;

    let step = |op: StepOp, dtype: DType| Step { op, dtype };
    let bias = View { dtype: bias_dtype, offset: 0, strides: bias_strides };
    let mut steps = vec![
        step(StepOp::Load(0), DType::F32),
        step(StepOp::Load(1), bias_dtype),
        step(StepOp::Cast(1), DType::F32),
        step(StepOp::Binary(BinaryOp::Add, 0, 2), DType::F32),
    ];
    if epilogue.relu {
        let last = steps.len() as u32 - 1;
        steps.push(step(StepOp::Constant(Literal::new(DType::F32, 0.0)), DType::F32));
        steps.push(step(StepOp::Binary(BinaryOp::Max, last, last + 1), DType::F32));
    }
    steps.push(step(StepOp::Cast(steps.len() as u32 - 1), out_dtype));
    let outputs = vec![steps.len() as u32 - 1];
    let inputs = vec![View::contiguous(DType::F32, shape), bias];
    let program = Cluster { shape: shape.to_vec(), inputs, scalars: Vec::new(), steps, outputs };
    let mut finish = elementwise::launch(request, &program, None)?;
    for arg in &mut finish.args {
        *arg = match *arg {
            LaunchArg::Input(0) => out,
            LaunchArg::Input(_) => LaunchArg::Input(BIAS_INPUT),
            other => other,
        };
    }
    Ok(Lowered { launches: vec![contraction, finish], workspace_bytes: len })
}

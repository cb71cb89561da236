//! Products of matrices by the vendor's own library, behind the built-in `fused_matmul`: cuBLASLt on NVIDIA's devices.
//!
//! What the library has no algorithm for shows when the built-in is loaded; another variant serves it then.

use super::elementwise;
use super::source::Language;
use crate::cluster::{BinaryOp, Cluster, Literal, Step, StepOp, View};
use crate::lower::{
    BiasAxis, Dot, KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, MatrixView, TensorType,
    Unservable,
};
use halite_hal::builtin::{Activation, BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{DType, KernelSource};
use halite_profiles::Parameters;

/// The feature of devices that have the built-in.
const FEATURE: &str = "builtin:fused_matmul";

/// The input that holds the bias, where there is one.
const BIAS_INPUT: usize = 2;

/// The variant of `dot_general`.
pub(super) fn variant() -> KernelVariant {
    KernelVariant::new("dot_general", "builtin", "builtin", &[FEATURE], |request| match request.op {
        KernelOp::Dot(dot) => lower(request, dot),
        other => Err(Unservable::new(format!("this variant does not compute '{}'", other.name()))),
    })
    .with_sizes([])
}

fn lower(request: &LowerRequest<'_>, dot: &Dot) -> Result<Lowered, Unservable> {
    if !dot.dtype.is_float() {
        return Err(Unservable::new(format!("{} is no type of the built-in", dot.dtype)));
    }
    if dot.k == 0 {
        return Err(Unservable::new("a sum over nothing, whose result is the bias"));
    }
    let extent = |n: usize| n as u64;
    let operand = |view: &MatrixView, rows: usize, columns: usize| {
        if view.offset != 0 {
            return Err(Unservable::new(format!(
                "an operand begins at element {} of its buffer, the built-in's at the first",
                view.offset
            )));
        }
        let shape = dot.batch.iter().chain([&rows, &columns]).map(|&n| extent(n)).collect();
        let strides =
            view.batch_strides.iter().chain([&view.row_stride, &view.col_stride]).copied().collect();
        Ok(OperandDesc { dtype: dot.dtype, shape, strides })
    };
    let mut operands = vec![operand(&dot.lhs, dot.m, dot.k)?, operand(&dot.rhs, dot.k, dot.n)?];
    let mut args = vec![LaunchArg::Input(0), LaunchArg::Input(1)];
    let bias = dot.epilogue.bias;
    if let Some(axis) = bias {
        let dtype = request.inputs.get(BIAS_INPUT).map(|input| input.dtype);
        if axis != BiasAxis::Column || dtype != Some(dot.out_dtype) {
            return Err(Unservable::new("a bias that is not one element of the result's type per column"));
        }
        operands.push(OperandDesc::contiguous(dot.out_dtype, &[extent(dot.n)]));
        args.push(LaunchArg::Input(BIAS_INPUT));
    }
    let shape: Vec<usize> = dot.batch.iter().copied().chain([dot.m, dot.n]).collect();
    let out_shape: Vec<u64> = shape.iter().map(|&n| extent(n)).collect();
    operands.push(OperandDesc::contiguous(dot.out_dtype, &out_shape));
    args.push(LaunchArg::Output(0));
    // Nothing asks for products that are rounded to TF32.
    let kind = BuiltinKind::FusedMatMul {
        bias: bias.is_some(),
        activation: Activation::Identity,
        allow_tf32: false,
    };
    let op = BuiltinOp::new(kind, operands).map_err(|error| Unservable::new(error.to_string()))?;
    let mut launches = vec![Launch { source: KernelSource::Builtin(op), grid: [1, 1, 1], args }];
    if dot.epilogue.relu {
        launches.push(relu(request, dot.out_dtype, &shape)?);
    }
    Ok(Lowered { launches, workspace_bytes: 0 })
}

/// `out = max(out, 0)` in place. A launch of its own: of a library's `max(x, 0)` nobody says that NaN stays NaN.
fn relu(request: &LowerRequest<'_>, dtype: DType, shape: &[usize]) -> Result<Launch, Unservable> {
    let language = Language::ALL.into_iter().find(|language| request.device.accepts(language.format()));
    let language = language
        .ok_or_else(|| Unservable::new("relu behind the built-in takes a compiler for its kernel"))?;
    let step = |op: StepOp| Step { op, dtype };
    let mut program = Cluster::copy(shape, View::contiguous(dtype, shape));
    program.steps.push(step(StepOp::Constant(Literal::new(dtype, 0.0))));
    program.steps.push(step(StepOp::Binary(BinaryOp::Max, 0, 1)));
    program.outputs = vec![2];
    program.collapse(None);
    // It reads what the request's launch wrote.
    let types = [TensorType::new(dtype, shape)];
    let parameters = Parameters::default().with_threads([256]).with_chunk(4);
    let own = LowerRequest { inputs: &types, outputs: &types, parameters: &parameters, ..*request };
    let out = [LaunchArg::Output(0)];
    elementwise::launch(language, &own, &program, &out, &out)
}

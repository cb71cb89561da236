//! Names of units of work, for layers that watch a device.

use crate::cluster::{Cluster, StepOp};
use crate::lower::{ConvOperand, Epilogue, KernelOp, TensorType};
use halite_hal::annotate::Label;

/// Functions that the name of a fused program lists; of further ones there is only a mark.
const MOST_FUNCTIONS: usize = 4;

/// The label of a unit's launches: what is computed, from what and to what, and how.
pub(crate) fn unit_label(
    op: &KernelOp,
    inputs: &[TensorType],
    outputs: &[TensorType],
    variant: &str,
    fallback_reason: Option<&str>,
) -> Label {
    let mut label = Label::new(op_name(op))
        .with("inputs", types(inputs))
        .with("outputs", types(outputs))
        .with("variant", variant);
    if let Some(reason) = fallback_reason {
        label = label.with("fallback", reason);
    }
    label
}

/// `f32[32,128] f32[128,10]`.
pub(crate) fn types(types: &[TensorType]) -> String {
    let texts: Vec<String> = types
        .iter()
        .map(|kind| {
            let extents: Vec<String> = kind.shape.iter().map(usize::to_string).collect();
            format!("{}[{}]", kind.dtype, extents.join(","))
        })
        .collect();
    texts.join(" ")
}

/// What is computed, fused parts included: `dot_general+bias+relu`, `sum(sub+exp)`.
fn op_name(op: &KernelOp) -> String {
    match op {
        KernelOp::Elementwise(cluster) => functions(cluster)
            .unwrap_or_else(|| if cluster.inputs.is_empty() { "fill".to_owned() } else { "copy".to_owned() }),
        KernelOp::Reduce(reduction) => match functions(&reduction.program) {
            Some(functions) => format!("{}({functions})", reduction.kind.name()),
            None => reduction.kind.name().to_owned(),
        },
        KernelOp::Dot(dot) => format!("dot_general{}", epilogue(&dot.epilogue)),
        KernelOp::Conv(conv) => {
            let solved_for = match conv.operand {
                ConvOperand::Output => "",
                ConvOperand::Input => "_input_gradient",
                ConvOperand::Filter => "_filter_gradient",
            };
            format!("conv_general{solved_for}{}", epilogue(&conv.epilogue))
        }
        KernelOp::Window(window) => window.kind.name().to_owned(),
        KernelOp::Pad(_) | KernelOp::Custom(_) => op.name().to_owned(),
    }
}

fn epilogue(epilogue: &Epilogue) -> &'static str {
    match (epilogue.bias.is_some(), epilogue.relu) {
        (true, true) => "+bias+relu",
        (true, false) => "+bias",
        (false, true) => "+relu",
        (false, false) => "",
    }
}

/// The distinct functions of a program in order, `mul+add`; `None` for one that only moves or makes elements.
fn functions(cluster: &Cluster) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for step in &cluster.steps {
        let name = match step.op {
            StepOp::Load(_) | StepOp::Scalar(_) | StepOp::Constant(_) | StepOp::Index(_) => continue,
            StepOp::Unary(op, _) => op.name(),
            StepOp::Binary(op, ..) => op.name(),
            StepOp::Compare(op, ..) => op.name(),
            StepOp::Select(..) => "select",
            StepOp::Cast(_) => "cast",
            StepOp::Bitcast(_) => "bitcast",
        };
        if names.contains(&name) {
            continue;
        }
        if names.len() == MOST_FUNCTIONS {
            names.push("…");
            break;
        }
        names.push(name);
    }
    (!names.is_empty()).then(|| names.join("+"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{BinaryOp, Step, UnaryOp, View};
    use crate::lower::{BiasAxis, Dot, MatrixView, ReduceKind, Reduction};
    use halite_hal::DType;

    fn program(ops: &[StepOp]) -> Cluster {
        let steps: Vec<Step> = ops.iter().map(|&op| Step { op, dtype: DType::F32 }).collect();
        Cluster {
            shape: vec![8],
            inputs: vec![View { dtype: DType::F32, offset: 0, strides: vec![1] }],
            scalars: Vec::new(),
            outputs: vec![steps.len() as u32 - 1],
            steps,
        }
    }

    #[test]
    fn names_list_what_was_fused() {
        let load = StepOp::Load(0);
        let binary = |op| StepOp::Binary(op, 0, 0);
        assert_eq!(op_name(&KernelOp::Elementwise(program(&[load]))), "copy");
        let two = program(&[load, binary(BinaryOp::Mul), binary(BinaryOp::Add), binary(BinaryOp::Mul)]);
        assert_eq!(op_name(&KernelOp::Elementwise(two.clone())), "mul+add");
        let many = [BinaryOp::Mul, BinaryOp::Add, BinaryOp::Sub, BinaryOp::Div, BinaryOp::Max].map(binary);
        let many = program(&[&[load], &many[..], &[StepOp::Unary(UnaryOp::Exp, 0)]].concat());
        assert_eq!(op_name(&KernelOp::Elementwise(many)), "mul+add+sub+div+…");
        let sum = |program| {
            KernelOp::Reduce(Reduction { kind: ReduceKind::Sum, program, kept_rank: 0, dtype: DType::F32 })
        };
        assert_eq!(op_name(&sum(two)), "sum(mul+add)");
        assert_eq!(op_name(&sum(program(&[load]))), "sum");
    }

    #[test]
    fn a_label_has_shapes_variant_and_reason() {
        let view = || MatrixView { offset: 0, batch_strides: vec![], row_stride: 1, col_stride: 1 };
        let dot = KernelOp::Dot(Dot {
            batch: vec![],
            m: 4,
            n: 2,
            k: 3,
            lhs: view(),
            rhs: view(),
            dtype: DType::F32,
            out_dtype: DType::F32,
            epilogue: Epilogue { bias: Some(BiasAxis::Column), relu: true },
        });
        let kind = |shape: &[usize]| TensorType::new(DType::F32, shape);
        let label =
            unit_label(&dot, &[kind(&[4, 3]), kind(&[3, 2])], &[kind(&[])], "tiled", Some("too large"));
        assert_eq!(label.name, "dot_general+bias+relu");
        let details: Vec<_> = label.details.iter().map(|(key, value)| (*key, value.as_str())).collect();
        assert_eq!(
            details,
            [
                ("inputs", "f32[4,3] f32[3,2]"),
                ("outputs", "f32[]"),
                ("variant", "tiled"),
                ("fallback", "too large"),
            ]
        );
    }
}

//! Builders of NPU programs: tiling, double buffering and the flags between pipes.
//!
//! One family a file. `emit.rs` holds what all share, `evaluate.rs` compiles fused elementwise programs, `part.rs` cuts
//! iteration spaces into tiles.

mod conv;
mod conv_filter;
mod cube;
mod dot;
mod elementwise;
mod emit;
mod epilogue;
mod evaluate;
mod pad;
mod part;
mod reduce;
mod window;

#[cfg(test)]
mod tests;

use crate::lower::{KernelOp, KernelVariant, LowerRequest, Lowered, Unservable};

/// Every NPU program variant.
pub fn variants() -> Vec<KernelVariant> {
    let variant = |op: &str, name: &str| KernelVariant::new(op, name, emit::FORMAT, &[], lower);
    vec![
        variant("elementwise", "vector"),
        variant("reduce", "vector"),
        variant("dot_general", "cube"),
        variant("conv_general", "cube_im2col"),
        variant("window_reduce", "vector"),
        variant("pad", "vector"),
    ]
}

fn lower(request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    match request.op {
        KernelOp::Elementwise(program) => elementwise::lower(request, program),
        KernelOp::Reduce(reduction) => reduce::lower(request, reduction),
        KernelOp::Dot(dot) => dot::lower(request, dot),
        KernelOp::Conv(conv) => conv::lower(request, conv),
        KernelOp::Window(window) => window::lower(request, window),
        KernelOp::Pad(pad) => pad::lower(request, pad),
        other => Err(Unservable::new(format!("the npu has no program for '{}'", other.name()))),
    }
}

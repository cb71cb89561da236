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
use halite_profiles::{Parameters, Size};

/// Every NPU program variant.
pub fn variants() -> Vec<KernelVariant> {
    let variant = |op: &str, name: &str| KernelVariant::new(op, name, emit::FORMAT, &[], lower);
    let (tile, chunk) = ([Size::Tile(3)], [Size::Chunk]);
    let tiles = || [[64, 128, 64], [128, 128, 128], [128, 256, 64], [256, 128, 64]];
    let tiles = || tiles().map(|tile| Parameters::default().with_tile(tile));
    let chunks = || [1024, 2048, 4096, 8192].map(|chunk| Parameters::default().with_chunk(chunk));
    vec![
        variant("elementwise", "vector").with_sizes(chunk).with_candidates(chunks()),
        variant("reduce", "vector").with_sizes(chunk).with_candidates(chunks()),
        variant("dot_general", "cube").with_sizes(tile).with_candidates(tiles()),
        variant("conv_general", "cube_im2col").with_sizes(tile).with_candidates(tiles()),
        variant("window_reduce", "vector").with_sizes(chunk).with_candidates(chunks()),
        variant("pad", "vector").with_sizes(chunk),
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

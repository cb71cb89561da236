//! Fused elementwise programs on the vector unit.
//!
//! out\[i\] = program(inputs\[i\], ...) over an iteration space. A tile is a dense run of the output, up to `chunk`
//! points (profile; default 4096) and as many as fit in half of UB; each block takes every n-th tile and alternates
//! between the halves. Inputs are gathered by strided transfers, so views cost no copy. In-place outputs are legal:
//! a tile's inputs are all loaded before anything is stored, and tiles do not share points.

use crate::cluster::Cluster;
use crate::lower::{LaunchArg, LowerRequest, Lowered, Unservable};
use halite_npu_isa::{Access, CoreKind, DType, Dim, Operand, Pipe};

use super::emit::{Emitter, blocks, imm};
use super::evaluate::{Arguments, Evaluator, Slots, dims4};

/// The launch of a program.
pub(super) fn lower(request: &LowerRequest<'_>, program: &Cluster) -> Result<Lowered, Unservable> {
    Ok(Lowered::single(launch(request, program, None)?))
}

/// How a single output lies in its buffer, if not densely: strides per axis of the iteration space.
pub(super) struct OutputView {
    pub(super) offset: i64,
    pub(super) strides: Vec<i64>,
}

/// The launch of a program whose single output may be strided.
pub(super) fn launch(
    request: &LowerRequest<'_>,
    program: &Cluster,
    output_view: Option<&OutputView>,
) -> Result<crate::lower::Launch, Unservable> {
    let mut program = program.clone();
    if output_view.is_none() {
        program.collapse(None);
    }
    let strides = program.inputs.iter().flat_map(|view| &view.strides);
    Evaluator::check_strides(strides.chain(output_view.iter().flat_map(|view| &view.strides)))?;
    let evaluator = Evaluator::new(&program, 0, DType::F32, request.parameters.int("chunk"), 0)?;
    let mut e = Emitter::new("elementwise", CoreKind::Vector);
    let mut arguments = Arguments::inputs(&mut e, &program);
    let mut outputs = Vec::new();
    for n in 0..program.outputs.len() {
        outputs.push(e.buffer(LaunchArg::Output(n), program.output_dtype(n), Access::Write));
    }
    arguments.scalars(&mut e, &program)?;

    let tiles = evaluator.reduced.tiles();
    let blocks = blocks(request, tiles);
    e.tiles(tiles, blocks, Pipe::Mte3, |e, buffer, tile| {
        let tile = evaluator.locate(e, Operand::ZERO, tile);
        let places = evaluator.emit(e, &arguments, &tile, &mut Slots::default(), buffer);
        e.k.sync(Pipe::V, Pipe::Mte3, imm(buffer));
        for (n, &slot) in places.iter().enumerate() {
            let dtype = evaluator.output_dtype(n);
            let size = dtype.size();
            let src = evaluator.slot_at(buffer, slot);
            let output = outputs[n];
            e.scope(|e| match output_view {
                None => {
                    let dst = e.address(output, 0, &[(tile.reduced.linear, size as i64)]);
                    let run = Dim::new(tile.reduced.len, imm(size), imm(size));
                    e.k.store_ub(dtype, dst, src, dims4(&[run]));
                }
                Some(view) => {
                    let starts = evaluator.reduced.starts(&tile.reduced);
                    let terms: Vec<_> =
                        starts.map(|(axis, start)| (start, view.strides[axis] * size as i64)).collect();
                    let dst = e.address(output, view.offset * size as i64, &terms);
                    let dims = evaluator.dims(&tile, &view.strides, size, false);
                    e.k.store_ub(dtype, dst, src, dims4(&dims));
                }
            });
        }
    });
    e.launch(blocks, output_view.is_none())
}

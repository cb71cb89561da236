//! Batched matrix products on the cube.
//!
//! `out[b, m, n] = sum over k of lhs[b, m, k] rhs[b, k, n]` for f16, bf16 and f32, accumulated in f32 with k ascending.
//! A tile is \[m, n\] accumulators (profile; default 128 x 256, in L0C). Operands come into L1 in several steps of k at
//! once and into L0A and L0B step by step, each double-buffered. Any strides: the load converts to fractals with free
//! row and column strides, so transposed operands cost no copy.

use crate::lower::{BiasAxis, Dot, Launch, LaunchArg, LowerRequest, Lowered, MatrixView, Unservable};
use halite_npu_isa::{Access, CoreKind, Inst, Operand, Pipe};

use super::cube::{self, L1_HALF, Lines, Parity, TILE};
use super::emit::{ArgIndex, Emitter, ON_CHIP, blocks, cube_dtype, imm};
use super::epilogue::{self, InCube};

/// Steps of k that one load into L1 brings.
const STEPS_PER_LOAD: usize = 4;

/// The launches of a product.
pub(super) fn lower(request: &LowerRequest<'_>, dot: &Dot) -> Result<Lowered, Unservable> {
    let mut shape = dot.batch.clone();
    shape.extend([dot.m, dot.n]);
    let mut bias_strides = vec![0; shape.len()];
    let is_column = dot.epilogue.bias == Some(BiasAxis::Column);
    let along = shape.len() - if is_column { 1 } else { 2 };
    bias_strides[along] = 1;
    let types = (dot.dtype, dot.out_dtype);
    epilogue::lower(request, dot.epilogue, types, &shape, (bias_strides, is_column), |in_cube| {
        launch(request, dot, in_cube)
    })
}

/// Sizes of tiles and steps.
struct Sizes {
    m: usize,
    n: usize,
    /// k of one load into L0A and L0B.
    step: usize,
    /// k of one load into L1.
    load: usize,
}

impl Sizes {
    fn new(dot: &Dot, [m, n, k]: [usize; 3], size: usize) -> Self {
        let mut m = m.min(dot.m.next_multiple_of(TILE)).max(TILE);
        let mut n = n.min(dot.n.next_multiple_of(TILE)).clamp(TILE, ON_CHIP.bias / 4);
        while m * n * 4 > ON_CHIP.l0c {
            if m > n { m = (m / 2).next_multiple_of(TILE) } else { n = (n / 2).next_multiple_of(TILE) }
        }
        let fits = (ON_CHIP.l0a / (2 * m * size)).min(ON_CHIP.l0b / (2 * n * size)) / TILE * TILE;
        let step = k.min(dot.k.next_multiple_of(TILE)).min(fits).max(TILE);
        let loads = (L1_HALF / ((m + n) * step * size)).clamp(1, STEPS_PER_LOAD);
        Self { m, n, step, load: loads * step }
    }
}

fn launch(request: &LowerRequest<'_>, dot: &Dot, in_cube: InCube) -> Result<Launch, Unservable> {
    let dtype = cube_dtype(dot.dtype)?;
    let out_dtype = cube_dtype(in_cube.out_dtype)?;
    let (size, out_size) = (dtype.size() as i64, out_dtype.size() as i64);
    let sizes = Sizes::new(dot, cube::tile_sizes(request.parameters), dtype.size());
    let mut e = Emitter::new("dot_general", CoreKind::Cube);
    let lhs = e.buffer(LaunchArg::Input(0), dot.dtype, Access::Read);
    let rhs = e.buffer(LaunchArg::Input(1), dot.dtype, Access::Read);
    let bias = in_cube.bias.then(|| e.buffer(LaunchArg::Input(2), halite_hal::DType::F32, Access::Read));
    let out = e.buffer(in_cube.out, in_cube.out_dtype, Access::Write);

    let (m_tiles, n_tiles) = (dot.m.div_ceil(sizes.m), dot.n.div_ceil(sizes.n));
    let tiles = dot.batch.iter().product::<usize>() * m_tiles * n_tiles;
    let blocks = blocks(request, tiles);
    let (load, step) = (Parity::new(&mut e), Parity::new(&mut e));
    cube::open(&mut e, false);
    let first: Operand = if blocks == 1 { Operand::ZERO } else { e.k.block_index().into() };
    let end = e.k.value(tiles as i64);
    e.repeat(first, end, imm(blocks as usize), |e, tile| {
        let (n_tile, rest) = (e.k.rem(tile, imm(n_tiles)), e.k.div(tile, imm(n_tiles)));
        let (m_tile, batch) = (e.k.rem(rest, imm(m_tiles)), e.k.div(rest, imm(m_tiles)));
        let (m0, m) = piece(e, m_tile, sizes.m, dot.m);
        let (n0, n) = piece(e, n_tile, sizes.n, dot.n);
        let batch_index = unravel(e, batch, &dot.batch);

        e.k.wait(Pipe::Fix, Pipe::M, 0);
        match bias {
            Some(bias) => e.scope(|e| {
                let src = e.address(bias, 0, &[(n0, 4)]);
                cube::spread_bias(e, src, [m, n]);
            }),
            None => cube::clear(e, Operand::ZERO, [m, n]),
        }
        let k_end = e.k.value(dot.k as i64);
        e.repeat(0, k_end, imm(sizes.load), |e, k0| {
            let left = e.k.sub(k_end, k0);
            let k = e.k.min(left, imm(sizes.load));
            let lhs_at = load.at(e, 0, L1_HALF);
            let rhs_at = e.k.add(lhs_at, imm(sizes.m * sizes.load * size as usize));
            e.k.wait(Pipe::Mte1, Pipe::Mte2, load.id());
            // Both stand in L1 with a row of k for each row or column of the result.
            let operands = [
                (lhs, &dot.lhs, m0, m, lhs_at, sizes.m, false),
                (rhs, &dot.rhs, n0, n, rhs_at, sizes.n, true),
            ];
            for (arg, view, start, count, dst, pitch, is_rhs) in operands {
                let (outer, inner) = if is_rhs {
                    (view.col_stride, view.row_stride)
                } else {
                    (view.row_stride, view.col_stride)
                };
                e.scope(|e| {
                    let src = matrix_address(e, arg, view, &batch_index, size, [(start, outer), (k0, inner)]);
                    let (outer, inner) = (e.k.value(outer * size), e.k.value(inner * size));
                    let lines = (Lines::new(count, outer), Lines::new(k, inner));
                    cube::load_nz(e, dtype, (dst, src), lines, imm(pitch), [imm(pitch), k]);
                });
            }
            e.k.sync(Pipe::Mte2, Pipe::Mte1, load.id());
            e.repeat(0, k, imm(sizes.step), |e, from| {
                let left = e.k.sub(k, from);
                let k = e.k.min(left, imm(sizes.step));
                let a = step.at(e, 0, ON_CHIP.l0a / 2);
                let b = step.at(e, 0, ON_CHIP.l0b / 2);
                e.k.wait(Pipe::M, Pipe::Mte1, step.id());
                let (transpose, size) = (false, size as usize);
                let before = e.k.mul(from, imm(sizes.m * size));
                let src = e.k.add(lhs_at, before);
                e.k.push(Inst::LoadA { dtype, transpose, dst: a, src, m, k, pitch: imm(sizes.m) });
                let before = e.k.mul(from, imm(sizes.n * size));
                let src = e.k.add(rhs_at, before);
                e.k.push(Inst::LoadB { dtype, transpose, dst: b, src, k, n, pitch: imm(sizes.n) });
                e.k.sync(Pipe::Mte1, Pipe::M, step.id());
                cube::multiply(e, dtype, [Operand::ZERO, a, b], [m, k, n]);
                e.k.set(Pipe::M, Pipe::Mte1, step.id());
                step.flip(e);
            });
            e.k.set(Pipe::Mte1, Pipe::Mte2, load.id());
            load.flip(e);
        });
        e.k.sync(Pipe::M, Pipe::Fix, 0);
        let (row_bytes, matrix) = (dot.n as i64 * out_size, (dot.m * dot.n) as i64 * out_size);
        let dst = e.address(out, 0, &[(batch, matrix), (m0, row_bytes), (n0, out_size)]);
        let row_stride = e.k.value(row_bytes);
        let lines = (Lines::new(m, row_stride), Lines::new(n, Operand::Imm(out_size as i32)));
        cube::store(e, out_dtype, in_cube.relu, (dst, Operand::ZERO), lines);
        e.k.set(Pipe::Fix, Pipe::M, 0);
    });
    cube::close(&mut e, false);
    e.launch(blocks, false)
}

/// Start and length of piece number `index` of `size` out of `total`.
pub(super) fn piece(e: &mut Emitter, index: Operand, size: usize, total: usize) -> (Operand, Operand) {
    if total <= size {
        return (Operand::ZERO, imm(total));
    }
    let start = e.k.mul(index, imm(size));
    if total.is_multiple_of(size) {
        return (start, imm(size));
    }
    let total = e.k.value(total as i64);
    let left = e.k.sub(total, start);
    (start, e.k.min(left, imm(size)))
}

/// The index on each axis of a row-major number.
fn unravel(e: &mut Emitter, number: Operand, shape: &[usize]) -> Vec<Operand> {
    let mut index = vec![Operand::ZERO; shape.len()];
    let mut rest = number;
    for (axis, index) in index.iter_mut().enumerate().rev() {
        let extent = e.k.value(shape[axis] as i64);
        *index = if axis == 0 { rest } else { e.k.rem(rest, extent) };
        rest = e.k.div(rest, extent);
    }
    index
}

fn matrix_address(
    e: &mut Emitter,
    arg: ArgIndex,
    view: &MatrixView,
    batch: &[Operand],
    size: i64,
    terms: [(Operand, i64); 2],
) -> Operand {
    let batch = batch.iter().zip(&view.batch_strides).map(|(&index, stride)| (index, stride * size));
    let all: Vec<_> = batch.chain(terms.map(|(index, stride)| (index, stride * size))).collect();
    e.address(arg, view.offset * size, &all)
}

//! The NPU program: tiles through the unified buffer of vector cores, double-buffered.
//!
//! Each block takes every n-th tile. While the vector unit computes one tile, the next is loaded into the other half
//! of the buffer; flags hold a load back until the half's result is stored.

use crate::{NAME, gain};
use halite::DType;
use halite::hal::{self, ArgType as HalArg, KernelSource, Signature};
use halite::isa::{
    self, Access, BinaryOp, CompareOp, CoreKind, Dim, Inst, KernelBuilder, Operand, Pipe, Program, Reg,
    UnaryOp,
};
use halite::ops::lower::{KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite::profiles::Size;

/// Elements of a tile unless the profile says otherwise: transfers are fastest from 16 KiB on.
const DEFAULT_CHUNK: usize = 4096;
/// Vector operands start at multiples of this.
const BLOCK_BYTES: usize = 32;
/// Bytes of the unified buffer.
const UNIFIED_BUFFER_BYTES: usize = 192 << 10;
const F32_BYTES: usize = size_of::<f32>();
/// Two halves with two operands each, behind the block that holds beta.
const MAX_CHUNK: usize = (UNIFIED_BUFFER_BYTES - BLOCK_BYTES) / (4 * F32_BYTES);

/// The variant `vector` of `swish`; `chunk` is the number of elements of a tile.
pub(crate) fn variant() -> KernelVariant {
    KernelVariant::new(NAME, "vector", "npu-program", &[], lower).with_sizes([Size::Chunk])
}

fn lower(request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    let gain = gain(request)?;
    let elements = request.outputs[0].elements();
    let block = BLOCK_BYTES / F32_BYTES;
    let chunk = request.parameters.int("chunk").map_or(DEFAULT_CHUNK, |chunk| chunk as usize);
    let chunk = chunk.next_multiple_of(block).clamp(block, MAX_CHUNK / block * block);
    let tiles = elements.div_ceil(chunk);
    let blocks = u32::try_from(tiles).unwrap_or(u32::MAX).clamp(1, request.device.compute_units.max(1));

    let refused = |error: isa::ProgramError| Unservable::new(error.to_string());
    let sizes = Sizes { elements, chunk, tiles, blocks };
    let kernel = build(&sizes, gain).finish().map_err(refused)?;
    let program = Program::new(vec![kernel]).map_err(refused)?;
    let buffer = |access| HalArg::Buffer { dtype: DType::F32, access };
    let source = KernelSource::Binary {
        format: "npu-program",
        bytes: program.to_bytes().into(),
        entry: NAME.to_owned(),
        workgroup: [1, 1, 1],
        signature: Signature::new(vec![
            buffer(hal::Access::Read),
            buffer(hal::Access::Read),
            buffer(hal::Access::Write),
        ]),
        requires: Vec::new(),
    };
    let args = vec![LaunchArg::Input(0), LaunchArg::Input(1), LaunchArg::Output(0)];
    Ok(Lowered::single(Launch { source, grid: [blocks, 1, 1], args }))
}

/// How the elements are dealt out.
struct Sizes {
    elements: usize,
    chunk: usize,
    tiles: usize,
    blocks: u32,
}

/// What every tile needs to know: registers that hold addresses of global memory and beta's bits, and constants.
struct Tiles {
    x: Reg,
    out: Reg,
    beta: Reg,
    gain: f32,
    elements: Operand,
    chunk: usize,
}

fn build(sizes: &Sizes, gain: f32) -> KernelBuilder {
    let mut k = KernelBuilder::new(NAME, CoreKind::Vector);
    let (x, beta_at, out) = (k.buffer(Access::Read), k.buffer(Access::Read), k.buffer(Access::Write));
    let beta = k.reg();
    k.load_ub(isa::DType::F32, 0, beta_at, run(1));
    k.sync(Pipe::Mte2, Pipe::S, 0);
    k.push(Inst::LoadScalar { dtype: isa::DType::F32, dst: beta, src: Operand::ZERO });

    let elements = k.value(sizes.elements as i64);
    let tiles = Tiles { x, out, beta, gain, elements, chunk: sizes.chunk };
    let (first, count) = (k.block_index(), k.value(sizes.tiles as i64));
    let (blocks, round) = (k.value(sizes.blocks.into()), k.value(2 * i64::from(sizes.blocks)));
    for half in 0..2 {
        k.set(Pipe::Mte3, Pipe::Mte2, half);
    }
    k.repeat(first, count, round, |k, even| {
        for half in 0..2 {
            let tile = if half == 0 { even } else { k.add(even, blocks) };
            k.when(tile, CompareOp::Lt, count, |k| {
                k.wait(Pipe::Mte3, Pipe::Mte2, half);
                emit_tile(k, &tiles, half, tile);
                k.set(Pipe::Mte3, Pipe::Mte2, half);
            });
        }
    });
    for half in 0..2 {
        k.wait(Pipe::Mte3, Pipe::Mte2, half);
    }
    k
}

/// Loads, computes and stores one tile in one half of the unified buffer.
fn emit_tile(k: &mut KernelBuilder, tiles: &Tiles, half: i32, tile: Operand) {
    const F32: isa::DType = isa::DType::F32;
    let tile_bytes = (tiles.chunk * F32_BYTES) as i32;
    let x = BLOCK_BYTES as i32 + half * 2 * tile_bytes;
    let result = x + tile_bytes;

    let start = k.mul(tile, tiles.chunk as i32);
    let left = k.sub(tiles.elements, start);
    let count = k.min(left, tiles.chunk as i32);
    let offset = k.mul(start, F32_BYTES as i32);
    let (from, to) = (k.add(tiles.x, offset), k.add(tiles.out, offset));

    k.load_ub(F32, x, from, run(count));
    k.sync(Pipe::Mte2, Pipe::V, half);
    k.binary_scalar(BinaryOp::Mul, F32, result, x, tiles.beta, count);
    k.unary(UnaryOp::Neg, F32, result, result, count);
    k.unary(UnaryOp::Exp, F32, result, result, count);
    k.binary_scalar(BinaryOp::Add, F32, result, result, Operand::f32(1.0), count);
    k.binary(BinaryOp::Div, F32, result, x, result, count);
    if tiles.gain != 1.0 {
        k.binary_scalar(BinaryOp::Mul, F32, result, result, Operand::f32(tiles.gain), count);
    }
    k.sync(Pipe::V, Pipe::Mte3, half);
    k.store_ub(F32, to, result, run(count));
}

/// A dense run of `count` elements.
fn run(count: impl Into<Operand>) -> [Dim; 4] {
    [Dim::ONE, Dim::ONE, Dim::ONE, Dim::new(count, F32_BYTES as i32, F32_BYTES as i32)]
}

//! The filter's gradient of a convolution, on the cube.
//!
//! `dfilter[o, c, i, j] = sum over images and positions of doutput[o, position] * columns[position, (c, i, j)]`: rows of the
//! product are output channels, columns are those of the image's column matrix, and k runs over the positions of all
//! images. A tile keeps the accumulators of several channel blocks at once, each in a region of L0C of its own, so that the
//! output's gradient is loaded once for all of them.

use crate::lower::{Conv, Launch, LaunchArg, LowerRequest, Unservable};
use halite_npu_isa::{Access, CoreKind, CubeOperand, DType, Inst, Operand, Pipe};

use super::conv::{Planes, Source, Strip, Window, load_strip, set_image, source_rows};
use super::cube::{self, L1_HALF, Lines, Parity, TILE};
use super::dot::piece;
use super::emit::{BLOCK, Emitter, ON_CHIP, blocks, cube_dtype, imm};
use super::epilogue::InCube;

/// Most columns of one product.
const MAX_COLUMNS: usize = 256;
/// The flags of L0B, which runs ahead of L0A.
const L0B_FLAG: i32 = 2;

/// How the gradient is cut.
struct Tiling {
    /// Elements of a block.
    lanes: usize,
    /// Output channels of a tile.
    m: usize,
    channel_blocks: usize,
    /// Channel blocks of a tile.
    chunk: usize,
    /// Taps of a region, regions of a channel block, and those of them that a tile has.
    region_taps: usize,
    regions: usize,
    tile_regions: usize,
    /// Bytes of a region in L0C.
    region_bytes: usize,
    /// Rows of the output in a strip.
    rows: usize,
    /// Bytes of an image strip in L1.
    image_bytes: usize,
    /// Positions of one load into L0A and L0B.
    step: usize,
}

impl Tiling {
    fn new(conv: &Conv, planes: &Planes, dtype: DType, [m, _, k]: [usize; 3]) -> Result<Self, Unservable> {
        let (size, lanes, taps) = (dtype.size(), dtype.block_len(), planes.taps());
        let geometry = &conv.geometry;
        let groups = geometry.groups.max(1);
        let channel_blocks = (geometry.in_channels / groups).div_ceil(lanes);
        let region_taps = taps.min(MAX_COLUMNS / lanes);
        let regions = taps.div_ceil(region_taps);
        let columns = (region_taps * lanes).next_multiple_of(TILE);
        let mut m = m.min((geometry.out_channels / groups).next_multiple_of(TILE)).max(TILE);
        while regions * m * columns * 4 > ON_CHIP.l0c && m > TILE {
            m = (m / 2).next_multiple_of(TILE);
        }
        let region_bytes = m * columns * 4;
        let tile_regions = regions.min(ON_CHIP.l0c / region_bytes);
        // Only tiles with all of a channel block's regions have more than one channel block.
        let most = if tile_regions == regions { ON_CHIP.l0c / (regions * region_bytes) } else { 1 };
        let src_rows = |rows: usize| {
            let (kernel, stride, dilation) = (planes.kernel[0], planes.stride[0], planes.dilation[0]);
            source_rows(planes.input[0], rows, kernel, stride, dilation, 1)
        };
        let image_bytes = |chunk: usize, rows: usize| chunk * src_rows(rows) * planes.input[1] * BLOCK;
        let grad_bytes = |rows: usize| (rows * planes.output[1]).next_multiple_of(TILE) * m * size;
        let fits = |chunk: usize, rows: usize| image_bytes(chunk, rows) + grad_bytes(rows) <= L1_HALF;
        let height = planes.output[0].max(1);
        let mut chunk = most.min(channel_blocks).max(1);
        while !fits(chunk, 1) && chunk > 1 {
            chunk -= 1;
        }
        let Some(rows) = (1..=height).rev().find(|&rows| fits(chunk, rows)) else {
            return Err(Unservable::new(format!(
                "rows of {} pixels with one block of channels do not fit in the npu's L1",
                planes.input[1]
            )));
        };
        let fits = (ON_CHIP.l0a / (2 * m * size)).min(ON_CHIP.l0b / (2 * columns * size)) / TILE * TILE;
        let step = k.min(fits).min((rows * planes.output[1]).next_multiple_of(TILE)).max(TILE);
        let image_bytes = image_bytes(chunk, rows);
        Ok(Self {
            lanes,
            m,
            channel_blocks,
            chunk,
            region_taps,
            regions,
            tile_regions,
            region_bytes,
            rows,
            image_bytes,
            step,
        })
    }
}

/// The launch: inputs are the output's gradient and the image.
pub(super) fn launch(
    request: &LowerRequest<'_>,
    conv: &Conv,
    planes: &Planes,
    in_cube: InCube,
) -> Result<Launch, Unservable> {
    let dtype = cube_dtype(conv.dtype)?;
    let out_dtype = cube_dtype(in_cube.out_dtype)?;
    let geometry = &conv.geometry;
    let groups = geometry.groups.max(1);
    let (in_channels, out_channels) = (geometry.in_channels / groups, geometry.out_channels / groups);
    let (size, lanes, taps) = (dtype.size(), dtype.block_len(), planes.taps());
    let tiling = Tiling::new(conv, planes, dtype, cube::tile_sizes(request.parameters))?;
    let mut e = Emitter::new("conv_filter", CoreKind::Cube);
    let grad = e.buffer(LaunchArg::Input(0), conv.dtype, Access::Read);
    let image = e.buffer(LaunchArg::Input(1), conv.dtype, Access::Read);
    let out = e.buffer(in_cube.out, in_cube.out_dtype, Access::Write);

    let (m_tiles, c_tiles) = (out_channels.div_ceil(tiling.m), tiling.channel_blocks.div_ceil(tiling.chunk));
    let r_tiles = tiling.regions.div_ceil(tiling.tile_regions);
    let tiles = groups * m_tiles * c_tiles * r_tiles;
    let blocks = blocks(request, tiles);
    // Without pixels or images there is nothing to add up.
    let is_empty = planes.input.contains(&0) || planes.output.contains(&0);
    let images = if is_empty { 0 } else { geometry.batch };
    let strips = planes.output[0].div_ceil(tiling.rows);
    let (load, left_half, right_half) = (Parity::new(&mut e), Parity::new(&mut e), Parity::new(&mut e));
    cube::open(&mut e, true);
    let first: Operand = if blocks == 1 { Operand::ZERO } else { e.k.block_index().into() };
    let end = e.k.value(tiles as i64);
    e.repeat(first, end, imm(blocks as usize), |e, tile| {
        let (r_tile, rest) = (e.k.rem(tile, imm(r_tiles)), e.k.div(tile, imm(r_tiles)));
        let (c_tile, rest) = (e.k.rem(rest, imm(c_tiles)), e.k.div(rest, imm(c_tiles)));
        let (m_tile, group) = (e.k.rem(rest, imm(m_tiles)), e.k.div(rest, imm(m_tiles)));
        let (m0, m) = piece(e, m_tile, tiling.m, out_channels);
        let (block, count) = piece(e, c_tile, tiling.chunk, tiling.channel_blocks);
        let regions = piece(e, r_tile, tiling.tile_regions, tiling.regions);
        let of_tile = Regions { blocks: count, first: regions.0, count: regions.1, taps };

        e.k.wait(Pipe::Fix, Pipe::M, 0);
        each_region(e, &tiling, &of_tile, |e, region| {
            cube::clear(e, region.at, [m, region.columns]);
        });
        let strips_of_all = e.k.value((images * strips) as i64);
        e.repeat(0, strips_of_all, 1, |e, number| {
            let (index, from) = (e.k.rem(number, imm(strips)), e.k.div(number, imm(strips)));
            let sizes = [planes.output[0], planes.output[1], planes.input[0]];
            let moves = [planes.stride[0], planes.kernel[0], planes.dilation[0], 1];
            let strip = Strip::of(e, index, tiling.rows, sizes, moves, planes.pad[0] as i64);
            let image_at = load.at(e, 0, L1_HALF);
            let grad_at = e.k.add(image_at, imm(tiling.image_bytes));
            e.k.wait(Pipe::Mte1, Pipe::Mte2, load.id());
            let source = Source { image: from, group, groups, channels: in_channels, size: planes.input };
            load_strip(e, dtype, (image_at, image), source, &strip, [block, count]);
            e.scope(|e| {
                let plane = (planes.output[0] * planes.output[1] * size) as i64;
                let terms = [
                    (from, (groups * out_channels) as i64 * plane),
                    (group, out_channels as i64 * plane),
                    (m0, plane),
                    (strip.first, (planes.output[1] * size) as i64),
                ];
                let src = e.address(grad, 0, &terms);
                let plane = e.k.value(plane);
                let lines = (Lines::new(m, plane), Lines::new(strip.positions, imm(size)));
                let pitch = imm(tiling.m);
                cube::load_nz(e, dtype, (grad_at, src), lines, pitch, [pitch, strip.positions]);
            });
            e.k.sync(Pipe::Mte2, Pipe::Mte1, load.id());
            let window = Window {
                src_width: planes.input[1],
                dst_width: planes.output[1],
                kernel: planes.kernel,
                stride: planes.stride,
                dilation: planes.dilation,
                pad_left: planes.pad[1] as i64,
                up: [1, 1],
            };
            set_image(e, window, &strip, count);
            e.repeat(0, strip.positions, imm(tiling.step), |e, position| {
                let left = e.k.sub(strip.positions, position);
                let k = e.k.min(left, imm(tiling.step));
                let a = left_half.at(e, 0, ON_CHIP.l0a / 2);
                e.k.wait(Pipe::M, Pipe::Mte1, left_half.id());
                let before = e.k.mul(position, imm(tiling.m * size));
                let src = e.k.add(grad_at, before);
                e.k.push(Inst::LoadA { dtype, transpose: false, dst: a, src, m, k, pitch: imm(tiling.m) });
                e.k.sync(Pipe::Mte1, Pipe::M, left_half.id());
                each_region(e, &tiling, &of_tile, |e, region| {
                    let b = right_half.at(e, 0, ON_CHIP.l0b / 2);
                    let flag = e.k.add(right_half.id(), L0B_FLAG);
                    e.k.wait(Pipe::M, Pipe::Mte1, flag);
                    e.k.push(Inst::Im2col {
                        dtype,
                        operand: CubeOperand::B,
                        transpose: false,
                        dst: b,
                        src: image_at,
                        position,
                        positions: k,
                        block: region.column_block,
                        blocks: region.taps,
                    });
                    e.k.sync(Pipe::Mte1, Pipe::M, flag);
                    cube::multiply(e, dtype, [region.at, a, b], [m, k, region.columns]);
                    e.k.set(Pipe::M, Pipe::Mte1, flag);
                    right_half.flip(e);
                });
                e.k.set(Pipe::M, Pipe::Mte1, left_half.id());
                left_half.flip(e);
            });
            e.k.set(Pipe::Mte1, Pipe::Mte2, load.id());
            load.flip(e);
        });
        e.k.sync(Pipe::M, Pipe::Fix, 0);
        each_region(e, &tiling, &of_tile, |e, region| {
            let out_size = out_dtype.size() as i64;
            let (channel, row) = (taps as i64 * out_size, (in_channels * taps) as i64 * out_size);
            let number = e.k.add(block, region.block);
            let before = e.k.mul(number, imm(lanes));
            let left = e.k.sub(imm(in_channels), before);
            let valid = e.k.min(left, imm(lanes));
            let terms = [
                (group, out_channels as i64 * row),
                (m0, row),
                (before, channel),
                (region.first_tap, out_size),
            ];
            let dst = e.address(out, 0, &terms);
            let (row, channel) = (e.k.value(row), e.k.value(channel));
            let cols = Lines {
                group: imm(lanes),
                valid,
                group_stride: Operand::Imm(out_size as i32),
                ..Lines::new(region.columns, channel)
            };
            cube::store(e, out_dtype, in_cube.relu, (dst, region.at), (Lines::new(m, row), cols));
        });
        e.k.set(Pipe::Fix, Pipe::M, 0);
    });
    cube::close(&mut e, true);
    e.launch(blocks, false)
}

/// The regions of a tile.
struct Regions {
    /// Channel blocks.
    blocks: Operand,
    /// Regions of each channel block.
    first: Operand,
    count: Operand,
    /// Taps of a channel block.
    taps: usize,
}

/// Some taps of a channel block, whose accumulators lie together.
struct Region {
    /// The channel block within the tile.
    block: Operand,
    first_tap: Operand,
    taps: Operand,
    /// Columns of the product.
    columns: Operand,
    /// First column block of the column matrix of the tile.
    column_block: Operand,
    /// Address in L0C.
    at: Operand,
}

/// Runs `body` for each region of a tile.
fn each_region(e: &mut Emitter, tiling: &Tiling, of: &Regions, mut body: impl FnMut(&mut Emitter, Region)) {
    e.repeat(0, of.blocks, 1, |e, block| {
        e.repeat(0, of.count, 1, |e, number| {
            let region = e.k.add(of.first, number);
            let first_tap = e.k.mul(region, imm(tiling.region_taps));
            let left = e.k.sub(imm(of.taps), first_tap);
            let taps = e.k.min(left, imm(tiling.region_taps));
            let columns = e.k.mul(taps, imm(tiling.lanes));
            let before = e.k.mul(block, imm(of.taps));
            let column_block = e.k.add(before, first_tap);
            let at = e.k.mul(block, imm(tiling.tile_regions * tiling.region_bytes));
            let offset = e.k.mul(number, imm(tiling.region_bytes));
            let at = e.k.add(at, offset);
            body(e, Region { block, first_tap, taps, columns, column_block, at });
        });
    });
}

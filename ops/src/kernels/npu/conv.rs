//! Convolutions on the cube, for each of the three operands.
//!
//! The output and the input's gradient are the same computation ([`Correlation`]): a window moves over an image, whose
//! pixels stand apart (with zeros between) for the gradient of a strided convolution. Rows of the product are positions
//! of the window, columns are channels of the result, and k runs over channel blocks, kernel rows, kernel columns and
//! the channels of a block. MTE1 makes the rows from an image strip in L1 ("image to column"); the filter is brought
//! into the same order of k by the load. The filter's gradient contracts over positions; see `conv_filter.rs`.
//!
//! f16, bf16 and f32, accumulated in f32. One or two spatial axes, any stride, dilation, padding and groups. One strip
//! of image rows with one block of channels must fit in L1.

use crate::lower::{Conv, ConvGeometry, ConvOperand, Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite_npu_isa::{Access, CoreKind, CubeOperand, DType, Inst, Operand, Pipe};

use super::conv_filter;
use super::cube::{self, L1_HALF, Lines, Parity, RESIDENT_FLAG, TILE};
use super::dot::piece;
use super::emit::{ArgIndex, BLOCK, Emitter, ON_CHIP, blocks, cube_dtype, imm};
use super::epilogue::{self, InCube};

/// The launches of a convolution.
pub(super) fn lower(request: &LowerRequest<'_>, conv: &Conv) -> Result<Lowered, Unservable> {
    let planes = Planes::new(&conv.geometry)?;
    let geometry = &conv.geometry;
    let types = (conv.dtype, conv.out_dtype);
    let shape = match conv.operand {
        ConvOperand::Output => [geometry.batch, geometry.out_channels, planes.output[0] * planes.output[1]],
        ConvOperand::Input => [geometry.batch, geometry.in_channels, planes.input[0] * planes.input[1]],
        ConvOperand::Filter => {
            [geometry.out_channels, geometry.in_channels / geometry.groups.max(1), planes.taps()]
        }
    };
    // Channels of the output are the cube's columns.
    let bias = (vec![0, 1, 0], true);
    epilogue::lower(request, conv.epilogue, types, &shape, bias, |in_cube| match conv.operand {
        ConvOperand::Output => Correlation::forward(geometry, &planes).launch(request, conv, in_cube),
        ConvOperand::Input => Correlation::backward(geometry, &planes).launch(request, conv, in_cube),
        ConvOperand::Filter => conv_filter::launch(request, conv, &planes, in_cube),
    })
}

/// The geometry with exactly two spatial axes.
pub(super) struct Planes {
    pub(super) input: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) pad: [usize; 2],
}

impl Planes {
    fn new(geometry: &ConvGeometry) -> Result<Self, Unservable> {
        let rank = geometry.kernel.len();
        if rank > 2 {
            return Err(Unservable::new(format!(
                "the npu's convolutions have at most 2 spatial axes, not {rank}"
            )));
        }
        let two = |values: &[usize], fill: usize| match *values {
            [] => [fill, fill],
            [one] => [fill, one],
            [y, x, ..] => [y, x],
        };
        Ok(Self {
            input: two(&geometry.input, 1),
            kernel: two(&geometry.kernel, 1),
            output: two(&geometry.output, 1),
            stride: two(&geometry.stride, 1),
            dilation: two(&geometry.dilation, 1),
            pad: two(&geometry.pad_low, 0),
        })
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// `dst[image, d, y, x] = sum over s, i, j of src[image, s, (y * stride + i * dilation - pad) / up, ...] * filter[d, s, i, j]`,
/// where only whole quotients inside the source count. Channels are those of one group.
struct Correlation {
    images: usize,
    groups: usize,
    src_channels: usize,
    dst_channels: usize,
    src: [usize; 2],
    dst: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    pad: [i64; 2],
    up: [usize; 2],
    /// Elements from the filter's start to its first tap, and between its result channels, source channels and taps.
    filter_first: i64,
    filter_dst: i64,
    filter_src: i64,
    filter_tap: i64,
}

impl Correlation {
    fn forward(geometry: &ConvGeometry, planes: &Planes) -> Self {
        let groups = geometry.groups.max(1);
        let (src_channels, taps) = (geometry.in_channels / groups, planes.taps() as i64);
        Self {
            images: geometry.batch,
            groups,
            src_channels,
            dst_channels: geometry.out_channels / groups,
            src: planes.input,
            dst: planes.output,
            kernel: planes.kernel,
            stride: planes.stride,
            dilation: planes.dilation,
            pad: planes.pad.map(|pad| pad as i64),
            up: [1, 1],
            filter_first: 0,
            filter_dst: src_channels as i64 * taps,
            filter_src: taps,
            filter_tap: 1,
        }
    }

    fn backward(geometry: &ConvGeometry, planes: &Planes) -> Self {
        let groups = geometry.groups.max(1);
        let (dst_channels, taps) = (geometry.in_channels / groups, planes.taps() as i64);
        Self {
            images: geometry.batch,
            groups,
            src_channels: geometry.out_channels / groups,
            dst_channels,
            src: planes.output,
            dst: planes.input,
            kernel: planes.kernel,
            stride: [1, 1],
            dilation: planes.dilation,
            pad: std::array::from_fn(|axis| {
                (planes.dilation[axis] * (planes.kernel[axis] - 1)) as i64 - planes.pad[axis] as i64
            }),
            up: planes.stride,
            // The window is turned: its first tap is the filter's last.
            filter_first: taps - 1,
            filter_dst: taps,
            filter_src: dst_channels as i64 * taps,
            filter_tap: -1,
        }
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn launch(&self, request: &LowerRequest<'_>, conv: &Conv, in_cube: InCube) -> Result<Launch, Unservable> {
        let dtype = cube_dtype(conv.dtype)?;
        let out_dtype = cube_dtype(in_cube.out_dtype)?;
        let tiling = Tiling::new(self, dtype, cube::tile_sizes(request.parameters))?;
        let mut e = Emitter::new("conv_general", CoreKind::Cube);
        let src = e.buffer(LaunchArg::Input(0), conv.dtype, Access::Read);
        let filter = e.buffer(LaunchArg::Input(1), conv.dtype, Access::Read);
        let bias = in_cube.bias.then(|| e.buffer(LaunchArg::Input(2), halite_hal::DType::F32, Access::Read));
        let out = e.buffer(in_cube.out, in_cube.out_dtype, Access::Write);
        let program = Program { of: self, tiling: &tiling, dtype, filter };

        let n_tiles = self.dst_channels.div_ceil(tiling.n);
        let tiles = self.images * self.groups * tiling.strips * tiling.pieces * n_tiles;
        let blocks = blocks(request, tiles);
        let (load, step) = (Parity::new(&mut e), Parity::new(&mut e));
        cube::open(&mut e, false);
        if tiling.filter_stays {
            let (zero, n) = (Operand::ZERO, imm(self.dst_channels));
            program.load_filter(&mut e, imm(0), [zero, zero], n, [zero, imm(tiling.channel_blocks)]);
            e.k.sync(Pipe::Mte2, Pipe::Mte1, RESIDENT_FLAG);
        }
        let first: Operand = if blocks == 1 { Operand::ZERO } else { e.k.block_index().into() };
        let end = e.k.value(tiles as i64);
        e.repeat(first, end, imm(blocks as usize), |e, tile| {
            let mut rest = tile;
            let mut next = |e: &mut Emitter, count: usize| {
                let index = e.k.rem(rest, imm(count));
                rest = e.k.div(rest, imm(count));
                index
            };
            let (n_tile, cut, strip) = (next(e, n_tiles), next(e, tiling.pieces), next(e, tiling.strips));
            let (group, image) = (next(e, self.groups), rest);
            let (n0, n) = piece(e, n_tile, tiling.n, self.dst_channels);
            let strip = Strip::new(e, strip, tiling.rows, self);
            let (position, positions) = if tiling.pieces == 1 {
                (Operand::ZERO, strip.positions)
            } else {
                piece(e, cut, tiling.m, self.dst[1])
            };

            e.k.wait(Pipe::Fix, Pipe::M, 0);
            match bias {
                Some(bias) => e.scope(|e| {
                    let src = e.address(bias, 0, &[(group, self.dst_channels as i64 * 4), (n0, 4)]);
                    cube::spread_bias(e, src, [positions, n]);
                }),
                None => cube::clear(e, Operand::ZERO, [positions, n]),
            }
            e.repeat(0, imm(tiling.channel_blocks), imm(tiling.chunk), |e, block| {
                let left = e.k.sub(imm(tiling.channel_blocks), block);
                let count = e.k.min(left, imm(tiling.chunk));
                let image_at = load.at(e, tiling.image_at(), tiling.half());
                let filter_at = if tiling.filter_stays {
                    Operand::ZERO
                } else {
                    e.k.add(image_at, imm(tiling.image_bytes()))
                };
                e.k.wait(Pipe::Mte1, Pipe::Mte2, load.id());
                load_strip(e, dtype, (image_at, src), self.source(image, group), &strip, [block, count]);
                if !tiling.filter_stays {
                    program.load_filter(e, filter_at, [group, n0], n, [block, count]);
                }
                e.k.sync(Pipe::Mte2, Pipe::Mte1, load.id());
                set_image(e, self.window(), &strip, count);
                let blocks = e.k.mul(count, imm(self.taps()));
                e.repeat(0, blocks, imm(tiling.step), |e, from| {
                    let left = e.k.sub(blocks, from);
                    let count = e.k.min(left, imm(tiling.step));
                    let k = e.k.mul(count, imm(dtype.block_len()));
                    let (a, b) = (step.at(e, 0, ON_CHIP.l0a / 2), step.at(e, 0, ON_CHIP.l0b / 2));
                    e.k.wait(Pipe::M, Pipe::Mte1, step.id());
                    e.k.push(Inst::Im2col {
                        dtype,
                        operand: CubeOperand::A,
                        transpose: false,
                        dst: a,
                        src: image_at,
                        position,
                        positions,
                        block: from,
                        blocks: count,
                    });
                    let before = e.k.mul(from, imm(tiling.n * BLOCK));
                    let src = e.k.add(filter_at, before);
                    e.k.push(Inst::LoadB {
                        dtype,
                        transpose: false,
                        dst: b,
                        src,
                        k,
                        n,
                        pitch: imm(tiling.n),
                    });
                    e.k.sync(Pipe::Mte1, Pipe::M, step.id());
                    cube::multiply(e, dtype, [Operand::ZERO, a, b], [positions, k, n]);
                    e.k.set(Pipe::M, Pipe::Mte1, step.id());
                    step.flip(e);
                });
                e.k.set(Pipe::Mte1, Pipe::Mte2, load.id());
                load.flip(e);
            });
            e.k.sync(Pipe::M, Pipe::Fix, 0);
            let size = out_dtype.size() as i64;
            let plane = (self.dst[0] * self.dst[1]) as i64 * size;
            let channels = self.dst_channels as i64;
            let terms = [
                (image, self.groups as i64 * channels * plane),
                (group, channels * plane),
                (n0, plane),
                (strip.first, self.dst[1] as i64 * size),
                (position, size),
            ];
            let dst = e.address(out, 0, &terms);
            let plane = e.k.value(plane);
            let lines = (Lines::new(positions, Operand::Imm(size as i32)), Lines::new(n, plane));
            cube::store(e, out_dtype, in_cube.relu, (dst, Operand::ZERO), lines);
            e.k.set(Pipe::Fix, Pipe::M, 0);
        });
        cube::close(&mut e, false);
        e.launch(blocks, false)
    }

    fn source(&self, image: Operand, group: Operand) -> Source {
        Source { image, group, groups: self.groups, channels: self.src_channels, size: self.src }
    }

    fn window(&self) -> Window {
        Window {
            src_width: self.src[1],
            dst_width: self.dst[1],
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            pad_left: self.pad[1],
            up: self.up,
        }
    }
}

/// How a correlation is cut into tiles.
struct Tiling {
    /// Positions and channels of a tile.
    m: usize,
    n: usize,
    /// Rows of the result in a strip, strips of an image, and pieces of a strip (more than one only for long rows).
    rows: usize,
    strips: usize,
    pieces: usize,
    /// Most rows of the source that a strip needs, with their width.
    src_pixels: usize,
    channel_blocks: usize,
    /// Channel blocks of one load into L1.
    chunk: usize,
    /// Column blocks of one load into L0A and L0B.
    step: usize,
    /// Whether the whole filter stays in L1.
    filter_stays: bool,
    taps: usize,
}

impl Tiling {
    fn new(of: &Correlation, dtype: DType, [m, n, k]: [usize; 3]) -> Result<Self, Unservable> {
        let lanes = dtype.block_len();
        let width = of.dst[1].max(1);
        let rows = (m / width).clamp(1, of.dst[0].max(1));
        let pieces = if width > m { width.div_ceil(m) } else { 1 };
        let m = m.min((rows * width).next_multiple_of(TILE));
        // Nothing to contract leaves the accumulators as they start.
        let is_empty = of.src.contains(&0) || of.kernel.contains(&0);
        let channel_blocks = if is_empty { 0 } else { of.src_channels.div_ceil(lanes) };
        let src_rows = source_rows(of.src[0], rows, of.kernel[0], of.stride[0], of.dilation[0], of.up[0]);
        let src_pixels = src_rows * of.src[1];
        let taps = of.taps();
        let mut n = n.min(of.dst_channels.next_multiple_of(TILE)).clamp(TILE, ON_CHIP.bias / 4);
        while m * n * 4 > ON_CHIP.l0c {
            n = (n / 2).next_multiple_of(TILE);
        }
        let filter_bytes = |n: usize, blocks: usize| blocks * taps * n * BLOCK;
        let image_bytes = |blocks: usize| blocks * src_pixels * BLOCK;
        let stays = of.groups == 1 && n >= of.dst_channels;
        let filter_stays =
            stays && filter_bytes(n, channel_blocks) + 2 * image_bytes(channel_blocks) <= 2 * L1_HALF;
        let chunk = if filter_stays {
            channel_blocks
        } else {
            let fits = |n: usize| L1_HALF / (image_bytes(1) + filter_bytes(n, 1)).max(1);
            while fits(n) == 0 && n > TILE {
                n = (n / 2).next_multiple_of(TILE);
            }
            fits(n).min(channel_blocks)
        };
        if chunk == 0 && channel_blocks > 0 {
            return Err(Unservable::new(format!(
                "{src_rows} rows of {} pixels with one block of channels and the filter do not fit in the npu's L1",
                of.src[1]
            )));
        }
        let fits = (ON_CHIP.l0a / (2 * m * BLOCK)).min(ON_CHIP.l0b / (2 * n * BLOCK));
        let step = (k / lanes).min(fits).clamp(1, (taps * chunk).max(1));
        let strips = of.dst[0].div_ceil(rows);
        let chunk = chunk.max(1);
        Ok(Self { m, n, rows, strips, pieces, src_pixels, channel_blocks, chunk, step, filter_stays, taps })
    }

    fn filter_bytes(&self) -> usize {
        self.chunk * self.taps * self.n * BLOCK
    }

    fn image_bytes(&self) -> usize {
        self.chunk * self.src_pixels * BLOCK
    }

    /// Where the first image lies in L1; a filter that stays lies before it.
    fn image_at(&self) -> usize {
        if self.filter_stays { self.filter_bytes() } else { 0 }
    }

    /// From one buffer to the other.
    fn half(&self) -> usize {
        if self.filter_stays { self.image_bytes() } else { L1_HALF }
    }
}

/// Most rows of a source of `height` rows that `rows` rows of the result look at.
pub(super) fn source_rows(
    height: usize,
    rows: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    up: usize,
) -> usize {
    // One more than the quotient, and one for a start between two rows.
    let reach = (rows - 1) * stride + kernel.saturating_sub(1) * dilation;
    (reach / up + 2).min(height)
}

/// A window's movement over an image strip.
pub(super) struct Window {
    pub(super) src_width: usize,
    pub(super) dst_width: usize,
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) pad_left: i64,
    pub(super) up: [usize; 2],
}

/// An image of a batch and a group of its channels.
pub(super) struct Source {
    pub(super) image: Operand,
    pub(super) group: Operand,
    pub(super) groups: usize,
    pub(super) channels: usize,
    pub(super) size: [usize; 2],
}

/// Rows of the result, and the rows of the source that they look at.
pub(super) struct Strip {
    /// First row of the result.
    pub(super) first: Operand,
    /// Positions of the window.
    pub(super) positions: Operand,
    /// First row of the source, and how many.
    src_first: Operand,
    src_rows: Operand,
    /// Rows of padding above the source rows; negative if they start above the window.
    pad_top: Operand,
}

impl Strip {
    fn new(e: &mut Emitter, index: Operand, rows: usize, of: &Correlation) -> Self {
        let moves = [of.stride[0], of.kernel[0], of.dilation[0], of.up[0]];
        Self::of(e, index, rows, [of.dst[0], of.dst[1], of.src[0]], moves, of.pad[0])
    }

    /// Strip number `index` of `rows` rows.
    pub(super) fn of(
        e: &mut Emitter,
        index: Operand,
        rows: usize,
        [dst_height, dst_width, src_height]: [usize; 3],
        [stride, kernel, dilation, up]: [usize; 4],
        pad: i64,
    ) -> Self {
        let (first, count) = piece(e, index, rows, dst_height);
        let positions = e.k.mul(count, imm(dst_width));
        let pad = e.k.value(pad);
        let start = e.k.mul(first, imm(stride));
        let top = e.k.sub(start, pad);
        let above = e.k.max(top, 0);
        let quotient = e.k.div(above, imm(up));
        let src_first = e.k.min(quotient, imm(src_height.max(1) - 1));
        let last = e.k.add(first, count);
        let last = e.k.sub(last, 1);
        let last = e.k.mul(last, imm(stride));
        let last = e.k.sub(last, pad);
        let last = e.k.add(last, imm(kernel.saturating_sub(1) * dilation));
        let last = e.k.max(last, 0);
        let end = e.k.div(last, imm(up));
        let end = e.k.add(end, 1);
        let end = e.k.min(end, imm(src_height));
        let behind = e.k.add(src_first, 1);
        let end = e.k.max(end, behind);
        let src_rows = e.k.sub(end, src_first);
        let lifted = e.k.mul(src_first, imm(up));
        let pad_top = e.k.sub(lifted, top);
        Self { first, positions, src_first, src_rows, pad_top }
    }
}

/// Loads the strip's rows of `count` channel blocks from number `block` on as an image.
pub(super) fn load_strip(
    e: &mut Emitter,
    dtype: DType,
    (dst, arg): (Operand, ArgIndex),
    source: Source,
    strip: &Strip,
    [block, count]: [Operand; 2],
) {
    e.scope(|e| {
        let (size, lanes) = (dtype.size() as i64, dtype.block_len());
        let plane = (source.size[0] * source.size[1]) as i64 * size;
        let channels = source.channels as i64;
        let terms = [
            (source.image, source.groups as i64 * channels * plane),
            (source.group, channels * plane),
            (block, lanes as i64 * plane),
            (strip.src_first, source.size[1] as i64 * size),
        ];
        let src = e.address(arg, 0, &terms);
        let pixels = e.k.mul(strip.src_rows, imm(source.size[1]));
        let padded = e.k.mul(count, imm(lanes));
        let before = e.k.mul(block, imm(lanes));
        let left = e.k.sub(imm(source.channels), before);
        let cols = e.k.min(padded, left);
        let plane = e.k.value(plane);
        let lines = (Lines::new(pixels, Operand::Imm(size as i32)), Lines::new(cols, plane));
        cube::load_nz(e, dtype, (dst, src), lines, pixels, [pixels, padded]);
    });
}

/// Describes the strip in L1 to MTE1.
pub(super) fn set_image(e: &mut Emitter, window: Window, strip: &Strip, channel_blocks: Operand) {
    e.k.push(Inst::SetImage {
        height: strip.src_rows,
        width: imm(window.src_width),
        channel_blocks,
        kernel_h: imm(window.kernel[0]),
        kernel_w: imm(window.kernel[1]),
        stride_h: imm(window.stride[0]),
        stride_w: imm(window.stride[1]),
        dilation_h: imm(window.dilation[0]),
        dilation_w: imm(window.dilation[1]),
        pad_top: strip.pad_top,
        pad_left: Operand::Imm(window.pad_left as i32),
        out_width: imm(window.dst_width),
        up_h: imm(window.up[0]),
        up_w: imm(window.up[1]),
    });
}

struct Program<'a> {
    of: &'a Correlation,
    tiling: &'a Tiling,
    dtype: DType,
    filter: ArgIndex,
}

impl Program<'_> {
    /// Loads the filter for `n` result channels from `n0` of a group, block by block of source channels: a row for each
    /// result channel, columns in the order of the column matrix.
    fn load_filter(
        &self,
        e: &mut Emitter,
        at: Operand,
        [group, n0]: [Operand; 2],
        n: Operand,
        [block, count]: [Operand; 2],
    ) {
        let (of, size, lanes) = (self.of, self.dtype.size() as i64, self.dtype.block_len());
        let pitch = imm(self.tiling.n);
        let columns = imm(of.taps() * lanes);
        e.repeat(0, count, 1, |e, i| {
            let block = e.k.add(block, i);
            let before = e.k.mul(block, imm(lanes));
            let left = e.k.sub(imm(of.src_channels), before);
            let valid = e.k.min(left, imm(lanes));
            let group_size = (of.dst_channels * of.src_channels * of.taps()) as i64 * size;
            let terms = [(group, group_size), (n0, of.filter_dst * size), (before, of.filter_src * size)];
            let src = e.address(self.filter, of.filter_first * size, &terms);
            let offset = e.k.mul(i, imm(of.taps() * self.tiling.n * BLOCK));
            let dst = e.k.add(at, offset);
            let (row, col) = (e.k.value(of.filter_dst * size), e.k.value(of.filter_src * size));
            let cols = Lines {
                group: imm(lanes),
                valid,
                group_stride: Operand::Imm((of.filter_tap * size) as i32),
                ..Lines::new(columns, col)
            };
            cube::load_nz(e, self.dtype, (dst, src), (Lines::new(n, row), cols), pitch, [pitch, columns]);
        });
    }
}

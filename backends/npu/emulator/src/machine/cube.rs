//! MTE1, M and FIX: the matrix unit, its operands and its results.

use std::sync::atomic::Ordering::Relaxed;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use halite_npu_isa::{CubeOperand, DType, Inst, MmadMode, Operand, StoreMode};

use super::core::Core;
use super::dma::{ABSENT, Groups, find_groups};
use super::error::{Fault, MemoryError};
use super::memory::LocalMemory;
use super::observer::Work;

/// Rows and columns of a fractal of accumulators, and rows of one of operands.
const TILE: usize = 16;
const BLOCK_BYTES: usize = 32;
const FRACTAL_BYTES: usize = 512;

/// What `set.image` described.
#[derive(Clone, Copy, Default)]
pub(super) struct Image {
    height: i64,
    width: i64,
    channel_blocks: i64,
    kernel: [i64; 2],
    stride: [i64; 2],
    dilation: [i64; 2],
    pad: [i64; 2],
    out_width: i64,
    up: [i64; 2],
}

impl Image {
    /// Row and column of each position's window, with the padding taken off.
    fn corners(&self, part: Part, ys: &mut Vec<i64>, xs: &mut Vec<i64>) {
        let corner = |at: i64, axis: usize| at * self.stride[axis] - self.pad[axis];
        let positions = part.position..part.position + part.positions;
        ys.clear();
        ys.extend(positions.clone().map(|position| corner(position / self.out_width, 0)));
        xs.clear();
        xs.extend(positions.map(|position| corner(position % self.out_width, 1)));
    }

    /// The pixel on an axis at a place among pixels that stand `up` apart, if there is one.
    fn place(&self, at: i64, axis: usize, size: i64) -> Option<i64> {
        let up = self.up[axis];
        if up == 1 {
            return (0..size).contains(&at).then_some(at);
        }
        (at >= 0 && at % up == 0 && at / up < size).then(|| at / up)
    }
}

/// The cube's operands as it multiplies them, kept between steps to save their allocation.
#[derive(Default)]
pub(super) struct Panels {
    /// All elements of L0A or L0B in f32.
    wide: Vec<f32>,
    /// m x k.
    lhs: Vec<f32>,
    /// \[n/16\]\[k\]\[16\]
    rhs: Vec<f32>,
}

impl Core<'_> {
    /// Executes an instruction of MTE1, M or FIX.
    pub(super) fn matrix(&mut self, inst: &Inst) -> Result<Work, Fault> {
        match *inst {
            Inst::LoadA { dtype, transpose, dst, src, m, k, pitch } => {
                let shape = (self.count("m", m)?, self.count("k", k)?);
                self.load_operand(CubeOperand::A, dtype, transpose, dst, src, shape, pitch)
            }
            Inst::LoadB { dtype, transpose, dst, src, k, n, pitch } => {
                let shape = (self.count("n", n)?, self.count("k", k)?);
                self.load_operand(CubeOperand::B, dtype, transpose, dst, src, shape, pitch)
            }
            Inst::LoadBias { dst, src, count } => {
                let count = self.count("count", count)?;
                let src = self.memories.l1.source(self.value(src), count * 4)?;
                let dst = self.memories.bias.target(self.value(dst), count * 4)?;
                let from = self.memories.l1.slice::<f32>(src, count as usize);
                self.memories.bias.slice_mut::<f32>(dst, count as usize).copy_from_slice(from);
                Ok(Work { elements: count as u64, ..Work::default() })
            }
            Inst::SetImage { .. } => self.set_image(inst),
            Inst::Im2col { dtype, operand, transpose, dst, src, position, positions, block, blocks } => {
                let (position, positions) =
                    (self.count("position", position)?, self.count("positions", positions)?);
                let (block, blocks) = (self.count("block", block)?, self.count("blocks", blocks)?);
                let part = Part { position, positions, block, blocks };
                self.im2col(dtype, operand, transpose, self.value(dst), self.value(src), part)
            }
            Inst::Mmad { dtype, mode, dst, lhs, rhs, m, k, n, bias } => {
                let shape = [self.count("m", m)?, self.count("k", k)?, self.count("n", n)?];
                self.mmad(dtype, mode, [dst, lhs, rhs, bias], shape)
            }
            _ => self.store_l0c(inst),
        }
    }

    /// `outer` is m of the left operand or n of the right one: both have a row of k for each of it.
    #[allow(clippy::too_many_arguments, reason = "they are the fields of one instruction")]
    fn load_operand(
        &mut self,
        operand: CubeOperand,
        dtype: DType,
        transpose: bool,
        dst: Operand,
        src: Operand,
        (outer, k): (i64, i64),
        pitch: Operand,
    ) -> Result<Work, Fault> {
        let (dst, src, pitch) = (self.value(dst), self.value(src), self.count("pitch", pitch)?);
        if outer == 0 || k == 0 {
            return Ok(Work::default());
        }
        let lanes = dtype.block_len() as i64;
        let (rows, cols) = if transpose { (k, outer) } else { (outer, k) };
        if pitch < rows {
            let required = "it must not be below the number of rows";
            return Err(Fault::Field { field: "pitch", value: pitch, required });
        }
        let extent = ((cols.div_ceil_positive(lanes) - 1) * pitch + rows) * BLOCK_BYTES as i64;
        let src = self.memories.l1.source(src, extent)?;
        let l1 = &self.memories.l1;
        let l0 = if operand == CubeOperand::A { &mut self.memories.l0a } else { &mut self.memories.l0b };
        let layout = Fractals::new(l0, dst, operand, lanes, outer, k)?;
        let pitch = pitch as usize;
        if transpose {
            let place = |k: usize, outer: usize| {
                src + (outer / lanes as usize * pitch + k) * BLOCK_BYTES
                    + outer % lanes as usize * dtype.size()
            };
            if dtype == DType::F32 {
                layout.scatter::<u32>(l0, |outer, k| l1.slice(place(k, outer), 1)[0]);
            } else {
                layout.scatter::<u16>(l0, |outer, k| l1.slice(place(k, outer), 1)[0]);
            }
        } else {
            layout.copy_blocks(l0, |outer, block| l1.slice(src + (block * pitch + outer) * BLOCK_BYTES, 4));
        }
        Ok(Work { elements: (outer * k) as u64, ..Work::default() })
    }

    fn set_image(&mut self, inst: &Inst) -> Result<Work, Fault> {
        let Inst::SetImage {
            height,
            width,
            channel_blocks,
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            dilation_h,
            dilation_w,
            pad_top,
            pad_left,
            out_width,
            up_h,
            up_w,
        } = *inst
        else {
            unreachable!("the caller matched the instruction");
        };
        let bounded = |field: &'static str, operand: Operand, least: i64, required: &'static str| {
            let value = self.value(operand);
            if (least..1 << 20).contains(&value) {
                Ok(value)
            } else {
                Err(Fault::Field { field, value, required })
            }
        };
        let size = |field, operand| bounded(field, operand, 1, "it must be from 1 to 1048575");
        let pad =
            |field, operand| bounded(field, operand, -(1 << 20) + 1, "it must be below 1048576 in magnitude");
        self.image = Image {
            height: size("height", height)?,
            width: size("width", width)?,
            channel_blocks: size("channel_blocks", channel_blocks)?,
            kernel: [size("kernel_h", kernel_h)?, size("kernel_w", kernel_w)?],
            stride: [size("stride_h", stride_h)?, size("stride_w", stride_w)?],
            dilation: [size("dilation_h", dilation_h)?, size("dilation_w", dilation_w)?],
            pad: [pad("pad_top", pad_top)?, pad("pad_left", pad_left)?],
            out_width: size("out_width", out_width)?,
            up: [size("up_h", up_h)?, size("up_w", up_w)?],
        };
        Ok(Work::default())
    }

    fn im2col(
        &mut self,
        dtype: DType,
        operand: CubeOperand,
        transpose: bool,
        dst: i64,
        src: i64,
        part: Part,
    ) -> Result<Work, Fault> {
        let image = self.image;
        if part.positions == 0 || part.blocks == 0 {
            return Ok(Work::default());
        }
        if image.height == 0 {
            let required = "set.image must describe an image first";
            return Err(Fault::Field { field: "height", value: 0, required });
        }
        let taps = image.kernel[0] * image.kernel[1];
        let last_block = part.block + part.blocks;
        if last_block > image.channel_blocks.saturating_mul(taps) {
            let required = "blocks must not exceed channel_blocks * kernel_h * kernel_w";
            return Err(Fault::Field { field: "block + blocks", value: last_block, required });
        }
        let pixels = image.height * image.width;
        let extent = pixels.saturating_mul(image.channel_blocks).saturating_mul(BLOCK_BYTES as i64);
        let src = self.memories.l1.source(src, extent)?;
        let l1 = &self.memories.l1;
        let l0 = if operand == CubeOperand::A { &mut self.memories.l0a } else { &mut self.memories.l0b };
        let lanes = dtype.block_len();
        let columns = part.blocks * lanes as i64;
        // Positions are rows of the left operand and k of the right one, unless they change places.
        let positions_are_outer = (operand == CubeOperand::A) != transpose;
        let (outer, k) =
            if positions_are_outer { (part.positions, columns) } else { (columns, part.positions) };
        let layout = Fractals::new(l0, dst, operand, lanes as i64, outer, k)?;

        let [ys, xs] = &mut self.memories.offsets;
        image.corners(part, ys, xs);
        for number in 0..part.blocks as usize {
            let block = part.block + number as i64;
            let (channel_block, tap) = (block / taps, block % taps);
            let shift =
                [tap / image.kernel[1] * image.dilation[0], tap % image.kernel[1] * image.dilation[1]];
            let plane = src + (channel_block * pixels) as usize * BLOCK_BYTES;
            let at = |position: usize| {
                let y = image.place(ys[position] + shift[0], 0, image.height)?;
                let x = image.place(xs[position] + shift[1], 1, image.width)?;
                Some(plane + (y * image.width + x) as usize * BLOCK_BYTES)
            };
            let positions = 0..part.positions as usize;
            if positions_are_outer {
                for position in positions {
                    let to = l0.slice_mut::<u64>(layout.block_at(position, number), 4);
                    match at(position) {
                        Some(at) => to.copy_from_slice(l1.slice(at, 4)),
                        None => to.fill(0),
                    }
                }
            } else if dtype == DType::F32 {
                let first = number * lanes;
                positions.for_each(|k| {
                    layout.scatter_block::<u32>(l0, first, k, at(k).map(|at| l1.slice(at, lanes)))
                });
            } else {
                let first = number * lanes;
                positions.for_each(|k| {
                    layout.scatter_block::<u16>(l0, first, k, at(k).map(|at| l1.slice(at, lanes)))
                });
            }
        }
        Ok(Work { elements: (outer * k) as u64, ..Work::default() })
    }

    fn mmad(
        &mut self,
        dtype: DType,
        mode: MmadMode,
        [dst, lhs, rhs, bias]: [Operand; 4],
        [m, k, n]: [i64; 3],
    ) -> Result<Work, Fault> {
        if m == 0 || n == 0 {
            return Ok(Work::default());
        }
        let lanes = dtype.block_len() as i64;
        let m_pad = m.div_ceil_positive(TILE as i64) * TILE as i64;
        let n_tiles = n.div_ceil_positive(TILE as i64);
        let c_bytes = m_pad.saturating_mul(n_tiles).saturating_mul(TILE as i64 * 4);
        let c = self.memories.l0c.target(self.value(dst), c_bytes)?;
        let a = Fractals::source(&self.memories.l0a, self.value(lhs), CubeOperand::A, lanes, m, k)?;
        let b = Fractals::source(&self.memories.l0b, self.value(rhs), CubeOperand::B, lanes, n, k)?;
        let (m, k, n_tiles, m_pad) = (m as usize, k as usize, n_tiles as usize, m_pad as usize);

        let bias_at = self.value(bias);
        let memories = &mut self.memories;
        let accumulators = memories.l0c.slice_mut::<f32>(c, m_pad * n_tiles * TILE);
        match mode {
            MmadMode::Init => accumulators.fill(0.0),
            MmadMode::Accumulate => {}
            MmadMode::Bias => {
                let at = memories.bias.source(bias_at, n * 4)?;
                let bias = memories.bias.slice::<f32>(at, n as usize);
                for (tile, bias) in accumulators.chunks_exact_mut(m_pad * TILE).zip(bias.chunks(TILE)) {
                    for row in tile.chunks_exact_mut(TILE) {
                        row[..bias.len()].copy_from_slice(bias);
                    }
                }
            }
        }
        if k == 0 {
            return Ok(Work::default());
        }
        let Panels { wide, lhs, rhs } = &mut memories.panels;
        widen(&memories.l0a, a.start, a.bytes(), dtype, wide);
        a.to_rows(wide, lhs);
        widen(&memories.l0b, b.start, b.bytes(), dtype, wide);
        b.to_panels(wide, rhs);
        multiply(lhs, rhs, accumulators, [m, k, m_pad]);
        Ok(Work { multiply_adds: (m * k) as u64 * n as u64, ..Work::default() })
    }

    fn store_l0c(&mut self, inst: &Inst) -> Result<Work, Fault> {
        let Inst::StoreL0c {
            dtype,
            mode,
            relu,
            dst,
            src,
            rows,
            cols,
            pitch,
            row_stride,
            col_stride,
            row_group,
            row_group_stride,
            col_group,
            col_valid,
            col_group_stride,
            scale,
        } = *inst
        else {
            unreachable!("the caller matched the instruction");
        };
        let (rows, cols) = (self.count("rows", rows)?, self.count("cols", cols)?);
        let pitch = self.count("pitch", pitch)?;
        if rows == 0 || cols == 0 {
            return Ok(Work::default());
        }
        if pitch < rows {
            let required = "it must not be below rows";
            return Err(Fault::Field { field: "pitch", value: pitch, required });
        }
        let extent = ((cols.div_ceil_positive(TILE as i64) - 1) * pitch + rows) * TILE as i64 * 4;
        let src = self.memories.l0c.source(self.value(src), extent)?;
        let scale = f32::from_bits(self.value(scale) as u32);
        let row_groups = Groups {
            count: rows,
            stride: self.value(row_stride),
            group: self.count("row_group", row_group)?,
            valid: 0,
            group_stride: self.value(row_group_stride),
        };
        let col_groups = Groups {
            count: cols,
            stride: self.value(col_stride),
            group: self.count("col_group", col_group)?,
            valid: self.count("col_valid", col_valid)?,
            group_stride: self.value(col_group_stride),
        };
        let [mut row_at, mut col_at] = std::mem::take(&mut self.memories.offsets);
        let too_far = Fault::Field {
            field: "stride",
            value: i64::MAX,
            required: "the transfer must stay in 63-bit addresses",
        };
        let row_reach = row_groups.offsets(&mut row_at).ok_or_else(|| too_far.clone())?;
        let col_reach = col_groups.offsets(&mut col_at).ok_or(too_far)?;
        let address = self.value(dst);
        let (size, pitch) = (dtype.size(), pitch as usize);
        let (allocation, base) = find_groups(self, row_reach, col_reach, address, size)?;
        let unit = size as i64;
        let mut offsets = row_at.iter().chain(col_at.iter().filter(|&&at| at != ABSENT));
        if base % unit != 0 || offsets.any(|at| at % unit != 0) {
            let address = address.cast_unsigned();
            return Err(MemoryError::Misaligned { address, required: size as u64 }.into());
        }

        let l0c = self.memories.l0c.all::<f32>();
        let value = |row: usize, col: usize| {
            let value = l0c[src / 4 + (col / TILE * pitch + row) * TILE + col % TILE] * scale;
            // Written so that NaN stays.
            if relu && value < 0.0 { 0.0 } else { value }
        };
        // Walk along whichever side is denser in global memory.
        let by_columns = row_groups.stride.unsigned_abs() < col_groups.stride.unsigned_abs();
        let (outer_len, inner_len) = if by_columns { (cols, rows) } else { (rows, cols) };
        let run = &mut self.memories.row;
        let mut elements = 0;
        for outer in 0..outer_len as usize {
            run.clear();
            let mut run_start = 0;
            for inner in 0..inner_len as usize {
                let (row, col) = if by_columns { (inner, outer) } else { (outer, inner) };
                if col_at[col] == ABSENT {
                    continue;
                }
                elements += 1;
                let value = value(row, col);
                let at = (base + row_at[row] + col_at[col]) as usize;
                match (dtype, mode) {
                    (DType::F32, StoreMode::AtomicAdd) => allocation.add_f32(at / 4, value),
                    (DType::F32, StoreMode::Plain) => {
                        allocation.words()[at / 4].store(value.to_bits(), Relaxed)
                    }
                    _ => {
                        // Halves are gathered into runs, since a lone one costs an update of its word.
                        if at != run_start + run.len() {
                            allocation.write(run_start, run);
                            run.clear();
                            run_start = at;
                        }
                        let half = if dtype == DType::F16 {
                            f16::from_f32(value).to_bits()
                        } else {
                            bf16::from_f32(value).to_bits()
                        };
                        run.extend_from_slice(&half.to_ne_bytes());
                    }
                }
            }
            allocation.write(run_start, run);
        }
        self.memories.offsets = [row_at, col_at];
        Ok(Work { bytes_out: elements * size as u64, elements, ..Work::default() })
    }
}

/// The part of the column matrix that `im2col` takes.
#[derive(Clone, Copy)]
struct Part {
    position: i64,
    positions: i64,
    block: i64,
    blocks: i64,
}

trait DivCeil {
    /// Rounded up, for numbers that are not negative.
    fn div_ceil_positive(self, by: Self) -> Self;
}

impl DivCeil for i64 {
    fn div_ceil_positive(self, by: Self) -> Self {
        (self + by - 1) / by
    }
}

/// An operand in L0A or L0B: `outer` (m or n) rows of k, in fractals of 16 rows and one block of k.
struct Fractals {
    operand: CubeOperand,
    start: usize,
    outer: usize,
    k: usize,
    lanes: usize,
    outer_tiles: usize,
    k_tiles: usize,
}

impl Fractals {
    fn shape(operand: CubeOperand, lanes: i64, outer: i64, k: i64) -> (Self, i64) {
        let outer_tiles = outer.div_ceil_positive(TILE as i64);
        let k_tiles = k.div_ceil_positive(lanes);
        let bytes = outer_tiles.saturating_mul(k_tiles).saturating_mul(FRACTAL_BYTES as i64);
        let shape = Self {
            operand,
            start: 0,
            outer: outer as usize,
            k: k as usize,
            lanes: lanes as usize,
            outer_tiles: outer_tiles as usize,
            k_tiles: k_tiles as usize,
        };
        (shape, bytes)
    }

    /// A place to load to. What pads the last tiles becomes zero.
    fn new(
        l0: &mut LocalMemory,
        address: i64,
        operand: CubeOperand,
        lanes: i64,
        outer: i64,
        k: i64,
    ) -> Result<Self, Fault> {
        let (shape, bytes) = Self::shape(operand, lanes, outer, k);
        let start = l0.target(address, bytes)?;
        if outer % TILE as i64 != 0 || k % lanes != 0 {
            l0.slice_mut::<u64>(start, bytes as usize / 8).fill(0);
        }
        Ok(Self { start, ..shape })
    }

    fn source(
        l0: &LocalMemory,
        address: i64,
        operand: CubeOperand,
        lanes: i64,
        outer: i64,
        k: i64,
    ) -> Result<Self, Fault> {
        let (shape, bytes) = Self::shape(operand, lanes, outer, k);
        Ok(Self { start: l0.source(address, bytes)?, ..shape })
    }

    fn bytes(&self) -> usize {
        self.outer_tiles * self.k_tiles * FRACTAL_BYTES
    }

    /// Which fractal, in memory order.
    fn fractal(&self, outer_tile: usize, k_tile: usize) -> usize {
        match self.operand {
            CubeOperand::A => outer_tile * self.k_tiles + k_tile,
            CubeOperand::B => k_tile * self.outer_tiles + outer_tile,
        }
    }

    /// Byte of the block that holds `outer` and the k tile.
    fn block_at(&self, outer: usize, k_tile: usize) -> usize {
        self.start + self.fractal(outer / TILE, k_tile) * FRACTAL_BYTES + outer % TILE * BLOCK_BYTES
    }

    /// Loads whole blocks; `block` gives that of an outer index and a k tile.
    fn copy_blocks<'a>(&self, l0: &mut LocalMemory, block: impl Fn(usize, usize) -> &'a [u64]) {
        for k_tile in 0..self.k_tiles {
            for outer in 0..self.outer {
                let at = self.block_at(outer, k_tile);
                l0.slice_mut::<u64>(at, 4).copy_from_slice(block(outer, k_tile));
            }
        }
    }

    /// Loads element by element.
    fn scatter<T: bytemuck::Pod>(&self, l0: &mut LocalMemory, element: impl Fn(usize, usize) -> T) {
        let all = l0.all_mut::<T>();
        for outer in 0..self.outer {
            for k_tile in 0..self.k_tiles {
                let at = self.block_at(outer, k_tile) / size_of::<T>();
                let lanes = self.lanes.min(self.k - k_tile * self.lanes);
                for (lane, to) in all[at..at + lanes].iter_mut().enumerate() {
                    *to = element(outer, k_tile * self.lanes + lane);
                }
            }
        }
    }

    /// Loads a block of consecutive outer indices from `first` on at one k; `None` for zeros.
    fn scatter_block<T: bytemuck::Pod>(
        &self,
        l0: &mut LocalMemory,
        first: usize,
        k: usize,
        block: Option<&[T]>,
    ) {
        // A block never crosses fractals: it has as many elements as one has rows, or half of that.
        let start = self.block_at(first, k / self.lanes) / size_of::<T>() + k % self.lanes;
        let stride = BLOCK_BYTES / size_of::<T>();
        let to = l0.all_mut::<T>()[start..].iter_mut().step_by(stride).take(self.lanes);
        match block {
            Some(block) => to.zip(block).for_each(|(to, &value)| *to = value),
            None => to.for_each(|to| *to = T::zeroed()),
        }
    }

    /// As rows of k, for the left operand.
    fn to_rows(&self, wide: &[f32], rows: &mut Vec<f32>) {
        rows.clear();
        for outer in 0..self.outer {
            for k_tile in 0..self.k_tiles {
                let at = (self.fractal(outer / TILE, k_tile) * TILE + outer % TILE) * self.lanes;
                let lanes = self.lanes.min(self.k - k_tile * self.lanes);
                rows.extend_from_slice(&wide[at..at + lanes]);
            }
        }
    }

    /// As \[outer/16\]\[k\]\[16\], for the right operand.
    fn to_panels(&self, wide: &[f32], panels: &mut Vec<f32>) {
        panels.clear();
        panels.resize(self.outer_tiles * self.k * TILE, 0.0);
        for (outer_tile, panel) in panels.chunks_exact_mut(self.k * TILE).enumerate() {
            for (k_tile, rows) in panel.chunks_mut(self.lanes * TILE).enumerate() {
                let at = self.fractal(outer_tile, k_tile) * TILE * self.lanes;
                let fractal = &wide[at..at + TILE * self.lanes];
                for (lane, row) in rows.chunks_exact_mut(TILE).enumerate() {
                    for (to, from) in row.iter_mut().zip(fractal.chunks_exact(self.lanes)) {
                        *to = from[lane];
                    }
                }
            }
        }
    }
}

/// Elements in memory order as f32.
fn widen(l0: &LocalMemory, start: usize, bytes: usize, dtype: DType, wide: &mut Vec<f32>) {
    wide.clear();
    match dtype {
        DType::F16 => {
            wide.resize(bytes / 2, 0.0);
            bytemuck::cast_slice::<u16, f16>(l0.slice(start, bytes / 2)).convert_to_f32_slice(wide);
        }
        DType::BF16 => {
            wide.resize(bytes / 2, 0.0);
            bytemuck::cast_slice::<u16, bf16>(l0.slice(start, bytes / 2)).convert_to_f32_slice(wide);
        }
        _ => wide.extend_from_slice(l0.slice(start, bytes / 4)),
    }
}

/// Adds the product to the accumulators, with wider registers where the host has them.
fn multiply(lhs: &[f32], rhs: &[f32], accumulators: &mut [f32], shape: [usize; 3]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the host has AVX2, which the line above has just asked.
        return unsafe { multiply_avx2(lhs, rhs, accumulators, shape) };
    }
    multiply_any(lhs, rhs, accumulators, shape);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2(lhs: &[f32], rhs: &[f32], accumulators: &mut [f32], shape: [usize; 3]) {
    multiply_any(lhs, rhs, accumulators, shape);
}

/// Products and sums round separately and k ascends, so every host gets the same bits.
#[inline(always)]
fn multiply_any(lhs: &[f32], rhs: &[f32], accumulators: &mut [f32], [m, k, m_pad]: [usize; 3]) {
    const ROWS: usize = 4;
    for (panel, tile) in rhs.chunks_exact(k * TILE).zip(accumulators.chunks_exact_mut(m_pad * TILE)) {
        let (panel, _) = panel.as_chunks::<TILE>();
        let (tile, _) = tile.as_chunks_mut::<TILE>();
        let mut rows = lhs.chunks_exact(ROWS * k);
        let mut done = 0;
        for lhs in rows.by_ref() {
            let (a, rest) = lhs.split_at(k);
            let (b, rest) = rest.split_at(k);
            let (c, d) = rest.split_at(k);
            let out: &mut [[f32; TILE]; ROWS] =
                (&mut tile[done..done + ROWS]).try_into().expect("the range has as many rows");
            let mut sums = *out;
            for ((((right, &a), &b), &c), &d) in panel.iter().zip(a).zip(b).zip(c).zip(d) {
                for j in 0..TILE {
                    sums[0][j] += a * right[j];
                    sums[1][j] += b * right[j];
                    sums[2][j] += c * right[j];
                    sums[3][j] += d * right[j];
                }
            }
            *out = sums;
            done += ROWS;
        }
        for (lhs, out) in rows.remainder().chunks_exact(k).zip(&mut tile[done..m]) {
            let mut sums = *out;
            for (right, &left) in panel.iter().zip(lhs) {
                for j in 0..TILE {
                    sums[j] += left * right[j];
                }
            }
            *out = sums;
        }
    }
}

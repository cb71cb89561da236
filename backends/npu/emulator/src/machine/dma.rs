//! MTE2 and MTE3: transfers between global memory and a core's L1 and UB.

use std::sync::atomic::Ordering::Relaxed;

use halite_npu_isa::{DType, Dim, Inst, StoreMode};

use super::core::Core;
use super::error::{Fault, MemoryError};
use super::memory::Allocation;
use super::observer::Work;

/// A dimension with its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Steps {
    count: i64,
    src: i64,
    dst: i64,
}

/// Up to four dimensions, the innermost last, none of one step, and none that continues the one inside it.
struct Walk {
    dims: Vec<Steps>,
    elements: i64,
    src_span: Span,
    dst_span: Span,
}

/// The lowest and highest offset that a walk reaches.
#[derive(Clone, Copy)]
struct Span {
    low: i64,
    high: i64,
}

impl Span {
    fn of(steps: impl Iterator<Item = (i64, i64)>) -> Option<Self> {
        let mut span = Self { low: 0, high: 0 };
        for (count, stride) in steps {
            let reach = stride.checked_mul(count - 1)?;
            span.low = span.low.checked_add(reach.min(0))?;
            span.high = span.high.checked_add(reach.max(0))?;
        }
        Some(span)
    }

    /// First address and length of what elements of `size` bytes touch from `base` on.
    fn range(self, base: i64, size: usize) -> Option<(i64, i64)> {
        Some((base.checked_add(self.low)?, (self.high - self.low).checked_add(size as i64)?))
    }
}

const TOO_FAR: Fault =
    Fault::Field { field: "stride", value: i64::MAX, required: "the transfer must stay in 63-bit addresses" };

impl Walk {
    /// `None` if there is nothing to move.
    fn new(core: &Core<'_>, dims: [Dim; 4], size: usize) -> Result<Option<Self>, Fault> {
        let mut steps: Vec<Steps> = Vec::with_capacity(4);
        let mut elements = 1_i64;
        for dim in dims {
            let count = core.count("count", dim.count)?;
            let dim = Steps { count, src: core.value(dim.src_stride), dst: core.value(dim.dst_stride) };
            elements = elements.saturating_mul(count);
            if count == 1 {
                continue;
            }
            match steps.last_mut() {
                Some(outer)
                    if dim.src.checked_mul(count) == Some(outer.src)
                        && dim.dst.checked_mul(count) == Some(outer.dst) =>
                {
                    *outer = Steps { count: outer.count.saturating_mul(count), ..dim };
                }
                _ => steps.push(dim),
            }
        }
        if elements == 0 {
            return Ok(None);
        }
        // A transfer touches the core's memory, so more elements than that has bytes only repeat themselves.
        let limit = core.memories.ub.capacity() as i64;
        if elements.saturating_mul(size as i64) > limit {
            let required = "a transfer must not be larger than UB";
            return Err(Fault::Field {
                field: "bytes",
                value: elements.saturating_mul(size as i64),
                required,
            });
        }
        let src_span = Span::of(steps.iter().map(|dim| (dim.count, dim.src))).ok_or(TOO_FAR)?;
        let dst_span = Span::of(steps.iter().map(|dim| (dim.count, dim.dst))).ok_or(TOO_FAR)?;
        Ok(Some(Self { dims: steps, elements, src_span, dst_span }))
    }

    /// Calls `row` with the offsets of both sides for each run of the innermost dimension.
    fn rows(&self, mut row: impl FnMut(i64, i64, Steps)) {
        let one = Steps { count: 1, src: 0, dst: 0 };
        let (&inner, outer) = self.dims.split_last().unwrap_or((&one, &[]));
        let mut dims = [one; 3];
        dims[3 - outer.len()..].copy_from_slice(outer);
        let [a, b, c] = dims;
        for i in 0..a.count {
            for j in 0..b.count {
                for k in 0..c.count {
                    let src = i * a.src + j * b.src + k * c.src;
                    let dst = i * a.dst + j * b.dst + k * c.dst;
                    row(src, dst, inner);
                }
            }
        }
    }

    /// Whether all offsets of a side and of `base` are multiples of `unit`.
    fn is_aligned(&self, src: i64, dst: i64, unit: i64) -> bool {
        (src | dst) % unit == 0 && self.dims.iter().all(|dim| (dim.src | dim.dst) % unit == 0)
    }
}

impl Core<'_> {
    /// Executes an instruction of MTE2 or MTE3.
    pub(super) fn transfer(&mut self, inst: &Inst) -> Result<Work, Fault> {
        match *inst {
            Inst::LoadUb { dtype, dst, src, d0, d1, d2, d3 } => {
                self.load_ub(dtype, self.value(dst), self.value(src), [d0, d1, d2, d3])
            }
            Inst::StoreUb { dtype, mode, dst, src, d0, d1, d2, d3 } => {
                self.store_ub(dtype, mode, self.value(dst), self.value(src), [d0, d1, d2, d3])
            }
            Inst::LoadL1 { dst, src, bytes, bursts, src_stride, dst_stride } => {
                let (bytes, bursts) = (self.count("bytes", bytes)?, self.count("bursts", bursts)?);
                let strides = (self.value(src_stride), self.value(dst_stride));
                self.load_l1(self.value(dst), self.value(src), bytes, bursts, strides)
            }
            _ => self.load_nz(inst),
        }
    }

    fn load_ub(&mut self, dtype: DType, dst: i64, src: i64, dims: [Dim; 4]) -> Result<Work, Fault> {
        let size = dtype.size();
        let Some(walk) = Walk::new(self, dims, size)? else {
            return Ok(Work::default());
        };
        self.memories.ub.aligned("address", dst)?;
        let (allocation, src) = find(self, &walk.src_span, src, size)?;
        let (first, len) = walk.dst_span.range(dst, size).ok_or(TOO_FAR)?;
        self.memories.ub.touch(first, len)?;
        let step = size as i64;
        let ub = &mut self.memories.ub;
        if size == 4 && walk.is_aligned(src, dst, 4) {
            let (words, ub) = (allocation.words(), ub.all_mut::<u32>());
            walk.rows(|src_at, dst_at, inner| {
                let (from, to) = (((src + src_at) / 4) as usize, ((dst + dst_at) / 4) as usize);
                let count = inner.count as usize;
                if inner.src == 4 && inner.dst == 4 {
                    for (to, from) in ub[to..to + count].iter_mut().zip(&words[from..from + count]) {
                        *to = from.load(Relaxed);
                    }
                } else if inner.src == 0 && inner.dst == 4 {
                    ub[to..to + count].fill(words[from].load(Relaxed));
                } else {
                    let (mut from, mut to) = (from, to);
                    for _ in 0..count {
                        ub[to] = words[from].load(Relaxed);
                        from = from.wrapping_add_signed((inner.src / 4) as isize);
                        to = to.wrapping_add_signed((inner.dst / 4) as isize);
                    }
                }
            });
        } else {
            let ub = ub.all_mut::<u8>();
            walk.rows(|src_at, dst_at, inner| {
                let (from, to) = (src + src_at, dst + dst_at);
                if inner.src == step && inner.dst == step {
                    let run = (inner.count * step) as usize;
                    allocation.read(from as usize, &mut ub[to as usize..to as usize + run]);
                } else {
                    for i in 0..inner.count {
                        let (from, to) = ((from + i * inner.src) as usize, (to + i * inner.dst) as usize);
                        allocation.read(from, &mut ub[to..to + size]);
                    }
                }
            });
        }
        let elements = walk.elements as u64;
        Ok(Work { bytes_in: elements * size as u64, elements, ..Work::default() })
    }

    fn store_ub(
        &mut self,
        dtype: DType,
        mode: StoreMode,
        dst: i64,
        src: i64,
        dims: [Dim; 4],
    ) -> Result<Work, Fault> {
        let size = dtype.size();
        let Some(walk) = Walk::new(self, dims, size)? else {
            return Ok(Work::default());
        };
        self.memories.ub.aligned("address", src)?;
        let (first, len) = walk.src_span.range(src, size).ok_or(TOO_FAR)?;
        self.memories.ub.bounds(first, len)?;
        let (allocation, dst) = find(self, &walk.dst_span, dst, size)?;
        let (ub, step) = (&self.memories.ub, size as i64);
        let is_aligned = size == 4 && walk.is_aligned(src, dst, 4);
        if mode == StoreMode::AtomicAdd {
            if !is_aligned {
                return Err(MemoryError::Misaligned { address: dst.cast_unsigned(), required: 4 }.into());
            }
            let ub = ub.all::<f32>();
            walk.rows(|src_at, dst_at, inner| {
                for i in 0..inner.count {
                    let value = ub[((src + src_at + i * inner.src) / 4) as usize];
                    allocation.add_f32(((dst + dst_at + i * inner.dst) / 4) as usize, value);
                }
            });
        } else if is_aligned {
            let (words, ub) = (allocation.words(), ub.all::<u32>());
            walk.rows(|src_at, dst_at, inner| {
                let (mut from, mut to) = (((src + src_at) / 4) as usize, ((dst + dst_at) / 4) as usize);
                let count = inner.count as usize;
                if inner.src == 4 && inner.dst == 4 {
                    for (from, to) in ub[from..from + count].iter().zip(&words[to..to + count]) {
                        to.store(*from, Relaxed);
                    }
                } else {
                    for _ in 0..count {
                        words[to].store(ub[from], Relaxed);
                        from = from.wrapping_add_signed((inner.src / 4) as isize);
                        to = to.wrapping_add_signed((inner.dst / 4) as isize);
                    }
                }
            });
        } else {
            let ub = ub.all::<u8>();
            walk.rows(|src_at, dst_at, inner| {
                let (from, to) = (src + src_at, dst + dst_at);
                if inner.src == step && inner.dst == step {
                    let run = (inner.count * step) as usize;
                    allocation.write(to as usize, &ub[from as usize..from as usize + run]);
                } else {
                    for i in 0..inner.count {
                        let (from, to) = ((from + i * inner.src) as usize, (to + i * inner.dst) as usize);
                        allocation.write(to, &ub[from..from + size]);
                    }
                }
            });
        }
        let elements = walk.elements as u64;
        Ok(Work { bytes_out: elements * size as u64, elements, ..Work::default() })
    }

    fn load_l1(
        &mut self,
        dst: i64,
        src: i64,
        bytes: i64,
        bursts: i64,
        strides: (i64, i64),
    ) -> Result<Work, Fault> {
        if bytes == 0 || bursts == 0 {
            return Ok(Work::default());
        }
        let total = bytes.saturating_mul(bursts);
        if total > self.memories.l1.capacity() as i64 {
            let required = "a transfer must not be larger than L1";
            return Err(Fault::Field { field: "bytes", value: total, required });
        }
        for burst in 0..bursts {
            let at = |base: i64, stride: i64| base.checked_add(stride.checked_mul(burst)?);
            let from = at(src, strides.0).ok_or(TOO_FAR)?;
            let to = at(dst, strides.1).ok_or(TOO_FAR)?;
            let (allocation, from) = self.global.find(from.cast_unsigned(), bytes as u64)?;
            let to = self.memories.l1.target(to, bytes)?;
            allocation.read(from, self.memories.l1.slice_mut(to, bytes as usize));
        }
        Ok(Work { bytes_in: total as u64, elements: total as u64 / 4, ..Work::default() })
    }

    fn load_nz(&mut self, inst: &Inst) -> Result<Work, Fault> {
        let Inst::LoadNz {
            dtype,
            dst,
            src,
            rows,
            cols,
            row_stride,
            col_stride,
            row_group,
            row_group_stride,
            col_group,
            col_valid,
            col_group_stride,
            pitch,
            pad_rows,
            pad_cols,
        } = *inst
        else {
            unreachable!("the other transfers were matched before");
        };
        let (rows, cols) = (self.count("rows", rows)?, self.count("cols", cols)?);
        let (pad_rows, pad_cols) = (self.count("pad_rows", pad_rows)?, self.count("pad_cols", pad_cols)?);
        let pitch = self.count("pitch", pitch)?;
        if rows > pad_rows || cols > pad_cols {
            let (field, value) = if rows > pad_rows { ("rows", rows) } else { ("cols", cols) };
            return Err(Fault::Field { field, value, required: "it must not exceed its padded size" });
        }
        if pad_rows == 0 || pad_cols == 0 {
            return Ok(Work::default());
        }
        if pitch < pad_rows {
            let required = "it must not be below pad_rows";
            return Err(Fault::Field { field: "pitch", value: pitch, required });
        }
        let (size, lanes) = (dtype.size(), dtype.block_len());
        let blocks = (pad_cols as usize).div_ceil(lanes);
        // Products of two counts and 32 stay below 2^63.
        let extent = ((blocks as i64 - 1) * pitch + pad_rows) * 32;
        let l1 = self.memories.l1.target(self.value(dst), extent)?;

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
        let reach = (row_groups.offsets(&mut row_at), col_groups.offsets(&mut col_at));
        let (Some(row_span), Some(col_span)) = reach else {
            return Err(TOO_FAR);
        };
        let elements = (row_at.len() * col_at.iter().filter(|&&at| at != ABSENT).count()) as u64;
        let (pad_rows, pitch) = (pad_rows as usize, pitch as usize);
        for block in 0..blocks {
            self.memories.l1.slice_mut::<u64>(l1 + block * pitch * 32, pad_rows * 4).fill(0);
        }
        if elements > 0 {
            let span = row_span.plus(col_span).ok_or(TOO_FAR)?;
            let (allocation, base) = find(self, &span, self.value(src), size)?;
            let nz = Nz { base, row_at: &row_at, col_at: &col_at, l1, pitch, lanes };
            let aligned = |unit: i64| {
                let offsets = row_at.iter().chain(col_at.iter().filter(|&&at| at != ABSENT));
                base % unit == 0 && offsets.into_iter().all(|at| at % unit == 0)
            };
            let by_columns = row_groups.stride.unsigned_abs() < col_groups.stride.unsigned_abs();
            match size {
                4 if aligned(4) => {
                    let l1 = self.memories.l1.all_mut::<u32>();
                    let words = allocation.words();
                    nz.fill(l1, by_columns, |at| words[at / 4].load(Relaxed));
                }
                2 if aligned(2) => {
                    let l1 = self.memories.l1.all_mut::<u16>();
                    nz.fill(l1, by_columns, |at| allocation.read_u16(at));
                }
                _ => {
                    let address = (self.value(src)).cast_unsigned();
                    return Err(MemoryError::Misaligned { address, required: size as u64 }.into());
                }
            }
        }
        self.memories.offsets = [row_at, col_at];
        Ok(Work { bytes_in: elements * size as u64, elements, ..Work::default() })
    }
}

/// Where the elements of an ND to NZ conversion come from and go to.
struct Nz<'a> {
    base: i64,
    row_at: &'a [i64],
    col_at: &'a [i64],
    l1: usize,
    pitch: usize,
    lanes: usize,
}

impl Nz<'_> {
    /// Copies element by element, along whichever side is denser in global memory.
    fn fill<T: Copy>(&self, l1: &mut [T], by_columns: bool, load: impl Fn(usize) -> T) {
        let (lanes, pitch) = (self.lanes, self.pitch);
        let start = self.l1 / size_of::<T>();
        for (block, cols) in self.col_at.chunks(lanes).enumerate() {
            let block_at = start + block * pitch * lanes;
            let rows = self.row_at.len();
            let l1 = &mut l1[block_at..block_at + rows * lanes];
            if by_columns {
                for (lane, &col) in cols.iter().enumerate().filter(|&(_, &col)| col != ABSENT) {
                    for (row, to) in self.row_at.iter().zip(l1[lane..].iter_mut().step_by(lanes)) {
                        *to = load((self.base + row + col) as usize);
                    }
                }
            } else {
                for (row, l1) in self.row_at.iter().zip(l1.chunks_exact_mut(lanes)) {
                    for (&col, to) in cols.iter().zip(l1) {
                        if col != ABSENT {
                            *to = load((self.base + row + col) as usize);
                        }
                    }
                }
            }
        }
    }
}

/// The offset of a column that does not exist in global memory.
pub(super) const ABSENT: i64 = i64::MAX;

/// Rows or columns with grouped strides.
pub(super) struct Groups {
    pub(super) count: i64,
    pub(super) stride: i64,
    pub(super) group: i64,
    pub(super) valid: i64,
    pub(super) group_stride: i64,
}

/// The lowest and highest offset of rows or columns.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    low: i64,
    high: i64,
}

impl Reach {
    fn plus(self, other: Self) -> Option<Span> {
        Some(Span { low: self.low.checked_add(other.low)?, high: self.high.checked_add(other.high)? })
    }
}

impl Groups {
    /// Writes the offset of each row or column; `None` if one does not fit in 62 bits.
    pub(super) fn offsets(&self, offsets: &mut Vec<i64>) -> Option<Reach> {
        offsets.clear();
        let group = if self.group == 0 { self.count.max(1) } else { self.group };
        let valid = if self.valid == 0 { group } else { self.valid };
        let mut reach: Option<Reach> = None;
        let (mut outer, mut inner) = (0_i64, 0_i64);
        for _ in 0..self.count {
            if inner < valid {
                let at =
                    outer.checked_mul(self.group_stride)?.checked_add(inner.checked_mul(self.stride)?)?;
                if at.unsigned_abs() >> 62 != 0 {
                    return None;
                }
                offsets.push(at);
                let so_far = reach.unwrap_or(Reach { low: at, high: at });
                reach = Some(Reach { low: so_far.low.min(at), high: so_far.high.max(at) });
            } else {
                offsets.push(ABSENT);
            }
            inner += 1;
            if inner == group {
                (outer, inner) = (outer + 1, 0);
            }
        }
        Some(reach.unwrap_or(Reach { low: 0, high: 0 }))
    }
}

/// The range of global memory that rows and columns touch.
pub(super) fn find_groups<'a>(
    core: &Core<'a>,
    rows: Reach,
    cols: Reach,
    base: i64,
    size: usize,
) -> Result<(&'a Allocation, i64), Fault> {
    find(core, &rows.plus(cols).ok_or(TOO_FAR)?, base, size)
}

/// The allocation that a walk stays in, and the offset of `base` in it.
fn find<'a>(core: &Core<'a>, span: &Span, base: i64, size: usize) -> Result<(&'a Allocation, i64), Fault> {
    let (first, len) = span.range(base, size).ok_or(TOO_FAR)?;
    let (allocation, offset) = core.global.find(first.cast_unsigned(), len.cast_unsigned())?;
    Ok((allocation, offset as i64 - span.low))
}

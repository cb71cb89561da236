//! V: the vector unit, on UB.
//!
//! Elementwise instructions run in chunks: operands are copied out of UB, computed on, and written back.
//! So a result may take an operand's place, and the loops are plain slices that compilers vectorise.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use halite_npu_isa::{BinaryOp, DType, Inst, Operand, ReduceOp, UnaryOp};

use super::core::Core;
use super::error::Fault;
use super::memory::LocalMemory;
use super::numeric::{self, Int};
use super::observer::Work;

/// Elements of a chunk.
const CHUNK: usize = 256;

/// Calls `$body` with `$int` as the integer type of `$dtype`; floats have been dealt with before.
macro_rules! with_int {
    ($dtype:expr, $int:ident => $body:expr) => {
        match $dtype {
            DType::I32 => {
                type $int = i32;
                $body
            }
            DType::U32 => {
                type $int = u32;
                $body
            }
            DType::U8 => {
                type $int = u8;
                $body
            }
            DType::I64 => {
                type $int = i64;
                $body
            }
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("floats were dealt with before"),
        }
    };
}

/// Calls `$body` with `$bits` as the unsigned type of as many bytes.
macro_rules! with_bits {
    ($dtype:expr, $bits:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $bits = u8;
                $body
            }
            2 => {
                type $bits = u16;
                $body
            }
            4 => {
                type $bits = u32;
                $body
            }
            _ => {
                type $bits = u64;
                $body
            }
        }
    };
}

impl Core<'_> {
    /// Executes an instruction of V.
    pub(super) fn vector(&mut self, inst: &Inst) -> Result<Work, Fault> {
        let elements = match *inst {
            Inst::Binary { op, dtype, dst, lhs, rhs, cols, rows, dst_stride, lhs_stride, rhs_stride } => {
                let (cols, rows) = (self.count("cols", cols)?, self.count("rows", rows)?);
                let strides = [dst_stride, lhs_stride, rhs_stride].map(|stride| self.value(stride));
                self.binary(op, dtype, [dst, lhs, rhs], strides, rows, cols)?
            }
            Inst::BinaryScalar { op, dtype, reverse, dst, src, scalar, count } => {
                let count = self.count("count", count)?;
                let scalar = self.value(scalar);
                self.binary_scalar(op, dtype, reverse, dst, src, scalar, count)?
            }
            Inst::Unary { op, dtype, dst, src, count } => {
                let count = self.count("count", count)?;
                let [dst, src] = self.elementwise([dst, src], [dtype, dtype], count)?;
                unary(&mut self.memories.ub, op, dtype, dst, src, count as usize);
                count
            }
            Inst::Compare { op, dtype, dst, lhs, rhs, count } => {
                let count = self.count("count", count)?;
                let [dst, lhs, rhs] = self.elementwise([dst, lhs, rhs], [DType::U8, dtype, dtype], count)?;
                let ub = &mut self.memories.ub;
                for at in (0..count as usize).step_by(CHUNK) {
                    let n = CHUNK.min(count as usize - at);
                    let mut out = [0; CHUNK];
                    if dtype.is_float() {
                        let (mut a, mut b) = ([0.0; CHUNK], [0.0; CHUNK]);
                        read_f32(ub, dtype, lhs + at * dtype.size(), &mut a[..n]);
                        read_f32(ub, dtype, rhs + at * dtype.size(), &mut b[..n]);
                        numeric::compare(op, &a[..n], &b[..n], &mut out[..n]);
                    } else {
                        with_int!(dtype, T => {
                            let (a, b) = (ub.slice::<T>(lhs + at * size_of::<T>(), n), ub.slice(rhs + at * size_of::<T>(), n));
                            numeric::compare(op, a, b, &mut out[..n]);
                        });
                    }
                    ub.slice_mut(dst + at, n).copy_from_slice(&out[..n]);
                }
                count
            }
            Inst::CompareScalar { op, dtype, dst, src, scalar, count } => {
                let count = self.count("count", count)?;
                let bits = self.value(scalar);
                let [dst, src] = self.elementwise([dst, src], [DType::U8, dtype], count)?;
                let ub = &mut self.memories.ub;
                for at in (0..count as usize).step_by(CHUNK) {
                    let n = CHUNK.min(count as usize - at);
                    let mut out = [0; CHUNK];
                    if dtype.is_float() {
                        let mut a = [0.0; CHUNK];
                        read_f32(ub, dtype, src + at * dtype.size(), &mut a[..n]);
                        numeric::compare(op, &a[..n], &[scalar_f32(dtype, bits); CHUNK][..n], &mut out[..n]);
                    } else {
                        with_int!(dtype, T => {
                            let scalar = [T::wrap(bits); CHUNK];
                            numeric::compare(op, ub.slice::<T>(src + at * size_of::<T>(), n), &scalar[..n], &mut out[..n]);
                        });
                    }
                    ub.slice_mut(dst + at, n).copy_from_slice(&out[..n]);
                }
                count
            }
            Inst::Select { dtype, dst, mask, lhs, rhs, count } => {
                let count = self.count("count", count)?;
                let types = [dtype, DType::U8, dtype, dtype];
                let [dst, mask, lhs, rhs] = self.elementwise([dst, mask, lhs, rhs], types, count)?;
                let ub = &mut self.memories.ub;
                with_bits!(dtype, T => for at in (0..count as usize).step_by(CHUNK) {
                    let n = CHUNK.min(count as usize - at);
                    let size = size_of::<T>();
                    let mut out = [0; CHUNK];
                    out[..n].copy_from_slice(ub.slice::<T>(rhs + at * size, n));
                    let lhs = ub.slice::<T>(lhs + at * size, n);
                    for ((out, &lhs), &mask) in out.iter_mut().zip(lhs).zip(ub.slice::<u8>(mask + at, n)) {
                        *out = if mask != 0 { lhs } else { *out };
                    }
                    ub.slice_mut::<T>(dst + at * size, n).copy_from_slice(&out[..n]);
                });
                count
            }
            Inst::Convert { from, to, dst, src, count } => {
                let count = self.count("count", count)?;
                let [dst, src] = self.elementwise([dst, src], [to, from], count)?;
                convert(&mut self.memories.ub, from, to, dst, src, count as usize);
                count
            }
            Inst::Duplicate { dtype, dst, scalar, count } => {
                let count = self.count("count", count)?;
                let bits = self.value(scalar);
                let dst = self.memories.ub.target(self.value(dst), count * dtype.size() as i64)?;
                with_bits!(dtype, T => self.memories.ub.slice_mut::<T>(dst, count as usize).fill(bits as T));
                count
            }
            Inst::Iota { dtype, dst, start, step, count } => {
                let count = self.count("count", count)?;
                let (start, step) = (self.value(start), self.value(step));
                let dst = self.memories.ub.target(self.value(dst), count * dtype.size() as i64)?;
                let ub = &mut self.memories.ub;
                let value = |i: usize| start.wrapping_add(step.wrapping_mul(i as i64));
                for at in (0..count as usize).step_by(CHUNK) {
                    let n = CHUNK.min(count as usize - at);
                    if dtype.is_float() {
                        let out: [f32; CHUNK] = std::array::from_fn(|i| value(at + i) as f32);
                        write_f32(ub, dtype, dst + at * dtype.size(), &out[..n]);
                    } else {
                        with_int!(dtype, T => {
                            let out = ub.slice_mut::<T>(dst + at * size_of::<T>(), n);
                            out.iter_mut().enumerate().for_each(|(i, out)| *out = T::wrap(value(at + i)));
                        });
                    }
                }
                count
            }
            Inst::Reduce { op, dtype, dst, src, cols, rows, row_stride } => {
                let (cols, rows) = (self.count("cols", cols)?, self.count("rows", rows)?);
                self.reduce(op, dtype, dst, src, rows, cols, row_stride)?
            }
            Inst::Broadcast { dtype, dst, src, cols, rows, dst_stride } => {
                let (cols, rows) = (self.count("cols", cols)?, self.count("rows", rows)?);
                self.broadcast(dtype, dst, src, rows, cols, dst_stride)?
            }
            Inst::Gather { dtype, dst, src, index, count, limit } => {
                self.gather(dtype, [dst, src, index], count, limit)?
            }
            Inst::Transpose { dtype, dst, src, rows, cols } => {
                let (rows, cols) = (self.count("rows", rows)?, self.count("cols", cols)?);
                let bytes = rows.saturating_mul(cols).saturating_mul(dtype.size() as i64);
                let (dst, src) = (self.value(dst), self.value(src));
                disjoint(dst, bytes, src, bytes)?;
                let src = self.memories.ub.source(src, bytes)?;
                let dst = self.memories.ub.target(dst, bytes)?;
                let (rows, cols) = (rows as usize, cols as usize);
                with_bits!(dtype, T => {
                    let ub = self.memories.ub.all_mut::<T>();
                    let (src, dst) = (src / size_of::<T>(), dst / size_of::<T>());
                    for row in 0..rows {
                        for col in 0..cols {
                            ub[dst + col * rows + row] = ub[src + row * cols + col];
                        }
                    }
                });
                (rows * cols) as i64
            }
            _ => unreachable!("pipes and their instructions were matched before"),
        };
        Ok(Work { elements: elements as u64, ..Work::default() })
    }

    /// Checks operands of `count` elements each, the result first, and gives their places.
    fn elementwise<const N: usize>(
        &mut self,
        operands: [Operand; N],
        dtypes: [DType; N],
        count: i64,
    ) -> Result<[usize; N], Fault> {
        let mut starts = [0; N];
        let (dst, dst_bytes) = (self.value(operands[0]), count * dtypes[0].size() as i64);
        starts[0] = self.memories.ub.target(dst, dst_bytes)?;
        for i in 1..N {
            let (src, bytes) = (self.value(operands[i]), count * dtypes[i].size() as i64);
            starts[i] = self.memories.ub.source(src, bytes)?;
            // In its place a result must not run ahead of the operand that is still to be read.
            if dst != src || dst_bytes > bytes {
                disjoint(dst, dst_bytes, src, bytes)?;
            }
        }
        Ok(starts)
    }

    fn binary(
        &mut self,
        op: BinaryOp,
        dtype: DType,
        operands: [Operand; 3],
        strides: [i64; 3],
        rows: i64,
        cols: i64,
    ) -> Result<i64, Fault> {
        if rows == 0 || cols == 0 {
            return Ok(0);
        }
        let row_bytes = cols * dtype.size() as i64;
        let at = operands.map(|operand| self.value(operand));
        let mut spans = [0; 3];
        if rows > 1 {
            for (span, &stride) in spans.iter_mut().zip(&strides) {
                self.memories.ub.aligned("stride", stride)?;
                *span = stride.checked_mul(rows - 1).unwrap_or(i64::MAX);
            }
            if strides[0] < row_bytes {
                let required = "rows of the result must not overlap";
                return Err(Fault::Field { field: "dst_stride", value: strides[0], required });
            }
        }
        let mut starts = [0; 3];
        for i in 0..3 {
            let bytes = spans[i].saturating_add(row_bytes);
            if spans[i] < 0 {
                return Err(Fault::Field {
                    field: "stride",
                    value: strides[i],
                    required: "it must not be negative",
                });
            }
            starts[i] = if i == 0 {
                self.memories.ub.target(at[0], bytes)?
            } else {
                self.memories.ub.source(at[i], bytes)?
            };
            let in_place = at[i] == at[0] && (rows == 1 || strides[i] == strides[0]);
            if !in_place {
                disjoint(at[0], spans[0] + row_bytes, at[i], bytes)?;
            }
        }
        let ub = &mut self.memories.ub;
        for row in 0..rows as usize {
            let place = |i: usize| starts[i] + if rows > 1 { row * strides[i] as usize } else { 0 };
            binary_row(ub, op, dtype, [place(0), place(1), place(2)], cols as usize);
        }
        Ok(rows * cols)
    }

    #[allow(clippy::too_many_arguments, reason = "they are the fields of one instruction")]
    fn binary_scalar(
        &mut self,
        op: BinaryOp,
        dtype: DType,
        reverse: bool,
        dst: Operand,
        src: Operand,
        bits: i64,
        count: i64,
    ) -> Result<i64, Fault> {
        let [dst, src] = self.elementwise([dst, src], [dtype, dtype], count)?;
        let (ub, size) = (&mut self.memories.ub, dtype.size());
        for at in (0..count as usize).step_by(CHUNK) {
            let n = CHUNK.min(count as usize - at);
            let (dst, src) = (dst + at * size, src + at * size);
            if dtype.is_float() {
                let scalar = [scalar_f32(dtype, bits); CHUNK];
                let (mut values, mut out) = ([0.0; CHUNK], [0.0; CHUNK]);
                read_f32(ub, dtype, src, &mut values[..n]);
                let (lhs, rhs) = if reverse { (&scalar, &values) } else { (&values, &scalar) };
                numeric::binary_f32(op, &lhs[..n], &rhs[..n], &mut out[..n]);
                write_f32(ub, dtype, dst, &out[..n]);
            } else if let (DType::I32, BinaryOp::Div | BinaryOp::Rem, false, 1..) =
                (dtype, op, reverse, bits as i32)
            {
                let mut out = [0; CHUNK];
                numeric::divide_i32(ub.slice(src, n), bits as i32, op == BinaryOp::Rem, &mut out[..n]);
                ub.slice_mut(dst, n).copy_from_slice(&out[..n]);
            } else {
                with_int!(dtype, T => {
                    let scalar = [T::wrap(bits); CHUNK];
                    let mut out = [0; CHUNK];
                    let values = ub.slice::<T>(src, n);
                    let (lhs, rhs) = if reverse { (&scalar[..n], values) } else { (values, &scalar[..n]) };
                    numeric::binary_int(op, lhs, rhs, &mut out[..n]);
                    ub.slice_mut(dst, n).copy_from_slice(&out[..n]);
                });
            }
        }
        Ok(count)
    }

    #[allow(clippy::too_many_arguments, reason = "they are the fields of one instruction")]
    fn reduce(
        &mut self,
        op: ReduceOp,
        dtype: DType,
        dst: Operand,
        src: Operand,
        rows: i64,
        cols: i64,
        row_stride: Operand,
    ) -> Result<i64, Fault> {
        let finds_position = matches!(op, ReduceOp::ArgMax | ReduceOp::ArgMin);
        let out_size = if finds_position { 4 } else { dtype.size() };
        let (dst_at, src_at, stride) = (self.value(dst), self.value(src), self.value(row_stride));
        if rows == 0 {
            return Ok(0);
        }
        // Rows may overlap, so they may hold more than the buffer does.
        self.afford(rows.saturating_mul(cols))?;
        let row_bytes = cols * dtype.size() as i64;
        let span = if rows == 1 { 0 } else { stride.checked_mul(rows - 1).unwrap_or(i64::MAX) };
        if rows > 1 {
            self.memories.ub.aligned("row_stride", stride)?;
        }
        if span < 0 {
            return Err(Fault::Field {
                field: "row_stride",
                value: stride,
                required: "it must not be negative",
            });
        }
        let (src_bytes, dst_bytes) = (span.saturating_add(row_bytes), rows * out_size as i64);
        let src = self.memories.ub.source(src_at, src_bytes)?;
        let dst = self.memories.ub.target(dst_at, dst_bytes)?;
        // Results are at most as dense as rows, so in place they stay behind what is still to be read.
        if dst_at != src_at || (rows > 1 && stride < out_size as i64) {
            disjoint(dst_at, dst_bytes, src_at, src_bytes)?;
        }
        let ub = &mut self.memories.ub;
        let cols = cols as usize;
        for row in 0..rows as usize {
            let at = src + if rows > 1 { row * stride as usize } else { 0 };
            let out = dst + row * out_size;
            if finds_position {
                let position = match dtype {
                    DType::F16 | DType::BF16 => {
                        let mut wide = vec![0.0; cols];
                        read_f32(ub, dtype, at, &mut wide);
                        position(op, &wide)
                    }
                    DType::F32 => position(op, ub.slice::<f32>(at, cols)),
                    _ => with_int!(dtype, T => position(op, ub.slice::<T>(at, cols))),
                };
                ub.slice_mut::<i32>(out, 1)[0] = position as i32;
            } else if dtype.is_float() {
                let value = match dtype {
                    DType::F32 => reduce_f32(op, ub.slice(at, cols)),
                    _ => {
                        let mut wide = vec![0.0; cols];
                        read_f32(ub, dtype, at, &mut wide);
                        reduce_f32(op, &wide)
                    }
                };
                write_f32(ub, dtype, out, &[value]);
            } else {
                with_int!(dtype, T => {
                    let values = ub.slice::<T>(at, cols);
                    let value = match op {
                        ReduceOp::Sum => numeric::fold(values, 0, Int::add),
                        ReduceOp::Prod => numeric::fold(values, 1, Int::mul),
                        ReduceOp::Max => numeric::fold(values, T::LOWEST, Ord::max),
                        _ => numeric::fold(values, T::HIGHEST, Ord::min),
                    };
                    ub.slice_mut::<T>(out, 1)[0] = value;
                });
            }
        }
        Ok(rows * cols as i64)
    }

    fn broadcast(
        &mut self,
        dtype: DType,
        dst: Operand,
        src: Operand,
        rows: i64,
        cols: i64,
        dst_stride: Operand,
    ) -> Result<i64, Fault> {
        let (dst, src, stride) = (self.value(dst), self.value(src), self.value(dst_stride));
        if rows == 0 || cols == 0 {
            return Ok(0);
        }
        let size = dtype.size() as i64;
        let row_bytes = cols * size;
        if rows > 1 {
            self.memories.ub.aligned("dst_stride", stride)?;
            if stride < row_bytes {
                let required = "rows of the result must not overlap";
                return Err(Fault::Field { field: "dst_stride", value: stride, required });
            }
        }
        let dst_bytes = if rows == 1 { 0 } else { stride.saturating_mul(rows - 1) }.saturating_add(row_bytes);
        disjoint(dst, dst_bytes, src, rows * size)?;
        let src = self.memories.ub.source(src, rows * size)?;
        let dst = self.memories.ub.target(dst, dst_bytes)?;
        let ub = &mut self.memories.ub;
        with_bits!(dtype, T => for row in 0..rows as usize {
            let value = ub.slice::<T>(src + row * size_of::<T>(), 1)[0];
            let at = dst + if rows > 1 { row * stride as usize } else { 0 };
            ub.slice_mut::<T>(at, cols as usize).fill(value);
        });
        Ok(rows * cols)
    }

    fn gather(
        &mut self,
        dtype: DType,
        operands: [Operand; 3],
        count: Operand,
        limit: Operand,
    ) -> Result<i64, Fault> {
        let (count, limit) = (self.count("count", count)?, self.count("limit", limit)?);
        let [dst, src, index] = operands.map(|operand| self.value(operand));
        let size = dtype.size() as i64;
        disjoint(dst, count * size, src, limit * size)?;
        if dst != index || size > 4 {
            disjoint(dst, count * size, index, count * 4)?;
        }
        let src = self.memories.ub.source(src, limit * size)?;
        let index = self.memories.ub.source(index, count * 4)?;
        let dst = self.memories.ub.target(dst, count * size)?;
        let ub = &mut self.memories.ub;
        let (count, limit) = (count as usize, limit as usize);
        with_bits!(dtype, T => for start in (0..count).step_by(CHUNK) {
            let n = CHUNK.min(count - start);
            let mut out: [T; CHUNK] = [0; CHUNK];
            let (indices, values) = (ub.slice::<u32>(index + start * 4, n), ub.slice::<T>(src, limit));
            for (i, (out, &at)) in out.iter_mut().zip(indices).enumerate() {
                let Some(&value) = values.get(at as usize) else {
                    return Err(Fault::Index { position: start + i, index: at, limit: limit as i64 });
                };
                *out = value;
            }
            ub.slice_mut::<T>(dst + start * size_of::<T>(), n).copy_from_slice(&out[..n]);
        });
        Ok(count as i64)
    }
}

/// Refuses ranges that share a byte.
fn disjoint(dst: i64, dst_bytes: i64, src: i64, src_bytes: i64) -> Result<(), Fault> {
    let apart = dst.saturating_add(dst_bytes) <= src || src.saturating_add(src_bytes) <= dst;
    if apart || dst_bytes == 0 || src_bytes == 0 { Ok(()) } else { Err(Fault::Overlap { dst, src }) }
}

fn scalar_f32(dtype: DType, bits: i64) -> f32 {
    match dtype {
        DType::F16 => f16::from_bits(bits as u16).to_f32(),
        DType::BF16 => bf16::from_bits(bits as u16).to_f32(),
        _ => f32::from_bits(bits as u32),
    }
}

/// Reads float elements as f32.
fn read_f32(ub: &LocalMemory, dtype: DType, at: usize, out: &mut [f32]) {
    match dtype {
        DType::F16 => bytemuck::cast_slice::<u16, f16>(ub.slice(at, out.len())).convert_to_f32_slice(out),
        DType::BF16 => bytemuck::cast_slice::<u16, bf16>(ub.slice(at, out.len())).convert_to_f32_slice(out),
        _ => out.copy_from_slice(ub.slice(at, out.len())),
    }
}

/// Writes float elements from f32.
fn write_f32(ub: &mut LocalMemory, dtype: DType, at: usize, values: &[f32]) {
    match dtype {
        DType::F16 => bytemuck::cast_slice_mut::<u16, f16>(ub.slice_mut(at, values.len()))
            .convert_from_f32_slice(values),
        DType::BF16 => bytemuck::cast_slice_mut::<u16, bf16>(ub.slice_mut(at, values.len()))
            .convert_from_f32_slice(values),
        _ => ub.slice_mut(at, values.len()).copy_from_slice(values),
    }
}

fn binary_row(ub: &mut LocalMemory, op: BinaryOp, dtype: DType, [dst, lhs, rhs]: [usize; 3], count: usize) {
    let size = dtype.size();
    for at in (0..count).step_by(CHUNK) {
        let n = CHUNK.min(count - at);
        let (dst, lhs, rhs) = (dst + at * size, lhs + at * size, rhs + at * size);
        if dtype == DType::F32 {
            let mut out = [0.0; CHUNK];
            numeric::binary_f32(op, ub.slice(lhs, n), ub.slice(rhs, n), &mut out[..n]);
            ub.slice_mut(dst, n).copy_from_slice(&out[..n]);
        } else if dtype.is_float() {
            let (mut a, mut b, mut out) = ([0.0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
            read_f32(ub, dtype, lhs, &mut a[..n]);
            read_f32(ub, dtype, rhs, &mut b[..n]);
            numeric::binary_f32(op, &a[..n], &b[..n], &mut out[..n]);
            write_f32(ub, dtype, dst, &out[..n]);
        } else {
            with_int!(dtype, T => {
                let mut out = [0; CHUNK];
                numeric::binary_int::<T>(op, ub.slice(lhs, n), ub.slice(rhs, n), &mut out[..n]);
                ub.slice_mut(dst, n).copy_from_slice(&out[..n]);
            });
        }
    }
}

fn unary(ub: &mut LocalMemory, op: UnaryOp, dtype: DType, dst: usize, src: usize, count: usize) {
    let size = dtype.size();
    for at in (0..count).step_by(CHUNK) {
        let n = CHUNK.min(count - at);
        let (dst, src) = (dst + at * size, src + at * size);
        if dtype.is_float() {
            let (mut values, mut out) = ([0.0; CHUNK], [0.0; CHUNK]);
            read_f32(ub, dtype, src, &mut values[..n]);
            numeric::unary_f32(op, &values[..n], &mut out[..n]);
            write_f32(ub, dtype, dst, &out[..n]);
        } else {
            with_int!(dtype, T => {
                let mut out = [0; CHUNK];
                numeric::unary_int::<T>(op, ub.slice(src, n), &mut out[..n]);
                ub.slice_mut(dst, n).copy_from_slice(&out[..n]);
            });
        }
    }
}

fn convert(ub: &mut LocalMemory, from: DType, to: DType, dst: usize, src: usize, count: usize) {
    for at in (0..count).step_by(CHUNK) {
        let n = CHUNK.min(count - at);
        let (src, dst) = (src + at * from.size(), dst + at * to.size());
        match (from.is_float(), to.is_float()) {
            (true, true) => {
                let mut values = [0.0; CHUNK];
                read_f32(ub, from, src, &mut values[..n]);
                write_f32(ub, to, dst, &values[..n]);
            }
            (true, false) => {
                let mut values = [0.0_f32; CHUNK];
                read_f32(ub, from, src, &mut values[..n]);
                // `as` truncates, saturates and makes NaN 0.
                with_int!(to, T => {
                    for (out, value) in ub.slice_mut::<T>(dst, n).iter_mut().zip(values) {
                        *out = value as T;
                    }
                });
            }
            (false, true) => {
                let mut values = [0.0; CHUNK];
                with_int!(from, T => {
                    for (out, &value) in values.iter_mut().zip(ub.slice::<T>(src, n)) {
                        *out = value as f32;
                    }
                });
                write_f32(ub, to, dst, &values[..n]);
            }
            (false, false) => {
                let mut values = [0_i64; CHUNK];
                with_int!(from, T => {
                    for (out, &value) in values.iter_mut().zip(ub.slice::<T>(src, n)) {
                        *out = value.wide();
                    }
                });
                with_int!(to, T => {
                    for (out, value) in ub.slice_mut::<T>(dst, n).iter_mut().zip(values) {
                        *out = T::wrap(value);
                    }
                });
            }
        }
    }
}

fn reduce_f32(op: ReduceOp, values: &[f32]) -> f32 {
    match op {
        ReduceOp::Sum => numeric::fold(values, 0.0, |a, b| a + b),
        ReduceOp::Prod => numeric::fold(values, 1.0, |a, b| a * b),
        ReduceOp::Max => numeric::fold(values, f32::NEG_INFINITY, numeric::maximum),
        _ => numeric::fold(values, f32::INFINITY, numeric::minimum),
    }
}

fn position<T: PartialOrd + Copy>(op: ReduceOp, values: &[T]) -> usize {
    if op == ReduceOp::ArgMax {
        numeric::position(values, |value, best| value > best)
    } else {
        numeric::position(values, |value, best| value < best)
    }
}

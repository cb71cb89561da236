//! Built-in operations: what a vendor's own library would offer beside programs.
//!
//! They run on the host, element by element, and exist to be right: `add` rounds once, `matmul` sums in ascending order of
//! k with one rounding for each product and each sum, as the cube does.

use crate::failure::{Failure, Result};
use crate::machine::GlobalMemory;
use half::{bf16, f16};
use halite_hal::{DType, plugin};

/// More axes than anyone has.
const MAX_RANK: usize = 16;

/// A dense operand.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<i64>,
}

/// A built-in, checked and ready to run.
#[derive(Debug)]
pub(crate) struct Builtin {
    kind: Kind,
    operands: Vec<Operand>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Copy,
    Fill { value_bits: u64 },
    Add,
    MatMul,
    Fault,
}

impl Builtin {
    /// Checks an operation. `attribute` gives the bits of a named attribute.
    pub(crate) fn new(
        name: &str,
        operands: Vec<Operand>,
        attribute: impl Fn(&str) -> Option<u64>,
    ) -> Result<Self> {
        let (kind, count) = match name {
            "copy" => (Kind::Copy, 2),
            "fill" => {
                let value_bits = attribute("value_bits")
                    .ok_or_else(|| Failure::invalid("built-in 'fill' has no attribute value_bits"))?;
                (Kind::Fill { value_bits }, 1)
            }
            "add" => (Kind::Add, 3),
            "matmul" => (Kind::MatMul, 3),
            "fault" => (Kind::Fault, 1),
            _ => {
                return Err(Failure::unsupported(format!(
                    "no built-in '{name}'; there are copy, fill, add, matmul and fault"
                )));
            }
        };
        if operands.len() != count {
            let got = operands.len();
            return Err(Failure::invalid(format!("built-in '{name}' takes {count} operands, got {got}")));
        }
        for (index, operand) in operands.iter().enumerate() {
            if operand.span().is_none() {
                return Err(Failure::invalid(format!(
                    "operand {index} of built-in '{name}' has no valid layout"
                )));
            }
        }
        let builtin = Self { kind, operands };
        builtin.check_shapes(name)?;
        Ok(builtin)
    }

    fn check_shapes(&self, name: &str) -> Result<()> {
        let [.., out] = self.operands.as_slice() else { return Ok(()) };
        match self.kind {
            Kind::Copy | Kind::Add => {
                if self.operands.iter().any(|o| o.shape != out.shape || o.dtype != out.dtype) {
                    return Err(Failure::invalid(format!(
                        "operands of built-in '{name}' must agree in shape and dtype"
                    )));
                }
                if self.kind == Kind::Add && out.dtype == DType::Bool {
                    return Err(Failure::unsupported("built-in 'add' has no bool; use u8"));
                }
                Ok(())
            }
            Kind::Fill { .. } | Kind::Fault => Ok(()),
            Kind::MatMul => self.check_matmul(),
        }
    }

    fn check_matmul(&self) -> Result<()> {
        let [lhs, rhs, out] = self.operands.as_slice() else { return Ok(()) };
        let ([lhs_batch @ .., m, k], [rhs_batch @ .., rhs_k, n], [out_batch @ .., out_m, out_n]) =
            (lhs.shape.as_slice(), rhs.shape.as_slice(), out.shape.as_slice())
        else {
            return Err(Failure::invalid("operands of built-in 'matmul' have at least 2 axes"));
        };
        if lhs_batch != out_batch || rhs_batch != out_batch || (m, k, n) != (out_m, rhs_k, out_n) {
            return Err(Failure::invalid(format!(
                "built-in 'matmul' got {:?} x {:?} = {:?}; [.., m, k] x [.., k, n] = [.., m, n] is needed",
                lhs.shape, rhs.shape, out.shape
            )));
        }
        let float = |dtype| matches!(dtype, DType::F16 | DType::BF16 | DType::F32);
        if lhs.dtype != rhs.dtype || !float(lhs.dtype) || !(out.dtype == lhs.dtype || out.dtype == DType::F32)
        {
            return Err(Failure::unsupported(format!(
                "built-in 'matmul' has no {} x {} = {}; inputs are both f16, bf16 or f32, the result is of the same type or f32",
                lhs.dtype, rhs.dtype, out.dtype
            )));
        }
        Ok(())
    }

    /// Number of operands.
    pub(crate) fn operand_count(&self) -> usize {
        self.operands.len()
    }

    /// Refuses a range that does not hold every element of its operand.
    pub(crate) fn check_range(&self, index: usize, len: u64) -> Result<()> {
        let fits = self.operands[index].span().is_some_and(|(first, end)| first >= 0 && end <= len);
        if fits {
            return Ok(());
        }
        Err(Failure::invalid(format!("operand {index} does not lie in the {len} bytes that it is given")))
    }

    /// Runs on the operands at these addresses, whose ranges have been checked.
    pub(crate) fn run(&self, memory: &GlobalMemory, addresses: &[u64]) -> Result<()> {
        let (Some((out, inputs)), Some((out_address, input_addresses))) =
            (self.operands.split_last(), addresses.split_last())
        else {
            return Ok(());
        };
        if self.kind == Kind::Fault {
            return Err(Failure::new(plugin::STATUS_FAULT, "the built-in fault ran, which fails"));
        }
        if out.is_empty() {
            return Ok(());
        }
        let inputs: Vec<_> = inputs
            .iter()
            .zip(input_addresses)
            .map(|(operand, address)| operand.load(memory, *address))
            .collect::<Result<_>>()?;
        // What lies between the elements of the result stays as it is.
        let mut result = out.load(memory, *out_address)?;
        match (self.kind, inputs.as_slice()) {
            (Kind::Copy, [input]) => {
                let size = out.dtype.size();
                for (from, to) in self.operands[0].offsets().zip(out.offsets()) {
                    result[to..to + size].copy_from_slice(&input[from..from + size]);
                }
            }
            (Kind::Fill { value_bits }, []) => {
                let size = out.dtype.size();
                for to in out.offsets() {
                    result[to..to + size].copy_from_slice(&value_bits.to_le_bytes()[..size]);
                }
            }
            (Kind::Add, [lhs, rhs]) => self.add(lhs, rhs, &mut result),
            (Kind::MatMul, [lhs, rhs]) => self.matmul(lhs, rhs, &mut result),
            _ => return Err(Failure::invalid("the number of ranges is not that of the operands")),
        }
        memory.write(*out_address, &result)?;
        Ok(())
    }

    fn add(&self, lhs: &[u8], rhs: &[u8], out: &mut [u8]) {
        macro_rules! sum {
            ($ty:ty, $add:expr) => {
                self.zip(lhs, rhs, out, |a, b| {
                    let add: fn($ty, $ty) -> $ty = $add;
                    add(<$ty>::from_le_bytes(a), <$ty>::from_le_bytes(b)).to_le_bytes()
                })
            };
        }
        match self.operands[0].dtype {
            DType::I8 | DType::U8 | DType::Bool => sum!(u8, u8::wrapping_add),
            DType::I16 | DType::U16 => sum!(u16, u16::wrapping_add),
            DType::I32 | DType::U32 => sum!(u32, u32::wrapping_add),
            DType::I64 | DType::U64 => sum!(u64, u64::wrapping_add),
            DType::F16 => sum!(f16, |a, b| f16::from_f32(a.to_f32() + b.to_f32())),
            DType::BF16 => sum!(bf16, |a, b| bf16::from_f32(a.to_f32() + b.to_f32())),
            DType::F32 => sum!(f32, |a, b| a + b),
            DType::F64 => sum!(f64, |a, b| a + b),
            _ => {}
        }
    }

    /// Combines the operands' elements, of `N` bytes each.
    fn zip<const N: usize>(
        &self,
        lhs: &[u8],
        rhs: &[u8],
        out: &mut [u8],
        combine: impl Fn([u8; N], [u8; N]) -> [u8; N],
    ) {
        let offsets =
            self.operands[0].offsets().zip(self.operands[1].offsets()).zip(self.operands[2].offsets());
        for ((a, b), to) in offsets {
            let (Some(a), Some(b), Some(to)) =
                (lhs[a..].first_chunk(), rhs[b..].first_chunk(), out[to..].first_chunk_mut())
            else {
                continue;
            };
            *to = combine(*a, *b);
        }
    }

    fn matmul(&self, lhs: &[u8], rhs: &[u8], out: &mut [u8]) {
        let [lhs_operand, rhs_operand, out_operand] = self.operands.as_slice() else { return };
        let (dtype, out_dtype) = (lhs_operand.dtype, out_operand.dtype);
        let (rank, k) = (lhs_operand.shape.len(), lhs_operand.shape.last().copied().unwrap_or(0));
        let step = |operand: &Operand, axis: usize| operand.strides[axis] * operand.dtype.size() as i64;
        let (lhs_step, rhs_step) = (step(lhs_operand, rank - 1), step(rhs_operand, rank - 2));
        for index in Indices::new(&out_operand.shape) {
            let mut row = index.clone();
            row[rank - 1] = 0;
            let mut column = index.clone();
            column[rank - 2] = 0;
            let (mut a, mut b) = (lhs_operand.offset(&row), rhs_operand.offset(&column));
            let mut sum = 0f32;
            for _ in 0..k {
                sum += load_f32(dtype, lhs, a as usize) * load_f32(dtype, rhs, b as usize);
                a += lhs_step;
                b += rhs_step;
            }
            store_f32(out_dtype, out, out_operand.offset(&index) as usize, sum);
        }
    }
}

impl Operand {
    fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// First byte and end of the elements, from the start of the range; `None` for a layout that is none.
    fn span(&self) -> Option<(i64, u64)> {
        if self.shape.len() > MAX_RANK || self.shape.len() != self.strides.len() {
            return None;
        }
        if self.is_empty() {
            return Some((0, 0));
        }
        let size = self.dtype.size() as i64;
        let (mut first, mut last) = (0i64, 0i64);
        for (extent, stride) in self.shape.iter().zip(&self.strides) {
            let reach = i64::try_from(extent - 1).ok()?.checked_mul(*stride)?.checked_mul(size)?;
            let end = if reach < 0 { &mut first } else { &mut last };
            *end = end.checked_add(reach)?;
        }
        Some((first, last.checked_add(size)?.cast_unsigned()))
    }

    /// Reads the bytes from the start of the range to the end of the last element.
    fn load(&self, memory: &GlobalMemory, address: u64) -> Result<Vec<u8>> {
        let end = self.span().map_or(0, |(_, end)| end);
        let len =
            usize::try_from(end).map_err(|_| Failure::invalid("an operand exceeds the host's memory"))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Failure {
            detail: [end, 0],
            ..Failure::new(halite_hal::plugin::STATUS_OUT_OF_MEMORY, "the host has no room for an operand")
        })?;
        bytes.resize(len, 0);
        if len > 0 {
            memory.read(address, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Byte offset of an element.
    fn offset(&self, index: &[u64]) -> i64 {
        let elements: i64 = index.iter().zip(&self.strides).map(|(i, stride)| i.cast_signed() * stride).sum();
        elements * self.dtype.size() as i64
    }

    /// Byte offsets of all elements in row-major order; not negative, since the range has been checked.
    fn offsets(&self) -> impl Iterator<Item = usize> {
        Indices::new(&self.shape).map(|index| self.offset(&index) as usize)
    }
}

/// Every index of a shape, in row-major order.
struct Indices {
    shape: Vec<u64>,
    next: Option<Vec<u64>>,
}

impl Indices {
    fn new(shape: &[u64]) -> Self {
        let next = if shape.contains(&0) { None } else { Some(vec![0; shape.len()]) };
        Self { shape: shape.to_vec(), next }
    }
}

impl Iterator for Indices {
    type Item = Vec<u64>;

    fn next(&mut self) -> Option<Vec<u64>> {
        let index = self.next.take()?;
        let mut following = index.clone();
        for (i, extent) in following.iter_mut().zip(&self.shape).rev() {
            *i += 1;
            if *i < *extent {
                self.next = Some(following);
                break;
            }
            *i = 0;
        }
        Some(index)
    }
}

fn load_f32(dtype: DType, bytes: &[u8], at: usize) -> f32 {
    match dtype {
        DType::F32 => bytes[at..].first_chunk().map_or(f32::NAN, |b| f32::from_le_bytes(*b)),
        DType::F16 => bytes[at..].first_chunk().map_or(f32::NAN, |b| f16::from_le_bytes(*b).to_f32()),
        _ => bytes[at..].first_chunk().map_or(f32::NAN, |b| bf16::from_le_bytes(*b).to_f32()),
    }
}

fn store_f32(dtype: DType, bytes: &mut [u8], at: usize, value: f32) {
    match dtype {
        DType::F32 => bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()),
        DType::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        _ => bytes[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Emulator, MachineConfig};

    fn operand(dtype: DType, shape: &[u64], strides: &[i64]) -> Operand {
        Operand { dtype, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    fn run<const N: usize>(
        name: &str,
        operands: Vec<Operand>,
        inputs: &[&[f32]],
        out: [f32; N],
    ) -> Result<[f32; N]> {
        let emulator = Emulator::new(MachineConfig { global_bytes: 1 << 20, ..MachineConfig::default() });
        let memory = emulator.memory();
        let place = |values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let address = memory.alloc(bytes.len() as u64)?;
            memory.write(address, &bytes)?;
            Ok(address)
        };
        let builtin = Builtin::new(name, operands, |_| Some(u64::from(1.5f32.to_bits())))?;
        let mut addresses: Vec<_> = inputs.iter().map(|values| place(values)).collect::<Result<_>>()?;
        let target = place(&out)?;
        addresses.push(target);
        builtin.run(memory, &addresses)?;
        let mut bytes = vec![0; 4 * N];
        memory.read(target, &mut bytes)?;
        Ok(std::array::from_fn(|i| load_f32(DType::F32, &bytes, 4 * i)))
    }

    #[test]
    fn strides_repeat_transpose_and_leave_gaps_untouched() {
        let input = operand(DType::F32, &[2, 2], &[1, 2]);
        let out = operand(DType::F32, &[2, 2], &[3, 1]);
        let result = run("copy", vec![input, out], &[&[1., 2., 3., 4.]], [9.; 5]);
        assert_eq!(result.unwrap(), [1., 3., 9., 2., 4.]);

        let repeated = operand(DType::F32, &[3], &[0]);
        let row = operand(DType::F32, &[3], &[1]);
        let result =
            run("add", vec![repeated, row.clone(), row], &[&[10.], &[1., f32::INFINITY, -0.]], [0.; 3]);
        assert_eq!(result.unwrap(), [11., f32::INFINITY, 10.]);
    }

    #[test]
    fn fill_and_rank_zero_write_one_value() {
        assert_eq!(run("fill", vec![operand(DType::F32, &[], &[])], &[], [0.]).unwrap(), [1.5]);
        assert_eq!(run("fill", vec![operand(DType::F32, &[0], &[1])], &[], [7.]).unwrap(), [7.]);
    }

    #[test]
    fn matmul_with_zero_k_writes_zeros_and_batches_multiply_each() {
        let zero_k = vec![
            operand(DType::F32, &[1, 0], &[0, 1]),
            operand(DType::F32, &[0, 2], &[2, 1]),
            operand(DType::F32, &[1, 2], &[2, 1]),
        ];
        assert_eq!(run("matmul", zero_k, &[&[], &[]], [f32::NAN; 2]).unwrap(), [0., 0.]);
        let batched = vec![
            operand(DType::F32, &[2, 1, 2], &[2, 2, 1]),
            operand(DType::F32, &[2, 2, 1], &[2, 1, 1]),
            operand(DType::F32, &[2, 1, 1], &[1, 1, 1]),
        ];
        let result = run("matmul", batched, &[&[1., 2., 3., 4.], &[5., 6., 7., 8.]], [0.; 2]);
        assert_eq!(result.unwrap(), [17., 53.]);
    }

    #[test]
    fn layouts_that_leave_their_range_or_overflow_are_refused() {
        let backwards = Builtin::new("fill", vec![operand(DType::F32, &[2], &[-1])], |_| Some(0)).unwrap();
        assert!(backwards.check_range(0, 64).is_err());
        let row = Builtin::new("fill", vec![operand(DType::F32, &[4], &[1])], |_| Some(0)).unwrap();
        assert!(row.check_range(0, 16).is_ok() && row.check_range(0, 15).is_err());
        let huge = operand(DType::F32, &[u64::MAX, 2], &[i64::MAX, 1]);
        assert!(Builtin::new("fill", vec![huge], |_| Some(0)).is_err());
    }
}

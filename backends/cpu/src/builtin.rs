//! The built-ins copy, fill and add, as native kernels over strided operands.
//!
//! They are what every device offers so that it can be tested; fast kernels live above the layer.
//! The elements are dealt out in logical order, [`ELEMENTS_PER_WORKGROUP`] to a workgroup.

use crate::kernel::BuiltinShape;
use half::{bf16, f16};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{DType, Element, Error, NativeKernel, Result, Workgroup};
use std::ops::Range;

const ELEMENTS_PER_WORKGROUP: usize = 16 << 10;

type Body = Box<dyn Fn(&mut Workgroup<'_>, &Operands) -> Result<(), String> + Send + Sync>;

/// Extents, and per operand the elements between neighbours; addresses only ever grow.
struct Operands {
    shape: Vec<usize>,
    strides: Vec<Vec<usize>>,
    /// Elements that each argument must have at least.
    spans: Vec<usize>,
    elements: usize,
}

/// Makes the kernel of `op`, with the grid that it runs on.
///
/// # Errors
/// `Unsupported` for other operations, for strides that are negative, and for outputs whose elements overlap.
pub(crate) fn kernel(op: &BuiltinOp) -> Result<(NativeKernel, BuiltinShape)> {
    let operands = Operands::new(op)?;
    let dtype = op.operands[op.operands.len() - 1].dtype;
    let body = body(op.kind, dtype).ok_or_else(|| {
        let message = format!(
            "built-in '{}' of {dtype}; the cpu backend has copy, fill, fault, and add of numbers",
            op.name()
        );
        Error::unsupported(message)
    })?;
    let workgroups = operands.elements.div_ceil(ELEMENTS_PER_WORKGROUP);
    let workgroups = u32::try_from(workgroups)
        .map_err(|_| Error::unsupported(format!("{} elements in one built-in", operands.elements)))?;
    let min_bytes = operands.spans.iter().map(|span| (span * dtype.size()) as u64).collect();
    let mut signature = op.signature(0);
    signature.max_grid = Some([1, 1, 1]);
    let kernel = NativeKernel::new(op.name(), signature, move |workgroup| body(workgroup, &operands));
    Ok((kernel, BuiltinShape { grid: [workgroups, 1, 1], min_bytes }))
}

fn body(kind: BuiltinKind, dtype: DType) -> Option<Body> {
    Some(match kind {
        // Both move bits, whatever they mean.
        BuiltinKind::Copy => match dtype.size() {
            1 => Box::new(copy::<u8>),
            2 => Box::new(copy::<u16>),
            4 => Box::new(copy::<u32>),
            _ => Box::new(copy::<u64>),
        },
        BuiltinKind::Fill { value_bits } => match dtype.size() {
            1 => Box::new(move |workgroup, operands| fill(workgroup, operands, value_bits as u8)),
            2 => Box::new(move |workgroup, operands| fill(workgroup, operands, value_bits as u16)),
            4 => Box::new(move |workgroup, operands| fill(workgroup, operands, value_bits as u32)),
            _ => Box::new(move |workgroup, operands| fill(workgroup, operands, value_bits)),
        },
        BuiltinKind::Add => match dtype {
            DType::I8 => add(i8::wrapping_add),
            DType::U8 => add(u8::wrapping_add),
            DType::I16 => add(i16::wrapping_add),
            DType::U16 => add(u16::wrapping_add),
            DType::I32 => add(i32::wrapping_add),
            DType::U32 => add(u32::wrapping_add),
            DType::I64 => add(i64::wrapping_add),
            DType::U64 => add(u64::wrapping_add),
            DType::F16 => add(|lhs: f16, rhs: f16| lhs + rhs),
            DType::BF16 => add(|lhs: bf16, rhs: bf16| lhs + rhs),
            DType::F32 => add(|lhs: f32, rhs: f32| lhs + rhs),
            DType::F64 => add(|lhs: f64, rhs: f64| lhs + rhs),
            _ => return None,
        },
        BuiltinKind::Fault => Box::new(|_, _| Err("the built-in fault ran, which fails".into())),
        _ => return None,
    })
}

fn copy<T: Element>(workgroup: &mut Workgroup<'_>, operands: &Operands) -> Result<(), String> {
    let input = workgroup.read::<T>(0)?;
    operands.each(workgroup, |[from, _]: [usize; 2]| input[from])
}

fn fill<T: Element>(workgroup: &mut Workgroup<'_>, operands: &Operands, value: T) -> Result<(), String> {
    operands.each(workgroup, |[_]: [usize; 1]| value)
}

fn add<T: Element>(sum: impl Fn(T, T) -> T + Send + Sync + 'static) -> Body {
    Box::new(move |workgroup, operands| {
        let (lhs, rhs) = (workgroup.read::<T>(0)?, workgroup.read::<T>(1)?);
        operands.each(workgroup, |[i, j, _]: [usize; 3]| sum(lhs[i], rhs[j]))
    })
}

impl Operands {
    fn new(op: &BuiltinOp) -> Result<Self> {
        let out = &op.operands[op.operands.len() - 1];
        let too_large = || Error::unsupported(format!("built-in '{}' beyond the address range", op.name()));
        let extent = |extent: &u64| usize::try_from(*extent).map_err(|_| too_large());
        let shape = out.shape.iter().map(extent).collect::<Result<Vec<_>>>()?;
        let elements =
            shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n)).ok_or_else(too_large)?;
        let mut strides = Vec::new();
        let mut spans = Vec::new();
        for (index, operand) in op.operands.iter().enumerate() {
            let own: Vec<usize> = operand
                .strides
                .iter()
                .map(|stride| usize::try_from(*stride))
                .collect::<Result<_, _>>()
                .map_err(|_| {
                    let message =
                        format!("operand {index} of built-in '{}' has a negative stride", op.name());
                    Error::unsupported(message)
                })?;
            let last = shape.iter().zip(&own).try_fold(0usize, |sum, (extent, stride)| {
                sum.checked_add(stride.checked_mul(extent.saturating_sub(1))?)
            });
            let span = last.and_then(|last| last.checked_add(1)).ok_or_else(too_large)?;
            if span.checked_mul(operand.dtype.size()).is_none() {
                return Err(too_large());
            }
            spans.push(if elements == 0 { 0 } else { span });
            strides.push(own);
        }
        if elements > 0 && overlaps_itself(out) {
            let message = format!("the output of built-in '{}' has elements that overlap", op.name());
            return Err(Error::unsupported(message));
        }
        Ok(Self { shape, strides, spans, elements })
    }

    /// Writes `value`, given the places of an element in each of the `N` operands, for this workgroup's elements.
    fn each<T: Element, const N: usize>(
        &self,
        workgroup: &mut Workgroup<'_>,
        value: impl Fn([usize; N]) -> T,
    ) -> Result<(), String> {
        let out = workgroup.output::<T>(N - 1)?;
        if out.len() < self.spans[N - 1] {
            return Err(format!(
                "the output has {} elements, its layout needs {}",
                out.len(),
                self.spans[N - 1]
            ));
        }
        let begin = (workgroup.linear_index() as usize).saturating_mul(ELEMENTS_PER_WORKGROUP);
        let range = begin.min(self.elements)..begin.saturating_add(ELEMENTS_PER_WORKGROUP).min(self.elements);
        self.walk(range, |places: [usize; N]| {
            // SAFETY: in bounds, for a place is less than the span, which the length was compared with. No two
            // elements, and so no two workgroups, share a place (`overlaps_itself` in `new`).
            unsafe { out.as_mut_ptr().add(places[N - 1]).write(value(places)) };
        });
        Ok(())
    }

    /// Calls `visit` with the places of each element of `range`, in logical order.
    fn walk<const N: usize>(&self, range: Range<usize>, mut visit: impl FnMut([usize; N])) {
        let rank = self.shape.len();
        let mut index = vec![0; rank];
        let mut rest = range.start;
        for axis in (0..rank).rev() {
            index[axis] = rest % self.shape[axis].max(1);
            rest /= self.shape[axis].max(1);
        }
        let place =
            |operand: usize| index.iter().zip(&self.strides[operand]).map(|(i, stride)| i * stride).sum();
        let mut places: [usize; N] = std::array::from_fn(place);
        for _ in range {
            visit(places);
            for axis in (0..rank).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    (0..N).for_each(|operand| places[operand] += self.strides[operand][axis]);
                    break;
                }
                let steps = index[axis] - 1;
                (0..N).for_each(|operand| places[operand] -= steps * self.strides[operand][axis]);
                index[axis] = 0;
            }
        }
    }
}

/// Whether two elements may share a place. Errs on the side of yes for layouts that interleave axes.
fn overlaps_itself(operand: &OperandDesc) -> bool {
    let mut axes: Vec<(u64, u64)> = operand
        .shape
        .iter()
        .zip(&operand.strides)
        .filter(|(extent, _)| **extent > 1)
        .map(|(extent, stride)| (stride.unsigned_abs(), *extent))
        .collect();
    axes.sort_unstable();
    let mut span = 1u64;
    for (stride, extent) in axes {
        if stride < span {
            return true;
        }
        span = span.saturating_add(stride.saturating_mul(extent - 1));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(shape: &[u64], strides: &[i64]) -> OperandDesc {
        OperandDesc { dtype: DType::F32, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    #[test]
    fn overlapping_outputs_are_recognised() {
        for (shape, strides, expected) in [
            (&[2u64, 3][..], &[3i64, 1][..], false),
            (&[2, 3], &[1, 2], false),
            (&[2, 3], &[8, 2], false),
            (&[2, 3], &[0, 1], true),
            (&[2, 3], &[2, 1], true),
            (&[1, 3], &[0, 1], false),
            (&[], &[], false),
        ] {
            assert_eq!(overlaps_itself(&desc(shape, strides)), expected, "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn walks_visit_strided_places_in_logical_order() {
        let op = BuiltinOp::new(BuiltinKind::Copy, vec![desc(&[2, 3], &[1, 2]), desc(&[2, 3], &[3, 1])]);
        let operands = Operands::new(&op.unwrap()).unwrap();
        let mut seen = Vec::new();
        operands.walk(1..6, |places: [usize; 2]| seen.push(places));
        assert_eq!(seen, [[2, 1], [4, 2], [1, 3], [3, 4], [5, 5]]);
        assert_eq!((operands.spans.clone(), operands.elements), (vec![6, 6], 6));
    }

    #[test]
    fn what_cannot_be_done_is_unsupported() {
        let matmul = BuiltinOp::new(
            BuiltinKind::MatMul,
            vec![desc(&[2, 2], &[2, 1]), desc(&[2, 2], &[2, 1]), desc(&[2, 2], &[2, 1])],
        );
        let negative = BuiltinOp::new(BuiltinKind::Copy, vec![desc(&[2], &[-1]), desc(&[2], &[1])]);
        let repeated = BuiltinOp::new(BuiltinKind::Fill { value_bits: 0 }, vec![desc(&[2], &[0])]);
        for op in [matmul, negative, repeated] {
            let error = kernel(&op.unwrap()).err().unwrap();
            assert_eq!(error.kind(), &halite_hal::ErrorKind::Unsupported, "{error}");
        }
    }
}

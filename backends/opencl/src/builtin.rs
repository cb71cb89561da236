//! The built-ins copy, fill and add, as generated kernels over strided operands.
//!
//! They are what every device offers so that it can be tested; fast kernels live above the layer. Shapes and strides are
//! written into the source, so each operation is a program of its own.

use crate::device::DeviceShared;
use crate::kernel::{self, OpenClKernel};
use crate::stream::StreamShared;
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{Arg, DType, Error, Kernel, Result};
use std::fmt::Write as _;
use std::sync::Arc;

/// Threads of a workgroup, where the device allows so many.
const THREADS: u32 = 64;
const ENTRY: &str = "halite_builtin";

/// An operation, compiled for its operands.
pub(crate) struct BuiltinKernel {
    /// None for operands without elements.
    kernel: Option<(OpenClKernel, u32)>,
    /// Bytes that each argument must have at least.
    min_bytes: Vec<u64>,
}

pub(crate) fn load(device: &Arc<DeviceShared>, op: &BuiltinOp) -> Result<Kernel> {
    let mut signature = op.signature(0);
    signature.max_grid = Some([1, 1, 1]);
    let dtype = op.operands[op.operands.len() - 1].dtype;
    let has_f64 = device.info().dtypes.contains(&DType::F64);
    let body = Body::of(op.kind, dtype, has_f64).ok_or_else(|| {
        let message =
            format!("built-in '{}' of {dtype}; this device has copy, fill, and add of numbers", op.name());
        Error::unsupported(message)
    })?;
    let layout = Layout::of(op)?;
    let kernel = if layout.elements == 0 {
        None
    } else {
        let limits = &device.info().limits;
        let threads = THREADS.min(limits.max_workgroup[0]);
        let groups = layout.elements.div_ceil(threads.into());
        let groups = u32::try_from(groups).ok().filter(|groups| *groups <= limits.max_grid[0]);
        let groups = groups
            .ok_or_else(|| Error::unsupported(format!("{} elements in one built-in", layout.elements)))?;
        let source = source(op, &body, layout.elements);
        Some((kernel::compile(device, &source, ENTRY, "", [threads, 1, 1], &signature)?, groups))
    };
    let min_bytes = layout.spans.iter().map(|span| span * dtype.size() as u64).collect();
    let object = BuiltinKernel { kernel, min_bytes };
    Ok(Kernel::new(device.info().id.clone(), op.name(), signature, 0, Box::new(object)))
}

impl BuiltinKernel {
    pub(crate) fn launch(&self, stream: &Arc<StreamShared>, kernel: &Kernel, args: &[Arg]) -> Result<()> {
        for (index, (arg, least)) in args.iter().zip(&self.min_bytes).enumerate() {
            if let Arg::Buffer(slice) = arg
                && slice.len_bytes() < *least
            {
                return Err(Error::invalid(format!(
                    "argument {index} of built-in '{}' has {} bytes, its layout needs {least}",
                    kernel.name(),
                    slice.len_bytes()
                )));
            }
        }
        match &self.kernel {
            Some((object, groups)) => object.launch(stream, kernel, [*groups, 1, 1], args),
            None => stream.enqueue_nothing(),
        }
    }
}

/// What happens to one element.
struct Body {
    /// OpenCL's type of the elements in memory.
    element: &'static str,
    /// The statement that sets `out[at_out]`.
    statement: String,
}

impl Body {
    fn of(kind: BuiltinKind, dtype: DType, has_f64: bool) -> Option<Self> {
        // Bits move as unsigned numbers of their size; integers wrap as such.
        let bits = match dtype.size() {
            1 => "uchar",
            2 => "ushort",
            4 => "uint",
            _ => "ulong",
        };
        let (element, statement) = match (kind, dtype) {
            (BuiltinKind::Copy, _) => (bits, "out[at_out] = in0[at0];".to_owned()),
            (BuiltinKind::Fill { value_bits }, _) => {
                (bits, format!("out[at_out] = ({bits})0x{value_bits:x}UL;"))
            }
            (BuiltinKind::Add, DType::Bool) => return None,
            (BuiltinKind::Add, DType::F16) => (
                "half",
                "vstore_half_rte(vload_half(at0, in0) + vload_half(at1, in1), at_out, out);".to_owned(),
            ),
            (BuiltinKind::Add, DType::BF16) => {
                ("ushort", "out[at_out] = to_bf16(from_bf16(in0[at0]) + from_bf16(in1[at1]));".to_owned())
            }
            (BuiltinKind::Add, DType::F64) if !has_f64 => return None,
            (BuiltinKind::Add, _) => {
                let element = match dtype {
                    DType::F32 => "float",
                    DType::F64 => "double",
                    _ => bits,
                };
                (element, format!("out[at_out] = ({element})(in0[at0] + in1[at1]);"))
            }
            _ => return None,
        };
        Some(Self { element, statement })
    }
}

/// Rounds to the nearest, ties to even, as the numerics policy says; a NaN stays one.
const BF16: &str = "float from_bf16(ushort x) { return as_float((uint)x << 16); }
ushort to_bf16(float x) {
    uint bits = as_uint(x);
    if (isnan(x)) return (ushort)((bits >> 16) | 0x40);
    return (ushort)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
";

fn source(op: &BuiltinOp, body: &Body, elements: u64) -> String {
    let last = op.operands.len() - 1;
    let name = |index: usize| if index == last { "_out".to_owned() } else { index.to_string() };
    let mut text = String::new();
    if body.element == "double" {
        text.push_str("#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n");
    }
    text.push_str(BF16);
    let inputs: String =
        (0..last).map(|index| format!("__global const {} *in{index}, ", body.element)).collect();
    let place = |index: usize| format!("ulong at{} = 0; ", name(index));
    let places: String = (0..=last).map(place).collect();
    // Writing to a string cannot fail.
    _ = writeln!(text, "__kernel void {ENTRY}({inputs}__global {} *out) {{", body.element);
    _ = writeln!(
        text,
        "    ulong rest = get_global_id(0);\n    if (rest >= {elements}UL) return;\n    {places}"
    );
    for (axis, extent) in op.operands[last].shape.iter().enumerate().rev() {
        _ = write!(text, "    {{ ulong i = rest % {extent}UL; rest /= {extent}UL; ");
        for (index, operand) in op.operands.iter().enumerate() {
            _ = write!(text, "at{} += i * {}UL; ", name(index), operand.strides[axis]);
        }
        _ = writeln!(text, "}}");
    }
    _ = writeln!(text, "    {}\n}}", body.statement);
    text
}

/// Where the elements of each operand lie.
struct Layout {
    elements: u64,
    /// Elements that each argument must have at least.
    spans: Vec<u64>,
}

impl Layout {
    /// # Errors
    /// `Unsupported` for strides that are negative, outputs whose elements overlap, and what exceeds 64 bits.
    fn of(op: &BuiltinOp) -> Result<Self> {
        let out = &op.operands[op.operands.len() - 1];
        let too_large = || Error::unsupported(format!("built-in '{}' beyond the address range", op.name()));
        let elements = out.elements().ok_or_else(too_large)?;
        let mut spans = Vec::new();
        for (index, operand) in op.operands.iter().enumerate() {
            if operand.strides.iter().any(|stride| *stride < 0) {
                let message = format!("operand {index} of built-in '{}' has a negative stride", op.name());
                return Err(Error::unsupported(message));
            }
            let last = out.shape.iter().zip(&operand.strides).try_fold(0u64, |sum, (extent, stride)| {
                sum.checked_add(stride.unsigned_abs().checked_mul(extent.saturating_sub(1))?)
            });
            let span = last.and_then(|last| last.checked_add(1)).ok_or_else(too_large)?;
            span.checked_mul(operand.dtype.size() as u64).ok_or_else(too_large)?;
            spans.push(if elements == 0 { 0 } else { span });
        }
        if elements > 0 && overlaps_itself(out) {
            let message = format!("the output of built-in '{}' has elements that overlap", op.name());
            return Err(Error::unsupported(message));
        }
        Ok(Self { elements, spans })
    }
}

/// Whether two elements may share a place. Errs on the side of yes for layouts that interleave axes.
fn overlaps_itself(operand: &OperandDesc) -> bool {
    let axes = operand.shape.iter().zip(&operand.strides).filter(|(extent, _)| **extent > 1);
    let mut axes: Vec<(u64, u64)> = axes.map(|(extent, stride)| (stride.unsigned_abs(), *extent)).collect();
    axes.sort_unstable();
    let mut span = 1u64;
    axes.into_iter().any(|(stride, extent)| {
        let overlaps = stride < span;
        span = span.saturating_add(stride.saturating_mul(extent - 1));
        overlaps
    })
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
    fn spans_reach_to_the_last_element() {
        let op = BuiltinOp::new(BuiltinKind::Copy, vec![desc(&[2, 3], &[10, 2]), desc(&[2, 3], &[3, 1])]);
        let layout = Layout::of(&op.unwrap()).unwrap();
        assert_eq!((layout.elements, layout.spans), (6, vec![15, 6]));
        let empty = BuiltinOp::new(BuiltinKind::Copy, vec![desc(&[2, 0], &[10, 2]), desc(&[2, 0], &[3, 1])]);
        assert_eq!(Layout::of(&empty.unwrap()).unwrap().spans, [0, 0]);
    }

    #[test]
    fn what_cannot_be_done_is_unsupported() {
        let negative = BuiltinOp::new(BuiltinKind::Copy, vec![desc(&[2], &[-1]), desc(&[2], &[1])]);
        let repeated = BuiltinOp::new(BuiltinKind::Fill { value_bits: 0 }, vec![desc(&[2], &[0])]);
        for op in [negative, repeated] {
            let error = Layout::of(&op.unwrap()).err().unwrap();
            assert_eq!(error.kind(), &halite_hal::ErrorKind::Unsupported, "{error}");
        }
        assert!(Body::of(BuiltinKind::MatMul, DType::F32, true).is_none());
        assert!(Body::of(BuiltinKind::Add, DType::Bool, true).is_none());
        assert!(Body::of(BuiltinKind::Add, DType::F64, false).is_none());
        assert!(Body::of(BuiltinKind::Copy, DType::F64, false).is_some());
    }
}

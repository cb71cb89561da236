//! The built-ins copy, fill and add, and patterns that the driver's own fills are too short for.
//!
//! Their code is PTX that the driver compiles for its device, so they are there without NVRTC. Operands without gaps are
//! copied and filled by the driver itself.

use crate::api::Address;
use crate::buffer::Place;
use crate::context::{FunctionHandle, ModuleHandle};
use crate::device::DeviceShared;
use crate::kernel;
use crate::op::{self, Launch, Op, Parameters};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{DType, Error, Kernel, Result};
use std::ffi::CString;
use std::sync::Arc;

/// Made of `builtin.cu`.
const PTX: &str = include_str!("builtin.ptx");
const THREADS: u32 = 256;
/// Enough blocks to fill any device; each thread takes several elements beyond it.
const MAX_BLOCKS: u64 = 1 << 16;
/// Axes and operands of `struct Layout` in `builtin.cu`.
const MAX_AXES: usize = 8;
const MAX_OPERANDS: usize = 3;

/// The module, loaded at its first use.
pub(crate) struct Builtins {
    pub(crate) module: ModuleHandle,
    fill_words: FunctionHandle,
}

fn builtins(device: &DeviceShared) -> Result<&Builtins> {
    if let Some(builtins) = device.builtins.get() {
        return Ok(builtins);
    }
    let builtins = device.call(|gpu| {
        let module = kernel::load_ptx(gpu, PTX)?;
        match gpu.function(module, c"halite_fill_b8") {
            Ok(fill_words) => Ok(Builtins { module, fill_words }),
            Err(error) => {
                gpu.module_unload(module);
                Err(error)
            }
        }
    })?;
    if let Err(late) = device.builtins.set(builtins) {
        // Another thread was first.
        device.call(|gpu| {
            gpu.module_unload(late.module);
            Ok(())
        })?;
    }
    Ok(device.builtins.get().expect("it was set above, by this thread or another"))
}

/// `count` elements of 8 bytes.
pub(crate) fn fill_words(device: &Arc<DeviceShared>, dst: Address, bits: u64, count: u64) -> Result<Op> {
    let function = builtins(device)?.fill_words;
    let layout = Layout { shape: vec![count], strides: vec![vec![1]] };
    Ok(layout.launch(function, &[dst], Some(bits)))
}

/// An operation for given operands.
pub(crate) struct BuiltinKernel {
    work: Work,
    /// Bytes that each argument must have at least.
    min_bytes: Vec<u64>,
}

enum Work {
    /// For operands without elements.
    Nothing,
    /// Operands without gaps.
    Copy {
        len_bytes: u64,
    },
    Fill {
        bits: u64,
        element_bytes: u64,
        count: u64,
    },
    /// Any others.
    Strided {
        function: FunctionHandle,
        layout: Layout,
        bits: Option<u64>,
    },
}

pub(crate) fn load(device: &Arc<DeviceShared>, op: &BuiltinOp) -> Result<Kernel> {
    let mut signature = op.signature(0);
    signature.max_grid = Some([1, 1, 1]);
    let object = prepare(device, op)?;
    Ok(Kernel::new(device.info.id.clone(), op.name(), signature, 0, Box::new(object)))
}

/// Makes a copy, fill or sum.
///
/// # Errors
/// `Unsupported` for other operations, for strides that are negative, and for outputs whose elements overlap.
pub(crate) fn prepare(device: &Arc<DeviceShared>, op: &BuiltinOp) -> Result<BuiltinKernel> {
    let dtype = op.operands[op.operands.len() - 1].dtype;
    let function = function_name(op.kind, dtype).ok_or_else(|| {
        let message =
            format!("built-in '{}' of {dtype}; this device has copy, fill, and add of numbers", op.name());
        Error::unsupported(message)
    })?;
    let (layout, elements, spans) = Layout::of(op)?;
    let element_bytes = dtype.size() as u64;
    let is_dense = op.operands.iter().all(OperandDesc::is_contiguous);
    let work = match op.kind {
        _ if elements == 0 => Work::Nothing,
        BuiltinKind::Copy if is_dense => Work::Copy { len_bytes: elements * element_bytes },
        BuiltinKind::Fill { value_bits: bits } if is_dense => {
            Work::Fill { bits, element_bytes, count: elements }
        }
        kind => {
            let module = builtins(device)?.module;
            let name = CString::new(function).expect("the names of functions have no zero byte");
            let function = device.call(|gpu| gpu.function(module, &name))?;
            let bits = if let BuiltinKind::Fill { value_bits } = kind { Some(value_bits) } else { None };
            Work::Strided { function, layout, bits }
        }
    };
    let min_bytes = spans.iter().map(|span| span * element_bytes).collect();
    Ok(BuiltinKernel { work, min_bytes })
}

impl BuiltinKernel {
    /// The operation on these ranges.
    pub(crate) fn lower(
        &self,
        device: &Arc<DeviceShared>,
        name: &str,
        places: &[(Place, u64)],
    ) -> Result<Op> {
        check_lengths(name, places, &self.min_bytes)?;
        match &self.work {
            Work::Nothing => Ok(Op::Nothing),
            Work::Copy { len_bytes } => Ok(op::copy(places[1].0, places[0].0, *len_bytes)),
            Work::Fill { bits, element_bytes, count } => {
                op::fill_bits(device, places[0].0.address, *bits, *element_bytes, *count)
            }
            Work::Strided { function, layout, bits } => {
                let addresses: Vec<_> = places.iter().map(|(place, _)| place.address).collect();
                Ok(layout.launch(*function, &addresses, *bits))
            }
        }
    }
}

/// Refuses ranges that are shorter than their operands' layouts.
pub(crate) fn check_lengths(name: &str, places: &[(Place, u64)], min_bytes: &[u64]) -> Result<()> {
    for (index, ((_, len), least)) in places.iter().zip(min_bytes).enumerate() {
        if len < least {
            return Err(Error::invalid(format!(
                "argument {index} of built-in '{name}' has {len} bytes, its layout needs {least}"
            )));
        }
    }
    Ok(())
}

/// The function in `builtin.cu`. Bits move as numbers of their size, as which integers also wrap.
fn function_name(kind: BuiltinKind, dtype: DType) -> Option<String> {
    let bytes = dtype.size();
    Some(match (kind, dtype) {
        (BuiltinKind::Copy, _) => format!("halite_copy_b{bytes}"),
        (BuiltinKind::Fill { .. }, _) => format!("halite_fill_b{bytes}"),
        (BuiltinKind::Add, DType::Bool) => return None,
        (BuiltinKind::Add, _) if dtype.is_float() => format!("halite_add_{dtype}"),
        (BuiltinKind::Add, _) => format!("halite_add_b{bytes}"),
        _ => return None,
    })
}

/// Where the elements of each operand lie, in elements.
struct Layout {
    shape: Vec<u64>,
    strides: Vec<Vec<u64>>,
}

impl Layout {
    /// The layout, the number of elements, and how many each argument must have at least.
    fn of(op: &BuiltinOp) -> Result<(Self, u64, Vec<u64>)> {
        let out = &op.operands[op.operands.len() - 1];
        let too_large = || Error::unsupported(format!("built-in '{}' beyond the address range", op.name()));
        let elements = out.elements().ok_or_else(too_large)?;
        if out.shape.len() > MAX_AXES {
            let (axes, name) = (out.shape.len(), op.name());
            return Err(Error::unsupported(format!(
                "{axes} axes in built-in '{name}'; at most {MAX_AXES} are possible"
            )));
        }
        let (mut strides, mut spans) = (Vec::new(), Vec::new());
        for (index, operand) in op.operands.iter().enumerate() {
            if operand.strides.iter().any(|stride| *stride < 0) {
                let message = format!("operand {index} of built-in '{}' has a negative stride", op.name());
                return Err(Error::unsupported(message));
            }
            let own: Vec<u64> = operand.strides.iter().map(|stride| stride.unsigned_abs()).collect();
            let last = out.shape.iter().zip(&own).try_fold(0u64, |sum, (extent, stride)| {
                sum.checked_add(stride.checked_mul(extent.saturating_sub(1))?)
            });
            let span = last.and_then(|last| last.checked_add(1)).ok_or_else(too_large)?;
            span.checked_mul(operand.dtype.size() as u64).ok_or_else(too_large)?;
            spans.push(if elements == 0 { 0 } else { span });
            strides.push(own);
        }
        if elements > 0 && overlaps_itself(&out.shape, &strides[strides.len() - 1]) {
            let message = format!("the output of built-in '{}' has elements that overlap", op.name());
            return Err(Error::unsupported(message));
        }
        Ok((Self { shape: out.shape.clone(), strides }, elements, spans))
    }

    /// The words of `struct Layout`.
    fn words(&self) -> [u64; 2 + MAX_AXES * (1 + MAX_OPERANDS)] {
        let mut words = [0; 2 + MAX_AXES * (1 + MAX_OPERANDS)];
        words[0] = self.elements();
        words[1] = self.shape.len() as u64;
        for (axes, row) in [&self.shape].into_iter().chain(&self.strides).zip(words[2..].chunks_mut(MAX_AXES))
        {
            row[..axes.len()].copy_from_slice(axes);
        }
        words
    }

    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    fn launch(&self, function: FunctionHandle, addresses: &[Address], bits: Option<u64>) -> Op {
        let mut parameters = Parameters::with_capacity(addresses.len() + 2, false);
        addresses.iter().for_each(|address| parameters.push(*address));
        bits.into_iter().for_each(|bits| parameters.push(bits));
        parameters.push_structure(&self.words());
        let blocks = self.elements().div_ceil(THREADS.into()).clamp(1, MAX_BLOCKS);
        let grid = [u32::try_from(blocks).unwrap_or(1), 1, 1];
        Op::Launch(Launch { function, grid, block: [THREADS, 1, 1], shared_bytes: 0, parameters })
    }
}

/// Whether two elements may share a place. Errs on the side of yes for layouts that interleave axes.
fn overlaps_itself(shape: &[u64], strides: &[u64]) -> bool {
    let axes = shape.iter().zip(strides).filter(|(extent, _)| **extent > 1);
    let mut axes: Vec<(u64, u64)> = axes.map(|(extent, stride)| (*stride, *extent)).collect();
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

    fn layout(kind: BuiltinKind, operands: Vec<OperandDesc>) -> Result<(Layout, u64, Vec<u64>)> {
        Layout::of(&BuiltinOp::new(kind, operands).unwrap())
    }

    #[test]
    fn layouts_reach_to_the_last_element_and_lie_in_words_as_the_code_reads_them() {
        let operands = vec![desc(&[2, 3], &[10, 2]), desc(&[2, 3], &[3, 1])];
        let (layout, elements, spans) = layout(BuiltinKind::Copy, operands).unwrap();
        assert_eq!((elements, spans), (6, vec![15, 6]));
        let words = layout.words();
        assert_eq!((words[0], words[1], &words[2..4]), (6, 2, &[2, 3][..]));
        assert_eq!((&words[10..12], &words[18..20], words[26]), (&[10, 2][..], &[3, 1][..], 0));
        assert_eq!(size_of_val(&words), 272);
    }

    #[test]
    fn what_cannot_be_done_is_unsupported() {
        let one = |shape: &[u64], strides: &[i64]| {
            layout(BuiltinKind::Fill { value_bits: 0 }, vec![desc(shape, strides)])
        };
        for bad in [one(&[2], &[-1]), one(&[2], &[0]), one(&[2, 3], &[2, 1]), one(&[1; 9], &[1; 9])] {
            assert_eq!(bad.err().unwrap().kind(), &halite_hal::ErrorKind::Unsupported);
        }
        one(&[1, 3], &[0, 1]).unwrap();
        one(&[0], &[0]).unwrap();
        assert_eq!(function_name(BuiltinKind::MatMul, DType::F32), None);
        assert_eq!(function_name(BuiltinKind::Add, DType::Bool), None);
    }

    #[test]
    fn every_function_that_may_be_chosen_is_in_the_ptx_and_stands_in_its_source() {
        let source = include_str!("builtin.cu");
        assert!(source.contains("halite_copy_##T") && source.contains("halite_add_##name"));
        for dtype in DType::ALL {
            for kind in [BuiltinKind::Copy, BuiltinKind::Fill { value_bits: 0 }, BuiltinKind::Add] {
                if let Some(name) = function_name(kind, dtype) {
                    assert!(PTX.contains(&format!(".visible .entry {name}(")), "{name}");
                }
            }
        }
    }

    #[test]
    fn the_ptx_is_made_of_this_very_source() {
        use sha2::{Digest, Sha256};
        let source = include_str!("builtin.cu").replace("\r\n", "\n");
        let hash: String = Sha256::digest(source).iter().map(|byte| format!("{byte:02x}")).collect();
        let first = PTX.lines().next().unwrap_or_default();
        assert!(first.contains(&hash), "{first}; make it anew: see tests/nvrtc.rs");
    }
}

//! What the device is asked to do, in the driver's terms: the one form in which commands are enqueued, and in which they
//! become nodes of a graph.

use crate::api::Address;
use crate::blas::MatMulCall;
use crate::buffer::{Place, place};
use crate::builtin::{self, BuiltinKernel};
use crate::context::{Current, FunctionHandle, StreamHandle};
use crate::device::DeviceShared;
use crate::kernel::CudaKernel;
use halite_hal::{Arg, Error, Kernel, Result};
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// One operation on places of the device. Whoever runs it holds what it uses until it is over.
#[derive(Clone)]
pub(crate) enum Op {
    /// A command without work: no bytes, an empty grid.
    Nothing,
    Copy {
        dst: Place,
        src: Place,
        len_bytes: usize,
    },
    /// `count` elements of 1, 2 or 4 bytes.
    Set {
        dst: Address,
        value: u32,
        element_bytes: u32,
        count: usize,
    },
    Launch(Launch),
    MatMul(MatMulCall),
}

/// A launch with its parameters.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) function: FunctionHandle,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) parameters: Parameters,
}

/// Values of a kernel's parameters: addresses and numbers, then at most one structure.
#[derive(Clone, Default)]
pub(crate) struct Parameters {
    /// Each value at the beginning of a word; its bytes follow each other as on the device, which is little-endian.
    words: Vec<u64>,
    /// How many words are values of their own. What follows is the structure.
    singles: usize,
    /// Whether the kernel may take more parameters than there are here, which this driver does not tell.
    is_padded: bool,
}

/// What parameters that nobody gave point to. No kernel takes more than this (PTX ISA, "Kernel Function Parameters").
static ZEROS: [u64; 4096] = [0; 4096];
/// More parameters than fit the 4 KiB of the drivers that do not tell a kernel's.
const PADDED_COUNT: usize = 4096;
/// Pointers to so many parameters need no memory of their own.
const FEW: usize = 32;

impl Parameters {
    pub(crate) fn with_capacity(count: usize, is_padded: bool) -> Self {
        Self { words: Vec::with_capacity(count), singles: 0, is_padded }
    }

    /// Adds an address or a number, whose bits are extended by zeros. Before the structure, if there is one.
    pub(crate) fn push(&mut self, bits: u64) {
        debug_assert_eq!(self.words.len(), self.singles);
        self.words.push(bits);
        self.singles += 1;
    }

    /// Adds the structure.
    pub(crate) fn push_structure(&mut self, words: &[u64]) {
        self.words.extend_from_slice(words);
    }

    /// Passes a pointer to each value to `call`. The driver only reads through them, and not after the call.
    pub(crate) fn with_pointers<R>(&self, call: impl FnOnce(&mut [*mut c_void]) -> R) -> R {
        let count = self.singles + usize::from(self.words.len() > self.singles);
        let words = self.words[..count].iter();
        let pointers = words.map(|word| ptr::from_ref(word).cast_mut().cast::<c_void>());
        if count <= FEW && !self.is_padded {
            let mut few = [ptr::null_mut(); FEW];
            few.iter_mut().zip(pointers).for_each(|(place, pointer)| *place = pointer);
            return call(&mut few[..count]);
        }
        let mut all: Vec<*mut c_void> = pointers.collect();
        if self.is_padded {
            all.resize(PADDED_COUNT, ZEROS.as_ptr().cast_mut().cast());
        }
        call(&mut all)
    }
}

impl Op {
    /// Enqueues the operation.
    pub(crate) fn run(&self, gpu: &Current<'_>, stream: StreamHandle) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Copy { dst, src, len_bytes } => gpu.copy(stream, *dst, *src, *len_bytes),
            Self::Set { dst, value, element_bytes, count } => {
                gpu.set(stream, *dst, *value, *element_bytes, *count)
            }
            Self::Launch(Launch { function, grid, block, shared_bytes, parameters }) => parameters
                .with_pointers(|pointers| {
                    // SAFETY: there is a pointer for each parameter: the counts were compared when the kernel was loaded,
                    // or the pointers are padded to more than any kernel takes.
                    unsafe { gpu.launch(stream, *function, *grid, *block, *shared_bytes, pointers) }
                }),
            Self::MatMul(call) => call.run(gpu, stream),
        }
    }
}

/// A copy within the device, or with pinned memory.
pub(crate) fn copy(dst: Place, src: Place, len_bytes: u64) -> Op {
    if len_bytes == 0 { Op::Nothing } else { Op::Copy { dst, src, len_bytes: len_bytes as usize } }
}

/// A pattern of 1, 2, 4 or 8 bytes over a range, of whose length and offset it is a divisor (`driver::Stream`).
pub(crate) fn fill(device: &Arc<DeviceShared>, dst: Place, len_bytes: u64, pattern: &[u8]) -> Result<Op> {
    let mut bytes = [0; 8];
    bytes[..pattern.len()].copy_from_slice(pattern);
    let bits = u64::from_le_bytes(bytes);
    fill_bits(device, dst.address, bits, pattern.len() as u64, len_bytes / pattern.len() as u64)
}

/// `count` elements of 1, 2, 4 or 8 bytes.
pub(crate) fn fill_bits(
    device: &Arc<DeviceShared>,
    dst: Address,
    bits: u64,
    element_bytes: u64,
    count: u64,
) -> Result<Op> {
    if count == 0 {
        return Ok(Op::Nothing);
    }
    let (low, high) = (bits as u32, (bits >> 32) as u32);
    Ok(match element_bytes {
        8 if low != high => builtin::fill_words(device, dst, bits, count)?,
        8 => Op::Set { dst, value: low, element_bytes: 4, count: 2 * count as usize },
        bytes => Op::Set { dst, value: low, element_bytes: bytes as u32, count: count as usize },
    })
}

/// A launch, whose arguments fit the kernel's signature (`driver::Stream`).
pub(crate) fn launch(
    device: &Arc<DeviceShared>,
    kernel: &Kernel,
    grid: [u32; 3],
    args: &[Arg],
) -> Result<Op> {
    if grid.contains(&0) {
        return Ok(Op::Nothing);
    }
    if let Some(object) = kernel.object::<CudaKernel>() {
        let mut parameters = Parameters::with_capacity(args.len(), object.is_padded);
        for arg in args {
            parameters.push(match arg {
                Arg::Buffer(slice) => place(slice)?.address,
                Arg::Scalar(scalar) => scalar.to_bits(),
            });
        }
        let (function, block, shared_bytes) = (object.function, object.block, object.shared_bytes);
        return Ok(Op::Launch(Launch { function, grid, block, shared_bytes, parameters }));
    }
    let mut places = Vec::with_capacity(args.len());
    for arg in args {
        match arg {
            Arg::Buffer(slice) => places.push((place(slice)?, slice.len_bytes())),
            Arg::Scalar(_) => return Err(Error::invalid("a built-in takes buffers only")),
        }
    }
    if let Some(object) = kernel.object::<BuiltinKernel>() {
        object.lower(device, kernel.name(), &places)
    } else if let Some(object) = kernel.object::<Arc<crate::blas::MatMul>>() {
        object.lower(&places)
    } else {
        let name = kernel.name();
        Err(Error::invalid(format!("kernel '{name}' was not loaded by this backend; load it on the device")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pointer: *mut c_void) -> u64 {
        // SAFETY: every pointer leads to a word of `Parameters`, which outlives the call, or to `ZEROS`.
        unsafe { *pointer.cast::<u64>() }
    }

    #[test]
    fn every_parameter_is_pointed_to_in_order() {
        for count in [0, 2, FEW as u64 - 1, FEW as u64, 100] {
            let mut parameters = Parameters::with_capacity(3, false);
            (0..count).for_each(|value| parameters.push(value));
            parameters.push_structure(&[7, 8, 9]);
            parameters.with_pointers(|pointers| {
                let (structure, singles) = pointers.split_last().unwrap();
                let values: Vec<_> = singles.iter().map(|pointer| read(*pointer)).collect();
                assert_eq!(values, (0..count).collect::<Vec<_>>());
                // SAFETY: the structure's words follow each other.
                assert_eq!(unsafe { *structure.cast::<[u64; 3]>() }, [7, 8, 9]);
            });
        }
    }

    #[test]
    fn parameters_that_nobody_gave_are_zeros_where_the_driver_does_not_tell_how_many_there_are() {
        let mut parameters = Parameters::with_capacity(1, true);
        parameters.push(9);
        parameters.with_pointers(|pointers| {
            assert_eq!((pointers.len(), read(pointers[0]), read(pointers[4095])), (PADDED_COUNT, 9, 0));
        });
    }
}

//! Memory that the host addresses, looked at beside the programs that use it.
//!
//! The layer reads and writes here without a part in the program's own order: red zones, which no legal work touches,
//! and bytes that should not change while they are looked at. All accesses are volatile and of single bytes or words,
//! so that a program which breaks the rules gets a report and no surprise of the optimiser.

use super::zone;
use halite_hal::Buffer;
use std::ops::Range;
use std::ptr::NonNull;

/// The innermost handle's address, if it is inside of the buffer.
fn address(memory: &Buffer, range: &Range<u64>) -> Option<(NonNull<u8>, usize)> {
    let first = memory.host_pointer()?;
    if range.start > range.end || range.end > memory.len_bytes() {
        return None;
    }
    let (start, len) = (usize::try_from(range.start).ok()?, usize::try_from(range.end - range.start).ok()?);
    // SAFETY: `host_pointer` is valid for the buffer's length, inside of which the offset lies by the check above.
    Some((unsafe { first.add(start) }, len))
}

/// Writes the pattern of a red zone behind the first `len` bytes; whether the host could.
pub(super) fn mark(memory: &Buffer, len: u64) -> bool {
    let Some((first, zone_len)) = address(memory, &(len..len + zone::BYTES)) else { return false };
    for (offset, byte) in zone::PATTERN.iter().enumerate().take(zone_len) {
        // SAFETY: `address` checked that `zone_len` bytes from `first` lie inside of the buffer, which `memory` holds.
        unsafe { first.add(offset).write_volatile(*byte) };
    }
    true
}

/// What lies in the red zone behind the first `len` bytes, if the host can look.
pub(super) fn zone(memory: &Buffer, len: u64) -> Option<Vec<u8>> {
    let (first, zone_len) = address(memory, &(len..len + zone::BYTES))?;
    // SAFETY: as in `mark`; device memory is initialised from the start (the contract of `driver::Device::allocate`).
    Some((0..zone_len).map(|offset| unsafe { first.add(offset).read_volatile() }).collect())
}

/// A sum of the bytes that changes when one of them does; `None` where the host cannot look.
pub(super) fn sum(memory: &Buffer, range: &Range<u64>) -> Option<u64> {
    let (first, len) = address(memory, range)?;
    let step = |sum: u64, word: u64| (sum.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let words = len / 8;
    // SAFETY: inside of the buffer as `address` checked, initialised as all device memory; the reads are unaligned.
    let word = |index: usize| unsafe {
        let mut bytes = [0; 8];
        for (offset, byte) in bytes.iter_mut().enumerate() {
            *byte = first.add(index * 8 + offset).read_volatile();
        }
        u64::from_le_bytes(bytes)
    };
    let sum = (0..words).fold(len as u64, |sum, index| step(sum, word(index)));
    // SAFETY: as above.
    let rest = (words * 8..len).map(|offset| u64::from(unsafe { first.add(offset).read_volatile() }));
    Some(rest.fold(sum, step))
}

#[cfg(any(unix, windows))]
mod exit {
    // SAFETY: `atexit` of the C library takes a function without arguments (C99, 7.20.4.2).
    unsafe extern "C" {
        safe fn atexit(function: extern "C" fn()) -> std::ffi::c_int;
    }

    /// Calls `function`, which must not panic, when the process ends by returning or by `exit`.
    pub(in super::super) fn at_exit(function: extern "C" fn()) {
        // A full table leaves the summary out; there is nobody to tell.
        let _ = atexit(function);
    }
}

#[cfg(any(unix, windows))]
pub(super) use exit::at_exit;

/// Where there is no such hook, there is no summary of what stays open.
#[cfg(not(any(unix, windows)))]
pub(super) fn at_exit(_function: extern "C" fn()) {}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::{DeviceId, MemoryKind};

    /// A buffer of zeros.
    fn zeros(len: usize) -> Buffer {
        let mut bytes = vec![0u8; len];
        let first = NonNull::new(bytes.as_mut_ptr());
        Buffer::new(DeviceId::new("test", 0), MemoryKind::HostVisible, len as u64, first, Box::new(bytes))
    }

    #[test]
    fn zones_and_sums_stay_inside_of_the_buffer() {
        let memory = zeros(100);
        assert!(mark(&memory, 36));
        assert_eq!(zone(&memory, 36).unwrap(), zone::PATTERN);
        assert!(!mark(&memory, 37), "the zone does not fit");
        assert!(sum(&memory, &(0..101)).is_none());
        assert_eq!(sum(&memory, &(0..36)), sum(&memory, &(0..36)));
        assert_ne!(sum(&memory, &(0..36)), sum(&memory, &(0..35)), "zeros count by their number");
    }

    #[test]
    fn every_byte_changes_the_sum() {
        let memory = zeros(21);
        let first = memory.host_pointer().unwrap();
        let before = sum(&memory, &(0..21)).unwrap();
        for offset in 0..21 {
            // SAFETY: inside of the buffer, which nothing else uses now.
            unsafe { first.add(offset).write(1) };
            assert_ne!(sum(&memory, &(0..21)).unwrap(), before, "{offset}");
            // SAFETY: as above.
            unsafe { first.add(offset).write(0) };
        }
        assert_eq!(sum(&memory, &(0..21)).unwrap(), before);
    }
}

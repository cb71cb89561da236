//! Reading and writing what the host's pointers lead to.
//!
//! What a host passes is what `halite_plugin.h` promises; see `entry.rs`.

use crate::failure::{Failure, Result};
use halite_hal::plugin::{self, Error, STATUS_OK, Status};
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::slice;

/// Runs the body of a function: failures and panics become a status with a text.
///
/// # Safety
/// `error` is null or the interface's.
pub(crate) unsafe fn guard(error: *mut Error, body: impl FnOnce() -> Result<()>) -> Status {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(Failure::new(plugin::STATUS_BACKEND, "internal fault of the emulator: a function panicked"))
    });
    let Err(failure) = outcome else { return STATUS_OK };
    // SAFETY: by this function's contract.
    unsafe { failure.report(error) };
    failure.status
}

/// Runs the body of a function that gives a handle back and cannot fail.
pub(crate) fn give_back(body: impl FnOnce()) {
    // There is nobody to tell of a panic; the object is gone either way.
    let _ = catch_unwind(AssertUnwindSafe(body));
}

/// Writes a result.
///
/// # Safety
/// `out` is null or can be written.
pub(crate) unsafe fn put<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return Err(Failure::invalid("the place for a result is null"));
    }
    // SAFETY: not null here, and can be written by this function's contract.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes as much of a structure as the host has room for; `struct_size` stays the host's.
///
/// # Safety
/// `out` is null or a structure of `struct_size` bytes that can be written; `T` is one of the interface's structures.
pub(crate) unsafe fn put_struct<T: Copy>(out: *mut T, value: &T) -> Result<()> {
    const SIZE_FIELD: usize = size_of::<u64>();
    if out.is_null() {
        return Err(Failure::invalid("the place for a result is null"));
    }
    // SAFETY: every structure of the interface begins with its size.
    let room = unsafe { out.cast::<u64>().read() };
    let len = usize::try_from(room).unwrap_or(usize::MAX).min(size_of::<T>());
    if len > SIZE_FIELD {
        // SAFETY: both sides have `len` bytes, the host's by its own statement.
        unsafe {
            let from = ptr::from_ref(value).cast::<u8>().add(SIZE_FIELD);
            ptr::copy_nonoverlapping(from, out.cast::<u8>().add(SIZE_FIELD), len - SIZE_FIELD);
        }
    }
    Ok(())
}

/// Reads as much of a structure as this version knows; `value` is cleared, so what is missing stays so.
///
/// # Safety
/// `from` is null or a structure of `struct_size` bytes; `T` is one of the interface's structures.
pub(crate) unsafe fn read_struct<T: Copy>(from: *const T, mut value: T) -> Result<T> {
    if from.is_null() {
        return Err(Failure::invalid("a structure is null"));
    }
    // SAFETY: every structure of the interface begins with its size.
    let size = unsafe { from.cast::<u64>().read() };
    let len = usize::try_from(size).unwrap_or(usize::MAX).min(size_of::<T>());
    // SAFETY: both sides have `len` bytes; fields are numbers and pointers, for which any bytes of the host are a value.
    unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), len) };
    Ok(value)
}

/// The elements of an array of pointers to structures.
///
/// # Safety
/// `array` holds `count` pointers to structures of the interface, or `count` is 0.
pub(crate) unsafe fn read_structs<T: Copy>(array: *const *const T, count: u32, cleared: T) -> Result<Vec<T>> {
    // SAFETY: by this function's contract.
    unsafe { pointers(array, count) }?
        .iter()
        .map(|from| {
            // SAFETY: by this function's contract.
            unsafe { read_struct(*from, cleared) }
        })
        .collect()
}

/// # Safety
/// `array` holds `count` elements that live as long as the caller uses them, or `count` is 0.
pub(crate) unsafe fn pointers<'a, T>(array: *const T, count: impl TryInto<usize>) -> Result<&'a [T]> {
    match count.try_into() {
        Ok(0) => Ok(&[]),
        // SAFETY: by this function's contract.
        Ok(count) if !array.is_null() => Ok(unsafe { slice::from_raw_parts(array, count) }),
        _ => Err(Failure::invalid("an array is null or longer than memory")),
    }
}

/// # Safety
/// `text` is null or ends with a zero byte, and lives as long as the caller uses it.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(Failure::invalid("a text is null"));
    }
    // SAFETY: by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::invalid("a text is not valid UTF-8"))
}

//! Where a plugin's code may fail to come back: exceptions at its boundary, calls without an end, structures written
//! too far.
//!
//! An exception of C++, or a panic of a plugin in Rust, that leaves a plugin cannot be caught here: the language has no
//! means for it. On a thread of our own, the thread stays where it is for good, and the caller gets an error; on the
//! caller's own thread, the process ends with the name of the plugin and the call.

use std::cell::RefCell;
use std::io::Write;
use std::mem;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// What a structure or a text may be written too far without harm: room for the fields of many later versions.
const SPARE_WORDS: usize = 32;
/// The same in bytes.
pub(crate) const SPARE_BYTES: usize = SPARE_WORDS * size_of::<u64>();
/// What the room behind holds. Not zeros, which a plugin may write when it clears a structure that it takes for longer.
pub(crate) const UNTOUCHED: u8 = 0xA5;
const UNTOUCHED_WORD: u64 = u64::from_ne_bytes([UNTOUCHED; size_of::<u64>()]);

/// Why a call on a thread of its own gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// It is still running.
    Hung,
    /// An exception left the function of this name.
    Threw(&'static str),
}

/// What tells the waiting thread that an exception came from the function of this name.
type Tell = Box<dyn FnOnce(&'static str)>;

thread_local! {
    /// Set on threads of [`watched`].
    static ON_EXCEPTION: RefCell<Option<Tell>> = const { RefCell::new(None) };
}

/// Runs `run` on a thread of its own and waits for it within a limit. A thread that does not come back is left behind
/// with everything that `run` owns.
pub(crate) fn watched<T: Send + 'static>(
    limit: Duration,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stuck> {
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        let exception = sender.clone();
        let tell: Tell = Box::new(move |call| {
            let _ = exception.send(Err(Stuck::Threw(call)));
        });
        ON_EXCEPTION.set(Some(tell));
        // After a time-out nobody listens any more, and a late result is dropped.
        let _ = sender.send(Ok(run()));
    };
    if std::thread::Builder::new().name("halite-npu-call".into()).spawn(work).is_err() {
        // Without a thread to spare there is no answer in time.
        return Err(Stuck::Hung);
    }
    match receiver.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(Stuck::Hung),
    }
}

/// Stands around a call into a plugin; dropped by an exception alone.
pub(crate) struct Boundary<'a> {
    plugin: &'a Path,
    call: &'static str,
}

impl<'a> Boundary<'a> {
    pub(crate) fn enter(plugin: &'a Path, call: &'static str) -> Self {
        Self { plugin, call }
    }

    /// The call came back.
    pub(crate) fn leave(self) {
        mem::forget(self);
    }
}

impl Drop for Boundary<'_> {
    fn drop(&mut self) {
        if let Some(tell) = ON_EXCEPTION.take() {
            tell(self.call);
            // Going on with the exception would end the process.
            loop {
                std::thread::park();
            }
        }
        let _ = writeln!(
            std::io::stderr(),
            "halite: plugin '{}' lets an exception out of {}, which nothing can catch; catch it inside of the plugin",
            self.plugin.display(),
            self.call
        );
        std::process::abort();
    }
}

/// A plugin's function, as one that exceptions may leave.
pub(crate) trait Unwinding: Copy {
    /// The same function with the other calling convention.
    type Pointer;

    /// The same function, so that a caller's [`Boundary`] sees exceptions.
    fn unwinding(self) -> Self::Pointer;
}

macro_rules! unwinding {
    ($($argument:ident)*) => {
        impl<R, $($argument),*> Unwinding for unsafe extern "C" fn($($argument),*) -> R {
            type Pointer = unsafe extern "C-unwind" fn($($argument),*) -> R;

            fn unwinding(self) -> Self::Pointer {
                // SAFETY: the two types call in the same way, and differ only in what the caller makes of an exception.
                unsafe { mem::transmute::<Self, Self::Pointer>(self) }
            }
        }
    };
}
unwinding!(A);
unwinding!(A B);
unwinding!(A B C);
unwinding!(A B C D);
unwinding!(A B C D E);
unwinding!(A B C D E F);
unwinding!(A B C D E F G);
unwinding!(A B C D E F G H);

/// A structure for a result, with room behind it that a plugin must leave alone.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Out<T> {
    /// Begins with its size, as all of the interface's structures do.
    value: T,
    spare: [u64; SPARE_WORDS],
}

impl<T: Copy> Out<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value, spare: [UNTOUCHED_WORD; SPARE_WORDS] }
    }

    /// The structure, checked or not.
    pub(crate) fn value(&self) -> &T {
        &self.value
    }

    /// The structure before the plugin gets it.
    pub(crate) fn value_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// What the plugin gets.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        (&raw mut *self).cast()
    }

    /// The structure, or what the plugin did to it that it must not.
    pub(crate) fn checked(&self) -> Result<T, String> {
        let size = size_of::<T>() as u64;
        // SAFETY: every structure of the interface begins with its size, a u64, and `value` is one of them.
        let stated = unsafe { (&raw const self.value).cast::<u64>().read() };
        if stated != size {
            return Err(format!("sets struct_size to {stated} in the {size} bytes"));
        }
        if self.spare != [UNTOUCHED_WORD; SPARE_WORDS] {
            return Err(format!("writes beyond the {size} bytes"));
        }
        Ok(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::plugin::MemoryInfo;

    #[test]
    fn a_call_within_its_limit_gives_its_result_and_a_later_one_is_left_behind() {
        assert_eq!(watched(Duration::from_secs(60), || 7), Ok(7));
        let (sender, receiver) = mpsc::channel::<()>();
        let stuck = watched(Duration::from_millis(20), move || receiver.recv().is_err());
        assert_eq!(stuck, Err(Stuck::Hung));
        drop(sender);
    }

    #[test]
    fn structures_that_were_written_too_far_or_resized_are_seen() {
        let mut out = Out::new(MemoryInfo::sized());
        assert_eq!(out.checked().unwrap().total_bytes, 0);
        // SAFETY: 24 bytes of the structure and 8 of the room behind it.
        unsafe { out.as_mut_ptr().cast::<u64>().add(3).write(0) };
        assert!(out.checked().unwrap_err().contains("beyond the 24 bytes"));
        let mut out = Out::new(MemoryInfo::sized());
        // SAFETY: the first field of the structure.
        unsafe { out.as_mut_ptr().cast::<u64>().write(32) };
        assert!(out.checked().unwrap_err().contains("sets struct_size to 32"));
    }
}

//! Calls of a plugin's functions without the loader between, so that structures can have sizes of our choice.

use crate::outcome::{Outcome, Stop, failed};
use crate::target::PluginAccess;
use halite_hal::plugin::{self, Plugin, Status};
use std::ffi::{CString, c_char};
use std::marker::PhantomData;

/// What memory that nobody may write holds.
const CANARY: u64 = 0xc0de_cafe_c0de_cafe;

/// A structure for a result: it states a size, is clear up to there, and stands before memory that must not change.
pub(super) struct Out<T> {
    words: Vec<u64>,
    size: usize,
    kind: PhantomData<T>,
}

impl<T: Copy> Out<T> {
    /// A structure that states `size` bytes, a multiple of 8; it may be shorter or longer than `T`.
    pub(super) fn of(size: usize) -> Self {
        let mut words = vec![0; size / 8];
        words[0] = size as u64;
        // Behind it, as much as any version of the structure could have.
        words.resize(words.len() + size_of::<T>() / 8 + 64, CANARY);
        Self { words, size, kind: PhantomData }
    }

    /// A structure of this version's size.
    pub(super) fn sized() -> Self {
        Self::of(size_of::<T>())
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.words.as_mut_ptr().cast()
    }

    /// What was written, as this version's structure; what lies beyond the stated size is clear.
    pub(super) fn read(&self) -> T {
        let mut copy = self.words.clone();
        copy[self.size / 8..].fill(0);
        // SAFETY: the words hold at least the bytes of a `T` (`of`), and every structure of the interface is made of
        // numbers, for which all bit patterns are values. `T` is `Copy`, and so has no drop.
        unsafe { copy.as_ptr().cast::<T>().read() }
    }

    /// Fails if the size was changed, or memory beyond it.
    pub(super) fn check(&self, call: &str) -> Outcome {
        ensure_eq!(self.words[0], self.size as u64, "struct_size after {call}");
        let beyond = self.words[self.size / 8..].iter().position(|word| *word != CANARY);
        ensure!(
            beyond.is_none(),
            "{call} writes behind a structure of {} bytes, at byte {}",
            self.size,
            self.size + 8 * beyond.unwrap_or(0)
        );
        Ok(())
    }
}

/// Room for a plugin's message, with a limit that is watched.
pub(super) struct Message {
    raw: Box<plugin::Error>,
    text: Vec<c_char>,
}

impl Message {
    /// Room for so many bytes, the final zero included.
    pub(super) fn of(capacity: usize) -> Self {
        let mut text: Vec<c_char> = vec![0x55; capacity + 256];
        text[0] = 0;
        let mut raw = Box::new(plugin::Error::sized());
        raw.text_capacity = capacity as u64;
        raw.text = text.as_mut_ptr();
        Self { raw, text }
    }

    /// The least room that the interface allows.
    pub(super) fn least() -> Self {
        Self::of(256)
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut plugin::Error {
        &raw mut *self.raw
    }

    /// The message; fails if it has no end or goes beyond its room.
    pub(super) fn text(&self, call: &str) -> Result<String, Stop> {
        let capacity = self.raw.text_capacity as usize;
        let (room, beyond) = self.text.split_at(capacity.min(self.text.len()));
        ensure!(
            beyond.iter().all(|byte| *byte == 0x55),
            "{call} writes behind the {capacity} bytes of its message"
        );
        ensure!(room.contains(&0), "the message of {call} has no end");
        ensure_eq!(
            self.raw.struct_size,
            size_of::<plugin::Error>() as u64,
            "struct_size of the error of {call}"
        );
        Ok(plugin::fixed_text(room))
    }

    /// Passes when the call succeeded.
    pub(super) fn expect_ok(&self, status: Status, call: &str) -> Outcome {
        ensure!(status == plugin::STATUS_OK, "{call} returns {status}: {}", self.text(call)?);
        Ok(())
    }

    /// Passes when the call failed with one of these, and gives its message, which must not be empty.
    pub(super) fn expect(&self, status: Status, expected: &[Status], call: &str) -> Result<String, Stop> {
        let text = self.text(call)?;
        ensure!(expected.contains(&status), "{call} returns {status} ({text}), expected one of {expected:?}");
        ensure!(!text.is_empty(), "{call} fails with {status} and no message");
        ensure!(
            !text.contains(char::is_control) || status == plugin::STATUS_BUILD,
            "{call}: {text:?} is no line"
        );
        Ok(text)
    }
}

/// A function that the loader has found in the table.
pub(super) fn function<F>(function: Option<F>, name: &str) -> Result<F, Stop> {
    function.ok_or_else(|| failed(format!("the loaded table lacks {name}")))
}

/// The options of an opening in the interface's form.
pub(super) struct Options {
    _texts: Vec<(CString, CString)>,
    _options: Vec<plugin::OpenOption>,
    pointers: Vec<*const plugin::OpenOption>,
}

impl Options {
    pub(super) fn new(pairs: &[(String, String)]) -> Result<Self, Stop> {
        let text =
            |text: &String| CString::new(text.as_str()).map_err(|_| failed("an option holds a zero byte"));
        let texts = pairs
            .iter()
            .map(|(key, value)| Ok((text(key)?, text(value)?)))
            .collect::<Result<Vec<_>, Stop>>()?;
        let option = |(key, value): &(CString, CString)| plugin::OpenOption {
            key: key.as_ptr(),
            value: value.as_ptr(),
            ..plugin::OpenOption::sized()
        };
        let options: Vec<_> = texts.iter().map(option).collect();
        // The elements stay where they are when the vector moves.
        let pointers = options.iter().map(std::ptr::from_ref).collect();
        Ok(Self { _texts: texts, _options: options, pointers })
    }

    pub(super) fn count(&self) -> u32 {
        self.pointers.len() as u32
    }

    pub(super) fn as_ptr(&self) -> *const *const plugin::OpenOption {
        self.pointers.as_ptr()
    }
}

/// A device, opened by hand, and closed when dropped.
pub(super) struct RawDevice {
    pub(super) table: &'static Plugin,
    pub(super) handle: u64,
}

impl RawDevice {
    pub(super) fn open(access: &dyn PluginAccess) -> Result<Self, Stop> {
        let (table, options) = (access.table(), Options::new(&access.options())?);
        let open = function(table.device_open, "device_open")?;
        let (mut handle, mut message) = (0, Message::least());
        // SAFETY: the function has the header's type (the loader read it from the table); the options, the result and the
        // error are locals in the interface's form, which live during the call.
        let status = unsafe {
            open(access.index(), options.count(), options.as_ptr(), &mut handle, message.as_mut_ptr())
        };
        message.expect_ok(status, "device_open")?;
        ensure!(handle != 0, "device_open gives no handle");
        Ok(Self { table, handle })
    }
}

impl Drop for RawDevice {
    fn drop(&mut self) {
        if let Some(close) = self.table.device_close {
            // SAFETY: the handle is of this table's `device_open`, and everything made from it is gone: tests hold such
            // objects in guards that are dropped before.
            unsafe { close(self.handle) };
        }
    }
}

/// A stream of such a device.
pub(super) struct RawStream<'a> {
    pub(super) device: &'a RawDevice,
    pub(super) handle: u64,
}

impl<'a> RawStream<'a> {
    pub(super) fn create(device: &'a RawDevice) -> Result<Self, Stop> {
        let create = function(device.table.stream_create, "stream_create")?;
        let (mut handle, mut message) = (0, Message::least());
        // SAFETY: as in `RawDevice::open`; the device's handle is alive.
        let status = unsafe { create(device.handle, &mut handle, message.as_mut_ptr()) };
        message.expect_ok(status, "stream_create")?;
        ensure!(handle != 0, "stream_create gives no handle");
        Ok(Self { device, handle })
    }
}

impl Drop for RawStream<'_> {
    fn drop(&mut self) {
        if let Some(destroy) = self.device.table.stream_destroy {
            // SAFETY: the handle is alive until here, and no test leaves work on such a stream.
            unsafe { destroy(self.handle) };
        }
    }
}

//! What a plugin reports, as errors of the layer.

use crate::boundary::{Out, SPARE_BYTES, UNTOUCHED};
use crate::library::breach;
use halite_hal::plugin::{self, Status};
use halite_hal::{Error, ErrorKind, Result};
use std::ffi::c_char;
use std::path::Path;
use std::time::Duration;

/// Room for a line of explanation.
const LINE_BYTES: usize = 512;
/// Room for the log of a build.
const LOG_BYTES: usize = 64 << 10;

/// The text and numbers that a plugin may fill in while it runs a call.
pub(crate) struct Report {
    /// With room behind it that a plugin must leave alone.
    text: Vec<c_char>,
    raw: Out<plugin::Error>,
}

impl Report {
    /// Room for one line.
    pub(crate) fn line() -> Self {
        Self::with_capacity(LINE_BYTES)
    }

    /// Room for the log of a build.
    pub(crate) fn log() -> Self {
        Self::with_capacity(LOG_BYTES)
    }

    fn with_capacity(len: usize) -> Self {
        let mut text = vec![0; len + SPARE_BYTES];
        text[len..].fill(UNTOUCHED as c_char);
        Self { text, raw: Out::new(plugin::Error::sized()) }
    }

    /// What the call gets; valid while the report is not moved or read.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut plugin::Error {
        let raw = self.raw.value_mut();
        raw.text_capacity = (self.text.len() - SPARE_BYTES) as u64;
        raw.text = self.text.as_mut_ptr();
        self.raw.as_mut_ptr()
    }

    /// The result of a call of the plugin at `path` that returned `status`.
    pub(crate) fn check(&self, path: &Path, status: Status, call: &str) -> Result<()> {
        self.intact(path, call)?;
        self.result(status, call)
    }

    /// Refuses what the plugin did to the report that it must not, whatever the call's status.
    pub(crate) fn intact(&self, path: &Path, call: &str) -> Result<()> {
        if let Err(what) = self.raw.checked() {
            return Err(breach(path, format_args!("{what} of the error in {call}")));
        }
        let (text, spare) = self.parts();
        if spare.iter().any(|byte| *byte != UNTOUCHED as c_char) {
            return Err(breach(
                path,
                format_args!("writes beyond the {} bytes of the error's text in {call}", text.len()),
            ));
        }
        Ok(())
    }

    /// What `status` stands for.
    pub(crate) fn result(&self, status: Status, call: &str) -> Result<()> {
        if status == plugin::STATUS_OK { Ok(()) } else { Err(self.error(status, call)) }
    }

    /// The error that `status`, which is not OK, stands for.
    pub(crate) fn error(&self, status: Status, call: &str) -> Error {
        let text = plugin::fixed_text(self.parts().0);
        let raw = self.raw.value();
        let [first, second] = raw.detail;
        let kind = match status {
            plugin::STATUS_INVALID_ARGUMENT => ErrorKind::InvalidArgument,
            plugin::STATUS_UNSUPPORTED => ErrorKind::Unsupported,
            plugin::STATUS_UNAVAILABLE => ErrorKind::Unavailable,
            plugin::STATUS_OUT_OF_MEMORY => ErrorKind::OutOfMemory { requested: first, free: second },
            plugin::STATUS_TOO_LARGE => ErrorKind::TooLarge { requested: first, limit: second },
            plugin::STATUS_BUILD => ErrorKind::Build { log: printable_lines(&text) },
            plugin::STATUS_BAD_FORMAT => ErrorKind::BadFormat,
            plugin::STATUS_TIMEOUT => ErrorKind::Timeout { after: Duration::from_nanos(first) },
            plugin::STATUS_FAULT => ErrorKind::Fault,
            plugin::STATUS_LINK => ErrorKind::Link,
            plugin::STATUS_DEVICE_LOST => ErrorKind::DeviceLost,
            plugin::STATUS_ABI_MISMATCH => ErrorKind::AbiMismatch,
            plugin::STATUS_BACKEND => ErrorKind::Backend { code: raw.native_code, message: one_line(&text) },
            code => {
                ErrorKind::Backend { code: code.into(), message: "a status that the interface lacks".into() }
            }
        };
        let message = match (&kind, one_line(&text)) {
            (ErrorKind::Build { .. }, _) => "the plugin refused the program".into(),
            (_, line) if line.is_empty() => "the plugin gave no reason".into(),
            (_, line) => line,
        };
        Error::new(kind, message).in_call(call)
    }

    /// The text, and the room behind it.
    fn parts(&self) -> (&[c_char], &[c_char]) {
        self.text.split_at(self.text.len() - SPARE_BYTES)
    }
}

/// Text of a plugin on one line, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    printable.trim().to_owned()
}

/// Text of a plugin on several lines, without control characters that a terminal would obey.
fn printable_lines(text: &str) -> String {
    let printable: String =
        text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c }).collect();
    printable.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(status: Status, text: &[u8], detail: [u64; 2]) -> Error {
        let mut report = Report::line();
        let capacity = report.parts().0.len();
        for (byte, source) in report.text[..capacity].iter_mut().zip(text) {
            *byte = *source as c_char;
        }
        report.raw.value_mut().detail = detail;
        report.check(Path::new("plugin.so"), status, "some_call").unwrap_err()
    }

    #[test]
    fn text_and_numbers_beyond_their_end_are_seen_whatever_the_status() {
        for place in [LINE_BYTES, LINE_BYTES + SPARE_BYTES - 1] {
            for status in [plugin::STATUS_OK, plugin::STATUS_FAULT] {
                let mut report = Report::line();
                // As by a final zero behind the last byte.
                report.text[place] = 0;
                let error = report.check(Path::new("plugin.so"), status, "some_call").unwrap_err();
                assert_eq!(error.kind(), &ErrorKind::BadFormat);
                let expected = "writes beyond the 512 bytes of the error's text in some_call";
                assert!(error.message().contains(expected), "{error}");
            }
        }
    }

    #[test]
    fn numbers_of_the_status_arrive_in_the_kind() {
        let error = reported(plugin::STATUS_OUT_OF_MEMORY, b"full", [7, 3]);
        assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 7, free: 3 });
        assert_eq!((error.message(), error.call()), ("full", Some("some_call")));
    }

    #[test]
    fn unknown_codes_are_driver_errors_of_that_code() {
        for code in [-1, 14, i32::MIN] {
            let error = reported(code, b"", [0, 0]);
            assert!(matches!(error.kind(), ErrorKind::Backend { code: got, .. } if *got == code.into()));
            assert_eq!(error.message(), "the plugin gave no reason");
        }
    }

    #[test]
    fn text_without_an_end_and_with_line_breaks_is_bounded_and_one_line() {
        let error = reported(plugin::STATUS_FAULT, &[b'x'; 2 * LINE_BYTES], [0, 0]);
        assert_eq!(error.message().len(), LINE_BYTES);
        assert_eq!(reported(plugin::STATUS_FAULT, b"a\nb\x07\n", [0, 0]).message(), "a b");
    }

    #[test]
    fn a_log_keeps_its_lines_and_loses_what_a_terminal_would_obey() {
        let error = reported(plugin::STATUS_BUILD, b"line 1\n\tline 2\x1b[2J\r\n", [0, 0]);
        assert_eq!(error.kind(), &ErrorKind::Build { log: "line 1\n\tline 2 [2J".into() });
    }

    #[test]
    fn every_kind_survives_the_way_through_its_status() {
        for status in 1..=13 {
            let error = reported(status, b"why", [1, 2]);
            assert_eq!(plugin::status_of(error.kind()), status);
        }
    }
}

//! The one error type of the layer, with a kind that callers match on.

use std::fmt;
use std::time::Duration;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, without where.
///
/// *Absent* ([`Unavailable`](Self::Unavailable)), *unsupported* ([`Unsupported`](Self::Unsupported)) and
/// *failed* (everything else) are different things and never share a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller passed something that no device could accept.
    InvalidArgument,
    /// The device is there and healthy, but cannot do this; it never will.
    Unsupported,
    /// A backend, device, plugin or file is not there.
    Unavailable,
    /// The device has no room now; freeing memory may help.
    OutOfMemory {
        /// Bytes that were asked for.
        requested: u64,
        /// Bytes that were free at that moment, as far as the driver tells.
        free: u64,
    },
    /// The request exceeds a limit of the device; freeing memory does not help.
    TooLarge {
        /// Bytes (or items) that were asked for.
        requested: u64,
        /// The device's limit in the same unit.
        limit: u64,
    },
    /// A kernel did not compile.
    Build {
        /// The compiler's log.
        log: String,
    },
    /// A kernel binary, data file or description is damaged or of another format.
    BadFormat,
    /// A wait reached its time limit; the work goes on.
    Timeout {
        /// The limit that was reached.
        after: Duration,
    },
    /// A kernel stopped with a fault (a trap, an exception of a core, a panic); its stream is poisoned.
    Fault,
    /// A link between devices, or between host and device, failed.
    Link,
    /// The device is gone; every further call on it fails the same way.
    DeviceLost,
    /// A plugin speaks another version of the interface.
    AbiMismatch,
    /// The driver reported a failure that maps to no other kind.
    Backend {
        /// The driver's code.
        code: i64,
        /// The driver's symbolic name or message.
        message: String,
    },
}

impl ErrorKind {
    /// The kind's name, as it stands in messages and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::OutOfMemory { .. } => "out of memory",
            Self::TooLarge { .. } => "too large",
            Self::Build { .. } => "build failed",
            Self::BadFormat => "bad format",
            Self::Timeout { .. } => "timeout",
            Self::Fault => "fault",
            Self::Link => "link failure",
            Self::DeviceLost => "device lost",
            Self::AbiMismatch => "abi mismatch",
            Self::Backend { .. } => "driver error",
        }
    }
}

/// An error of the layer: a kind, the device and call that it happened on, and one line of explanation.
///
/// `Clone`, because the first failure of a stream is reported to everyone who waits for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", Rendered(.0))]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    kind: ErrorKind,
    device: Option<String>,
    call: Option<String>,
    message: String,
}

impl Error {
    /// An error of `kind`; `message` says what was expected, what came, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, device: None, call: None, message: message.into() }))
    }

    /// Shorthand for [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// Shorthand for [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// Shorthand for [`ErrorKind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// Shorthand for [`ErrorKind::BadFormat`].
    pub fn bad_format(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadFormat, message)
    }

    /// Names the device, unless an inner layer already did.
    #[must_use]
    pub fn on_device(mut self, device: impl fmt::Display) -> Self {
        self.0.device.get_or_insert_with(|| device.to_string());
        self
    }

    /// Names the call (`stream.launch`, or a driver's `cuMemAlloc`), unless an inner layer already did.
    #[must_use]
    pub fn in_call(mut self, call: impl fmt::Display) -> Self {
        self.0.call.get_or_insert_with(|| call.to_string());
        self
    }

    /// The kind to match on.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The device's name (`cpu:0`), where one was involved.
    pub fn device(&self) -> Option<&str> {
        self.0.device.as_deref()
    }

    /// The call that failed, where it is known.
    pub fn call(&self) -> Option<&str> {
        self.0.call.as_deref()
    }

    /// The explanation, without device, call and kind.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether the same call may succeed later on the same device: out of memory, time-outs and failed links.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::OutOfMemory { .. } | ErrorKind::Timeout { .. } | ErrorKind::Link)
    }
}

struct Rendered<'a>(&'a Inner);

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, device, call, message } = self.0;
        if let Some(device) = device {
            write!(f, "{device}: ")?;
        }
        if let Some(call) = call {
            write!(f, "{call}: ")?;
        }
        write!(f, "{}: {message}", kind.name())?;
        match kind {
            ErrorKind::Build { log } => write!(f, "\n{log}"),
            // A driver's only text is often the explanation as well.
            ErrorKind::Backend { code, message: own } if own == message => write!(f, " (code {code})"),
            ErrorKind::Backend { code, message } => write!(f, " ({message}, code {code})"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_device_call_and_kind_in_that_order() {
        let error = Error::invalid("grid is 0").in_call("stream.launch").on_device("cpu:0");
        assert_eq!(error.to_string(), "cpu:0: stream.launch: invalid argument: grid is 0");
    }

    #[test]
    fn a_drivers_message_that_is_the_explanation_too_is_shown_once() {
        let backend = |message: &str| ErrorKind::Backend { code: 7, message: message.into() };
        let error = Error::new(backend("ECC_ERROR"), "the copy failed");
        assert_eq!(error.to_string(), "driver error: the copy failed (ECC_ERROR, code 7)");
        let error = Error::new(backend("the fan stopped"), "the fan stopped").in_call("memory_alloc");
        assert_eq!(error.to_string(), "memory_alloc: driver error: the fan stopped (code 7)");
    }

    #[test]
    fn innermost_device_and_call_win() {
        let error = Error::unsupported("x").on_device("npu:0").on_device("cpu:0").in_call("a").in_call("b");
        assert_eq!((error.device(), error.call()), (Some("npu:0"), Some("a")));
    }

    #[test]
    fn only_passing_conditions_are_retryable() {
        assert!(Error::new(ErrorKind::OutOfMemory { requested: 2, free: 1 }, "").is_retryable());
        assert!(!Error::new(ErrorKind::TooLarge { requested: 2, limit: 1 }, "").is_retryable());
        assert!(!Error::new(ErrorKind::DeviceLost, "").is_retryable());
    }
}

//! How a test ends.

use halite_hal::Error;

/// What a test gives back: nothing when the promise holds.
pub type Outcome = Result<(), Stop>;

/// Why a test did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The promise is broken: what was expected, and what came.
    Failed(String),
    /// The device does not claim what the test is about, and said so when asked.
    Unsupported(String),
    /// This run leaves the test out: it lacks what the test needs, or has no time for it.
    Skipped(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(format!("unexpected error: {error}"))
    }
}

/// A failure with this reason.
pub(crate) fn failed(reason: impl Into<String>) -> Stop {
    Stop::Failed(reason.into())
}

/// What a device does not claim.
pub(crate) fn unsupported(reason: impl Into<String>) -> Stop {
    Stop::Unsupported(reason.into())
}

/// What this run leaves out.
pub(crate) fn skipped(reason: impl Into<String>) -> Stop {
    Stop::Skipped(reason.into())
}

/// Fails the test with a formatted reason unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::outcome::failed(format!($($reason)+)));
        }
    };
}

/// Fails the test unless both are equal; the text says what was compared.
macro_rules! ensure_eq {
    ($got:expr, $expected:expr, $($what:tt)+) => {{
        let (got, expected) = (&$got, &$expected);
        if got != expected {
            let what = format!($($what)+);
            return Err($crate::outcome::failed(format!("{what}: expected {expected:?}, got {got:?}")));
        }
    }};
}

/// Fails the test unless the result is an error of this kind, and gives the error.
macro_rules! ensure_kind {
    ($result:expr, $kind:pat, $($what:tt)+) => {
        match $result {
            Err(error) if matches!(error.kind(), $kind) => error,
            Err(error) => {
                let (what, kind) = (format!($($what)+), $crate::outcome::plain(stringify!($kind)));
                return Err($crate::outcome::failed(format!("{what}: expected an error of {kind}, got: {error}")));
            }
            Ok(_) => {
                let (what, kind) = (format!($($what)+), $crate::outcome::plain(stringify!($kind)));
                return Err($crate::outcome::failed(format!("{what}: expected an error of {kind}, but it was accepted")));
            }
        }
    };
}

/// A pattern of kinds as people read it.
pub(crate) fn plain(pattern: &str) -> String {
    pattern.replace("ErrorKind::", "").replace(" { .. }", "").replace(" |", " or")
}

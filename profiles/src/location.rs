//! Where a value was written: file and line.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Prefix of the file name of profiles that are compiled into the crate.
pub(crate) const BUILTIN_PREFIX: &str = "builtin:";

/// A line of a profile; prints as `FILE:LINE`, built-in files as `builtin:NAME.yaml:LINE`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    file: Arc<str>,
    line: u32,
}

impl Location {
    /// The line `line` (counted from 1) of `file`.
    pub fn new(file: impl Into<Arc<str>>, line: u32) -> Self {
        Self { file: file.into(), line }
    }

    /// The file as the user named it, or `builtin:NAME.yaml`.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The line, counted from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Whether the line belongs to a profile that is compiled into the crate.
    pub fn is_builtin(&self) -> bool {
        self.file.starts_with(BUILTIN_PREFIX)
    }

    pub(crate) fn with_line(&self, line: u32) -> Self {
        Self { file: Arc::clone(&self.file), line }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

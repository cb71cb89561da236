//! Tests that are known to fail, with the reason.

use std::collections::BTreeMap;

/// A test that is known to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedFailure {
    /// The test's whole name: `time/parts-add-up`.
    pub test: String,
    /// Why it fails, and what would change that.
    pub reason: String,
}

/// Tests that are known to fail. One that passes fails the run, so that it is taken off the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedFailures(BTreeMap<String, String>);

/// What is wrong with a list of expected failures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpectedError {
    /// A line that is no entry.
    #[error(
        "line {line} of the expected failures is '{text}'; write the test's name, a colon and the reason"
    )]
    Line {
        /// Counted from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A name that no test has.
    #[error("line {line} of the expected failures names '{test}', which is no test; --list shows them all")]
    Unknown {
        /// Counted from 1.
        line: usize,
        /// What stands there.
        test: String,
    },
}

impl ExpectedFailures {
    /// A list of these.
    pub fn new(entries: impl IntoIterator<Item = ExpectedFailure>) -> Self {
        Self(entries.into_iter().map(|entry| (entry.test, entry.reason)).collect())
    }

    /// Reads lines of `group/test: reason`; empty ones and those that begin with `#` are left aside.
    ///
    /// # Errors
    /// The first line that is no entry, or names no test.
    pub fn parse(text: &str) -> Result<Self, ExpectedError> {
        let known = crate::run::catalogue();
        let mut entries = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let (line, number) = (line.trim(), number + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = line.split_once(':').map(|(test, reason)| (test.trim(), reason.trim()));
            let Some((test, reason)) = entry.filter(|(_, reason)| !reason.is_empty()) else {
                return Err(ExpectedError::Line { line: number, text: line.to_owned() });
            };
            if !known.iter().any(|entry| entry.name == test) {
                return Err(ExpectedError::Unknown { line: number, test: test.to_owned() });
            }
            entries.insert(test.to_owned(), reason.to_owned());
        }
        Ok(Self(entries))
    }

    /// Why a test is expected to fail, if it is.
    pub fn reason(&self, test: &str) -> Option<&str> {
        self.0.get(test).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_need_a_known_test_and_a_reason() {
        let name = crate::run::catalogue()[0].name.clone();
        let text = format!("# a comment\n\n{name}: the driver rounds: see its manual\n");
        let list = ExpectedFailures::parse(&text).unwrap();
        assert_eq!(list.reason(&name), Some("the driver rounds: see its manual"));
        assert_eq!(list.reason("other"), None);
        for (text, line) in [(name.clone(), 1), (format!("\n{name}:  "), 2)] {
            assert!(
                matches!(ExpectedFailures::parse(&text), Err(ExpectedError::Line { line: at, .. }) if at == line)
            );
        }
        let unknown = ExpectedFailures::parse("transfer/no-such: reason").unwrap_err();
        assert_eq!(unknown, ExpectedError::Unknown { line: 1, test: "transfer/no-such".into() });
    }
}

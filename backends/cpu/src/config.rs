//! Settings of the backend.

use crate::host;
use halite_hal::{Error, Result};
use std::env;

/// How much of the machine the backend may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuConfig {
    /// Threads that run kernels; `None` for every core that the process may use.
    pub threads: Option<usize>,
    /// Bytes that all buffers together may take; `None` for what is available when the backend is first probed.
    pub memory_limit_bytes: Option<u64>,
}

/// Most worker threads of one device.
const MAX_THREADS: usize = 1024;

/// The limit when neither the caller nor the system names one.
const DEFAULT_MEMORY_BYTES: u64 = 1 << 30;

impl CpuConfig {
    /// Reads `HALITE_CPU_THREADS` (a count) and `HALITE_CPU_MEMORY` (bytes, or a number with one of the units
    /// `KB MB GB TB KiB MiB GiB TiB`). What is not set, or empty, keeps its default.
    ///
    /// # Errors
    /// `InvalidArgument` that names the variable, its value and what was expected.
    pub fn from_env() -> Result<Self> {
        let read = |name: &str| match env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(value)) => {
                Err(Error::invalid(format!("{name} is {value:?}, which is no text")))
            }
        };
        Self::parse(read("HALITE_CPU_THREADS")?.as_deref(), read("HALITE_CPU_MEMORY")?.as_deref())
    }

    fn parse(threads: Option<&str>, memory: Option<&str>) -> Result<Self> {
        let given = |text: &&str| !text.trim().is_empty();
        let threads = threads.filter(given).map(|text| {
            let expected =
                || format!("HALITE_CPU_THREADS is '{text}', expected a count from 1 to {MAX_THREADS}");
            let count = text.trim().parse().map_err(|_| Error::invalid(expected()))?;
            if (1..=MAX_THREADS).contains(&count) { Ok(count) } else { Err(Error::invalid(expected())) }
        });
        let memory = memory.filter(given).map(|text| {
            parse_bytes(text).filter(|&bytes| bytes > 0).ok_or_else(|| {
                Error::invalid(format!(
                    "HALITE_CPU_MEMORY is '{text}', expected a number of bytes above 0 such as 1073741824, 512MiB or 8GB"
                ))
            })
        });
        Ok(Self { threads: threads.transpose()?, memory_limit_bytes: memory.transpose()? })
    }

    pub(crate) fn resolved_threads(&self) -> Result<usize> {
        match self.threads {
            None => Ok(host::available_threads().min(MAX_THREADS)),
            Some(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
            Some(threads) => {
                Err(Error::invalid(format!("{threads} threads, expected from 1 to {MAX_THREADS}")))
            }
        }
    }

    pub(crate) fn resolved_memory_bytes(&self) -> u64 {
        self.memory_limit_bytes.unwrap_or_else(|| match host::available_memory_bytes() {
            0 => DEFAULT_MEMORY_BYTES,
            bytes => bytes,
        })
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::ErrorKind;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let cases = [
            ("0", Some(0)),
            ("4096", Some(4096)),
            (" 512 MiB ", Some(512 << 20)),
            ("8GB", Some(8_000_000_000)),
            ("1kib", Some(1024)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("1M", None),
            ("18446744073709551615TiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn wrong_values_are_invalid_arguments_that_name_the_variable() {
        for (threads, memory, name) in [
            (Some("0"), None, "HALITE_CPU_THREADS"),
            (Some("many"), None, "HALITE_CPU_THREADS"),
            (Some("1025"), None, "HALITE_CPU_THREADS"),
            (None, Some("lots"), "HALITE_CPU_MEMORY"),
            (None, Some("0"), "HALITE_CPU_MEMORY"),
            (None, Some("0GiB"), "HALITE_CPU_MEMORY"),
        ] {
            let error = CpuConfig::parse(threads, memory).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
            assert!(error.message().contains(name), "{error}");
        }
        let config = CpuConfig::parse(Some("3"), Some("1MiB")).unwrap();
        assert_eq!((config.threads, config.memory_limit_bytes), (Some(3), Some(1 << 20)));
        assert_eq!(CpuConfig::parse(None, None).unwrap(), CpuConfig::default());
        assert_eq!(CpuConfig::parse(Some(""), Some(" ")).unwrap(), CpuConfig::default(), "empty is not set");
    }

    #[test]
    fn a_thread_count_of_zero_is_refused() {
        let config = CpuConfig { threads: Some(0), ..CpuConfig::default() };
        assert!(config.resolved_threads().is_err());
        assert!(CpuConfig::default().resolved_threads().unwrap() >= 1);
    }
}

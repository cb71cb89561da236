//! Options for opening devices, as keys and values.

use halite_hal::plugin::OpenOption;
use halite_hal::{Error, Result};
use std::ffi::CString;

/// The environment variable with options for every NPU device: `key=value,key=value`.
pub const OPTIONS_VARIABLE: &str = "HALITE_NPU_OPTIONS";

/// Keys and values that are passed to plugins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options(Vec<(CString, CString)>);

impl Options {
    /// Reads `key=value,key=value`; empty parts are skipped. A value with a comma is only possible by
    /// [`push`](Self::push).
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut options = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| {
                Error::invalid(format!("{OPTIONS_VARIABLE} has '{part}', which is no key=value"))
            })?;
            options.push(key.trim(), value.trim())?;
        }
        Ok(options)
    }

    /// Adds an option behind the others.
    pub(crate) fn push(&mut self, key: &str, value: &str) -> Result<()> {
        if key.is_empty() {
            return Err(Error::invalid(format!("an option with the value '{value}' has no key")));
        }
        let c_string = |text: &str| {
            CString::new(text)
                .map_err(|_| Error::invalid(format!("option '{key}' holds a zero byte; remove it")))
        };
        self.0.push((c_string(key)?, c_string(value)?));
        Ok(())
    }

    /// Passes the options to `call` in the interface's form: a count, and pointers that are valid meanwhile.
    pub(crate) fn pass<T>(&self, call: impl FnOnce(u32, *const *const OpenOption) -> T) -> T {
        let raw = self.0.iter().map(|(key, value)| {
            let mut option = OpenOption::sized();
            option.key = key.as_ptr();
            option.value = value.as_ptr();
            option
        });
        let raw: Vec<_> = raw.collect();
        let pointers: Vec<_> = raw.iter().map(std::ptr::from_ref).collect();
        call(pointers.len() as u32, pointers.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(options: &Options) -> Vec<(&str, &str)> {
        options.0.iter().map(|(k, v)| (k.to_str().unwrap(), v.to_str().unwrap())).collect()
    }

    #[test]
    fn keys_and_values_are_split_and_trimmed() {
        let options = Options::parse(" machine = a=b.yaml , ,threads=2,").unwrap();
        assert_eq!(texts(&options), [("machine", "a=b.yaml"), ("threads", "2")]);
        assert!(texts(&Options::parse("").unwrap()).is_empty());
    }

    #[test]
    fn what_is_no_option_is_refused_by_name() {
        for bad in ["machine", "=x", "a=b\0"] {
            assert!(Options::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Options::parse("threads").unwrap_err().message().contains("threads"));
    }
}

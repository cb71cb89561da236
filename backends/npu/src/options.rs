//! Options for opening devices, as keys and values.

use crate::error::one_line;
use halite_hal::plugin::OpenOption;
use halite_hal::{Error, ErrorKind, Result};
use std::ffi::CString;
use std::path::Path;

/// The environment variable with options for every NPU device: `key=value,key=value`.
pub const OPTIONS_VARIABLE: &str = "HALITE_NPU_OPTIONS";

/// Keys and values that are passed to plugins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pairs: Vec<(CString, CString)>,
    /// How many of them come from [`OPTIONS_VARIABLE`]; they are the first.
    of_variable: usize,
}

impl Options {
    /// Reads the text of [`OPTIONS_VARIABLE`], `key=value,key=value`; empty parts are skipped. A value with a comma is
    /// only possible by [`push`](Self::push).
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut options = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let pair = part.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
            let (key, value) = pair.filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                Error::invalid(one_line(&format!("{OPTIONS_VARIABLE} has '{part}', which is no key=value")))
            })?;
            options.push(key, value)?;
        }
        options.of_variable = options.pairs.len();
        Ok(options)
    }

    /// Adds an option behind the others.
    pub(crate) fn push(&mut self, key: &str, value: &str) -> Result<()> {
        if key.is_empty() {
            return Err(Error::invalid(one_line(&format!("an option with the value '{value}' has no key"))));
        }
        let c_string = |text: &str| {
            CString::new(text).map_err(|_| {
                Error::invalid(one_line(&format!("option '{key}' holds a zero byte; remove it")))
            })
        };
        self.pairs.push((c_string(key)?, c_string(value)?));
        Ok(())
    }

    /// Keys and values, in order.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let text = |text: &CString| text.to_string_lossy().into_owned();
        self.pairs.iter().map(|(key, value)| (text(key), text(value))).collect()
    }

    /// What `plugin` answered to these options; a refusal says in whose name it came, and where they were given.
    pub(crate) fn refused_by(&self, plugin: &Path, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::BadFormat) {
            return error;
        }
        let list = |pairs: &[(CString, CString)]| {
            let pair = |(key, value): &(CString, CString)| {
                format!("{}={}", key.to_string_lossy(), value.to_string_lossy())
            };
            pairs.iter().map(pair).collect::<Vec<_>>().join(",")
        };
        let (of_variable, others) = self.pairs.split_at(self.of_variable);
        let mut given = Vec::new();
        if !of_variable.is_empty() {
            given.push(format!("{OPTIONS_VARIABLE}='{}'", list(of_variable)));
        }
        if !others.is_empty() {
            given.push(format!("the options '{}'", list(others)));
        }
        let refuses =
            if given.is_empty() { String::new() } else { format!(" refuses {}", given.join(" and ")) };
        let message = one_line(&format!("plugin '{}'{refuses}: {}", plugin.display(), error.message()));
        let named = Error::new(error.kind().clone(), message);
        match error.call() {
            Some(call) => named.in_call(call),
            None => named,
        }
    }

    /// Passes the options to `call` in the interface's form: a count, and pointers that are valid meanwhile.
    pub(crate) fn pass<T>(&self, call: impl FnOnce(u32, *const *const OpenOption) -> T) -> T {
        let raw = self.pairs.iter().map(|(key, value)| {
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
        options.pairs.iter().map(|(k, v)| (k.to_str().unwrap(), v.to_str().unwrap())).collect()
    }

    #[test]
    fn keys_and_values_are_split_and_trimmed() {
        let options = Options::parse(" machine = a=b.yaml , ,threads=2,").unwrap();
        assert_eq!(texts(&options), [("machine", "a=b.yaml"), ("threads", "2")]);
        assert!(texts(&Options::parse("").unwrap()).is_empty());
    }

    #[test]
    fn a_refusal_says_where_the_options_come_from() {
        let refused = |options: &Options| {
            options.refused_by(Path::new("npu.so"), Error::invalid("unknown option").in_call("device_info"))
        };
        let mut options = Options::parse("cores=3, threads = 2").unwrap();
        let error = refused(&options);
        assert_eq!(
            error.to_string(),
            "device_info: invalid argument: plugin 'npu.so' refuses HALITE_NPU_OPTIONS='cores=3,threads=2': \
             unknown option"
        );
        options.push("machine", "a.yaml").unwrap();
        let both = "HALITE_NPU_OPTIONS='cores=3,threads=2' and the options 'machine=a.yaml'";
        assert!(refused(&options).message().contains(both));
        let mut pushed = Options::default();
        assert_eq!(refused(&pushed).message(), "plugin 'npu.so': unknown option");
        pushed.push("machine", "a.yaml").unwrap();
        assert_eq!(
            refused(&pushed).message(),
            "plugin 'npu.so' refuses the options 'machine=a.yaml': unknown option"
        );
        // What is no refusal stays as it is.
        let absent = Error::unavailable("no hardware");
        assert_eq!(options.refused_by(Path::new("npu.so"), absent).message(), "no hardware");
    }

    #[test]
    fn a_refusal_is_one_line_that_no_terminal_obeys() {
        let error = Options::parse("a=b,\x1b[2J\nthreads\x04").unwrap_err();
        assert_eq!(error.message(), "HALITE_NPU_OPTIONS has ' [2J threads ', which is no key=value");
        let error = Options::default().push("\x07key", "\0").unwrap_err();
        assert_eq!(error.message(), "option ' key' holds a zero byte; remove it");
    }

    #[test]
    fn what_is_no_option_is_refused_by_name() {
        for bad in ["machine", "=x", "a=b\0"] {
            assert!(Options::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["threads", "=threads"] {
            let error = Options::parse(bad).unwrap_err();
            assert!(
                error.message().contains("threads") && error.message().contains(OPTIONS_VARIABLE),
                "{error}"
            );
        }
    }
}

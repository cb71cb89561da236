//! Compiling: from OpenCL C, or from a binary that an earlier compilation left on disk.

use crate::api::{Program, c_string};
use crate::device::{DeviceShared, lock};
use crate::error;
use crate::probe::Found;
use halite_cache::{Cache, Key};
use halite_hal::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, Weak};

/// Lets kernels be asked for their arguments, which are compared with signatures.
const OWN_OPTIONS: &str = "-cl-kernel-arg-info";

/// The programs of a device that kernels live in, and those on disk.
pub(crate) struct Programs {
    cache: Cache,
    /// Device and driver, as the first fields of every key.
    identity: String,
    built: Mutex<HashMap<Key, Weak<Program>>>,
}

impl Programs {
    pub(crate) fn new(cache: Cache, found: &Found) -> Self {
        let info = &found.info;
        let identity = [&found.identity, &info.name, &info.vendor, &info.driver_version].map(String::as_str);
        Self { cache, identity: identity.join("\n"), built: Mutex::default() }
    }
}

impl DeviceShared {
    /// The program of `source` for this device. Kernels of one source share it while one of them lives.
    ///
    /// # Errors
    /// `Build` with the compiler's log; `InvalidArgument` for options that OpenCL does not know.
    pub(crate) fn program(&self, source: &str, options: &str) -> Result<Arc<Program>> {
        let programs = &self.programs;
        let key =
            halite_cache::key(&[env!("CARGO_PKG_VERSION"), &programs.identity, OWN_OPTIONS, options, source]);
        if let Some(program) = lock(&programs.built).get(&key).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let all_options = c_string(&format!("{OWN_OPTIONS} {options}"), "the options")?;
        let program = Arc::new(match self.restore(&key, &all_options) {
            Some(program) => program,
            None => self.compile(&key, source, &all_options)?,
        });
        let mut built = lock(&programs.built);
        built.retain(|_, program| program.strong_count() > 0);
        built.insert(key, Arc::downgrade(&program));
        Ok(program)
    }

    /// The program from disk; none if there is none that the driver takes.
    fn restore(&self, key: &Key, options: &CStr) -> Option<Program> {
        let binary = self.programs.cache.read(key)?;
        let program = self.context.create_program_of(self.found.handle, &binary);
        let built = program.and_then(|program| program.build(self.found.handle, options).map(|()| program));
        if let Err(error) = &built {
            log::debug!("{}: a kept binary is compiled again: {error}", self.info().id);
            self.programs.cache.remove(key);
        }
        built.ok()
    }

    fn compile(&self, key: &Key, source: &str, options: &CStr) -> Result<Program> {
        let program = self.context.create_program(source)?;
        program.build(self.found.handle, options).map_err(|error| match error.kind() {
            ErrorKind::Build { .. } => self.build_failure(&program, &error),
            _ => error,
        })?;
        if self.programs.cache.is_on() {
            match program.binary() {
                Ok(binary) => self.programs.cache.write(key, &binary),
                Err(error) => log::debug!("{}: no binary to keep: {error}", self.info().id),
            }
        }
        Ok(program)
    }

    fn build_failure(&self, program: &Program, error: &Error) -> Error {
        let log = program.log(self.found.handle).unwrap_or_else(|error| format!("no log: {error}"));
        let message = format!("the source does not compile; the log follows: {}", error.message());
        error::with_kind(error, ErrorKind::Build { log: log.trim().to_owned() }, message)
    }
}

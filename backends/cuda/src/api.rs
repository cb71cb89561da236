//! The driver's functions that need no context, with checked results: versions, devices, names of errors.
//!
//! Those that need one are in `context.rs`, where the context is current by construction.

use crate::error::{self, driver_error};
use crate::library::{self, Libraries, Wanted, one_line};
use crate::sys::{CUdevice, CUdevice_attribute, CUdeviceptr, DriverTable};
use halite_hal::{Error, Result};
use std::ffi::{CStr, c_char};
use std::fmt;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// Calls a function of the driver's table, and turns its code into a result.
macro_rules! call {
    ($driver:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let driver: &$crate::api::Driver = $driver;
        // SAFETY: the function has the header's arguments (see `sys.rs`); pointers lead to locals of the caller that
        // outlive the call, or are what its own safety comment says; handles are those of live objects, which the types
        // of this crate own, and a context is current where one is needed (see `context.rs`).
        let code = unsafe { (driver.table.$function)($($argument),*) };
        driver.check(code, stringify!($function))
    }};
}
pub(crate) use call;

/// What this backend calls is in the driver from here on.
pub(crate) const OLDEST: Version = Version { major: 11, minor: 4 };

/// A version of CUDA, as the driver or a library tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Address of device memory, or of host memory as the device sees it.
pub(crate) type Address = CUdeviceptr;

/// The driver, loaded and initialised.
pub(crate) struct Driver {
    pub(crate) table: DriverTable,
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({}, CUDA {})", self.path.display(), self.version)
    }
}

/// Drivers that were loaded, by the file that was asked for. A failure is not kept: the driver may come later.
static LOADED: Mutex<Vec<(Option<PathBuf>, &'static Driver)>> = Mutex::new(Vec::new());

impl Driver {
    /// Loads the driver, once.
    ///
    /// # Errors
    /// `Unavailable` with what was looked for and what was found: no library, one that is too old, one that cannot
    /// start.
    pub(crate) fn load(libraries: &Libraries) -> Result<&'static Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, driver)) = loaded.iter().find(|(asked, _)| *asked == libraries.driver) {
            return Ok(driver);
        }
        let (library, path) = library::open(&Wanted {
            what: "NVIDIA's driver",
            explicit: libraries.driver.as_deref(),
            candidates: library::driver_candidates(),
            remedy: "install the driver, or name its library in HALITE_CUDA_LIBRARY",
        })?;
        // SAFETY: the library is the driver by its name, or the file that the user named as such.
        let table = unsafe { DriverTable::resolve(library) }.map_err(|symbol| {
            Error::unavailable(format!(
                "{} has no function {symbol}; install a driver for CUDA {OLDEST} or later",
                path.display()
            ))
        })?;
        let mut driver = Self { table, path, version: OLDEST };
        driver.start()?;
        let driver: &'static Self = Box::leak(Box::new(driver));
        loaded.push((libraries.driver.clone(), driver));
        Ok(driver)
    }

    fn start(&mut self) -> Result<()> {
        let path = self.path.display().to_string();
        call!(self, cuInit(0)).map_err(|error| {
            // Whatever keeps the driver from starting, there is no device behind it.
            Error::unavailable(format!("{path} does not start: {}", describe(&error))).in_call("cuInit")
        })?;
        let mut version = 0;
        call!(self, cuDriverGetVersion(&mut version))?;
        self.version = version_of(version);
        if self.version < OLDEST {
            return Err(Error::unavailable(format!(
                "{path} is a driver for CUDA {}, which is too old; install one for CUDA {OLDEST} or later",
                self.version
            )));
        }
        Ok(())
    }

    pub(crate) fn device_count(&self) -> Result<u32> {
        let mut count = 0;
        call!(self, cuDeviceGetCount(&mut count))?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    pub(crate) fn device(&self, index: u32) -> Result<CUdevice> {
        let mut device = 0;
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        call!(self, cuDeviceGet(&mut device, index))?;
        Ok(device)
    }

    pub(crate) fn device_name(&self, device: CUdevice) -> Result<String> {
        let mut text = [0 as c_char; 256];
        // One byte less than there is room for, so that the text ends whatever the driver does.
        call!(self, cuDeviceGetName(text.as_mut_ptr(), 255, device))?;
        let bytes: Vec<u8> = text.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
        Ok(one_line(&String::from_utf8_lossy(&bytes)))
    }

    pub(crate) fn device_memory(&self, device: CUdevice) -> Result<u64> {
        let mut bytes = 0;
        call!(self, cuDeviceTotalMem_v2(&mut bytes, device))?;
        Ok(bytes as u64)
    }

    /// An attribute of a device, as a number that is at least 0.
    pub(crate) fn attribute(&self, device: CUdevice, attribute: CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        call!(self, cuDeviceGetAttribute(&mut value, attribute, device))?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    pub(crate) fn can_access_peer(&self, device: CUdevice, peer: CUdevice) -> Result<bool> {
        let mut can = 0;
        call!(self, cuDeviceCanAccessPeer(&mut can, device, peer))?;
        Ok(can != 0)
    }

    /// The result of a call that returned `code`.
    pub(crate) fn check(&self, code: u32, call: &str) -> Result<()> {
        if code == error::SUCCESS { Ok(()) } else { Err(self.error(code, call)) }
    }

    /// The error that `code`, which is no success, stands for, in the driver's own words.
    pub(crate) fn error(&self, code: u32, call: &str) -> Error {
        let ask = |function: unsafe extern "C" fn(u32, *mut *const c_char) -> u32| {
            let mut text = ptr::null();
            // SAFETY: the function writes a pointer to a constant string, or reports that it knows none.
            let status = unsafe { function(code, &mut text) };
            if status != error::SUCCESS || text.is_null() {
                return None;
            }
            // SAFETY: a string of the driver, constant and with an end (CUDA Driver API, "Error Handling").
            Some(one_line(&unsafe { CStr::from_ptr(text) }.to_string_lossy()))
        };
        let (name, text) = (ask(self.table.cuGetErrorName), ask(self.table.cuGetErrorString));
        driver_error(code, call, name.as_deref(), text.as_deref())
    }
}

/// CUDA's version numbers are `1000 * major + 10 * minor`.
fn version_of(number: i32) -> Version {
    let number = u32::try_from(number).unwrap_or(0);
    Version { major: number / 1000, minor: number % 1000 / 10 }
}

/// An error's explanation with the driver's code, for use inside another's.
fn describe(error: &Error) -> String {
    match error.kind() {
        halite_hal::ErrorKind::Backend { code, message } => {
            format!("{} ({message}, code {code})", error.message())
        }
        _ => error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered_as_cuda_numbers_them() {
        assert_eq!(version_of(12080).to_string(), "12.8");
        assert_eq!(version_of(11040), OLDEST);
        assert!(version_of(10020) < OLDEST && version_of(13000) > version_of(12090));
        assert_eq!(version_of(-1).to_string(), "0.0");
    }
}

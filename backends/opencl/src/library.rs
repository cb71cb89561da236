//! Finding and opening the OpenCL library.
//!
//! Nothing is linked: `stub/opencl.c` stands in for the library, and forwards to the one that is opened here. On macOS,
//! where the framework is a part of the system, the bindings link it and only its presence is looked at.

use crate::error::one_line;
use halite_hal::{Error, Result};
use libloading::Library as SharedLibrary;
use std::ffi::{CStr, OsString, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The environment variable that names the one file to open instead of searching.
pub const LIBRARY_VARIABLE: &str = "HALITE_OPENCL_LIBRARY";

/// Names that the system's own search knows: the loader of the Khronos group, then drivers that come without one.
const NAMES: &[&str] = if cfg!(windows) {
    &["OpenCL.dll"]
} else if cfg!(target_os = "macos") {
    &["/System/Library/Frameworks/OpenCL.framework/OpenCL"]
} else if cfg!(target_os = "android") {
    ANDROID_NAMES
} else {
    &["libOpenCL.so.1", "libOpenCL.so", "libpocl.so.2", "libpocl.so", "libmali.so.1", "libmali.so"]
};

/// Names and folders of Android's vendors. Sources: TensorFlow Lite (`delegates/gpu/cl/opencl_wrapper.cc`), MNN
/// (`backend/opencl/core/runtime/OpenCLWrapper.cpp`), Arm Compute Library (`src/core/CL/OpenCL.cpp`).
const ANDROID_NAMES: &[&str] = &[
    "libOpenCL.so",
    "libOpenCL-pixel.so",
    "libOpenCL-car.so",
    "libOpenCL_adreno.so",
    "libGLES_mali.so",
    "libmali.so",
    "libPVROCL.so",
    "libpocl.so",
];
const ANDROID_FOLDERS: &[&str] = if cfg!(target_pointer_width = "64") {
    &[
        "/vendor/lib64",
        "/vendor/lib64/egl",
        "/vendor/lib64/hw",
        "/system/vendor/lib64",
        "/system/vendor/lib64/egl",
        "/system/lib64",
        "/system/lib64/egl",
    ]
} else {
    &[
        "/vendor/lib",
        "/vendor/lib/egl",
        "/vendor/lib/hw",
        "/system/vendor/lib",
        "/system/vendor/lib/egl",
        "/system/lib",
        "/system/lib/egl",
    ]
};

/// The opened library; it stays open while the process lives.
pub(crate) struct Library {
    shared: SharedLibrary,
    /// Some of Android's libraries give their functions through one of their own instead of exporting them.
    lookup: Option<unsafe extern "C" fn(*const c_char) -> *mut c_void>,
}

static OPENED: OnceLock<Library> = OnceLock::new();

/// The library, opened by the first call that finds one: the file `named`, or else that of a search. A search that finds
/// none is repeated by the next call.
///
/// # Errors
/// `Unavailable` that says what was looked for.
pub(crate) fn load(named: Option<OsString>) -> Result<&'static Library> {
    static OPENING: Mutex<()> = Mutex::new(());
    if let Some(library) = OPENED.get() {
        return Ok(library);
    }
    let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = OPENED.get() {
        return Ok(library);
    }
    let library = open(named)?;
    bind(&library);
    Ok(OPENED.get_or_init(|| library))
}

impl Library {
    /// The address of a function, null when the library lacks it.
    pub(crate) fn symbol(&self, name: &CStr) -> *mut c_void {
        if let Some(lookup) = self.lookup {
            // SAFETY: `open` took the function from the library under the name that has this type.
            let address = unsafe { lookup(name.as_ptr()) };
            if !address.is_null() {
                return address;
            }
        }
        // SAFETY: the address is only taken; whoever calls it knows the type that OpenCL gives the name.
        let symbol = unsafe { self.shared.get::<*mut c_void>(name.to_bytes_with_nul()) };
        symbol.map_or(std::ptr::null_mut(), |symbol| *symbol)
    }
}

/// Opens `named`, or else the first library of the search that is one of OpenCL.
fn open(named: Option<OsString>) -> Result<Library> {
    let named = named.filter(|name| !name.is_empty());
    let candidates = match &named {
        Some(name) => vec![PathBuf::from(name)],
        None => candidates(),
    };
    let mut failures = Vec::new();
    for path in &candidates {
        // SAFETY: opening runs the library's initialisers, which is what the user asked for, or what the system
        // installed under OpenCL's own names.
        let shared = match unsafe { SharedLibrary::new(path) } {
            Ok(shared) => shared,
            Err(error) => {
                failures.push(failure(&error));
                continue;
            }
        };
        // SAFETY: TensorFlow Lite's wrapper documents both functions with these types (see `ANDROID_NAMES`).
        let lookup = unsafe {
            if let Ok(enable) = shared.get::<unsafe extern "C" fn()>(b"enableOpenCL\0") {
                enable();
            }
            shared.get::<unsafe extern "C" fn(*const c_char) -> *mut c_void>(b"loadOpenCLPointer\0")
        };
        let lookup = lookup.ok().map(|lookup| *lookup);
        let library = Library { shared, lookup };
        if !library.symbol(c"clGetPlatformIDs").is_null() {
            log::debug!("OpenCL is '{}'", path.display());
            return Ok(library);
        }
        failures.push(format!("{} has no function clGetPlatformIDs", path.display()));
        // A graphics driver may have started threads by now, so even the wrong library is not closed.
        std::mem::forget(library.shared);
    }
    Err(Error::unavailable(match named {
        Some(_) => format!(
            "{LIBRARY_VARIABLE} names no OpenCL library ({}); correct or unset it",
            failures.join("; ")
        ),
        None => {
            let first = failures.first().map_or("", String::as_str);
            let names: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
            format!(
                "no OpenCL library: looked for {} ({first}); install a driver, or name its file in {LIBRARY_VARIABLE}",
                names.join(", ")
            )
        }
    }))
}

fn candidates() -> Vec<PathBuf> {
    let names = NAMES.iter().map(PathBuf::from);
    if !cfg!(target_os = "android") {
        return names.collect();
    }
    let in_folders = ANDROID_FOLDERS
        .iter()
        .flat_map(|folder| NAMES.iter().map(move |name| PathBuf::from(folder).join(name)));
    names.chain(in_folders).collect()
}

fn failure(error: &libloading::Error) -> String {
    use std::error::Error as _;
    let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    one_line(&reason)
}

#[cfg(target_os = "macos")]
fn bind(_library: &Library) {}

/// Lets the forwarders of `stub/opencl.c` find their functions.
#[cfg(not(target_os = "macos"))]
fn bind(library: &Library) {
    unsafe extern "C" {
        fn halite_opencl_bind(
            symbol: extern "C" fn(*const c_void, *const c_char) -> *mut c_void,
            context: *const c_void,
        );
    }
    extern "C" fn symbol(library: *const c_void, name: *const c_char) -> *mut c_void {
        // SAFETY: `halite_opencl_bind` passes on what it got, a library that outlives the call, and literals.
        let (library, name) = unsafe { (&*library.cast::<Library>(), CStr::from_ptr(name)) };
        library.symbol(name)
    }
    // SAFETY: the function has this type in `stub/opencl.c`. It is called once (`load` holds a lock and keeps the
    // result), before the first call of OpenCL, which needs what `load` returns.
    unsafe { halite_opencl_bind(symbol, std::ptr::from_ref(library).cast()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::ErrorKind;

    #[test]
    fn a_named_file_that_is_absent_or_no_opencl_library_is_told_by_name() {
        for name in ["/nowhere/libOpenCL.so", env!("CARGO_MANIFEST_PATH")] {
            let error = open(Some(name.into())).err().expect("it is no library");
            assert_eq!(error.kind(), &ErrorKind::Unavailable);
            assert!(error.message().contains(name) && error.message().contains(LIBRARY_VARIABLE), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_of_something_else_is_no_opencl_library() {
        let error = open(Some("libc.so.6".into())).err().expect("the C library is none of OpenCL");
        assert!(error.message().contains("libc.so.6 has no function clGetPlatformIDs"), "{error}");
    }

    #[test]
    fn the_search_begins_with_the_loader() {
        let first = candidates().remove(0);
        assert!(first.to_string_lossy().contains("OpenCL"), "{first:?}");
    }
}

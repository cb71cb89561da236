//! Compiling CUDA C with NVRTC, NVIDIA's compiler as a library. It needs no GPU.

use crate::api::Version;
use crate::error::nvrtc_error;
use crate::library::{self, Libraries, Wanted, one_line};
use crate::probe::Capability;
use crate::sys::{NvrtcTable, nvrtcProgram};
use halite_cache::Key;
use halite_hal::{Error, ErrorKind, Result};
use std::ffi::{CStr, CString, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// Compiles CUDA C for any architecture that NVRTC knows, whether or not there is such a device.
///
/// Calls from several threads are fine; NVRTC may run them one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Compiler(&'static Nvrtc);

impl Compiler {
    pub(crate) fn of(nvrtc: &'static Nvrtc) -> Self {
        Self(nvrtc)
    }

    /// Looks for NVRTC under its usual names, or loads the file that `HALITE_NVRTC_LIBRARY` names.
    ///
    /// # Errors
    /// `Unavailable` with what was looked for.
    pub fn find() -> Result<Self> {
        Self::with_libraries(&Libraries::from_environment())
    }

    /// As [`find`](Self::find), with the file in `libraries` if it names one.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn with_libraries(libraries: &Libraries) -> Result<Self> {
        Nvrtc::load(libraries, NEWEST_MAJOR).map(Self)
    }

    /// NVRTC's version, such as 12.9.
    pub fn version(&self) -> String {
        self.0.version.to_string()
    }

    /// The file that it was loaded from, as far as that is known.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The architectures that it compiles for, ascending: 75 for `sm_75`.
    pub fn architectures(&self) -> &[u32] {
        &self.0.architectures
    }

    /// Compiles `source`: to a cubin for an architecture such as `sm_90` or `sm_90a`, to PTX for one such as
    /// `compute_90`. `name` stands for the file's in messages; `options` are separated by spaces.
    ///
    /// # Errors
    /// `Build` with the compiler's log; `InvalidArgument` for options that are none, and for text with a zero byte.
    pub fn compile(&self, name: &str, source: &str, options: &str, architecture: &str) -> Result<Vec<u8>> {
        let options = Options::parse(options)?;
        self.0.compile(name, source, &options, &Architecture::parse(architecture)?)
    }
}

/// The version to look for first where no driver says which.
const NEWEST_MAJOR: u32 = 13;

/// The option for shared memory that is sized at the launch, which CUDA C itself has no word for.
const DYNAMIC_SHARED_OPTION: &str = "--dynamic-shared-bytes=";

/// Options of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// For the compiler.
    words: Vec<String>,
    /// For the launch.
    pub(crate) dynamic_shared_bytes: u32,
}

impl Options {
    /// Reads options that are separated by spaces.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that is none, for a zero byte, and for an architecture, which the device decides.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut options = Self { words: Vec::new(), dynamic_shared_bytes: 0 };
        for word in text.split_whitespace() {
            if let Some(number) = word.strip_prefix(DYNAMIC_SHARED_OPTION) {
                options.dynamic_shared_bytes = number.parse().map_err(|_| {
                    Error::invalid(format!("option '{word}' wants a number of bytes that fits 32 bits"))
                })?;
            } else if word.starts_with("--gpu-architecture") || word.starts_with("-arch") {
                return Err(Error::invalid(format!(
                    "option '{word}': the device decides on the architecture; name a feature such as sm_90a in the source's requirements"
                )));
            } else if word.contains('\0') {
                return Err(Error::invalid("an option of the compiler holds a zero byte"));
            } else {
                options.words.push(word.to_owned());
            }
        }
        Ok(options)
    }
}

/// What to compile for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Architecture(String);

impl Architecture {
    fn parse(text: &str) -> Result<Self> {
        let number = text.strip_prefix("sm_").or_else(|| text.strip_prefix("compute_"));
        let is_one = number.is_some_and(|number| {
            let digits = number.trim_end_matches(['a', 'f']);
            number.len() - digits.len() <= 1
                && !digits.is_empty()
                && digits.bytes().all(|b| b.is_ascii_digit())
        });
        if is_one {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(format!("'{text}' is no architecture; write one such as sm_90 or compute_90")))
    }

    /// Whether the result is PTX, which the driver compiles further.
    pub(crate) fn is_virtual(&self) -> bool {
        self.0.starts_with("compute_")
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// NVRTC, loaded.
pub(crate) struct Nvrtc {
    table: NvrtcTable,
    path: PathBuf,
    version: Version,
    architectures: Vec<u32>,
    /// Where headers are, for sources that include them.
    include_folders: Vec<PathBuf>,
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nvrtc({}, {})", self.path.display(), self.version)
    }
}

/// Libraries that were loaded, by the file that was asked for and the version that was preferred.
static LOADED: Mutex<Vec<(Option<PathBuf>, u32, &'static Nvrtc)>> = Mutex::new(Vec::new());

impl Nvrtc {
    /// Loads NVRTC, once; the one of `major` before others.
    ///
    /// # Errors
    /// `Unavailable` with what was looked for.
    pub(crate) fn load(libraries: &Libraries, major: u32) -> Result<&'static Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = loaded.iter().find(|(asked, of, _)| *asked == libraries.nvrtc && *of == major);
        if let Some((.., nvrtc)) = known {
            return Ok(nvrtc);
        }
        let (library, name) = library::open(&Wanted {
            what: "NVRTC, which compiles CUDA C,",
            explicit: libraries.nvrtc.as_deref(),
            candidates: library::toolkit_candidates(major, library::nvrtc_name),
            remedy: "install it (a CUDA toolkit, or the Python wheel nvidia-cuda-nvrtc), or name it in HALITE_NVRTC_LIBRARY",
        })?;
        let path = library::resolved_path(&name);
        // SAFETY: the library is NVRTC by its name, or the file that the user named as such.
        let table = unsafe { NvrtcTable::resolve(library) }.map_err(|symbol| {
            Error::unavailable(format!(
                "{} has no function {symbol}; install NVRTC of CUDA 11.2 or later",
                path.display()
            ))
        })?;
        let include_folders = library::include_folders(&path);
        let version = Version { major: 0, minor: 0 };
        let mut nvrtc = Self { table, path, version, architectures: Vec::new(), include_folders };
        nvrtc.ask()?;
        let nvrtc: &'static Self = Box::leak(Box::new(nvrtc));
        loaded.push((libraries.nvrtc.clone(), major, nvrtc));
        Ok(nvrtc)
    }

    fn ask(&mut self) -> Result<()> {
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the pointers lead to locals.
        self.check(unsafe { (self.table.nvrtcVersion)(&mut major, &mut minor) }, "nvrtcVersion")?;
        // SAFETY: as above.
        let result = unsafe { (self.table.nvrtcGetNumSupportedArchs)(&mut count) };
        self.check(result, "nvrtcGetNumSupportedArchs")?;
        let mut numbers: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many as it said.
        let result = unsafe { (self.table.nvrtcGetSupportedArchs)(numbers.as_mut_ptr()) };
        self.check(result, "nvrtcGetSupportedArchs")?;
        let number = |number| u32::try_from(number).unwrap_or(0);
        self.version = Version { major: number(major), minor: number(minor) };
        self.architectures = numbers.into_iter().map(number).collect();
        self.architectures.sort_unstable();
        Ok(())
    }

    /// What to compile for: the device's own instruction set, with the features that only it has if the source requires
    /// them; PTX for the newest one below if NVRTC is older than the device.
    pub(crate) fn architecture(&self, device: Capability, requires: &[String]) -> Result<Architecture> {
        let own = device.number();
        let specific = format!("sm_{own}a");
        if self.architectures.contains(&own) {
            let has = requires.contains(&specific);
            return Ok(Architecture(if has { specific } else { format!("sm_{own}") }));
        }
        let below = self.architectures.iter().rev().find(|number| **number < own);
        match below {
            Some(number) if !requires.contains(&specific) => Ok(Architecture(format!("compute_{number}"))),
            _ => Err(Error::unsupported(format!(
                "NVRTC {} does not compile for sm_{own}; install one of a later CUDA ({})",
                self.version,
                self.path.display()
            ))),
        }
    }

    /// What the result of a compilation depends on, as a hash.
    pub(crate) fn key(&self, source: &str, options: &Options, architecture: &Architecture) -> Key {
        let version = self.version.to_string();
        let folders: Vec<_> = self.include_folders.iter().map(|path| path.to_string_lossy()).collect();
        let mut fields = vec!["nvrtc", &version, &architecture.0, source];
        fields.extend(folders.iter().map(|folder| folder.as_ref()));
        fields.push("options");
        fields.extend(options.words.iter().map(String::as_str));
        halite_cache::key(&fields)
    }

    /// Compiles to a cubin, or to PTX for a virtual architecture.
    ///
    /// # Errors
    /// `Build` with the log.
    pub(crate) fn compile(
        &self,
        name: &str,
        source: &str,
        options: &Options,
        architecture: &Architecture,
    ) -> Result<Vec<u8>> {
        let text = |text: &str, what: &str| {
            CString::new(text)
                .map_err(|_| Error::invalid(format!("{what} of kernel '{name}' holds a zero byte")))
        };
        let (source, file) = (text(source, "the source")?, text(&format!("{name}.cu"), "the name")?);
        let mut words = vec![text(&format!("--gpu-architecture={architecture}"), "an option")?];
        for folder in &self.include_folders {
            words.push(text(&format!("--include-path={}", folder.display()), "an option")?);
        }
        for word in &options.words {
            words.push(text(word, "an option")?);
        }
        let pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();

        let mut handle = ptr::null_mut();
        // SAFETY: the strings end and outlive the call; there are no headers.
        let result = unsafe {
            let create = self.table.nvrtcCreateProgram;
            create(&mut handle, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
        };
        self.check(result, "nvrtcCreateProgram")?;
        let program = Program { nvrtc: self, handle };
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program is alive, and there are as many options as is said, each a string with an end.
        let result = unsafe { (self.table.nvrtcCompileProgram)(program.handle, count, pointers.as_ptr()) };
        if result != 0 {
            let error = self.error(result, "nvrtcCompileProgram");
            let log = program.log();
            let message =
                format!("kernel '{name}' does not compile for {architecture}: {}", error_name(&error));
            return Err(Error::new(ErrorKind::Build { log }, message).in_call("nvrtcCompileProgram"));
        }
        if architecture.is_virtual() { program.ptx() } else { program.cubin() }
    }

    fn check(&self, result: u32, call: &str) -> Result<()> {
        if result == 0 { Ok(()) } else { Err(self.error(result, call)) }
    }

    fn error(&self, result: u32, call: &str) -> Error {
        // SAFETY: any number may be asked for.
        let text = unsafe { (self.table.nvrtcGetErrorString)(result) };
        // SAFETY: a string of the library, constant and with an end (NVRTC, "Error Handling").
        let name = (!text.is_null()).then(|| one_line(&unsafe { CStr::from_ptr(text) }.to_string_lossy()));
        nvrtc_error(result, call, name.as_deref())
    }
}

/// The library's own name of a failure.
fn error_name(error: &Error) -> &str {
    match error.kind() {
        ErrorKind::Backend { message, .. } => message,
        _ => error.message(),
    }
}

/// A program, destroyed when dropped.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: nvrtcProgram,
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is alive, and nobody else has it.
        unsafe { (self.nvrtc.table.nvrtcDestroyProgram)(&mut self.handle) };
    }
}

type SizeCall = unsafe extern "C" fn(nvrtcProgram, *mut usize) -> u32;
type BytesCall = unsafe extern "C" fn(nvrtcProgram, *mut std::ffi::c_char) -> u32;

impl Program<'_> {
    fn cubin(&self) -> Result<Vec<u8>> {
        let table = &self.nvrtc.table;
        self.bytes(table.nvrtcGetCUBINSize, table.nvrtcGetCUBIN, "nvrtcGetCUBIN")
    }

    fn ptx(&self) -> Result<Vec<u8>> {
        let table = &self.nvrtc.table;
        let mut text = self.bytes(table.nvrtcGetPTXSize, table.nvrtcGetPTX, "nvrtcGetPTX")?;
        // Its size counts the zero byte at the end.
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        Ok(text)
    }

    fn log(&self) -> String {
        let table = &self.nvrtc.table;
        let log = self.bytes(table.nvrtcGetProgramLogSize, table.nvrtcGetProgramLog, "nvrtcGetProgramLog");
        let bytes: Vec<u8> = log.unwrap_or_default().into_iter().take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    fn bytes(&self, size: SizeCall, get: BytesCall, call: &str) -> Result<Vec<u8>> {
        let mut len = 0;
        // SAFETY: the program is alive, and the pointer leads to a local.
        self.nvrtc.check(unsafe { size(self.handle, &mut len) }, call)?;
        let mut bytes = vec![0u8; len];
        // SAFETY: as above, and there is room for as many bytes as it said.
        self.nvrtc.check(unsafe { get(self.handle, bytes.as_mut_ptr().cast()) }, call)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_words_and_the_launchs_own_is_taken_out() {
        let options = Options::parse(" --fmad=false\t--dynamic-shared-bytes=65536 -DN=4 ").unwrap();
        assert_eq!(options.words, ["--fmad=false", "-DN=4"]);
        assert_eq!(options.dynamic_shared_bytes, 65536);
        assert_eq!(Options::parse("").unwrap().words, [""; 0]);
        for bad in [
            "--dynamic-shared-bytes=",
            "--dynamic-shared-bytes=-1",
            "--gpu-architecture=sm_50",
            "-arch=sm_50",
        ] {
            let error = Options::parse(bad).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn architectures_are_read_and_nonsense_is_refused() {
        for (text, is_virtual) in
            [("sm_75", false), ("sm_90a", false), ("sm_100f", false), ("compute_90", true)]
        {
            assert_eq!(Architecture::parse(text).unwrap().is_virtual(), is_virtual, "{text}");
        }
        for bad in ["", "sm_", "90", "sm_9x", "sm_90ab", "sm_90 -x", "lto_90"] {
            assert!(Architecture::parse(bad).is_err(), "{bad}");
        }
    }
}

//! Opening plugin files and checking what they export. A library stays loaded for the life of the process.

use crate::boundary::{Boundary, Stuck, Unwinding as _, watched};
use crate::error::{Report, one_line};
use crate::handles::Handles;
use crate::search::Candidate;
use halite_hal::plugin::{self, ChangedTable, Entry, Host, Plugin, TableChange};
use halite_hal::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::ffi::c_char;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// More than any table of this major version will have; a larger size is a lie.
const MAX_TABLE_BYTES: u64 = 64 << 10;
/// The part of a table that no version changes: size, major, minor.
const TABLE_HEADER_BYTES: u64 = 16;
/// Longest log line of a plugin that is passed on.
const MAX_LOG_BYTES: usize = 1024;

/// A loaded plugin: its functions, copied from its table and cleared where the table has none.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) table: Plugin,
    /// Devices that are open.
    pub(crate) opened: Handles,
    /// Why it is not called any more: a thread of ours is lost in it.
    stuck: OnceLock<Error>,
}

/// Every library of this process by its canonical path, so that one file is loaded once; an error for one that did not
/// come back from loading, and would not the next time.
static LIBRARIES: LazyLock<Mutex<BTreeMap<PathBuf, Result<&'static Library>>>> =
    LazyLock::new(Mutex::default);

static HOST: Host = Host {
    struct_size: size_of::<Host>() as u64,
    abi_major: plugin::ABI_MAJOR,
    abi_minor: plugin::ABI_MINOR,
    log: Some(log_line),
};

impl Library {
    /// Loads a plugin within a limit, or finds it among those that are loaded.
    ///
    /// # Errors
    /// `Unavailable` when the system's loader refuses the file, `BadFormat` when it is no plugin or its table breaks
    /// the interface's rules, `AbiMismatch` for another major version, `Timeout` when it does not come back.
    pub(crate) fn load(candidate: &Candidate, limit: Duration) -> Result<&'static Self> {
        let path = candidate.path.canonicalize().map_err(|error| {
            Error::unavailable(format!("plugin '{}' cannot be opened: {error}", candidate.path.display()))
        })?;
        let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = libraries.get(&path) {
            return known.clone();
        }
        let own = path.clone();
        let loaded = match watched(limit, move || Self::open(&own)) {
            Ok(loaded) => Ok(&*Box::leak(Box::new(loaded?))),
            Err(stuck) => Err(given_up(&path, stuck, plugin::ENTRY_SYMBOL, limit)),
        };
        libraries.insert(path, loaded.clone());
        loaded
    }

    /// A plugin that is linked into this program. It is as if it had been loaded, anew each time.
    ///
    /// # Errors
    /// As [`load`](Self::load), of its entry and its table.
    ///
    /// # Safety
    /// As [`start`](Self::start).
    pub(crate) unsafe fn linked(entry: Entry) -> Result<&'static Self> {
        // SAFETY: the caller's promise is this function's own.
        Ok(Box::leak(Box::new(unsafe { Self::start(Path::new("(linked)"), entry)? })))
    }

    /// Runs a call that must come back within a limit on a thread of its own. If it does not, or ends with an exception,
    /// the plugin is not called again.
    pub(crate) fn watch<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        run: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if let Some(error) = self.stuck.get() {
            return Err(error.clone());
        }
        watched(limit, run).unwrap_or_else(|stuck| {
            let error = given_up(&self.path, stuck, call, limit);
            log::error!("{}", error.message());
            Err(self.stuck.get_or_init(|| error).clone())
        })
    }

    /// As [`watch`](Self::watch), for a call that belongs to an open device, which is lost then.
    pub(crate) fn watch_device<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        run: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let result = self.watch(call, limit, run);
        self.check_usable()?;
        result
    }

    /// Whether the plugin may be called.
    ///
    /// # Errors
    /// `DeviceLost` with the reason when it may not.
    pub(crate) fn check_usable(&self) -> Result<()> {
        match self.stuck.get() {
            None => Ok(()),
            Some(error) => Err(Error::new(ErrorKind::DeviceLost, error.message())),
        }
    }

    /// The same plugin, loaded again through a copy of its table with changes. It stays loaded, too.
    ///
    /// # Errors
    /// As [`load`](Self::load), of the changed table.
    pub(crate) fn changed(&self, changes: &[TableChange]) -> Result<&'static Self> {
        // What a plugin's table leads to is valid for the life of the process, and so is this copy.
        let table: &'static ChangedTable = Box::leak(Box::new(ChangedTable::new(&self.table, changes)?));
        Ok(Box::leak(Box::new(Self::read_table(&self.path, table.as_ptr())?)))
    }

    /// Whether the plugin copies between its devices.
    pub(crate) fn has_peers(&self) -> bool {
        self.table.peer_enable.is_some() && self.table.stream_copy_peer.is_some()
    }

    /// Whether the plugin claims the feature.
    pub(crate) fn has(&self, feature: u64) -> bool {
        self.table.features & feature != 0
    }

    /// The error for a plugin that breaks a rule of the interface.
    pub(crate) fn breach(&self, what: impl std::fmt::Display) -> Error {
        breach(&self.path, what)
    }

    fn open(path: &Path) -> Result<Self> {
        check_magic(path)?;
        // SAFETY: loading runs the file's initialisers. The user chose the file, as with any driver library, and its
        // magic number says that it is a library; nothing more can be known before.
        let loaded = unsafe { libloading::Library::new(path) };
        let loaded = loaded.map_err(|error| {
            let error = one_line(&error.to_string());
            Error::unavailable(format!("plugin '{}' cannot be loaded: {error}", path.display()))
        })?;
        // SAFETY: the symbol's name belongs to the interface, whose header gives this type.
        let entry = unsafe { loaded.get::<Entry>(plugin::ENTRY_SYMBOL.as_bytes()) }.map(|symbol| *symbol);
        // A library may have started threads and registered exit handlers by now, so it is never unloaded.
        std::mem::forget(loaded);
        let Ok(entry) = entry else {
            return Err(breach(
                path,
                format_args!("exports no function {}, so it is no plugin", plugin::ENTRY_SYMBOL),
            ));
        };
        // SAFETY: the file is a plugin by what it exports; that it keeps to the header is its author's promise.
        unsafe { Self::start(path, entry) }
    }

    /// Calls a plugin's entry and takes its table.
    ///
    /// # Safety
    /// The plugin keeps to the header's rules about memory: at the entry, in the table, and in the table's functions.
    unsafe fn start(path: &Path, entry: Entry) -> Result<Self> {
        let mut raw = ptr::null();
        let mut report = Report::line();
        let boundary = Boundary::enter(path, plugin::ENTRY_SYMBOL);
        // SAFETY: `entry` has the header's type; the host structure is static, the others live during the call.
        let status = unsafe { entry.unwinding()(&HOST, &mut raw, report.as_mut_ptr()) };
        boundary.leave();
        report.intact(path, plugin::ENTRY_SYMBOL)?;
        report.result(status, plugin::ENTRY_SYMBOL).map_err(|error| {
            let message = format!("plugin '{}' refuses to start: {}", path.display(), error.message());
            Error::new(error.kind().clone(), message)
        })?;
        Self::read_table(path, raw)
    }

    /// Copies the table, once its size and version are known to be right.
    fn read_table(path: &Path, raw: *const Plugin) -> Result<Self> {
        if raw.is_null() || !raw.is_aligned() {
            return Err(breach(path, "returns no table"));
        }
        // SAFETY: not null and aligned (checked above); the interface says that a table begins with its size.
        let size = unsafe { raw.cast::<u64>().read() };
        if !(TABLE_HEADER_BYTES..=MAX_TABLE_BYTES).contains(&size) {
            return Err(breach(path, format_args!("claims a table of {size} bytes")));
        }
        // SAFETY: the table has at least `TABLE_HEADER_BYTES` (checked above), in which these two lie.
        let (major, minor) = unsafe { ((*raw).abi_major, (*raw).abi_minor) };
        if major != plugin::ABI_MAJOR {
            return Err(Error::new(
                ErrorKind::AbiMismatch,
                format!(
                    "plugin '{}' speaks interface version {major}.{minor}, this program {}.{}; get a plugin built for major \
                     version {}",
                    path.display(),
                    plugin::ABI_MAJOR,
                    plugin::ABI_MINOR,
                    plugin::ABI_MAJOR
                ),
            ));
        }
        let mut table = Plugin::sized();
        let shared = size.min(size_of::<Plugin>() as u64);
        // Every field lies in whole words; a function that the size cuts in two is none.
        let whole = shared as usize / size_of::<u64>() * size_of::<u64>();
        // SAFETY: the source has `size` bytes by its own statement, the target at least `shared`. A function in C's table
        // is null or of the header's type, which is `Option<fn>` here; the other fields are numbers.
        unsafe { ptr::copy_nonoverlapping(raw.cast::<u8>(), (&raw mut table).cast::<u8>(), whole) };
        table.struct_size = shared;
        check_functions(path, &table)?;
        let text = |field: &[c_char]| one_line(&plugin::fixed_text(field));
        Ok(Self {
            path: path.to_owned(),
            name: text(&table.name),
            version: text(&table.version),
            table,
            opened: Handles::default(),
            stuck: OnceLock::new(),
        })
    }
}

/// Refuses tables that lack a function of tier 1, or of a tier that the feature bits claim.
fn check_functions(path: &Path, table: &Plugin) -> Result<()> {
    macro_rules! missing {
        ($($function:ident)*) => {
            [$((stringify!($function), std::mem::offset_of!(Plugin, $function), table.$function.is_none())),*]
                .into_iter()
                .find(|(_, _, missing)| *missing)
                .map(|(name, offset, _)| (name, offset as u64))
        };
    }
    let tier1 = missing!(
        device_count device_info device_open device_close memory_alloc memory_free memory_info stream_create
        stream_destroy stream_write stream_read stream_copy stream_fill stream_wait_event stream_synchronize
        event_create event_destroy event_record event_wait event_query
    );
    let builtins = missing!(builtin_validate builtin_prepare builtin_release builtin_enqueue);
    let programs = missing!(program_load program_unload kernel_find kernel_launch);
    let claims = |feature| table.features & feature != 0;
    let required = [
        (true, tier1),
        (claims(plugin::FEATURE_BUILTINS), builtins),
        (claims(plugin::FEATURE_PROGRAMS), programs),
    ];
    match required.into_iter().find_map(|(required, missing)| missing.filter(|_| required)) {
        Some((name, offset)) if table.struct_size < offset + size_of::<usize>() as u64 => {
            let size = table.struct_size;
            Err(breach(path, format_args!("has a table of {size} bytes, too short for the required {name}")))
        }
        Some((name, _)) => Err(breach(path, format_args!("lacks the required function {name}"))),
        None => Ok(()),
    }
}

/// Refuses files that no system could load as a library: the system's own message would not say so.
fn check_magic(path: &Path) -> Result<()> {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|file| file.take(4).read(&mut magic));
    let read = read.map_err(|error| {
        Error::unavailable(format!("plugin '{}' cannot be read: {error}", path.display()))
    })?;
    let known: &[&[u8]] = if cfg!(windows) {
        &[b"MZ"]
    } else if cfg!(target_vendor = "apple") {
        &[
            &[0xCF, 0xFA, 0xED, 0xFE],
            &[0xCE, 0xFA, 0xED, 0xFE],
            &[0xCA, 0xFE, 0xBA, 0xBE],
            &[0xCA, 0xFE, 0xBA, 0xBF],
        ]
    } else {
        &[b"\x7fELF"]
    };
    if known.iter().any(|known| magic[..read].starts_with(known)) {
        return Ok(());
    }
    Err(Error::bad_format(format!(
        "'{}' is not a shared library of this platform; give a plugin file",
        path.display()
    )))
}

/// The error for a call that did not come back.
fn given_up(path: &Path, stuck: Stuck, call: &str, limit: Duration) -> Error {
    let path_text = path.display();
    match stuck {
        Stuck::Hung => Error::new(
            ErrorKind::Timeout { after: limit },
            format!(
                "plugin '{path_text}' did not return from {call} within {limit:?}; it is not called again"
            ),
        ),
        Stuck::Threw(call) => {
            breach(path, format_args!("lets an exception out of {call}, and is not called again"))
        }
    }
    .in_call(call)
}

/// The error for the plugin at `path`, which breaks a rule of the interface.
pub(crate) fn breach(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::bad_format(format!(
        "plugin '{}' {what}; use a plugin that keeps to halite_plugin.h {}.{}",
        path.display(),
        plugin::ABI_MAJOR,
        plugin::ABI_MINOR
    ))
}

unsafe extern "C" fn log_line(level: u32, text: *const c_char) {
    if text.is_null() {
        return;
    }
    let mut bytes = Vec::new();
    // The plugin waits for this call, so a text without an end is cut here.
    while bytes.len() < MAX_LOG_BYTES {
        // SAFETY: not null, and no byte before this one was the final zero, so this byte belongs to the text.
        let byte = unsafe { *text.add(bytes.len()) };
        if byte == 0 {
            break;
        }
        bytes.push(byte as u8);
    }
    let level = match level {
        1 => log::Level::Error,
        2 => log::Level::Warn,
        3 => log::Level::Info,
        4 => log::Level::Debug,
        _ => log::Level::Trace,
    };
    // A logger is foreign code; its panic must not unwind into the plugin.
    let _ = std::panic::catch_unwind(|| log::log!(level, "{}", one_line(&String::from_utf8_lossy(&bytes))));
}

//! The layer `trace`: a timeline of everything that devices are asked to do, written to a file.
//!
//! The file is JSON in the Trace Event Format (Google's "Trace Event Format", the array form), which Perfetto
//! (<https://ui.perfetto.dev>) and `chrome://tracing` open. A device is a process of the timeline; its threads are the
//! streams, with launches, copies, fills and replays in device time, and the host threads that used it, with
//! evaluations, plans, allocations and everything that blocked.
//!
//! | part | file |
//! | --- | --- |
//! | what is noted of each call, as cheaply as possible | `device.rs`, `stream.rs` |
//! | what lies between the caller and the file: entries with events, and how their times are learnt | `track.rs` |
//! | recorded commands, described once for all replays | `steps.rs` |
//! | the file, and the thread that writes it | `file.rs`, `json.rs` |
//!
//! # Times
//! An event is recorded behind each command, and one before it where the stream may have been idle. A thread of the
//! layer's own looks for those that are over, asks for the device time between them, and writes. Each stream's clock
//! is placed on the host's time axis by an event that is recorded and waited for when the stream is made, and is kept
//! there by causality: no command ends before it was enqueued, or after its end was seen. A device without a clock, or
//! a stream with too much pending work, gives instants at the time of enqueueing, marked `untimed`.
//!
//! # Memory
//! Of each stream at most 65,536 entries and as many events are kept. What comes while that many are under way is written
//! at once, untimed, and not kept: a device that hangs costs a growing file, and no memory. Lines that the disk does not
//! take are kept up to 16 MiB; beyond, they are counted, and the file's end tells their number.
//!
//! # Replays
//! Where a device replays a command list one command at a time, so does the layer, with an event behind each. A graph of
//! the device's own stays one, and is one bar. `trace:detail` takes graphs apart too, which runs them slower;
//! `trace:brief` leaves every replay whole.

mod device;
mod file;
mod json;
mod steps;
mod stream;
mod track;

use device::TraceDevice;
use file::TraceFile;
use halite_hal::{Device, Error, Layer, Result};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The environment variable that names the file.
pub const FILE_VARIABLE: &str = "HALITE_TRACE";

/// How far replays of command lists are taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Detail {
    /// Not at all: a replay is one bar.
    Brief,
    /// Where the device has no graph of its own for the list.
    #[default]
    Loops,
    /// Always; a device's own graphs are not used then.
    Every,
}

/// The layer `trace`; see the [module](self).
///
/// Every device that it wraps writes to the same file, and so do other layers of this process with the same one. The
/// file is complete when the layer and all devices, streams and what holds them have been dropped; until then it ends
/// without a closing bracket, as viewers accept, and lags some milliseconds behind.
pub struct TraceLayer {
    /// `None` for what [`FILE_VARIABLE`] says when a device is opened.
    path: Option<PathBuf>,
    detail: Detail,
    /// Kept from the first device on, so that devices that are opened and closed in turn share the file.
    file: Mutex<Option<Arc<TraceFile>>>,
}

impl TraceLayer {
    /// A layer that writes to the file that `HALITE_TRACE` names when a device is opened.
    pub fn from_env() -> Self {
        Self { path: None, detail: Detail::default(), file: Mutex::default() }
    }

    /// A layer that writes to `path`, in which `%p` stands for the number of this operating system's process. A file
    /// that is there is overwritten.
    pub fn to_file(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::from_env() }
    }

    /// The same with replays taken apart so far.
    #[must_use]
    pub fn with_detail(self, detail: Detail) -> Self {
        Self { detail, ..self }
    }

    fn path(&self) -> Result<PathBuf> {
        let set = || std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        self.path.clone().or_else(set).ok_or_else(|| {
            Error::invalid(format!("the layer 'trace' writes a file; name it with {FILE_VARIABLE}=FILE"))
        })
    }
}

impl Layer for TraceLayer {
    fn name(&self) -> &str {
        "trace"
    }

    /// As [`Layer::wrap`]; creates the file.
    ///
    /// # Errors
    /// `InvalidArgument` when no file is named, or the one that is cannot be written.
    fn wrap(&self, inner: Device) -> Result<Device> {
        let file = {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            match &*file {
                Some(file) => file.clone(),
                None => file.insert(TraceFile::open(&self.path()?)?).clone(),
            }
        };
        Ok(Device::new(Arc::new(TraceDevice::new(inner, file, self.detail)?)))
    }

    fn check(&self) -> Result<()> {
        self.path().map(drop)
    }

    /// Takes `detail` and `brief`.
    ///
    /// # Errors
    /// `InvalidArgument` for anything else.
    fn configure(&self, settings: &str) -> Result<Arc<dyn Layer>> {
        let detail = match settings {
            "detail" => Detail::Every,
            "brief" => Detail::Brief,
            _ => {
                return Err(Error::invalid(format!(
                    "the layer 'trace' takes the settings 'detail' and 'brief', got '{settings}'"
                )));
            }
        };
        Ok(Arc::new(Self { path: self.path.clone(), detail, file: Mutex::default() }))
    }
}

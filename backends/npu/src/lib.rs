//! The backend `npu`: devices that come from plugins, shared libraries with the interface of `halite_plugin.h`.
//!
//! [`NpuBackend`] looks for plugin files, checks what they export and numbers their devices: `npu:0`, `npu:1`, ... over
//! all plugins. Nothing is linked at build time, and a library that was loaded once stays loaded.
//!
//! What a plugin claims is checked wherever a check is possible: versions, table sizes, missing functions, counts,
//! handles, states, status codes. The contracts that a plugin may leave to the host are kept here: buffers and kernels
//! outlive the work that uses them, a failed stream takes no work until it is reset, and a lost device stays lost. A plugin
//! that does not come back from a call whose end is bounded (what probing needs, and waits with a time limit) is not
//! called again: its devices are lost, and what it may still use stays taken.
//!
//! | file | holds |
//! | --- | --- |
//! | `backend.rs`, `search.rs`, `options.rs` | which plugins, which devices, how they are opened |
//! | `library.rs`, `api.rs`, `boundary.rs`, `handles.rs`, `error.rs` | loading a file, its functions with checked results |
//! | `inspect.rs` | a plugin's table, as it is and with changes, for tests of plugins |
//! | `device.rs`, `buffer.rs`, `stream.rs`, `event.rs`, `kernel.rs` | what the layer sees |

mod api;
mod backend;
mod boundary;
mod buffer;
mod device;
mod error;
mod event;
mod handles;
mod inspect;
mod kernel;
mod library;
mod options;
mod search;
mod stream;

pub use backend::{Counter, NpuBackend, PluginInfo, counters};
pub use inspect::PluginDevice;
pub use options::OPTIONS_VARIABLE;
pub use search::{PATH_VARIABLE, emulator_file_name};

//! The software NPU: a plugin like any other, in a library that the loader opens from a file.
//!
//! | file | holds |
//! | --- | --- |
//! | `machine/` | the machine: memories, cores, instructions |
//! | `entry.rs`, `pointers.rs`, `handles.rs`, `failure.rs` | the functions of `halite_plugin.h` |
//! | `device.rs`, `queue.rs`, `builtin.rs` | an opened device, its streams and worker, its built-in operations |
//! | `options.rs` | how it is opened: `machine`, `threads`, `lose_after` |

mod builtin;
mod device;
mod entry;
mod failure;
mod handles;
pub mod machine;
mod options;
mod pointers;
mod queue;

pub use entry::halite_plugin_entry;

//! The CPU backend: native kernels on a thread pool.
//!
//! [`CpuBackend`] finds one device, `cpu:0`: the cores that this process may use, with the host's own memory.
//! It runs [`NativeKernel`](halite_hal::NativeKernel)s, and the built-ins copy, fill and add.
//!
//! A launch follows this path: the stream checks and queues it; a worker of the pool becomes the
//! stream's *runner* and executes its commands in order; a launch of several workgroups is opened to
//! the idle workers, which take workgroups beside the runner until none are left.
//!
//! | noun | file | | noun | file |
//! | --- | --- | --- | --- | --- |
//! | backend, device | `device.rs` | | stream | `stream.rs` |
//! | settings | `config.rs` | | queued work | `command.rs` |
//! | what the processor is | `host.rs` | | event | `event.rs` |
//! | buffer | `buffer.rs` | | kernel, built-ins | `kernel.rs`, `builtin.rs` |
//! | errors | `error.rs` | | worker threads | `pool.rs`, `team.rs` |

mod buffer;
mod builtin;
mod command;
mod config;
mod device;
mod error;
mod event;
mod host;
mod kernel;
mod pool;
mod scratch;
mod stream;
mod sync;
mod team;

pub use config::CpuConfig;
pub use device::CpuBackend;

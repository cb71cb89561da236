//! Halite's hardware abstraction layer: devices, memory, streams, events and kernel launch.
//!
//! A [`Registry`] holds backends, which find devices at run time. An opened [`Device`] makes [`Buffer`]s,
//! [`Stream`]s and [`Kernel`]s; a stream runs copies, fills and launches in order; an [`Event`] is a point on a
//! stream. [`CommandList`] replays recorded work, and [`Pool`] hands out memory in the order of a stream.
//!
//! These types are checked handles. What a backend implements is in [`driver`]; [`null`] is the template for one.
//!
//! # What holds for every method
//!
//! Methods say where they differ from these rules.
//!
//! - **Ownership.** Devices, buffers, streams, events, kernels and command lists are handles: a clone is the same
//!   object, and the last drop frees it, on any thread, without waiting for enqueued work, which holds what it
//!   uses. Results are the caller's, and keep alive whatever they need; borrowed arguments are used during the call
//!   only.
//! - **Blocking.** Nothing waits for enqueued work or asks a driver. Builders and plain data ([`DeviceInfo`],
//!   [`Signature`], [`BufferSlice`]) only compute.
//! - **Order.** Work is ordered by its stream, streams by events. Calls that enqueue nothing stand outside of that
//!   order.
//! - **Threads.** Handles are `Send + Sync`, and their methods may be called from any thread, from several at once
//!   too. Inside of a native kernel, nothing may wait for work of the same device: what would have to wait is an
//!   `InvalidArgument` there.
//! - **Errors.** An [`Error`] names its device and call. A call that is refused changes nothing. Whatever reaches a
//!   driver may also fail with `DeviceLost`, from then on for good, and with `Backend` for a code that fits no
//!   other kind.
//!
//! | noun | file | | noun | file |
//! | --- | --- | --- | --- | --- |
//! | device | `device.rs` | | kernel, signature | `kernel.rs`, `native.rs`, `builtin.rs` |
//! | buffer | `buffer.rs`, `host.rs`, `host_memory.rs` | | recorded work | `command_list.rs` |
//! | stream, event | `stream.rs`, `event.rs` | | caching allocator | `pool.rs` |
//! | backends, devices found | `registry.rs` | | plugin interface | `plugin/`, `include/halite_plugin.h` |
//! | layers | `layer.rs`, `annotate.rs` | | | |

pub mod annotate;
mod buffer;
pub mod builtin;
mod command_list;
mod device;
pub mod driver;
mod dtype;
mod error;
mod event;
mod host;
mod host_memory;
mod kernel;
mod layer;
pub mod native;
pub mod null;
pub mod plugin;
mod pool;
mod registry;
mod stream;
mod sync;

pub use buffer::{Buffer, BufferSlice};
pub use command_list::{
    Binding, Command, CommandList, CommandListBuilder, RecordedArg, RecordedCommand, RecordedRange,
};
pub use device::{Device, DeviceId, DeviceInfo, Health, Limits, MemoryInfo, MemoryKind};
pub use dtype::{DType, Element, Scalar, as_bytes, from_bytes};
pub use error::{Error, ErrorKind, Result};
pub use event::Event;
pub use host::{HostBytes, HostTarget, PendingRead};
pub use host_memory::HostMemory;
pub use kernel::{Access, Arg, ArgType, Kernel, KernelSource, Signature};
pub use layer::{Layer, select_layers};
pub use native::{NativeArg, NativeKernel, Workgroup};
pub use pool::{Allocation, Pool, PoolConfig, PoolStats};
pub use registry::{Absence, Discovery, Registry};
pub use stream::Stream;

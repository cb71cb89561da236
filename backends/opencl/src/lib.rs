//! The backend `opencl`: devices of OpenCL 1.2 and later, through whatever driver the machine has.
//!
//! [`OpenClBackend`] opens the OpenCL library at run time, numbers the devices of all platforms (GPUs first, then
//! accelerators, then processors) and runs kernels from OpenCL C, which it compiles once per driver and keeps on disk.
//! Nothing is linked: the same binary starts where there is no OpenCL.
//!
//! Two environment variables matter: `HALITE_OPENCL_LIBRARY` names the library to open instead of searching, and
//! `HALITE_CACHE_DIR` the folder for compiled kernels (empty for none).
//!
//! What a device can do is probed, never assumed: `fp16`, `fp64`, `subgroups`, `int64_atomics`, `images`,
//! `unified_memory`, `correctly_rounded_divide_sqrt`, and `local_memory` where it is memory of its own and not a part of the global one.
//!
//! A program should wait for its work before it ends: a driver for processors (PoCL) runs work, and compiles kernels, on
//! threads of the process, and may abort when that ends meanwhile.
//!
//! | file | holds |
//! | --- | --- |
//! | `library.rs`, `../stub/opencl.c` | finding the library, and the forwarders that stand in for it |
//! | `api.rs`, `error.rs` | its functions with checked results, its codes as errors |
//! | `backend.rs`, `probe.rs` | which devices there are, and what they can do |
//! | `device.rs`, `buffer.rs`, `stream.rs`, `event.rs`, `kernel.rs`, `builtin.rs` | what the layer sees |
//! | `staging.rs` | host memory of our own for blocking copies |
//! | `program.rs` | compiling; `halite-cache` keeps binaries on disk |
//! | `reaper.rs` | gives back what finished work held, while nobody asks |

mod api;
mod backend;
mod buffer;
mod builtin;
mod device;
mod error;
mod event;
mod kernel;
mod library;
mod probe;
mod program;
mod reaper;
mod staging;
mod stream;

pub use backend::OpenClBackend;
pub use halite_cache::CACHE_VARIABLE;
pub use library::LIBRARY_VARIABLE;

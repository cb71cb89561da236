//! The backend `cuda`: NVIDIA's GPUs, through the driver that the machine has.
//!
//! [`CudaBackend`] opens the driver's library at run time, and NVRTC and cuBLASLt where they are. Nothing is linked: the same
//! binary starts where there is no driver, and says so. [`Compiler`] compiles CUDA C without any device.
//!
//! A device takes kernels as CUDA C (`cuda-c`: compiled for the device by NVRTC, once, and kept on disk), as `cubin`, as
//! `ptx`, and as built-ins. CUDA C names its kernels with `extern "C"`; its option `--dynamic-shared-bytes=N` gives a launch
//! that much shared memory beside what the code declares. Features name the instruction sets (`sm_80`: that one or a later
//! one; `sm_90a`: exactly that one), `tensor-cores`, `tf32`, `bf16`, `fp16`, `fp8`, `fp64`, and the libraries (`nvrtc`,
//! `cublaslt`). Command lists are replayed as CUDA graphs.
//!
//! A fault in a kernel (an illegal address, a trap) ends the device's context: the device is lost, with everything on it,
//! and CUDA gives it back to a new process only.
//!
//! Devices live in their primary contexts, as do NVIDIA's own libraries. A context of other code that is current on a
//! calling thread is put back at the end of each call.
//!
//! | file | holds |
//! | --- | --- |
//! | `sys.rs`, `library.rs`, `error.rs` | functions of the libraries, finding them, their codes as errors |
//! | `api.rs`, `context.rs` | the driver with checked results; those of its functions that act in a context |
//! | `backend.rs`, `probe.rs` | which devices there are, and what they can do |
//! | `device.rs`, `buffer.rs`, `stream.rs`, `event.rs`, `kernel.rs` | what the layer sees |
//! | `op.rs`, `transfer.rs`, `staging.rs` | commands in the driver's terms; host memory to the device and back |
//! | `graph.rs`, `peer.rs` | command lists as graphs; copies between devices |
//! | `nvrtc.rs`, `image.rs` | compiling, checking images; `halite-cache` keeps them on disk |
//! | `builtin.rs`, `builtin.cu`, `builtin.ptx`, `blas.rs` | built-in operations |
//! | `reaper.rs` | gives back what finished work held, while nobody asks |

mod api;
mod backend;
mod blas;
mod buffer;
mod builtin;
mod context;
mod device;
mod error;
mod event;
mod graph;
mod image;
mod kernel;
mod library;
mod nvrtc;
mod op;
mod peer;
mod probe;
mod reaper;
mod staging;
mod stream;
mod sys;
mod transfer;

pub use backend::{CudaBackend, Library};
pub use halite_cache::CACHE_VARIABLE;
pub use library::{CUBLASLT_VARIABLE, DRIVER_VARIABLE, Libraries, NVRTC_VARIABLE};
pub use nvrtc::Compiler;

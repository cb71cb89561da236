//! The CPU backend: native kernels on a thread pool.

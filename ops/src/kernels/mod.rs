//! Kernels, one family a file, in a folder per kind of device.

pub mod cpu;
pub mod npu;

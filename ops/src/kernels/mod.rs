//! Kernels, one family a file, in a folder per kind of device.

pub mod cpu;
pub mod gpu;
pub mod npu;

use crate::lower::KernelVariant;

/// Every kernel variant of this crate.
pub(crate) fn builtin_variants() -> Vec<KernelVariant> {
    let mut variants = cpu::variants();
    variants.extend(gpu::variants());
    variants.extend(npu::variants());
    variants
}

//! Kernels: any source becomes a signature, which the handles check launches against.

use crate::{DeviceInfo, Kernel, KernelSource, Result};

/// Accepts every source. A real backend matches on the formats that its `DeviceInfo` lists, compiles or verifies
/// the code, and answers `Unsupported` for the rest.
pub(super) fn load(info: &DeviceInfo, source: &KernelSource) -> Result<Kernel> {
    let signature = match source {
        KernelSource::Native(kernel) => kernel.signature.clone(),
        KernelSource::Text { signature, .. } | KernelSource::Binary { signature, .. } => signature.clone(),
        KernelSource::Builtin(op) => op.signature(0),
    };
    Ok(Kernel::new(info.id.clone(), source.name(), signature, 0, Box::new(())))
}

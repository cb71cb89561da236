//! Native kernels for the CPU.
//!
//! Each family answers a [`KernelOp`](crate::lower::KernelOp) with launches of Rust functions. Every family has the
//! variants `avx512`, `avx2` and `portable`, compiled from one source; `plain` serves the convolutions that these do not.

pub mod conv;
pub mod conv_general;
pub mod conv_plain;
pub mod dot_general;
pub mod elementwise;
pub mod gemm;
pub mod pad;
pub mod reduce;
pub mod simd;
mod widen;
pub mod window;

#[cfg(test)]
pub(crate) mod harness;

use crate::lower::{KernelVariant, Unservable};
use simd::Isa;

/// Every kernel variant of the CPU, the best of each op first.
pub fn variants() -> Vec<KernelVariant> {
    [
        elementwise::variants(),
        reduce::variants(),
        dot_general::variants(),
        conv_general::variants(),
        conv_plain::variants(),
        window::variants(),
        pad::variants(),
    ]
    .concat()
}

/// The device features that code for `isa` needs, by the names that the CPU backend reports.
pub(crate) fn requirements(isa: Isa) -> &'static [&'static str] {
    match isa {
        Isa::Avx512 => &["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"],
        Isa::Avx2 => &["avx2", "fma", "f16c"],
        Isa::Portable => &[],
    }
}

/// Refuses an instruction set that this process could not run.
pub(crate) fn supports(isa: Isa) -> Result<(), Unservable> {
    if isa.is_available() {
        Ok(())
    } else {
        Err(Unservable::new(format!("this processor has no {}", isa.name())))
    }
}

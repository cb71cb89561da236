//! Contractions of half-precision operands by way of f32: what surrounds the launches of an f32 plan.

use super::elementwise;
use super::simd::Isa;
use crate::lower::{Launch, LaunchArg, Lowered, Unservable};
use halite_hal::DType;

/// Lays out a workspace and adds the launches that convert between half precision and f32.
#[derive(Debug)]
pub(crate) struct Widened {
    isa: Isa,
    cores: usize,
    lowered: Lowered,
}

impl Widened {
    /// Nothing yet.
    pub(crate) fn new(isa: Isa, cores: usize) -> Self {
        Self { isa, cores, lowered: Lowered::default() }
    }

    /// A piece of the workspace.
    pub(crate) fn reserve(&mut self, len: u64) -> LaunchArg {
        let offset = self.lowered.workspace_bytes;
        self.lowered.workspace_bytes = (offset + len).next_multiple_of(64);
        LaunchArg::Workspace { offset, len }
    }

    /// The first `n` elements of `arg` as f32; `arg` itself if that is what they are.
    pub(crate) fn widened(
        &mut self,
        arg: LaunchArg,
        dtype: DType,
        n: usize,
    ) -> Result<LaunchArg, Unservable> {
        if dtype == DType::F32 || n == 0 {
            return Ok(arg);
        }
        let wide = self.reserve(n as u64 * 4);
        self.convert(arg, dtype, wide, DType::F32, n)?;
        Ok(wide)
    }

    /// Adds a launch that converts `n` elements.
    pub(crate) fn convert(
        &mut self,
        from: LaunchArg,
        from_dtype: DType,
        to: LaunchArg,
        to_dtype: DType,
        n: usize,
    ) -> Result<(), Unservable> {
        let launch = elementwise::cast_launch(self.isa, n, (from, from_dtype), (to, to_dtype), self.cores)?;
        self.lowered.launches.push(launch);
        Ok(())
    }

    /// Adds a launch.
    pub(crate) fn push(&mut self, launch: Launch) {
        self.lowered.launches.push(launch);
    }

    /// The launches in order.
    pub(crate) fn finish(self) -> Lowered {
        self.lowered
    }
}

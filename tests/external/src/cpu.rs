//! The native kernel: safe Rust over a grid of workgroups, each with a run of the output.

use crate::{NAME, gain};
use halite::DType;
use halite::hal::{Access, ArgType, KernelSource, NativeKernel, Signature};
use halite::ops::lower::{KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite::profiles::Size;

/// Elements of a workgroup unless the profile says otherwise: 16 KiB per operand.
const DEFAULT_CHUNK: usize = 4096;

/// The variant `chunked` of `swish`; `chunk` is the number of elements of a workgroup.
pub(crate) fn variant() -> KernelVariant {
    KernelVariant::new(NAME, "chunked", "native", &[], lower).with_sizes([Size::Chunk])
}

fn lower(request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    let gain = gain(request)?;
    let chunk = request.parameters.int("chunk").map_or(DEFAULT_CHUNK, |chunk| chunk.max(1) as usize);
    let groups = u32::try_from(request.outputs[0].elements().div_ceil(chunk))
        .map_err(|_| Unservable::new(format!("chunks of {chunk} elements are too many workgroups")))?;
    let buffer = |access| ArgType::Buffer { dtype: DType::F32, access };
    let signature = Signature::new(vec![buffer(Access::Read), buffer(Access::Read), buffer(Access::Write)]);
    let kernel = NativeKernel::new("swish_f32_chunked", signature, move |group| {
        let (x, beta) = (group.read::<f32>(0)?, group.read::<f32>(1)?[0]);
        let start = group.linear_index() as usize * chunk;
        let out = group.write_chunk::<f32>(2, chunk)?;
        for (out, x) in out.iter_mut().zip(&x[start..]) {
            *out = gain * (x / (1.0 + (-beta * x).exp()));
        }
        Ok(())
    });
    Ok(Lowered::single(Launch {
        source: KernelSource::Native(kernel),
        grid: [groups, 1, 1],
        args: vec![LaunchArg::Input(0), LaunchArg::Input(1), LaunchArg::Output(0)],
    }))
}

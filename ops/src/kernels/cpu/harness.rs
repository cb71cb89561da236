//! Runs lowered kernels on host memory, for tests: one thread, workgroups in a scrambled order.

use crate::lower::{KernelOp, KernelVariant, LaunchArg, LowerRequest, Lowered, TensorType, Unservable};
use halite_hal::{Access, ArgType, DeviceId, DeviceInfo, KernelSource, NativeArg, Scalar, Workgroup};
use halite_profiles::Parameters;

/// Host memory of a tensor, aligned for every type.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    words: Vec<u64>,
    len_bytes: usize,
}

impl Memory {
    /// A copy of `bytes`.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut memory = Self { words: vec![0; bytes.len().div_ceil(8)], len_bytes: bytes.len() };
        memory.bytes_mut().copy_from_slice(bytes);
        memory
    }

    /// Memory whose every element is NaN, or all ones.
    pub(crate) fn poisoned(len_bytes: usize) -> Self {
        Self { words: vec![u64::MAX; len_bytes.div_ceil(8)], len_bytes }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `words` holds at least `len_bytes` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len_bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.len_bytes) }
    }

    fn pointer(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }
}

/// A small seeded generator (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.bits() >> 33) as usize) % n.max(1)
    }

    /// A number in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A device with every feature that this processor has.
pub(crate) fn device() -> DeviceInfo {
    let mut info = DeviceInfo::new(DeviceId::new("cpu", 0), "test");
    info.compute_units = 3;
    info
}

/// Lowers `op` with `variant` and runs it; `aliases` names an input whose memory each output is. Outputs start as NaN.
pub(crate) fn execute(
    variant: &KernelVariant,
    op: &KernelOp,
    inputs: &[(TensorType, Memory)],
    outputs: &[TensorType],
    aliases: &[Option<usize>],
    scalars: &[Scalar],
) -> Result<Vec<Memory>, Unservable> {
    let types: Vec<TensorType> = inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
    let device = device();
    let parameters = Parameters::default();
    let request = LowerRequest {
        op,
        inputs: &types,
        outputs,
        parameters: &parameters,
        local_staging: None,
        device: &device,
    };
    let lowered = (variant.lower)(&request)?;
    let inputs = inputs.iter().map(|(_, memory)| memory.clone()).collect();
    let memories = outputs.iter().map(|tensor| Memory::poisoned(tensor.len_bytes())).collect();
    Ok(run(&lowered, inputs, memories, aliases, scalars))
}

/// Runs launches; panics where a launch breaks the rules, since that is a failed test.
pub(crate) fn run(
    lowered: &Lowered,
    mut inputs: Vec<Memory>,
    mut outputs: Vec<Memory>,
    aliases: &[Option<usize>],
    scalars: &[Scalar],
) -> Vec<Memory> {
    let mut workspace = Memory::poisoned(lowered.workspace_bytes as usize);
    let mut random = Random::new(7);
    for launch in &lowered.launches {
        let KernelSource::Native(kernel) = &launch.source else {
            panic!("{} is not native", launch.source.name())
        };
        assert_eq!(kernel.signature.args.len(), launch.args.len(), "{}", kernel.name);
        let mut args = Vec::new();
        for (arg, expected) in launch.args.iter().zip(&kernel.signature.args) {
            let buffer = |memory: &mut Memory, offset: usize, len: usize| {
                let ArgType::Buffer { dtype, access } = *expected else {
                    panic!("{} wants a scalar", kernel.name)
                };
                assert!(
                    offset + len <= memory.len_bytes && len.is_multiple_of(dtype.size()),
                    "{}",
                    kernel.name
                );
                NativeArg::Buffer { ptr: memory.pointer().wrapping_add(offset), len_bytes: len, access }
            };
            args.push(match *arg {
                LaunchArg::Input(n) => {
                    assert!(
                        matches!(expected, ArgType::Buffer { access: Access::Read, .. }),
                        "{}",
                        kernel.name
                    );
                    let len = inputs[n].len_bytes;
                    buffer(&mut inputs[n], 0, len)
                }
                LaunchArg::Output(n) => match aliases.get(n).copied().flatten() {
                    Some(input) => {
                        assert!(kernel.signature.in_place, "{} does not update in place", kernel.name);
                        let len = inputs[input].len_bytes;
                        buffer(&mut inputs[input], 0, len)
                    }
                    None => {
                        let len = outputs[n].len_bytes;
                        buffer(&mut outputs[n], 0, len)
                    }
                },
                LaunchArg::Workspace { offset, len } => buffer(&mut workspace, offset as usize, len as usize),
                LaunchArg::Scalar(n) => NativeArg::Scalar(scalars[n]),
                LaunchArg::Literal(scalar) => NativeArg::Scalar(scalar),
            });
        }
        let [x, y, z] = launch.grid;
        let mut groups: Vec<u32> = (0..x * y * z).collect();
        for at in (1..groups.len()).rev() {
            groups.swap(at, random.below(at + 1));
        }
        for linear in groups {
            let index = [linear % x, linear / x % y, linear / x / y];
            let mut scratch = vec![0xa5u8; kernel.scratch_bytes];
            // SAFETY: the arguments are live host buffers of this function, and workgroups run one after another.
            let mut group =
                unsafe { Workgroup::new(index, launch.grid, &args, kernel.signature.in_place, &mut scratch) };
            (kernel.run)(&mut group).unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
        }
    }
    for (n, alias) in aliases.iter().enumerate() {
        if let Some(input) = alias {
            outputs[n] = inputs[*input].clone();
        }
    }
    outputs
}

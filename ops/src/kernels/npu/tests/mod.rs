//! Programs run on the software NPU's machine and compared with plain loops.

mod contraction;
mod elementwise;
mod reference;
mod speed;
mod window;

use crate::lower::{KernelOp, LaunchArg, LowerRequest, Lowered, TensorType};
use halite_hal::{DType, DeviceId, DeviceInfo, KernelSource, Scalar};
use halite_npu_emulator::machine::{Arg, Emulator, MachineConfig};
use halite_profiles::Parameters;

/// A generator that is good enough for test data (xorshift).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.bits() >> 20) as usize % limit
    }

    /// From -1 to 1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(super) fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

/// The machine with a device description of `cores` cores.
pub(super) struct Npu {
    emulator: Emulator,
    info: DeviceInfo,
}

impl Npu {
    pub(super) fn new(cores: u32) -> Self {
        let mut info = DeviceInfo::new(DeviceId::new("npu", 0), "test");
        info.compute_units = cores;
        Self { emulator: Emulator::new(MachineConfig::default()), info }
    }

    pub(super) fn lower(&self, op: &KernelOp, inputs: &[TensorType], outputs: &[TensorType]) -> Lowered {
        let parameters = Parameters::default();
        let request = LowerRequest { op, inputs, outputs, parameters: &parameters, device: &self.info };
        super::lower(&request).unwrap_or_else(|reason| panic!("{op:?} is refused: {reason}"))
    }

    /// Lowers and runs `op`; outputs start as all ones, so that what is not written is seen.
    pub(super) fn run(
        &self,
        op: &KernelOp,
        inputs: &[Vec<u8>],
        outputs: &[TensorType],
        scalars: &[Scalar],
    ) -> Vec<Vec<u8>> {
        self.execute(&self.lower(op, &[], outputs), op, inputs, outputs, scalars)
    }

    /// As [`Self::run`], for operations that look at the types of their inputs.
    pub(super) fn run_typed(
        &self,
        op: &KernelOp,
        (inputs, types): (&[Vec<u8>], &[TensorType]),
        outputs: &[TensorType],
    ) -> Vec<Vec<u8>> {
        self.execute(&self.lower(op, types, outputs), op, inputs, outputs, &[])
    }

    fn execute(
        &self,
        lowered: &Lowered,
        op: &KernelOp,
        inputs: &[Vec<u8>],
        outputs: &[TensorType],
        scalars: &[Scalar],
    ) -> Vec<Vec<u8>> {
        let memory = self.emulator.memory();
        let upload = |bytes: &[u8]| {
            let address = memory.alloc(bytes.len() as u64).expect("the test's data fits");
            memory.write(address, bytes).expect("the buffer is as large as the data");
            address
        };
        let input_at: Vec<u64> = inputs.iter().map(|bytes| upload(bytes)).collect();
        let output_at: Vec<u64> = outputs.iter().map(|ty| upload(&vec![0xFF; ty.len_bytes()])).collect();
        let workspace = upload(&vec![0xFF; lowered.workspace_bytes as usize]);
        for launch in &lowered.launches {
            let KernelSource::Binary { bytes, entry, .. } = &launch.source else {
                panic!("a builder makes programs");
            };
            let program = self.emulator.load(bytes).expect("a builder's program is valid");
            let scalar = |scalar: Scalar| match scalar {
                Scalar::F32(value) => Arg::F32(value),
                Scalar::I32(value) => Arg::I32(value),
                Scalar::U32(value) => Arg::U32(value),
                other => panic!("{other:?} is no scalar of a program"),
            };
            let args: Vec<Arg> = launch
                .args
                .iter()
                .map(|arg| match *arg {
                    LaunchArg::Input(n) => Arg::Buffer(input_at[n]),
                    LaunchArg::Output(n) => Arg::Buffer(output_at[n]),
                    LaunchArg::Workspace { offset, .. } => Arg::Buffer(workspace + offset),
                    LaunchArg::Scalar(n) => scalar(scalars[n]),
                    LaunchArg::Literal(value) => scalar(value),
                })
                .collect();
            let result = self.emulator.launch(&program, entry, launch.grid[0], &args);
            result.unwrap_or_else(|error| {
                let text = halite_npu_isa::text::disassemble(&program);
                panic!("{op:?}: {error}\n{text}")
            });
        }
        let download = |(&address, ty): (&u64, &TensorType)| {
            let mut bytes = vec![0; ty.len_bytes()];
            memory.read(address, &mut bytes).expect("the buffer is as large");
            bytes
        };
        let results = output_at.iter().zip(outputs).map(download).collect();
        for address in input_at.into_iter().chain(output_at).chain([workspace]) {
            memory.free(address).expect("it was allocated above");
        }
        results
    }
}

pub(super) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

pub(super) fn f32_values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

pub(super) fn ty(dtype: DType, shape: &[usize]) -> TensorType {
    TensorType::new(dtype, shape)
}

/// Asserts that values agree within `tolerance`, relative to the larger of `scale` and the reference.
pub(super) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, scale: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let same = f64::from(actual) == expected || actual.is_nan() && expected.is_nan();
        let error = (f64::from(actual) - expected).abs();
        assert!(
            same || error <= tolerance * expected.abs().max(scale),
            "{what}: element {i} is {actual}, expected {expected}"
        );
    }
}

//! Programs run on the software NPU's machine and compared with plain loops.

mod contraction;
mod elementwise;
mod reference;
mod speed;
mod window;

use crate::lower::{KernelOp, LaunchArg, LowerRequest, Lowered, TensorType};
use halite_hal::{DType, DeviceId, DeviceInfo, KernelSource, Scalar};
use halite_npu_emulator::machine::{Arg, Emulator, Executed, MachineConfig, Observer};
use halite_npu_isa::{Inst, Pipe};
use halite_profiles::Parameters;
use std::collections::HashMap;

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
        let request = LowerRequest {
            op,
            inputs,
            outputs,
            parameters: &parameters,
            local_staging: None,
            device: &self.info,
        };
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
        self.execute(&self.lower(op, &[], outputs), op, inputs, outputs, (scalars, false))
    }

    /// As [`Self::run`], for operations that look at the types of their inputs.
    pub(super) fn run_typed(
        &self,
        op: &KernelOp,
        (inputs, types): (&[Vec<u8>], &[TensorType]),
        outputs: &[TensorType],
    ) -> Vec<Vec<u8>> {
        self.execute(&self.lower(op, types, outputs), op, inputs, outputs, (&[], false))
    }

    /// As [`Self::run`], with the first output in the place of the first input.
    pub(super) fn run_in_place(
        &self,
        op: &KernelOp,
        inputs: &[Vec<u8>],
        outputs: &[TensorType],
        scalars: &[Scalar],
    ) -> Vec<Vec<u8>> {
        self.execute(&self.lower(op, &[], outputs), op, inputs, outputs, (scalars, true))
    }

    fn execute(
        &self,
        lowered: &Lowered,
        op: &KernelOp,
        inputs: &[Vec<u8>],
        outputs: &[TensorType],
        (scalars, is_in_place): (&[Scalar], bool),
    ) -> Vec<Vec<u8>> {
        let memory = self.emulator.memory();
        let upload = |bytes: &[u8]| {
            let address = memory.alloc(bytes.len() as u64).expect("the test's data fits");
            memory.write(address, bytes).expect("the buffer is as large as the data");
            address
        };
        let input_at: Vec<u64> = inputs.iter().map(|bytes| upload(bytes)).collect();
        let mut output_at: Vec<u64> = outputs.iter().map(|ty| upload(&vec![0xFF; ty.len_bytes()])).collect();
        if is_in_place {
            memory.free(output_at[0]).expect("it was allocated above");
            output_at[0] = input_at[0];
        }
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
            let mut flags = Flags::default();
            let result = self.emulator.launch_observed(&program, entry, launch.grid[0], &args, &mut flags);
            result.unwrap_or_else(|error| {
                let text = halite_npu_isa::text::disassemble(&program);
                panic!("{op:?}: {error}\n{text}")
            });
            flags.assert_all_down(op);
        }
        let download = |(&address, ty): (&u64, &TensorType)| {
            let mut bytes = vec![0; ty.len_bytes()];
            memory.read(address, &mut bytes).expect("the buffer is as large");
            bytes
        };
        let results = output_at.iter().zip(outputs).map(download).collect();
        let own_outputs = output_at.into_iter().skip(usize::from(is_in_place));
        for address in input_at.into_iter().chain(own_outputs).chain([workspace]) {
            memory.free(address).expect("it was allocated above");
        }
        results
    }
}

/// Watches the flags between pipes: a machine has one bit for each, and wants all down at the end.
#[derive(Default)]
struct Flags(HashMap<(u32, Pipe, Pipe, i64), u32>);

impl Flags {
    fn assert_all_down(&self, op: &KernelOp) {
        for ((block, from, to, id), count) in &self.0 {
            assert_eq!(*count, 0, "{op:?}: block {block} leaves flag {id} from {from} to {to} raised");
        }
    }
}

impl Observer for Flags {
    fn executed(&mut self, event: &Executed<'_>) {
        let (Inst::SetFlag { from, to, id } | Inst::WaitFlag { from, to, id }) = *event.inst else {
            return;
        };
        let count = self.0.entry((event.block, from, to, id.resolve(event.registers))).or_default();
        if matches!(event.inst, Inst::SetFlag { .. }) {
            assert_eq!(*count, 0, "instruction {} of block {} raises a raised flag", event.pc, event.block);
            *count += 1;
        } else {
            *count -= 1;
        }
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

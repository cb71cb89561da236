//! Programs made by the builder, run on the machine and compared with plain loops in f64.

mod control;
mod hostile;
mod matrix;
mod speed;
mod transfer;
mod vector;

use halite_npu_isa::{Kernel, Program};

use super::{Arg, Emulator, LaunchError, LaunchReport, MachineConfig};

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

    /// From -1 to 1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(super) fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

/// A machine with some buffers.
pub(super) struct Bench(pub(super) Emulator);

impl Bench {
    pub(super) fn new() -> Self {
        Self(Emulator::new(MachineConfig::default()))
    }

    pub(super) fn upload<T: bytemuck::NoUninit>(&self, values: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let address = self.0.memory().alloc(bytes.len() as u64).expect("the test's data fits");
        self.0.memory().write(address, bytes).expect("the buffer is as large as the data");
        address
    }

    pub(super) fn download<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        address: u64,
        count: usize,
    ) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        self.0.memory().read(address, bytemuck::cast_slice_mut(&mut values)).expect("the buffer is as large");
        values
    }

    /// Through the file format, so that every test also writes, verifies and reads a program.
    pub(super) fn launch(
        &self,
        kernel: Kernel,
        blocks: u32,
        args: &[Arg],
    ) -> Result<LaunchReport, LaunchError> {
        let name = kernel.name().to_owned();
        let file = Program::new(vec![kernel]).expect("one kernel has no namesake").to_bytes();
        let program = self.0.load(&file).expect("the builder makes valid programs");
        self.0.launch(&program, &name, blocks, args)
    }
}

/// Asserts that values agree within `tolerance`, relative to the larger of 1 and the reference.
pub(super) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "{what}: element {i} is {actual}, expected {expected}"
        );
    }
}

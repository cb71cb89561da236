//! The machine's sizes and limits.

/// Sizes, alignments and limits of the machine. The default is that of one published NPU generation
/// where its documents state it; see the profile `npu-emulator` for the source of each figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// L1 of a cube core, bytes.
    pub l1_bytes: usize,
    /// L0A of a cube core, bytes.
    pub l0a_bytes: usize,
    /// L0B of a cube core, bytes.
    pub l0b_bytes: usize,
    /// L0C of a cube core, bytes.
    pub l0c_bytes: usize,
    /// Bias table of a cube core, bytes.
    pub bias_bytes: usize,
    /// Unified buffer of a vector core, bytes.
    pub ub_bytes: usize,
    /// Alignment of addresses in L1, bytes.
    pub l1_align: usize,
    /// Alignment of addresses in L0A and L0B, bytes.
    pub l0_align: usize,
    /// Alignment of addresses in L0C, bytes.
    pub l0c_align: usize,
    /// Alignment of addresses in the bias table, bytes.
    pub bias_align: usize,
    /// Alignment of addresses in UB, bytes.
    pub ub_align: usize,
    /// Cores with a matrix unit.
    pub cube_cores: u32,
    /// Cores with a vector unit.
    pub vector_cores: u32,
    /// Global memory, bytes.
    pub global_bytes: u64,
    /// Alignment of allocations in global memory, bytes.
    pub global_align: u64,
    /// Host threads that execute the blocks of a launch.
    pub host_threads: usize,
    /// Work that a block may do before it is stopped: each instruction counts 1 and another for each
    /// 64 elements that it touches.
    pub block_budget: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            l1_bytes: 512 << 10,
            l0a_bytes: 64 << 10,
            l0b_bytes: 64 << 10,
            l0c_bytes: 128 << 10,
            bias_bytes: 1 << 10,
            ub_bytes: 192 << 10,
            l1_align: 32,
            l0_align: 512,
            l0c_align: 64,
            bias_align: 64,
            ub_align: 32,
            cube_cores: 24,
            vector_cores: 48,
            global_bytes: 4 << 30,
            global_align: 512,
            host_threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            block_budget: 1 << 40,
        }
    }
}

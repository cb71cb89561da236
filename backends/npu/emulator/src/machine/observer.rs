//! What is counted, and who may watch.

use halite_npu_isa::{Inst, Pipe, REGISTERS};

/// An instruction that was executed.
pub struct Executed<'a> {
    /// The block's index.
    pub block: u32,
    /// Index of the instruction within the kernel.
    pub pc: usize,
    /// The instruction; its operands resolve with `registers`.
    pub inst: &'a Inst,
    /// The pipe that executes it.
    pub pipe: Pipe,
    /// The register file after the instruction; only those of the scalar unit change it.
    pub registers: &'a [i64; REGISTERS],
    /// Its work.
    pub work: Work,
}

/// Sees every instruction of a launch, block by block in the order of execution.
pub trait Observer {
    /// Called after each instruction.
    fn executed(&mut self, event: &Executed<'_>);
}

/// What one instruction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read from global memory.
    pub bytes_in: u64,
    /// Bytes written to global memory.
    pub bytes_out: u64,
    /// Elements of vector instructions and of transfers.
    pub elements: u64,
    /// Multiply-adds of the cube, without padding.
    pub multiply_adds: u64,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchReport {
    /// Blocks.
    pub blocks: u32,
    /// Instructions of all blocks.
    pub instructions: u64,
    /// Instructions of each pipe, in the order of [`Pipe::ALL`].
    pub pipe_instructions: [u64; Pipe::ALL.len()],
    /// Bytes read from global memory.
    pub bytes_in: u64,
    /// Bytes written to global memory.
    pub bytes_out: u64,
    /// Elements of vector instructions and of transfers.
    pub elements: u64,
    /// Multiply-adds of the cube, without padding.
    pub multiply_adds: u64,
}

impl LaunchReport {
    pub(super) fn count(&mut self, pipe: Pipe, work: Work) {
        self.instructions += 1;
        self.pipe_instructions[usize::from(pipe.code())] += 1;
        self.bytes_in += work.bytes_in;
        self.bytes_out += work.bytes_out;
        self.elements += work.elements;
        self.multiply_adds += work.multiply_adds;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.instructions += other.instructions;
        for (sum, count) in self.pipe_instructions.iter_mut().zip(other.pipe_instructions) {
            *sum += count;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.elements += other.elements;
        self.multiply_adds += other.multiply_adds;
    }
}

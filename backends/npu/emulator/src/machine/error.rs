//! What can go wrong on the machine.

use halite_npu_isa::{ArgType, CoreKind, Pipe};

/// An access to global memory that the machine refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// There is not enough of it.
    #[error("cannot allocate {requested} bytes of global memory, {free} of {capacity} are free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes left.
        free: u64,
        /// Bytes of the device.
        capacity: u64,
    },
    /// The bytes are in no allocation.
    #[error("access to {len} bytes at {address:#x} is outside every allocation ({nearest})")]
    OutOfBounds {
        /// First byte.
        address: u64,
        /// Bytes from the first to the last.
        len: u64,
        /// The allocation that starts next below the address.
        nearest: Nearest,
    },
    /// The address is not the start of an allocation.
    #[error("{address:#x} is not the start of an allocation, it cannot be freed ({nearest})")]
    NotAllocated {
        /// The address.
        address: u64,
        /// The allocation that starts next below the address.
        nearest: Nearest,
    },
    /// The address is not a multiple of what the access needs.
    #[error("access at {address:#x} needs an address that is a multiple of {required} bytes")]
    Misaligned {
        /// The address.
        address: u64,
        /// Bytes.
        required: u64,
    },
}

/// The allocation nearest to an address, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nearest(pub(super) Option<(u64, u64)>);

impl std::fmt::Display for Nearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some((base, len)) => write!(f, "nearest is {base:#x} with {len} bytes"),
            None => f.write_str("there is none"),
        }
    }
}

/// Why a block stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Global memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A core's memory for which the host has no room.
    #[error("the host has no {bytes} bytes for {memory} of one more core; describe a smaller machine")]
    HostMemory {
        /// Which memory.
        memory: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// An access outside a core's memory.
    #[error("access to {len} bytes at {address} is outside {memory}, which has {capacity} bytes")]
    LocalBounds {
        /// Which memory.
        memory: &'static str,
        /// First byte.
        address: i64,
        /// Bytes.
        len: i64,
        /// Bytes of the memory.
        capacity: usize,
    },
    /// An address or stride in a core's memory that is not aligned.
    #[error("{what} {value} in {memory} must be a multiple of {required} bytes")]
    LocalAlignment {
        /// Which memory.
        memory: &'static str,
        /// Address or stride.
        what: &'static str,
        /// Its value.
        value: i64,
        /// Bytes.
        required: usize,
    },
    /// A result that overlaps an operand without being in its place.
    #[error("the result at {dst} overlaps the operand at {src}: they must not, or start at the same address")]
    Overlap {
        /// Address of the result.
        dst: i64,
        /// Address of the operand.
        src: i64,
    },
    /// A field of the instruction is outside its range.
    #[error("{field} is {value}, {required}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i64,
        /// What is required.
        required: &'static str,
    },
    /// A wait for a flag that nothing raises before it.
    #[error("deadlock: pipe {to} waits for flag {id} of pipe {from}, which no earlier instruction raises")]
    Flag {
        /// The pipe that should raise it.
        from: Pipe,
        /// The pipe that waits.
        to: Pipe,
        /// The flag.
        id: i64,
    },
    /// Blocks wait for each other.
    #[error("deadlock: {waiting}")]
    Deadlock {
        /// Who waits for what.
        waiting: String,
    },
    /// A gather's index is too large.
    #[error("index {index} at position {position} is not below the limit {limit}")]
    Index {
        /// Where in the index operand.
        position: usize,
        /// Its value.
        index: u32,
        /// The instruction's limit.
        limit: i64,
    },
    /// The block did more work than the configuration allows.
    #[error("the block exceeds its budget of {budget} units of work: the kernel probably does not end")]
    Budget {
        /// The configured budget.
        budget: u64,
    },
    /// The program's own `trap`.
    #[error("the program stopped itself with code {code}")]
    Stopped {
        /// Its code.
        code: u32,
    },
    /// A fault of the emulator itself.
    #[error("internal fault of the emulator: {message}")]
    Internal {
        /// The panic's message.
        message: String,
    },
}

/// A block that stopped, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel '{kernel}', block {block}, instruction {pc} ({instruction}): {fault}")]
pub struct Trap {
    /// The kernel.
    pub kernel: String,
    /// The block's index.
    pub block: u32,
    /// Index of the instruction within the kernel.
    pub pc: usize,
    /// Its text.
    pub instruction: String,
    /// What happened.
    pub fault: Fault,
}

/// Why a launch failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The program has no such kernel.
    #[error("the program has no kernel '{kernel}', it has: {known}")]
    UnknownKernel {
        /// The name asked for.
        kernel: String,
        /// The names that exist.
        known: String,
    },
    /// The number of arguments differs from the signature.
    #[error("kernel '{kernel}' takes {expected} arguments, {actual} were given")]
    ArgumentCount {
        /// The kernel.
        kernel: String,
        /// From the signature.
        expected: usize,
        /// From the launch.
        actual: usize,
    },
    /// The type of an argument differs from the signature.
    #[error("argument {index} of kernel '{kernel}' must be {}, {actual} was given", expected.name())]
    ArgumentType {
        /// The kernel.
        kernel: String,
        /// Which argument.
        index: usize,
        /// From the signature.
        expected: ArgType,
        /// From the launch.
        actual: &'static str,
    },
    /// Blocks that wait for each other must all be resident.
    #[error(
        "kernel '{kernel}' synchronises its blocks, so at most {cores} can be launched on the {kind} cores, {blocks} were asked for"
    )]
    TooManyBlocks {
        /// The kernel.
        kernel: String,
        /// Its kind of core.
        kind: CoreKind,
        /// Cores of that kind.
        cores: u32,
        /// Blocks asked for.
        blocks: u32,
    },
    /// A block stopped.
    #[error(transparent)]
    Trap(#[from] Box<Trap>),
}

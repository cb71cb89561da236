//! The functional machine: runs programs and gets the numbers right, in a defined order.
//!
//! | file | models |
//! | --- | --- |
//! | `memory.rs` | global memory and a core's own memories |
//! | `core.rs` | one core: registers, control flow, flags; what one block executes |
//! | `dma.rs` | MTE2 and MTE3: transfers between global memory, L1 and UB |
//! | `cube.rs` | MTE1, M and FIX: the matrix unit and its operands |
//! | `vector.rs`, `numeric.rs` | V: the vector unit |
//! | `schedule.rs` | the blocks of a launch on host threads |
//!
//! Instructions execute in program order. Flags are counted but need not hold anything back: a wait that no
//! earlier set allows is a deadlock. An [`Observer`] sees every instruction, which is where models of time and
//! of missing synchronisation attach.

mod config;
mod core;
mod cube;
mod dma;
mod error;
mod memory;
mod numeric;
mod observer;
mod schedule;
mod vector;

pub use config::MachineConfig;
pub use error::{Fault, LaunchError, MemoryError, Nearest, Trap};
pub use memory::GlobalMemory;
pub use observer::{Executed, LaunchReport, Observer};

use std::sync::Mutex;

use halite_npu_isa::{ArgType, Program, ProgramError};

use self::core::LocalMemories;

/// A launch's argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// The address of a buffer, or of a place inside one.
    Buffer(u64),
    /// For [`ArgType::U32`].
    U32(u32),
    /// For [`ArgType::I32`].
    I32(i32),
    /// For [`ArgType::F32`].
    F32(f32),
    /// For [`ArgType::I64`].
    I64(i64),
}

impl Arg {
    /// What the register holds after `arg`, if the argument has the type of the signature.
    fn bits(self, expected: ArgType) -> Option<i64> {
        match (self, expected) {
            (Self::Buffer(address), ArgType::Buffer(_)) => Some(address.cast_signed()),
            (Self::U32(value), ArgType::U32) => Some(value.into()),
            (Self::I32(value), ArgType::I32) => Some(value.into()),
            (Self::F32(value), ArgType::F32) => Some(value.to_bits().into()),
            (Self::I64(value), ArgType::I64) => Some(value),
            _ => None,
        }
    }

    fn type_name(self) -> &'static str {
        match self {
            Self::Buffer(_) => "a buffer",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::I64(_) => "i64",
        }
    }
}

/// The machine. May be shared between threads: launches and copies may overlap.
pub struct Emulator {
    config: MachineConfig,
    memory: GlobalMemory,
    /// Memories of cores that no block uses at the moment.
    idle: Mutex<Vec<LocalMemories>>,
}

impl Emulator {
    /// A machine with empty memory.
    #[must_use]
    pub fn new(config: MachineConfig) -> Self {
        let memory = GlobalMemory::new(config.global_bytes, config.global_align);
        Self { config, memory, idle: Mutex::default() }
    }

    /// Its sizes and limits.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its global memory.
    #[must_use]
    pub fn memory(&self) -> &GlobalMemory {
        &self.memory
    }

    /// Reads and verifies a program file.
    ///
    /// # Errors
    /// What is wrong with the file, and at which byte.
    pub fn load(&self, file: &[u8]) -> Result<Program, ProgramError> {
        Program::from_bytes(file)
    }

    /// Runs `blocks` blocks of a kernel to their end. The results do not depend on the number of host threads.
    ///
    /// # Errors
    /// If the arguments do not fit the signature or a block stops; memory then holds what was written before.
    pub fn launch(
        &self,
        program: &Program,
        kernel: &str,
        blocks: u32,
        args: &[Arg],
    ) -> Result<LaunchReport, LaunchError> {
        self.launch_on(program, kernel, blocks, args, None)
    }

    /// As [`Self::launch`], on one host thread, telling `observer` of every instruction.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub fn launch_observed(
        &self,
        program: &Program,
        kernel: &str,
        blocks: u32,
        args: &[Arg],
        observer: &mut dyn Observer,
    ) -> Result<LaunchReport, LaunchError> {
        self.launch_on(program, kernel, blocks, args, Some(observer))
    }

    fn launch_on(
        &self,
        program: &Program,
        name: &str,
        blocks: u32,
        args: &[Arg],
        observer: Option<&mut dyn Observer>,
    ) -> Result<LaunchReport, LaunchError> {
        let Some(kernel) = program.kernel(name) else {
            let known: Vec<_> = program.kernels().iter().map(|kernel| kernel.name()).collect();
            return Err(LaunchError::UnknownKernel { kernel: name.to_owned(), known: known.join(", ") });
        };
        if args.len() != kernel.args().len() {
            return Err(LaunchError::ArgumentCount {
                kernel: name.to_owned(),
                expected: kernel.args().len(),
                actual: args.len(),
            });
        }
        let mut values = Vec::with_capacity(args.len());
        for (index, (arg, &expected)) in args.iter().zip(kernel.args()).enumerate() {
            let value = arg.bits(expected).ok_or_else(|| LaunchError::ArgumentType {
                kernel: name.to_owned(),
                index,
                expected,
                actual: arg.type_name(),
            })?;
            values.push(value);
        }
        schedule::Launch::new(&self.config, self.memory.view(), &self.idle, kernel, blocks, &values)
            .run(observer)
    }
}

#[cfg(test)]
mod tests;

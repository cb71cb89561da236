//! The NPU program format: records, builder, verifier and (dis)assembler.
//!
//! A machine of this kind has cores with a scalar unit that issues instructions, in order, to pipes
//! that run side by side and meet at flags ([`types::Pipe`]). A program is a set of kernels; each is made of
//! fixed 64-byte records ([`record`]) of the instructions in one table ([`inst`]).
//!
//! - [`KernelBuilder`] writes kernels, [`Program`] holds verified ones and is a file's content.
//! - [`text::assemble`] and [`text::disassemble`] turn programs into text and back.
//! - [`verify`] names the rules that code obeys before it may run.

#![forbid(unsafe_code)]

pub mod builder;
pub mod crc;
pub mod error;
pub mod inst;
pub mod program;
pub mod record;
pub mod text;
pub mod types;
pub mod verify;

pub use builder::KernelBuilder;
pub use error::ProgramError;
pub use inst::Inst;
pub use program::{ArgType, Kernel, Program};
pub use types::{
    Access, AluOp, BinaryOp, CompareOp, CoreKind, CubeOperand, DType, Dim, MmadMode, Operand, Pipe,
    REGISTERS, ReduceOp, Reg, StoreMode, Target, UnaryOp,
};

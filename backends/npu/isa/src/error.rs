//! What can be wrong with a program.

/// Why a program was refused. Offsets are bytes from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The file ends too early or its lengths disagree.
    #[error(
        "npu program has {actual} bytes, {required} are required at byte {offset}: the file is truncated or not a program"
    )]
    Truncated {
        /// Where the length is needed.
        offset: u64,
        /// Bytes that must be there.
        required: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A field of the header, the section table or a section is wrong.
    #[error("npu program is damaged at byte {offset}: {reason}")]
    Malformed {
        /// Where.
        offset: u64,
        /// What was found and what is required.
        reason: String,
    },
    /// The format's major version is another one.
    #[error("npu program has format version {found_major}.{found_minor} at byte {offset}, this build reads {major}: rebuild the program", major = crate::program::VERSION_MAJOR)]
    Version {
        /// Where the version stands.
        offset: u64,
        /// Major version of the file.
        found_major: u16,
        /// Minor version of the file.
        found_minor: u16,
    },
    /// The program needs features that this build does not know.
    #[error(
        "npu program requires unknown feature bits {bits:#x} at byte {offset}: a newer release is needed to run it"
    )]
    UnknownFeatures {
        /// Where the bits stand.
        offset: u64,
        /// Those that are unknown.
        bits: u64,
    },
    /// Stored and computed checksum differ.
    #[error(
        "npu program is damaged: checksum of {what} at byte {offset} is {computed:#010x}, the file says {stored:#010x}"
    )]
    Checksum {
        /// Where the summed bytes start.
        offset: u64,
        /// Which part.
        what: &'static str,
        /// From the file.
        stored: u32,
        /// From the bytes.
        computed: u32,
    },
    /// An instruction breaks a rule of the machine.
    #[error("npu kernel '{kernel}', instruction {index} (byte {offset}): {reason}")]
    Instruction {
        /// Byte in the file, or in the kernel's code if it was not read from a file.
        offset: u64,
        /// The kernel.
        kernel: String,
        /// Index within the kernel.
        index: usize,
        /// Which rule.
        reason: String,
    },
    /// A kernel as a whole breaks a rule.
    #[error("npu kernel '{kernel}': {reason}")]
    Kernel {
        /// The kernel.
        kernel: String,
        /// Which rule.
        reason: String,
    },
    /// Assembler text that cannot be read.
    #[error("npu assembler, line {line}: {reason}")]
    Text {
        /// Line, from 1.
        line: usize,
        /// What was found and what is required.
        reason: String,
    },
}

impl ProgramError {
    /// The byte in the file where the fault was found, if the program came from a file.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        match *self {
            Self::Truncated { offset, .. }
            | Self::Malformed { offset, .. }
            | Self::Version { offset, .. }
            | Self::UnknownFeatures { offset, .. }
            | Self::Checksum { offset, .. }
            | Self::Instruction { offset, .. } => Some(offset),
            Self::Kernel { .. } | Self::Text { .. } => None,
        }
    }
}

//! Programs and their file format.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0..8 | magic `HALNPU\r\n` |
//! | 8..10, 10..12 | major and minor version |
//! | 12..16 | number of sections |
//! | 16..24 | total length of the file |
//! | 24..32 | required feature bits: a reader that does not know one refuses the program |
//! | 32..40 | optional feature bits: a reader ignores those that it does not know |
//! | 40..44 | CRC-32 of the header (with these four bytes zero) and the section table |
//! | 44..64 | zero |
//! | 64.. | section table, 32 bytes each: kind u32, flags u32 (bit 0: required), offset u64, length u64, CRC-32 u32, zero u32 |
//!
//! Sections start at multiples of 64, in the order of the table, with zeros between. There are four kinds:
//! names (UTF-8), kernels (32 bytes each: name offset u32, name length u32, core kind u32, first argument u32,
//! number of arguments u32, first record u32, number of records u32, zero u32), arguments (4 bytes each: type,
//! access, zero, zero) and code (64-byte records). Other kinds are skipped unless they are required.

use crate::crc::crc32;
use crate::error::ProgramError;
use crate::inst::Inst;
use crate::record::RECORD_BYTES;
use crate::types::{Access, CoreKind};
use crate::verify::{self, LoopMap};

/// The first bytes of every program file.
pub const MAGIC: &[u8; 8] = b"HALNPU\r\n";
/// The major version that this build reads and writes.
pub const VERSION_MAJOR: u16 = 1;
/// The minor version that this build writes.
pub const VERSION_MINOR: u16 = 0;
/// Required feature bits that this build knows. Bit 0: the base instruction set.
pub const KNOWN_FEATURES: u64 = 1;

const HEADER_BYTES: usize = 64;
const SECTION_ENTRY_BYTES: usize = 32;
const KERNEL_ENTRY_BYTES: usize = 32;
const ARG_ENTRY_BYTES: usize = 4;
const HEADER_CRC_AT: usize = 40;
const MAX_SECTIONS: usize = 64;

const SECTION_NAMES: u32 = 1;
const SECTION_KERNELS: u32 = 2;
const SECTION_ARGS: u32 = 3;
const SECTION_CODE: u32 = 4;
const SECTION_FLAG_REQUIRED: u32 = 1;

/// The type of a kernel's argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArgType {
    /// A buffer, passed as its address.
    Buffer(Access),
    /// An unsigned 32-bit scalar.
    U32,
    /// A signed 32-bit scalar.
    I32,
    /// A 32-bit float.
    F32,
    /// A signed 64-bit scalar.
    I64,
}

impl ArgType {
    fn encode(self) -> [u8; ARG_ENTRY_BYTES] {
        match self {
            Self::Buffer(access) => [0, access.code(), 0, 0],
            Self::U32 => [1, 0, 0, 0],
            Self::I32 => [2, 0, 0, 0],
            Self::F32 => [3, 0, 0, 0],
            Self::I64 => [4, 0, 0, 0],
        }
    }

    fn decode(bytes: [u8; ARG_ENTRY_BYTES]) -> Option<Self> {
        match bytes {
            [0, access, 0, 0] => Access::from_code(access).map(Self::Buffer),
            [1, 0, 0, 0] => Some(Self::U32),
            [2, 0, 0, 0] => Some(Self::I32),
            [3, 0, 0, 0] => Some(Self::F32),
            [4, 0, 0, 0] => Some(Self::I64),
            _ => None,
        }
    }

    /// The name in assembler text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Buffer(Access::Read) => "buffer:read",
            Self::Buffer(Access::Write) => "buffer:write",
            Self::Buffer(Access::ReadWrite) => "buffer:readwrite",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::I64 => "i64",
        }
    }

    /// The type of a name in assembler text.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [
            Self::Buffer(Access::Read),
            Self::Buffer(Access::Write),
            Self::Buffer(Access::ReadWrite),
            Self::U32,
            Self::I32,
            Self::F32,
            Self::I64,
        ];
        all.into_iter().find(|arg| arg.name() == name)
    }
}

/// A kernel whose code obeys the rules of [`crate::verify`].
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    name: String,
    core: CoreKind,
    args: Vec<ArgType>,
    code: Vec<Inst>,
    loops: LoopMap,
}

impl Kernel {
    /// Verifies `code` and makes a kernel of it.
    ///
    /// # Errors
    /// The first rule that is broken, with the instruction.
    pub fn new(
        name: impl Into<String>,
        core: CoreKind,
        args: Vec<ArgType>,
        code: Vec<Inst>,
    ) -> Result<Self, ProgramError> {
        Self::at(name.into(), core, args, code, 0)
    }

    fn at(
        name: String,
        core: CoreKind,
        args: Vec<ArgType>,
        code: Vec<Inst>,
        code_offset: u64,
    ) -> Result<Self, ProgramError> {
        if name.is_empty() || name.len() > 255 || name.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            let reason = "the name must have 1 to 255 bytes, none of them blank".to_owned();
            return Err(ProgramError::Kernel { kernel: name, reason });
        }
        if args.len() > verify::MAX_ARGS {
            let reason = format!("{} arguments, at most {} are possible", args.len(), verify::MAX_ARGS);
            return Err(ProgramError::Kernel { kernel: name, reason });
        }
        match verify::check(core, args.len(), &code) {
            Ok(loops) => Ok(Self { name, core, args, code, loops }),
            Err(fault) => Err(ProgramError::Instruction {
                offset: code_offset + (fault.index * RECORD_BYTES) as u64,
                kernel: name,
                index: fault.index,
                reason: fault.reason,
            }),
        }
    }

    /// The name by which it is launched.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind of core that it runs on.
    #[must_use]
    pub fn core(&self) -> CoreKind {
        self.core
    }

    /// The types of its arguments.
    #[must_use]
    pub fn args(&self) -> &[ArgType] {
        &self.args
    }

    /// Its instructions.
    #[must_use]
    pub fn code(&self) -> &[Inst] {
        &self.code
    }

    /// For a `loop` at `index` its `endloop`, and the other way round.
    #[must_use]
    pub fn loop_partner(&self, index: usize) -> Option<usize> {
        self.loops.partner(index)
    }
}

/// Kernels that are loaded together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    kernels: Vec<Kernel>,
}

impl Program {
    /// A program of these kernels.
    ///
    /// # Errors
    /// If two kernels have the same name.
    pub fn new(kernels: Vec<Kernel>) -> Result<Self, ProgramError> {
        let mut names: Vec<&str> = kernels.iter().map(Kernel::name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let reason = "two kernels of the program have this name".to_owned();
            return Err(ProgramError::Kernel { kernel: pair[0].to_owned(), reason });
        }
        Ok(Self { kernels })
    }

    /// Its kernels.
    #[must_use]
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// The kernel of this name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// The program file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (mut names, mut kernels, mut args, mut code) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for kernel in &self.kernels {
            let entry = [
                names.len(),
                kernel.name.len(),
                usize::from(kernel.core.code()),
                args.len() / ARG_ENTRY_BYTES,
                kernel.args.len(),
                code.len() / RECORD_BYTES,
                kernel.code.len(),
                0,
            ];
            for field in entry {
                kernels.extend_from_slice(&(field as u32).to_le_bytes());
            }
            names.extend_from_slice(kernel.name.as_bytes());
            args.extend(kernel.args.iter().flat_map(|arg| arg.encode()));
            code.extend(kernel.code.iter().flat_map(Inst::encode));
        }
        let sections =
            [(SECTION_NAMES, names), (SECTION_KERNELS, kernels), (SECTION_ARGS, args), (SECTION_CODE, code)];

        let mut file = vec![0; HEADER_BYTES + sections.len() * SECTION_ENTRY_BYTES];
        for (i, (kind, bytes)) in sections.iter().enumerate() {
            file.resize(file.len().next_multiple_of(64), 0);
            let entry = HEADER_BYTES + i * SECTION_ENTRY_BYTES;
            file[entry..entry + 4].copy_from_slice(&kind.to_le_bytes());
            file[entry + 4..entry + 8].copy_from_slice(&SECTION_FLAG_REQUIRED.to_le_bytes());
            let offset = file.len() as u64;
            file[entry + 8..entry + 16].copy_from_slice(&offset.to_le_bytes());
            file[entry + 16..entry + 24].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            file[entry + 24..entry + 28].copy_from_slice(&crc32(bytes).to_le_bytes());
            file.extend_from_slice(bytes);
        }
        let length = file.len() as u64;
        file[..8].copy_from_slice(MAGIC);
        file[8..10].copy_from_slice(&VERSION_MAJOR.to_le_bytes());
        file[10..12].copy_from_slice(&VERSION_MINOR.to_le_bytes());
        file[12..16].copy_from_slice(&(sections.len() as u32).to_le_bytes());
        file[16..24].copy_from_slice(&length.to_le_bytes());
        file[24..32].copy_from_slice(&KNOWN_FEATURES.to_le_bytes());
        let crc = crc32(&file[..HEADER_BYTES + sections.len() * SECTION_ENTRY_BYTES]);
        file[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        file
    }

    /// Reads and verifies a program file.
    ///
    /// # Errors
    /// What is wrong with the file, and at which byte.
    pub fn from_bytes(file: &[u8]) -> Result<Self, ProgramError> {
        let sections = Sections::read(file)?;
        let names = sections.find(SECTION_NAMES, "names", 1)?;
        let kernels = sections.find(SECTION_KERNELS, "kernels", KERNEL_ENTRY_BYTES)?;
        let args = sections.find(SECTION_ARGS, "arguments", ARG_ENTRY_BYTES)?;
        let code = sections.find(SECTION_CODE, "code", RECORD_BYTES)?;

        let mut result = Vec::new();
        for (i, entry) in kernels.bytes.chunks_exact(KERNEL_ENTRY_BYTES).enumerate() {
            let offset = kernels.offset + (i * KERNEL_ENTRY_BYTES) as u64;
            let field = |n: usize| u32_at(entry, 4 * n);
            let malformed = |n: usize, reason: String| {
                Err(ProgramError::Malformed { offset: offset + 4 * n as u64, reason })
            };
            let Some(name) = slice(names.bytes, field(0), field(1), 1) else {
                return malformed(0, format!("name of kernel {i} leaves the names section"));
            };
            let Ok(name) = std::str::from_utf8(name) else {
                return malformed(0, format!("name of kernel {i} is not UTF-8"));
            };
            let Some(core) = u8::try_from(field(2)).ok().and_then(CoreKind::from_code) else {
                return malformed(2, format!("core kind {} does not exist", field(2)));
            };
            let Some(arg_bytes) = slice(args.bytes, field(3), field(4), ARG_ENTRY_BYTES) else {
                return malformed(3, format!("arguments of kernel {i} leave the arguments section"));
            };
            let Some(records) = slice(code.bytes, field(5), field(6), RECORD_BYTES) else {
                return malformed(5, format!("code of kernel {i} leaves the code section"));
            };
            if field(7) != 0 {
                return malformed(7, format!("reserved field is {}, must be 0", field(7)));
            }
            if records.len() / RECORD_BYTES > verify::MAX_RECORDS {
                return malformed(
                    6,
                    format!("{} records, at most {} are possible", field(6), verify::MAX_RECORDS),
                );
            }
            let first_arg = args.offset + u64::from(field(3)) * ARG_ENTRY_BYTES as u64;
            let arg_types = decode_args(arg_bytes, first_arg)?;
            let first_record = code.offset + u64::from(field(5)) * RECORD_BYTES as u64;
            let insts = decode_records(records, first_record, name)?;
            result.push(Kernel::at(name.to_owned(), core, arg_types, insts, first_record)?);
        }
        Self::new(result)
    }
}

fn decode_args(bytes: &[u8], offset: u64) -> Result<Vec<ArgType>, ProgramError> {
    let (entries, _) = bytes.as_chunks::<ARG_ENTRY_BYTES>();
    let decode = |(i, entry): (usize, &[u8; ARG_ENTRY_BYTES])| {
        ArgType::decode(*entry).ok_or_else(|| ProgramError::Malformed {
            offset: offset + (i * ARG_ENTRY_BYTES) as u64,
            reason: format!("{entry:?} is no argument type"),
        })
    };
    entries.iter().enumerate().map(decode).collect()
}

fn decode_records(bytes: &[u8], offset: u64, kernel: &str) -> Result<Vec<Inst>, ProgramError> {
    let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
    let decode = |(index, record): (usize, &[u8; RECORD_BYTES])| {
        Inst::decode(record).map_err(|fault| ProgramError::Instruction {
            offset: offset + (index * RECORD_BYTES + fault.byte) as u64,
            kernel: kernel.to_owned(),
            index,
            reason: fault.reason,
        })
    };
    records.iter().enumerate().map(decode).collect()
}

/// Entries `first..first + count` of a table, if they are inside it.
fn slice(table: &[u8], first: u32, count: u32, entry_bytes: usize) -> Option<&[u8]> {
    let start = usize::try_from(first).ok()?.checked_mul(entry_bytes)?;
    let len = usize::try_from(count).ok()?.checked_mul(entry_bytes)?;
    table.get(start..start.checked_add(len)?)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

struct Section<'a> {
    kind: u32,
    offset: u64,
    bytes: &'a [u8],
}

/// The section table, checked against the file.
struct Sections<'a>(Vec<Section<'a>>);

impl<'a> Sections<'a> {
    fn read(file: &'a [u8]) -> Result<Self, ProgramError> {
        let actual = file.len() as u64;
        let need = |offset: u64, required: u64| {
            if actual < required { Err(ProgramError::Truncated { offset, required, actual }) } else { Ok(()) }
        };
        need(0, HEADER_BYTES as u64)?;
        if &file[..8] != MAGIC {
            let reason = format!("magic is {:02x?}, a program starts with {:02x?}", &file[..8], MAGIC);
            return Err(ProgramError::Malformed { offset: 0, reason });
        }
        let (found_major, found_minor) =
            (u16::from_le_bytes([file[8], file[9]]), u16::from_le_bytes([file[10], file[11]]));
        if found_major != VERSION_MAJOR {
            return Err(ProgramError::Version { offset: 8, found_major, found_minor });
        }
        let length = u64_at(file, 16);
        need(16, length)?;
        if length != actual {
            let reason = format!("total length is {length}, the file has {actual} bytes");
            return Err(ProgramError::Malformed { offset: 16, reason });
        }
        let unknown = u64_at(file, 24) & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(ProgramError::UnknownFeatures { offset: 24, bits: unknown });
        }
        if let Some(at) = (44..HEADER_BYTES).find(|&at| file[at] != 0) {
            let reason = format!("reserved byte is {}, must be 0", file[at]);
            return Err(ProgramError::Malformed { offset: at as u64, reason });
        }
        let count = u32_at(file, 12) as usize;
        if count > MAX_SECTIONS {
            let reason = format!("{count} sections, at most {MAX_SECTIONS} are possible");
            return Err(ProgramError::Malformed { offset: 12, reason });
        }
        let table_end = HEADER_BYTES + count * SECTION_ENTRY_BYTES;
        need(12, table_end as u64)?;
        let stored = u32_at(file, HEADER_CRC_AT);
        let mut head = file[..table_end].to_vec();
        head[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
        let computed = crc32(&head);
        if stored != computed {
            return Err(ProgramError::Checksum { offset: 0, what: "the header", stored, computed });
        }
        Self::read_table(file, table_end)
    }

    fn read_table(file: &'a [u8], table_end: usize) -> Result<Self, ProgramError> {
        let mut sections = Vec::new();
        let mut end = table_end;
        for at in (HEADER_BYTES..table_end).step_by(SECTION_ENTRY_BYTES) {
            let malformed = |field: usize, reason: String| {
                Err(ProgramError::Malformed { offset: (at + field) as u64, reason })
            };
            let (kind, flags) = (u32_at(file, at), u32_at(file, at + 4));
            let (offset, len) = (u64_at(file, at + 8), u64_at(file, at + 16));
            if u32_at(file, at + 28) != 0 {
                return malformed(28, "reserved field must be 0".to_owned());
            }
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            if start != end.next_multiple_of(64) {
                return malformed(
                    8,
                    format!(
                        "section starts at {offset}, must be {} (sections follow each other)",
                        end.next_multiple_of(64)
                    ),
                );
            }
            let section_end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
            let Some(bytes) = section_end.and_then(|section_end| file.get(start..section_end)) else {
                return malformed(16, format!("section of {len} bytes at {offset} leaves the file"));
            };
            if let Some(gap) = (end..start).find(|&gap| file[gap] != 0) {
                let reason = format!("byte between sections is {}, must be 0", file[gap]);
                return Err(ProgramError::Malformed { offset: gap as u64, reason });
            }
            let (stored, computed) = (u32_at(file, at + 24), crc32(bytes));
            if stored != computed {
                return Err(ProgramError::Checksum { offset, what: "a section", stored, computed });
            }
            let known = matches!(kind, SECTION_NAMES | SECTION_KERNELS | SECTION_ARGS | SECTION_CODE);
            if !known && flags & SECTION_FLAG_REQUIRED != 0 {
                return malformed(0, format!("section kind {kind} is required and unknown to this build"));
            }
            end = start + bytes.len();
            sections.push(Section { kind, offset, bytes });
        }
        if end != file.len() {
            let reason = format!("{} bytes follow the last section", file.len() - end);
            return Err(ProgramError::Malformed { offset: end as u64, reason });
        }
        Ok(Self(sections))
    }

    fn find(&self, kind: u32, name: &str, entry_bytes: usize) -> Result<&Section<'a>, ProgramError> {
        let mut found = self.0.iter().filter(|section| section.kind == kind);
        let (Some(section), None) = (found.next(), found.next()) else {
            let reason = format!("there must be exactly one section of kind {kind} ({name})");
            return Err(ProgramError::Malformed { offset: HEADER_BYTES as u64, reason });
        };
        if section.bytes.len() % entry_bytes != 0 {
            let reason =
                format!("{name} section has {} bytes, no multiple of {entry_bytes}", section.bytes.len());
            return Err(ProgramError::Malformed { offset: section.offset, reason });
        }
        Ok(section)
    }
}

//! Fixed 64-byte records: how the fields of an instruction become bytes and text.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0 | operation code |
//! | 1..6 | up to five one-byte fields, in the order of the instruction's declaration |
//! | 6..8 | bit i set: slot i names a register |
//! | 8..64 | fourteen 32-bit slots: constants or register indices |
//!
//! What an instruction does not use is zero, and the reader insists on it.

use std::fmt::Write as _;

use crate::types::{Dim, Operand, Reg, Target};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 64;

const SMALLS: usize = 5;
const SLOTS: usize = 14;
const MASK_AT: usize = 6;
const SLOTS_AT: usize = 8;

/// What is wrong inside a record, and at which of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFault {
    /// Byte within the record.
    pub byte: usize,
    /// What was found and what is allowed.
    pub reason: String,
}

impl RecordFault {
    pub(crate) fn new(byte: usize, reason: impl Into<String>) -> Self {
        Self { byte, reason: reason.into() }
    }
}

/// Fills a record field by field.
pub struct RecordWriter {
    bytes: [u8; RECORD_BYTES],
    smalls: usize,
    slots: usize,
    mask: u16,
}

impl RecordWriter {
    pub(crate) fn new(opcode: u8) -> Self {
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = opcode;
        Self { bytes, smalls: 0, slots: 0, mask: 0 }
    }

    pub(crate) fn small(&mut self, value: u8) {
        assert!(self.smalls < SMALLS, "the instruction table declares at most five one-byte fields");
        self.bytes[1 + self.smalls] = value;
        self.smalls += 1;
    }

    pub(crate) fn slot(&mut self, value: u32, is_register: bool) {
        assert!(self.slots < SLOTS, "the instruction table declares at most fourteen slots");
        let at = SLOTS_AT + 4 * self.slots;
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.mask |= u16::from(is_register) << self.slots;
        self.slots += 1;
    }

    pub(crate) fn finish(mut self) -> [u8; RECORD_BYTES] {
        self.bytes[MASK_AT..MASK_AT + 2].copy_from_slice(&self.mask.to_le_bytes());
        self.bytes
    }
}

/// Reads a record field by field.
pub struct RecordReader<'a> {
    bytes: &'a [u8; RECORD_BYTES],
    smalls: usize,
    slots: usize,
    mask: u16,
}

impl<'a> RecordReader<'a> {
    pub(crate) fn new(bytes: &'a [u8; RECORD_BYTES]) -> Self {
        let mask = u16::from_le_bytes([bytes[MASK_AT], bytes[MASK_AT + 1]]);
        Self { bytes, smalls: 0, slots: 0, mask }
    }

    /// The next one-byte field and where it stands.
    pub(crate) fn small(&mut self) -> (usize, u8) {
        let at = 1 + self.smalls;
        self.smalls += 1;
        (at, self.bytes[at])
    }

    /// The next slot: where it stands, its value, and whether it names a register.
    pub(crate) fn slot(&mut self) -> (usize, u32, bool) {
        let at = SLOTS_AT + 4 * self.slots;
        let bytes = [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]];
        let is_register = self.mask >> self.slots & 1 == 1;
        self.slots += 1;
        (at, u32::from_le_bytes(bytes), is_register)
    }

    /// Checks that nothing is left over.
    pub(crate) fn finish(self) -> Result<(), RecordFault> {
        let unused_small = (1 + self.smalls)..MASK_AT;
        let unused_slots = (SLOTS_AT + 4 * self.slots)..RECORD_BYTES;
        for at in unused_small.chain(unused_slots) {
            if self.bytes[at] != 0 {
                return Err(RecordFault::new(at, format!("unused byte is {}, must be 0", self.bytes[at])));
            }
        }
        if self.mask >> self.slots != 0 {
            return Err(RecordFault::new(MASK_AT, "register mask names slots that the instruction lacks"));
        }
        Ok(())
    }
}

/// A field of an instruction.
pub trait Field: Sized {
    /// Appends it to a record.
    fn write(&self, record: &mut RecordWriter);
    /// Takes it from a record.
    ///
    /// # Errors
    /// If the bytes are no such field.
    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault>;
    /// Appends its text.
    fn print(&self, text: &mut String);
    /// Reads its text.
    ///
    /// # Errors
    /// If the text is no such field.
    fn parse(text: &str) -> Result<Self, String>;
}

fn register_at(at: usize, index: u32) -> Result<Reg, RecordFault> {
    u8::try_from(index)
        .ok()
        .and_then(Reg::new)
        .ok_or_else(|| RecordFault::new(at, format!("register {index} does not exist")))
}

fn constant(record: &mut RecordReader<'_>) -> Result<u32, RecordFault> {
    match record.slot() {
        (_, value, false) => Ok(value),
        (at, _, true) => Err(RecordFault::new(at, "a register where only a constant may stand")),
    }
}

impl Field for Reg {
    fn write(&self, record: &mut RecordWriter) {
        record.slot(self.index() as u32, true);
    }

    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
        match record.slot() {
            (at, index, true) => register_at(at, index),
            (at, _, false) => Err(RecordFault::new(at, "a constant where only a register may stand")),
        }
    }

    fn print(&self, text: &mut String) {
        let _ = write!(text, "{self}");
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.strip_prefix('r')
            .and_then(|index| index.parse().ok())
            .and_then(Self::new)
            .ok_or_else(|| format!("'{text}' is not a register (r0 to r63)"))
    }
}

impl Field for Operand {
    fn write(&self, record: &mut RecordWriter) {
        match *self {
            Self::Imm(value) => record.slot(value.cast_unsigned(), false),
            Self::Reg(reg) => reg.write(record),
        }
    }

    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
        match record.slot() {
            (_, value, false) => Ok(Self::Imm(value.cast_signed())),
            (at, index, true) => register_at(at, index).map(Self::Reg),
        }
    }

    fn print(&self, text: &mut String) {
        match self {
            Self::Imm(value) => {
                let _ = write!(text, "{value}");
            }
            Self::Reg(reg) => reg.print(text),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('r') {
            return Reg::parse(text).map(Self::Reg);
        }
        text.parse()
            .map(Self::Imm)
            .map_err(|_| format!("'{text}' is neither a register nor a 32-bit constant"))
    }
}

impl Field for u32 {
    fn write(&self, record: &mut RecordWriter) {
        record.slot(*self, false);
    }

    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
        constant(record)
    }

    fn print(&self, text: &mut String) {
        let _ = write!(text, "{self}");
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("'{text}' is not an unsigned 32-bit constant"))
    }
}

impl Field for i64 {
    fn write(&self, record: &mut RecordWriter) {
        let bits = self.cast_unsigned();
        record.slot(bits as u32, false);
        record.slot((bits >> 32) as u32, false);
    }

    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
        let low = u64::from(constant(record)?);
        let high = u64::from(constant(record)?);
        Ok((low | high << 32).cast_signed())
    }

    fn print(&self, text: &mut String) {
        let _ = write!(text, "{self}");
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("'{text}' is not a 64-bit constant"))
    }
}

impl Field for Target {
    fn write(&self, record: &mut RecordWriter) {
        record.slot(self.0, false);
    }

    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
        constant(record).map(Self)
    }

    fn print(&self, text: &mut String) {
        let _ = write!(text, "@{}", self.0);
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.strip_prefix('@')
            .and_then(|index| index.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("'{text}' is not a target (@label)"))
    }
}

impl Field for bool {
    fn write(&self, record: &mut RecordWriter) {
        record.small(u8::from(*self));
    }

    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
        match record.small() {
            (_, 0) => Ok(false),
            (_, 1) => Ok(true),
            (at, value) => Err(RecordFault::new(at, format!("a switch is {value}, must be 0 or 1"))),
        }
    }

    fn print(&self, text: &mut String) {
        text.push_str(if *self { "yes" } else { "no" });
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err(format!("'{text}' is neither yes nor no")),
        }
    }
}

impl Field for Dim {
    fn write(&self, record: &mut RecordWriter) {
        self.count.write(record);
        self.src_stride.write(record);
        self.dst_stride.write(record);
    }

    fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
        Ok(Self {
            count: Operand::read(record)?,
            src_stride: Operand::read(record)?,
            dst_stride: Operand::read(record)?,
        })
    }

    fn print(&self, text: &mut String) {
        self.count.print(text);
        text.push(':');
        self.src_stride.print(text);
        text.push(':');
        self.dst_stride.print(text);
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(count), Some(src), Some(dst), None) => Ok(Self {
                count: Operand::parse(count)?,
                src_stride: Operand::parse(src)?,
                dst_stride: Operand::parse(dst)?,
            }),
            _ => Err(format!("'{text}' is not a dimension (count:src_stride:dst_stride)")),
        }
    }
}

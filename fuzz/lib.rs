//! What the fuzz targets share.

pub mod lying_plugin;
pub mod threads;

use halite_npu_isa::crc::crc32;

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 32;
const HEADER_CRC_AT: usize = 40;

/// Puts right checksums and the right length into what may be a program file, so that its contents are reached.
#[must_use]
pub fn with_right_checksums(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let length = file.len();
    if length < HEADER_BYTES {
        return file;
    }
    file[16..24].copy_from_slice(&(length as u64).to_le_bytes());
    let number = |file: &[u8], at: usize, bytes: usize| {
        file[at..at + bytes].iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b))
    };
    let sections = number(&file, 12, 4) as usize;
    let Some(end) = sections.checked_mul(SECTION_BYTES).map(|bytes| bytes.saturating_add(HEADER_BYTES))
    else {
        return file;
    };
    if end > length {
        return file;
    }
    for entry in (HEADER_BYTES..end).step_by(SECTION_BYTES) {
        let (offset, bytes) = (number(&file, entry + 8, 8), number(&file, entry + 16, 8));
        let range = usize::try_from(offset).ok().zip(usize::try_from(bytes).ok());
        let section = range.and_then(|(offset, bytes)| file.get(offset..offset.checked_add(bytes)?));
        if let Some(crc) = section.map(crc32) {
            file[entry + 24..entry + 28].copy_from_slice(&crc.to_le_bytes());
        }
    }
    file[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
    let crc = crc32(&file[..end]);
    file[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    file
}

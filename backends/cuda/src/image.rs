//! Images of modules, checked before the driver sees them: it is told where an image begins, and reads on for as long as
//! the image itself says.

use halite_hal::{Error, Result};

/// A cubin is an ELF file of 64 bits, little-endian (CUDA Binary Utilities, "What is a CUDA Binary?").
const ELF: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
/// `EM_CUDA`.
const MACHINE: u16 = 190;
const HEADER_BYTES: usize = 64;
/// `SHT_NOBITS`: a section without bytes in the file.
const NO_BITS: u32 = 8;

/// Checks that everything that a cubin's tables name lies inside of it.
///
/// # Errors
/// `BadFormat` that says what does not.
pub(crate) fn check_cubin(bytes: &[u8]) -> Result<()> {
    let bad = |what: &str| Error::bad_format(format!("a cubin of {} bytes {what}", bytes.len()));
    if bytes.len() < HEADER_BYTES || !bytes.starts_with(&ELF) {
        return Err(bad("does not begin with the header of one"));
    }
    if u16::from_le_bytes(field(bytes, 18)) != MACHINE {
        return Err(bad("is for another machine than a GPU"));
    }
    let inside = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= bytes.len() as u64);
    let half = |at| u64::from(u16::from_le_bytes(field(bytes, at)));
    // Offset of a table, bytes of an entry, number of entries; then where an entry has its own offset and length.
    let segments = (u64::from_le_bytes(field(bytes, 32)), half(54), half(56), (8, 32), 56);
    let sections = (u64::from_le_bytes(field(bytes, 40)), half(58), half(60), (24, 32), 64);
    for (table, entry_bytes, count, (offset_at, len_at), least) in [segments, sections] {
        if count == 0 {
            continue;
        }
        if entry_bytes < least || !inside(table, entry_bytes * count) {
            return Err(bad("ends before its tables"));
        }
        for index in 0..count {
            let entry = &bytes[(table + index * entry_bytes) as usize..];
            let is_section = least == 64;
            if is_section && u32::from_le_bytes(field(entry, 4)) == NO_BITS {
                continue;
            }
            let (offset, len) =
                (u64::from_le_bytes(field(entry, offset_at)), u64::from_le_bytes(field(entry, len_at)));
            if !inside(offset, len) {
                return Err(bad("ends before what its tables name"));
            }
        }
    }
    Ok(())
}

/// PTX with the zero byte at its end that the driver looks for.
///
/// # Errors
/// `BadFormat` for text that ends before its last byte, or is no PTX.
pub(crate) fn terminated_ptx(bytes: &[u8]) -> Result<Vec<u8>> {
    let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if text.contains(&0) {
        return Err(Error::bad_format("PTX text holds a zero byte"));
    }
    if !text.windows(8).any(|window| window == b".version") {
        return Err(Error::bad_format("PTX text has no .version"));
    }
    let mut text = text.to_vec();
    text.push(0);
    Ok(text)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cubin with one section of 8 bytes and no code.
    fn cubin() -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..6].copy_from_slice(&ELF);
        bytes[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        bytes.extend([7; 8]);
        let table = bytes.len() as u64;
        bytes[40..48].copy_from_slice(&table.to_le_bytes());
        bytes[58..60].copy_from_slice(&64u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&1u16.to_le_bytes());
        let mut section = [0; 64];
        section[4..8].copy_from_slice(&1u32.to_le_bytes());
        section[24..32].copy_from_slice(&64u64.to_le_bytes());
        section[32..40].copy_from_slice(&8u64.to_le_bytes());
        bytes.extend(section);
        bytes
    }

    #[test]
    fn a_whole_cubin_passes_and_a_shortened_one_does_not() {
        let whole = cubin();
        check_cubin(&whole).unwrap();
        for len in 0..whole.len() {
            let error = check_cubin(&whole[..len]).unwrap_err();
            assert_eq!(error.kind(), &halite_hal::ErrorKind::BadFormat, "{len} bytes");
        }
    }

    #[test]
    fn cubins_of_every_architecture_pass_and_their_beginnings_do_not() {
        let compiler = match crate::Compiler::find() {
            Ok(compiler) => compiler,
            Err(error) => {
                let required = std::env::var("HALITE_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
                assert!(!required, "HALITE_REQUIRE_NVRTC=1: {error}");
                println!("skipped: {}", error.message());
                return;
            }
        };
        let source = include_str!("builtin.cu");
        for number in compiler.architectures() {
            let cubin = compiler.compile("builtin", source, "", &format!("sm_{number}")).unwrap();
            check_cubin(&cubin).unwrap_or_else(|error| panic!("sm_{number}: {error}"));
            for part in 0..64 {
                assert!(check_cubin(&cubin[..cubin.len() * part / 64]).is_err(), "sm_{number}, {part}/64");
            }
        }
    }

    #[test]
    fn tables_that_lead_outside_are_refused() {
        let section = cubin().len() - 64;
        for (at, value) in [(40, u64::MAX), (section + 24, u64::MAX), (section + 32, 1 << 40)] {
            let mut bytes = cubin();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert!(check_cubin(&bytes).is_err(), "byte {at}");
        }
        let mut bytes = cubin();
        bytes[60] = 2;
        assert!(check_cubin(&bytes).is_err());
        let mut bytes = cubin();
        bytes[18] = 62;
        assert!(check_cubin(&bytes).is_err());
    }

    #[test]
    fn ptx_ends_with_one_zero_byte() {
        let text = b".version 6.4\n.target sm_50\n";
        let expected = [&text[..], &[0]].concat();
        assert_eq!(terminated_ptx(text).unwrap(), expected);
        assert_eq!(terminated_ptx(&expected).unwrap(), expected);
        for bad in [&b""[..], b"not it", b".version\0 6.4"] {
            assert_eq!(terminated_ptx(bad).unwrap_err().kind(), &halite_hal::ErrorKind::BadFormat);
        }
    }
}

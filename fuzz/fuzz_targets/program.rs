//! Program files of NPUs: what is read is written as a file that reads the same, and so is its text.
#![no_main]

use halite_npu_isa::{Program, text};
use libfuzzer_sys::fuzz_target;

fn read(file: &[u8]) {
    let Ok(program) = Program::from_bytes(file) else { return };
    let again = Program::from_bytes(&program.to_bytes()).expect("what was written is a program");
    assert_eq!(program, again);
    let text = text::disassemble(&program);
    let again = text::assemble(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(text::disassemble(&again), text);
}

fuzz_target!(|file: &[u8]| {
    read(file);
    read(&halite_fuzz::with_right_checksums(file));
});

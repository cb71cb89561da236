//! The text of NPU programs: what is assembled survives its file and its own text.
#![no_main]

use halite_npu_isa::{Program, text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let Ok(program) = text::assemble(input) else { return };
    let file = program.to_bytes();
    assert_eq!(Program::from_bytes(&file).expect("what was assembled is a program").to_bytes(), file);
    let printed = text::disassemble(&program);
    let again = text::assemble(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(text::disassemble(&again), printed);
});

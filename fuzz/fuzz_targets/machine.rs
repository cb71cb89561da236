//! Machine files of the emulator: any text is a machine or an error with its line.
#![no_main]

use halite_profiles::Machine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Machine::from_yaml(text, "fuzz.yaml") {
        Ok(machine) => assert!(machine.multiply_adds_per_cycle_f16() > 0),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

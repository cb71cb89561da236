//! The emulator is a plugin like any other: opened from a file at run time, never linked in.

#![allow(missing_docs)]

mod common;

/// Text that the emulator's library contains, and nothing else has reason to.
const DEVICE_NAME: &[u8] = b"Halite NPU emulator";

#[test]
fn the_program_does_not_contain_the_emulator() {
    let contains_it = |file: &std::path::Path| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(DEVICE_NAME.len()).any(|window| window == DEVICE_NAME)
    };
    let library =
        format!("{}halite_npu_emulator{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let own = std::env::current_exe().unwrap();
    assert!(contains_it(&own.with_file_name(library)), "the text to look for has changed");
    assert!(!contains_it(env!("CARGO_BIN_EXE_halite").as_ref()), "the emulator was linked into the program");
}

#[cfg(target_os = "linux")]
#[test]
fn the_library_is_mapped_only_when_it_is_asked_for() {
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains("libhalite_npu_emulator.so");
    assert!(!mapped(), "the emulator is there from the start");
    let session = common::session();
    let engine = common::open(&session, "npu:0");
    assert!(engine.device().info().name.contains("emulator"));
    assert!(mapped());
}

//! What people type: command lines, names of devices and types, and options for NPUs. Any text has a meaning, or an error
//! that says what is wrong with it.
#![no_main]

use halite::cli::try_parse_from;
use halite_fuzz::threads::{threads, wait_for_threads};
use halite_hal::driver::Backend as _;
use halite_hal::{DType, DeviceId};
use halite_npu::{NpuBackend, OPTIONS_VARIABLE};
use halite_npu_emulator::halite_plugin_entry;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// The emulator, which has options of its own.
static EMULATOR: LazyLock<NpuBackend> = LazyLock::new(|| {
    // SAFETY: a plugin that keeps the interface's rules, which is part of this program.
    unsafe { NpuBackend::with_linked_plugin(halite_plugin_entry) }.expect("the emulator is a plugin")
});

fuzz_target!(|text: &str| {
    if let Err(stop) = try_parse_from(std::iter::once("halite").chain(text.split_whitespace())) {
        assert!(!stop.message.is_empty());
    }
    if let Ok(id) = text.parse::<DeviceId>() {
        assert_eq!(id.to_string().parse::<DeviceId>().ok(), Some(id));
    }
    if let Ok(dtype) = text.parse::<DType>() {
        assert_eq!(dtype.to_string().parse::<DType>().ok(), Some(dtype));
    }
    // A machine is a file, of which there may be any.
    if !text.contains('\0') && !text.contains("machine") {
        let count = threads();
        // SAFETY: nothing else of this program looks at its environment meanwhile: the threads of earlier calls are gone.
        unsafe { std::env::set_var(OPTIONS_VARIABLE, text) };
        if let Err(error) = EMULATOR.probe() {
            assert!(!error.message().is_empty() && !error.message().contains(char::is_control), "{error:?}");
        }
        wait_for_threads(count);
    }
});

//! A hundred drawn schedules on every kind of device: what is read without an error is right, errors are those that were
//! injected, nothing hangs, and nothing is left behind.

#![allow(missing_docs)]

mod fault_program;

use fault_program::Tally;
use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::Device;
use halite_hal::driver::Backend;
use halite_npu::{NpuBackend, emulator_file_name};
use halite_opencl::OpenClBackend;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

const SCHEDULES: u64 = 100;
/// Far beyond what one schedule takes on a loaded machine.
const HANG_LIMIT: Duration = Duration::from_secs(120);

/// Runs every schedule, each watched for a hang.
fn hold(name: &str, open: impl Fn() -> Device + Send + 'static) {
    let (sender, receiver) = channel();
    let runner = std::thread::spawn(move || {
        for seed in 0..SCHEDULES {
            let tally = fault_program::run(seed, &open);
            if sender.send(tally).is_err() {
                return;
            }
        }
    });
    let mut total = Tally::default();
    let mut finished = 0;
    loop {
        match receiver.recv_timeout(HANG_LIMIT) {
            Ok(tally) => {
                total.add(tally);
                finished += 1;
            }
            Err(RecvTimeoutError::Timeout) => panic!("{name}: schedule {finished} hangs"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(panic) = runner.join() {
        println!("{name}: schedule {finished} failed");
        std::panic::resume_unwind(panic);
    }
    println!("{name}: {finished} schedules, {total:?}");
    assert_eq!(finished, SCHEDULES);
    // Schedules that hit nothing, or programs that read nothing, would prove nothing.
    assert!(total.errors > 300 && total.compared > 1000 && total.losses > 5, "{name}: {total:?}");
}

fn cpu() -> Device {
    CpuBackend::new(CpuConfig { threads: Some(2), memory_limit_bytes: Some(16 << 20) }).open(0).unwrap()
}

#[test]
fn a_hundred_schedules_hold_on_the_cpu() {
    hold("cpu", cpu);
}

#[test]
fn without_verification_corrupted_copies_give_wrong_numbers_which_the_model_sees() {
    let mut wrong = 0;
    for seed in 0..5 {
        let run = || fault_program::run_with(seed, true, false, &cpu);
        let Err(panic) = std::panic::catch_unwind(run) else { continue };
        let text = panic.downcast_ref::<&str>().expect("assertions of the model panic with a text");
        assert!(text.contains("wrong number"), "{text}");
        wrong += 1;
    }
    assert!(wrong >= 2, "{wrong} of 5");
}

#[test]
fn a_hundred_schedules_hold_on_the_emulated_npu() {
    let file = std::env::current_exe().unwrap().with_file_name(emulator_file_name());
    let backend = NpuBackend::with_plugin(file).without_environment();
    hold("npu", move || backend.open(0).unwrap());
}

#[test]
fn a_hundred_schedules_hold_on_opencl() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault-kernels");
    let backend = OpenClBackend::new().with_cache_folder(folder);
    if let Err(error) = backend.open(0) {
        let required = std::env::var_os("HALITE_REQUIRE_OPENCL").is_some_and(|value| value == "1");
        assert!(!required, "no OpenCL device: {error}");
        println!("skipped: {error}");
        return;
    }
    hold("opencl", move || backend.open(0).unwrap());
}

#[test]
fn a_hundred_schedules_hold_on_the_example_plugin() {
    let Some(file) = example_plugin() else { return };
    let backend = NpuBackend::with_plugin(file).without_environment();
    hold("example plugin", move || backend.open(0).unwrap());
}

/// The example plugin, compiled; `None`, with a printed reason, where there is no compiler.
fn example_plugin() -> Option<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libhalite_npu_example_under_faults.so");
    let mut command = Command::new("cc");
    command
        .args(["-std=c99", "-O1", "-shared", "-fPIC", "-pthread", "-I"])
        .arg(format!("{root}/hal/include"));
    command.arg("-o").arg(&output).arg(format!("{root}/backends/npu/example-plugin/example.c"));
    match command.output() {
        Ok(result) => {
            assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
            Some(output)
        }
        Err(error) => {
            println!("skipped: no C compiler: {error}");
            None
        }
    }
}

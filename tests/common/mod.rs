//! What the integration tests of the root package share.

// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub)]

use halite::demo::digits::{Batch, Digits};
use halite::demo::network::{Cnn, CnnConfig};
use halite::{Engine, Session, SessionBuilder, Tensor};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The devices that this repository brings along, and that must therefore be there.
pub const DEVICES: [&str; 2] = ["cpu:0", "npu:0"];

/// The first OpenCL device, or nothing on a machine without one, which is a failure where `HALITE_REQUIRE_OPENCL` is 1.
pub fn opencl(session: &Session) -> Option<String> {
    let found = session.discover();
    let device =
        found.devices.iter().find(|info| info.id.backend == "opencl").map(|info| info.id.to_string());
    if device.is_none() {
        let reason = found.absent.into_iter().find(|absence| absence.backend == "opencl").map(|a| a.reason);
        let required = std::env::var_os("HALITE_REQUIRE_OPENCL").is_some_and(|value| value == "1");
        assert!(!required, "no OpenCL device: {reason:?}");
        println!("skipped: no OpenCL device: {reason:?}");
    }
    device
}

/// A session without the settings of whoever runs the test.
pub fn session() -> Session {
    builder().build().expect("backends and profiles are in order")
}

/// For a session without the settings of whoever runs the test.
pub fn builder() -> SessionBuilder {
    Session::builder().without_environment()
}

/// A program without the settings and the profiles of whoever runs the test, and without the GPUs of the machine.
pub fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    clear(&mut command);
    for library in ["HALITE_OPENCL_LIBRARY", "HALITE_CUDA_LIBRARY"] {
        command.env(library, "/absent/library.so");
    }
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Takes the settings of whoever runs the test from a command.
pub fn clear(command: &mut Command) {
    let is_setting = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b"HALITE_");
    for name in std::env::vars_os().map(|(name, _)| name).filter(is_setting) {
        command.env_remove(name);
    }
}

/// A folder of this test, made anew.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the test's folder is writable");
    folder
}

pub fn open(session: &Session, device: &str) -> Engine {
    session.open(device).unwrap_or_else(|error| panic!("{device}: {error}"))
}

pub fn network(session: &Session, device: &str, config: CnnConfig, seed: u64) -> Cnn {
    Cnn::new(&open(session, device), config, seed).unwrap_or_else(|error| panic!("{device}: {error}"))
}

/// The first `steps` training batches of 32 digits.
pub fn batches(steps: usize) -> Vec<Batch> {
    let digits = Digits::builtin().expect("the data are not damaged");
    let epochs = (0..).flat_map(|epoch| digits.train().epoch(32, 7, epoch).collect::<Vec<_>>());
    epochs.take(steps).collect()
}

/// `|a - b| / |b|`, in the Euclidean or in the maximum norm, whichever is larger; 0 for two zeros.
///
/// A single number decides by itself. Within a tensor, elements near zero are sums that cancelled, whose own relative
/// error has no bound.
pub fn relative_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let euclidean = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let maximum = |values: &[f64]| values.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    if difference.iter().all(|&v| v == 0.0) {
        return 0.0;
    }
    (euclidean(&difference) / euclidean(b)).max(maximum(&difference) / maximum(b))
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f64().unwrap_or_else(|error| panic!("{tensor:?}: {error}"))
}

/// The example plugin, compiled; `None`, with a printed reason, where there is no compiler.
pub fn example_plugin() -> Option<PathBuf> {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = folder("example-plugin").join("libhalite_npu_example.so");
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

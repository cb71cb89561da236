//! The main job inside of the layer `validate`: no finding on any device, and the same numbers as without it.

#![allow(missing_docs)]

mod common;

use common::{DEVICES, clear, opencl, session};
use serde_json::Value;
use std::process::Command;

/// Losses of the first epoch, and what was written beside the report.
fn demo(device: &str, layers: Option<&str>) -> (Vec<f64>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halite"));
    clear(&mut command);
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.args(["demo", "--json", "--epochs", "1", "--batch", "64", "--device", device]);
    if let Some(layers) = layers {
        command.env("HALITE_LAYERS", layers);
    }
    let output = command.output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{device} {layers:?}: {stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let losses = report["devices"][0]["loss"].as_array().unwrap();
    (losses.iter().map(|loss| loss.as_f64().unwrap()).collect(), stderr)
}

fn the_main_job_gives_no_finding_on(device: &str) {
    let (expected, bare) = demo(device, None);
    assert!(!bare.contains("validate"), "{bare}");
    for layers in ["validate", "validate:strict"] {
        let (losses, stderr) = demo(device, Some(layers));
        let said: Vec<_> = stderr.lines().filter(|line| line.contains("validate: ")).collect();
        let summary = format!("validate: {device}: no findings in ");
        assert!(said.iter().any(|line| line.starts_with(&summary)), "{stderr}");
        // The CPU stands by for what a device has no kernel for, inside of the layer too.
        assert!(said.iter().all(|line| line.contains(": no findings in ")), "{stderr}");
        assert!(!stderr.contains("outlive"), "everything is gone when the device closes: {stderr}");
        // The same kernels over the same values: where these lie changes no bit.
        assert_eq!(losses, expected, "{device} under {layers}");
    }
}

#[test]
fn the_main_job_gives_no_finding_on_the_cpu() {
    the_main_job_gives_no_finding_on(DEVICES[0]);
}

#[test]
fn the_main_job_gives_no_finding_on_the_npu() {
    the_main_job_gives_no_finding_on(DEVICES[1]);
}

#[test]
fn the_main_job_gives_no_finding_on_an_opencl_device() {
    if let Some(device) = opencl(&session()) {
        the_main_job_gives_no_finding_on(&device);
    }
}

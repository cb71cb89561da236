//! The suite passes on the devices of this repository.

mod common;

use common::{cpu, describe, failures, npu, registry, run};
use halite_conformance::{Report, Target};
use halite_hal::DeviceId;
use halite_opencl::OpenClBackend;
use std::sync::Arc;

/// Fails with the reasons unless every promise is kept.
fn check(report: &Report) {
    describe(report);
    assert!(report.succeeded(), "{}", failures(report));
}

#[test]
fn the_cpu_passes() {
    check(&run(&cpu(), &[]));
}

#[test]
fn the_emulator_passes() {
    check(&run(&npu(), &[]));
}

#[test]
fn an_opencl_device_passes() {
    let registry = registry(Arc::new(OpenClBackend::new().ignoring_environment()));
    if let Some(absence) = registry.probe().absent.first() {
        let required = std::env::var_os("HALITE_REQUIRE_OPENCL").is_some_and(|value| value == "1");
        assert!(!required, "no OpenCL device: {}", absence.reason);
        return println!("skipped: no OpenCL device: {}", absence.reason);
    }
    check(&run(&Target::new(registry, DeviceId::new("opencl", 0)), &[]));
}

#[test]
fn the_null_device_fails_because_it_loses_what_is_written() {
    let registry = registry(Arc::new(halite_hal::null::NullBackend::default()));
    let report = run(&Target::new(registry, DeviceId::new("null", 0)), &["transfer/", "fill/"]);
    assert!(!report.succeeded());
    assert!(report.failures().any(|test| test.name == "transfer/every-byte-value"), "{}", failures(&report));
}

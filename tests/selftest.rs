//! The selftest of the binary: passes on the devices of this repository, and notices a device that computes wrongly.

#![allow(missing_docs)]

mod common;

use halite::hal::KernelSource;
use halite::ops::lower::KernelVariant;
use halite::profiles::SearchPath;
use halite::{Session, selftest};
use std::sync::Arc;

#[test]
fn the_devices_of_this_repository_pass() {
    let session = common::session();
    let opencl = common::opencl(&session);
    for device in common::DEVICES.into_iter().chain(opencl.as_deref()) {
        // Every op has its own test on OpenCL, where each kernel has to be compiled.
        let suites = match device.starts_with("opencl") {
            true => ["memory", "training"].map(str::to_owned).to_vec(),
            false => Vec::new(),
        };
        let report = selftest::run(&session, device, &suites, &mut |_, _| {}).unwrap();
        assert!(report.succeeded(), "{}", report.to_json());
        let run: Vec<&str> = report.suites.iter().map(|suite| suite.suite).collect();
        assert!(if suites.is_empty() { run == selftest::SUITES } else { run == suites }, "{run:?}");
        assert!(report.suites.iter().all(|suite| suite.passed > 0 && suite.unsupported.is_empty()));
        assert_eq!(report.suites.last().unwrap().on_fallback, 0, "{device}: training needs no fallback");
    }
}

#[test]
fn a_device_with_a_wrong_kernel_fails_and_the_report_names_the_op() {
    let builder = || Session::builder().without_environment().profiles(SearchPath::builtin_only());
    let plain = builder().build().unwrap();
    let best = plain.catalog().variants_of("pad").find(|variant| variant.format == "native").unwrap().clone();
    let idle = KernelVariant::new("pad", "idle", "native", &[], move |request| {
        let mut lowered = (best.lower)(request)?;
        for launch in &mut lowered.launches {
            let KernelSource::Native(kernel) = &mut launch.source else { unreachable!("a native variant") };
            kernel.run = Arc::new(|_| Ok(()));
        }
        Ok(lowered)
    });
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("selftest-idle.yaml");
    let text = "name: idle\nextends: cpu\nmatch: { backend: cpu }\nkernels:\n  pad: [{ variant: idle }]\n";
    std::fs::write(&folder, text).unwrap();
    let session = Session::builder()
        .without_environment()
        .kernel(idle)
        .profiles(SearchPath::new(None, [folder]))
        .build()
        .unwrap();
    let report = selftest::run(&session, "cpu:0", &["ops".to_owned()], &mut |_, _| {}).unwrap();
    assert!(!report.succeeded());
    let failed = &report.suites[0].failed;
    assert!(failed.iter().any(|case| case.case.starts_with("pad f32")), "{}", report.to_json());
    assert!(report.suites[0].passed > failed.len());
    let error = selftest::run(&session, "cpu:0", &["op".to_owned()], &mut |_, _| {}).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("use memory, ops, training"), "{error}");
}

//! The suite passes on the devices of this repository, and again inside of the layers that watch them.

mod common;

use common::{Layers, cpu, describe, example, failures, npu, opencl, registry, run};
use halite_conformance::{Report, Target, catalogue};
use halite_hal::{DeviceId, Layer};
use halite_layers::validate::{Finding, FindingKind, Validate};
use std::sync::{Arc, Mutex, PoisonError};

/// Fails with the reasons unless every promise is kept.
fn check(report: &Report) {
    describe(report);
    assert!(report.succeeded(), "{}", failures(report));
}

/// Runs the suite on a device, bare and under the layer validate, which must find nothing.
/// Some promises are about time, so devices take turns.
static TURN: Mutex<()> = Mutex::new(());

fn check_device(target: impl Fn(Layers) -> Option<Target>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(bare) = target(Vec::new()) else { return };
    let report = run(&bare, &[]);
    check(&report);
    // What is unsupported or left out stays a small part.
    assert!(report.counts().passed >= 400, "{:?}", report.counts());
    drop(bare);

    let (layer, findings) = Validate::collecting();
    let layers: Layers = vec![Arc::new(layer) as Arc<dyn Layer>];
    let Some(validated) = target(layers) else { return };
    check(&run(&validated, &[]));
    // The group loss calls a lost device on purpose, which nothing before the layer refuses.
    let deliberate = |finding: &Finding| finding.kind == FindingKind::AfterLoss;
    let findings: Vec<_> = findings.take().into_iter().filter(|finding| !deliberate(finding)).collect();
    assert!(findings.is_empty(), "{} findings, first: {}", findings.len(), findings[0]);
}

#[test]
fn there_are_more_than_250_promises() {
    assert!(catalogue().len() > 250, "{}", catalogue().len());
}

#[test]
fn the_cpu_passes() {
    check_device(|layers| Some(cpu(layers)));
}

#[test]
fn the_emulator_passes() {
    check_device(|layers| Some(npu(layers)));
}

#[test]
fn an_opencl_device_passes() {
    check_device(opencl);
}

#[test]
fn the_example_plugin_passes() {
    check_device(example);
}

#[test]
fn the_null_device_fails_because_it_loses_what_is_written() {
    let registry = registry(Arc::new(halite_hal::null::NullBackend::default()), Vec::new());
    let report = run(&Target::new(registry, DeviceId::new("null", 0)), &["transfer/", "fill/"]);
    assert!(!report.succeeded());
    assert!(report.failures().any(|test| test.name == "transfer/every-byte-value"), "{}", failures(&report));
}

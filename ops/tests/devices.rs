//! Every sample of the registry on every device of this machine, against the reference in f64.

mod common;

use halite_ops::registry::{self, Mismatch};
use halite_ops::{DType, Engine, Error, FallbackCount};
use std::collections::BTreeSet;

/// Failures that are printed; all are counted.
const SHOWN: usize = 40;

/// What a device has no kernel for: `(device, op, part of the reason)`. Each must still occur, so that an entry goes
/// once its kernel is there.
const DECLINED: [(&str, &str, &str); 3] = [
    ("npu", "conv_general", "at most 2 spatial axes"),
    ("npu", "conv_general", "is not a dtype of the npu's cube"),
    ("npu", "dot_general", "is not a dtype of the npu's cube"),
];

#[derive(Default)]
struct Report {
    passed: usize,
    fallbacks: usize,
    declined: BTreeSet<(&'static str, &'static str)>,
    failures: Vec<String>,
}

impl Report {
    /// Notes that the device has no kernel for `op`, which is a failure unless it is known.
    fn decline(&mut self, device: &str, call: &str, op: &str, reason: &str) {
        let is_known =
            |entry: &&(&str, &str, &str)| (entry.0, entry.1) == (device, op) && reason.contains(entry.2);
        match DECLINED.iter().find(is_known) {
            Some(&(_, op, reason)) => drop(self.declined.insert((op, reason))),
            None => self.failures.push(format!("{call}: {op} has no kernel: {reason}")),
        }
    }

    fn finish(self, device: &str) {
        println!("{device}: {} passed, of which {} on the fallback device", self.passed, self.fallbacks);
        for (op, reason) in &self.declined {
            println!("{device}: declines {op}: {reason}");
        }
        for failure in self.failures.iter().take(SHOWN) {
            println!("{device}: FAILED {failure}");
        }
        assert!(self.failures.is_empty(), "{device}: {} samples fail", self.failures.len());
        assert!(self.passed > 0, "{device}: nothing was tried");
        let expected = DECLINED.iter().filter(|entry| entry.0 == device).map(|&(_, op, reason)| (op, reason));
        assert_eq!(self.declined, expected.collect(), "{device}: take what is served now out of the list");
    }
}

/// Tries every sample with every dtype of `dtypes`. A fallback is a failure where every dtype that takes part is one
/// of `native`.
fn try_all(engine: &Engine, dtypes: &[DType], native: &[DType]) -> Report {
    let device = &engine.device().id().backend;
    let mut report = Report::default();
    for record in registry::ops() {
        for sample in &record.samples {
            let is_tried = |dtype: &&DType| sample.accepts(**dtype) && dtypes.contains(dtype);
            for &dtype in record.dtypes.iter().filter(is_tried) {
                let call = format!("{} {dtype}, {}", record.name, sample.name);
                let before = engine.stats().fallbacks;
                match registry::check_on(engine, &record, sample, dtype) {
                    Ok(()) => report.passed += 1,
                    Err(Mismatch::NoKernel(Error::NoKernel { op, reason, .. })) => {
                        report.decline(device, &call, &op, &reason);
                    }
                    Err(mismatch) => report.failures.push(format!("{call}: {mismatch}")),
                }
                let after = engine.stats().fallbacks;
                let fallbacks: Vec<&FallbackCount> =
                    after.iter().filter(|&count| !before.contains(count)).collect();
                if fallbacks.is_empty() {
                    continue;
                }
                report.fallbacks += 1;
                let inputs = sample.inputs_on(engine, dtype).unwrap();
                let result = sample.call(engine, dtype, &inputs).unwrap().dtype();
                let mut involved = inputs.iter().map(|input| input.dtype()).chain([dtype, result]);
                if involved.all(|dtype| native.contains(&dtype)) {
                    for FallbackCount { op, reason, .. } in fallbacks {
                        report.decline(device, &call, op, reason);
                    }
                }
            }
        }
    }
    report
}

#[test]
fn the_cpu_agrees_with_the_reference_on_every_sample_and_dtype() {
    let engine = common::cpu();
    try_all(&engine, &DType::ALL, &DType::ALL).finish("cpu");
}

#[test]
fn the_npu_agrees_with_the_reference_and_falls_back_for_foreign_dtypes_alone() {
    let engine = common::npu();
    let listed = engine.device().info().dtypes.clone();
    try_all(&engine, &DType::ALL, &listed).finish("npu");
}

//! Every sample of the registry on every device of this machine, against the reference in f64.

mod common;

use halite_ops::registry::{self, Mismatch, OpRecord};
use halite_ops::{DType, Engine, Error, FallbackCount};
use std::collections::BTreeSet;

/// Failures that are printed before a test stops counting them one by one.
const SHOWN: usize = 40;

#[derive(Default)]
struct Report {
    passed: usize,
    fallbacks: usize,
    missing: BTreeSet<String>,
    failures: Vec<String>,
}

impl Report {
    fn finish(self, device: &str) {
        println!("{device}: {} passed, of which {} on the fallback device", self.passed, self.fallbacks);
        for missing in &self.missing {
            println!("{device}: no kernel at all: {missing}");
        }
        for failure in self.failures.iter().take(SHOWN) {
            println!("{device}: FAILED {failure}");
        }
        assert!(self.failures.is_empty(), "{device}: {} samples fail", self.failures.len());
        assert!(self.passed > 0, "{device}: nothing was tried");
    }
}

/// Tries every sample that `wanted` picks. `must_be_native` says for which dtypes a fallback is a failure.
fn try_all(
    engine: &Engine,
    wanted: impl Fn(&OpRecord, DType) -> bool,
    must_be_native: impl Fn(DType) -> bool,
) -> Report {
    let mut report = Report::default();
    for record in registry::ops() {
        for sample in &record.samples {
            for &dtype in
                record.dtypes.iter().filter(|&&dtype| sample.accepts(dtype) && wanted(&record, dtype))
            {
                let call = format!("{} {dtype}, {}", record.name, sample.name);
                let before = engine.stats().fallbacks;
                match registry::check_on(engine, &record, sample, dtype) {
                    Ok(()) => report.passed += 1,
                    Err(Mismatch::NoKernel(Error::NoKernel { op, reason, .. }))
                        if !common::claims(engine, &op) =>
                    {
                        report.missing.insert(format!("{op}: {reason}"));
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
                let mut types = vec![dtype, result];
                types.extend(inputs.iter().map(|input| input.dtype()));
                if !types.into_iter().all(&must_be_native) {
                    continue;
                }
                for FallbackCount { op, reason, .. } in fallbacks {
                    if common::claims(engine, op) {
                        report.failures.push(format!("{call}: {op} fell back: {reason}"));
                    } else {
                        report.missing.insert(format!("{op}: {reason}"));
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
    try_all(&engine, |_, _| true, |_| true).finish("cpu");
}

/// The dtypes that the NPU is tried with; it computes others on the CPU, as its profile says.
const NPU_DTYPES: [DType; 6] = [DType::Bool, DType::I32, DType::U32, DType::F16, DType::BF16, DType::F32];

#[test]
fn the_npu_agrees_with_the_reference_and_falls_back_for_foreign_dtypes_alone() {
    let engine = match common::npu() {
        Ok(engine) => engine,
        Err(reason) => return println!("skipped: no NPU: {reason}"),
    };
    let listed = engine.device().info().dtypes.clone();
    let is_listed = |dtype: DType| listed.contains(&dtype);
    try_all(&engine, |_, dtype| NPU_DTYPES.contains(&dtype), is_listed).finish("npu");
}

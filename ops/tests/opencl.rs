//! Samples of the registry on the first OpenCL device, against the reference in f64; nothing may fall back.

mod common;

use halite_ops::{DType, registry};

/// Failures that are printed; all are counted.
const SHOWN: usize = 40;

/// The dtypes that every sample is tried with. A driver compiles each program anew, so the others take turns.
const ALWAYS: [DType; 2] = [DType::I32, DType::F32];

/// One sample in so many is tried with each of the other dtypes, other samples with other dtypes.
const TURNS: usize = 3;

/// Set to 1 to try every sample with every dtype.
const EVERYTHING: &str = "HALITE_TEST_EVERYTHING";

#[test]
fn the_opencl_device_agrees_with_the_reference_on_samples_of_every_op() {
    let Some(engine) = common::opencl() else { return };
    let info = engine.device().info().clone();
    let everything = std::env::var_os(EVERYTHING).is_some_and(|value| value == "1");
    let (mut passed, mut failures) = (0, Vec::new());
    for record in registry::ops() {
        for (turn, sample) in record.samples.iter().enumerate() {
            let is_due = |dtype: DType| {
                everything || ALWAYS.contains(&dtype) || (turn + dtype as usize).is_multiple_of(TURNS)
            };
            let dtypes =
                record.dtypes.iter().copied().filter(|&dtype| sample.accepts(dtype) && is_due(dtype));
            for dtype in dtypes.filter(|dtype| info.dtypes.contains(dtype)) {
                match registry::check_on(&engine, &record, sample, dtype) {
                    Ok(()) => passed += 1,
                    Err(mismatch) => {
                        failures.push(format!("{} {dtype}, {}: {mismatch}", record.name, sample.name));
                    }
                }
            }
        }
    }
    println!("{} ({}): {passed} samples passed", info.id, info.name);
    for failure in failures.iter().take(SHOWN) {
        println!("FAILED {failure}");
    }
    assert!(failures.is_empty(), "{} samples fail", failures.len());
    assert!(passed > 0, "nothing was tried");
    let fallbacks = engine.stats().fallbacks;
    assert!(fallbacks.is_empty(), "the device has no kernel for {fallbacks:?}");
}

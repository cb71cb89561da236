//! Every sample of the op registry with every dtype, against the reference in f64.

use super::{Notes, fallbacks};
use halite_ops::Engine;
use halite_ops::registry::{self, Mismatch};

pub(super) fn run(engine: &Engine, notes: &mut Notes<'_>) {
    for record in registry::ops() {
        for sample in &record.samples {
            for dtype in record.dtypes.iter().copied().filter(|&dtype| sample.accepts(dtype)) {
                let case = format!("{} {dtype}, {}", record.name, sample.name);
                notes.begin(&case);
                let before = fallbacks(engine);
                match registry::check_on(engine, &record, sample, dtype) {
                    Ok(()) => {
                        notes.pass();
                        notes.result.on_fallback += usize::from(fallbacks(engine) > before);
                    }
                    Err(Mismatch::NoKernel(error)) => notes.decline(&case, error),
                    Err(mismatch) => notes.fail(&case, mismatch),
                }
            }
        }
    }
    let result = &notes.result;
    if result.passed > 0 && result.passed == result.on_fallback {
        notes.fail("a kernel of the device's own", "every case ran on another device");
    }
}

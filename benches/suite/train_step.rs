//! The training steps of `benches/peers`, on every device.

use crate::Outcome;
use crate::common::{CASES, TrainStep};
use criterion::{Criterion, Throughput};
use halite::Session;
use halite::hal::DeviceInfo;
use std::time::Duration;

pub(crate) fn bench(criterion: &mut Criterion, session: &Session, info: &DeviceInfo, name: &str) -> Outcome {
    let engine = session.open(&info.id.to_string())?;
    let mut group = criterion.benchmark_group(name);
    for case in &CASES {
        let mut step = TrainStep::new(&engine, case)?;
        step.run(1)?;
        let mut failure = None;
        // Images a second.
        group.throughput(Throughput::Elements(case.batch as u64));
        group.bench_function(case.name, |bencher| {
            bencher.iter_custom(|steps| {
                step.run(steps).unwrap_or_else(|error| {
                    failure = Some(error);
                    Duration::MAX
                })
            });
        });
        if let Some(error) = failure {
            return Err(error.into());
        }
        step.mean_loss()?;
    }
    group.finish();
    for fallback in engine.stats().fallbacks {
        println!("{name}: {} ran on the CPU {} times: {}", fallback.op, fallback.count, fallback.reason);
    }
    Ok(())
}

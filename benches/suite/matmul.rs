//! Square matrix products in f32. Criterion's elements are floating-point operations: `2 n^3` a product.

use crate::Outcome;
use criterion::{BenchmarkId, Criterion, Throughput};
use halite::hal::DeviceInfo;
use halite::{DType, Engine, Session, Tensor, eval};
use std::time::{Duration, Instant};

const SIZES: [usize; 5] = [64, 128, 256, 512, 1024];

pub(crate) fn bench(criterion: &mut Criterion, session: &Session, info: &DeviceInfo, name: &str) -> Outcome {
    let engine = session.open(&info.id.to_string())?;
    let peak = engine.profile().peak_rate(DType::F32);
    let mut group = criterion.benchmark_group(name);
    for n in SIZES {
        let operand = |stream| engine.uniform(&[n, n], -1.0, 1.0, 7, stream);
        let (lhs, rhs) = (operand(0)?, operand(1)?);
        eval(&[&lhs, &rhs])?;
        multiply(&engine, &lhs, &rhs, 1)?;
        let flops = 2 * n.pow(3);
        let mut fastest: Option<f64> = None;
        let mut failure = None;
        group.throughput(Throughput::Elements(flops as u64));
        group.bench_function(BenchmarkId::from_parameter(n), |bencher| {
            bencher.iter_custom(|products| {
                let time = multiply(&engine, &lhs, &rhs, products).unwrap_or_else(|error| {
                    failure = Some(error);
                    Duration::MAX
                });
                let seconds = time.as_secs_f64() / products as f64;
                fastest = Some(fastest.map_or(seconds, |known| known.min(seconds)));
                time
            });
        });
        if let Some(error) = failure {
            return Err(error.into());
        }
        // None when a filter leaves this size out.
        if let Some(seconds) = fastest {
            let rate = flops as f64 / seconds;
            let share = peak.map_or_else(
                || format!("profile {} names no peak", engine.profile().name()),
                |peak| format!("{:.3} % of the profile's {:.1} GFLOP/s", 100.0 * rate / peak, peak / 1e9),
            );
            println!("{name}/{n}: {:.2} GFLOP/s at best, {share}", rate / 1e9);
        }
    }
    group.finish();
    Ok(())
}

/// The time until the device is done with `products` products.
fn multiply(engine: &Engine, lhs: &Tensor, rhs: &Tensor, products: u64) -> halite::ops::Result<Duration> {
    let begin = Instant::now();
    for _ in 0..products {
        eval(&[&lhs.matmul(rhs)?])?;
    }
    engine.synchronize()?;
    Ok(begin.elapsed())
}

//! Copies between host and device, and within the device, in bytes a second.

use crate::{Outcome, skip};
use criterion::{BenchmarkId, Criterion, Throughput};
use halite::Session;
use halite::hal::{DeviceInfo, MemoryKind};

/// 4 KiB to 64 MiB: from what fits a first-level cache to what fits none.
const SIZES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 64 << 20];

pub(crate) fn bench(criterion: &mut Criterion, session: &Session, info: &DeviceInfo, name: &str) -> Outcome {
    let device = session.open_device(&info.id.to_string())?;
    let stream = device.create_stream()?;
    let mut group = criterion.benchmark_group(name);
    for bytes in SIZES {
        let pair = [(); 2].map(|()| device.allocate(bytes as u64, MemoryKind::Device));
        let [Ok(first), Ok(second)] = pair else {
            skip(&format!("{name} of {bytes} bytes"), "two buffers of this size do not fit");
            continue;
        };
        let (first, second) = (first.all(), second.all());
        let mut host = vec![1u8; bytes];
        for buffer in [&first, &second] {
            stream.write_blocking(buffer, &host)?;
        }
        stream.synchronize()?;

        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("host_to_device", bytes), |bencher| {
            bencher.iter(|| {
                stream.write_blocking(&first, &host)?;
                stream.synchronize()
            });
        });
        group.bench_function(BenchmarkId::new("device_to_host", bytes), |bencher| {
            bencher.iter(|| stream.read_blocking(&first, &mut host));
        });
        group.bench_function(BenchmarkId::new("device_to_device", bytes), |bencher| {
            bencher.iter(|| {
                stream.copy(&second, &first)?;
                stream.synchronize()
            });
        });
        // A failure within a measurement poisons the stream and shows here.
        stream.synchronize()?;
    }
    group.finish();
    Ok(())
}

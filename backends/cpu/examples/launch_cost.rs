//! Prints what launches cost on this machine: `cargo run --release -p halite-cpu --example launch_cost`.

use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::driver::Backend;
use halite_hal::{
    Access, Arg, ArgType, CommandListBuilder, DType, Kernel, KernelSource, MemoryKind, NativeKernel,
    RecordedArg, RecordedCommand, RecordedRange, Result, Signature, Stream,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 25;

fn main() -> Result<()> {
    let device = CpuBackend::new(CpuConfig::from_env()?).open(0)?;
    println!("{}, {} threads", device.info().name, device.info().compute_units);
    let stream = device.create_stream()?;
    let buffer = device.allocate(4096, MemoryKind::Device)?;
    let args = vec![ArgType::Buffer { dtype: DType::F32, access: Access::ReadWrite }; 3];
    let load = |busy_ns: u64| {
        device.load(&KernelSource::Native(NativeKernel::new(
            "nothing",
            Signature::new(args.clone()),
            move |_| {
                if busy_ns > 0 {
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_nanos(busy_ns) {
                        black_box(());
                    }
                }
                Ok(())
            },
        )))
    };
    let kernel = load(0)?;
    let args: Vec<Arg> = [0, 1024, 2048]
        .map(|offset| buffer.slice(offset, 1024).map(Arg::from))
        .into_iter()
        .collect::<Result<_>>()?;

    report("launch and synchronize, 1 workgroup, idle before", 1, || {
        std::thread::sleep(Duration::from_millis(2));
        timed(|| {
            stream.launch(&kernel, [1, 1, 1], &args)?;
            stream.synchronize()
        })
    })?;
    report("launch and synchronize, 1 workgroup", 100, || {
        timed(|| {
            for _ in 0..100 {
                stream.launch(&kernel, [1, 1, 1], &args)?;
                stream.synchronize()?;
            }
            Ok(())
        })
    })?;
    report("enqueue alone, 1 workgroup", 10_000, || {
        let time = timed(|| enqueue(&stream, &kernel, 1, &args, 10_000))?;
        stream.synchronize()?;
        Ok(time)
    })?;
    for groups in [1, 2, 64] {
        report(&format!("back to back, {groups} workgroups"), 10_000, || {
            timed(|| {
                enqueue(&stream, &kernel, groups, &args, 10_000)?;
                stream.synchronize()
            })
        })?;
    }
    // A recorded list takes the host's enqueueing out of the picture.
    for (groups, busy_ns) in [(1, 0), (2, 0), (64, 0), (1, 2_000), (2, 2_000), (64, 2_000)] {
        let mut builder = CommandListBuilder::new();
        let kernel = load(busy_ns)?;
        for _ in 0..60 {
            let args = (0..3)
                .map(|i| RecordedArg::Buffer(RecordedRange::Slot { slot: 0, offset: i * 1024, len: 1024 }));
            builder.push(RecordedCommand::Launch {
                kernel: kernel.clone(),
                grid: [groups, 1, 1],
                args: args.collect(),
            });
        }
        let list = device.finish(builder)?;
        report(&format!("replay of 60, {groups} workgroups of {busy_ns} ns, per launch"), 60, || {
            timed(|| {
                stream.replay(&list, &[buffer.all()], &[])?;
                stream.synchronize()
            })
        })?;
    }
    let mut bytes = [0; 4];
    report("read_blocking of 4 bytes, idle stream", 1000, || {
        timed(|| (0..1000).try_for_each(|_| stream.read_blocking(&buffer.slice(0, 4)?, &mut bytes)))
    })?;
    report("record and wait", 1000, || timed(|| (0..1000).try_for_each(|_| stream.record()?.wait(None))))
}

fn enqueue(stream: &Stream, kernel: &Kernel, groups: u32, args: &[Arg], count: usize) -> Result<()> {
    (0..count).try_for_each(|_| stream.launch(kernel, [groups, 1, 1], args))
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed())
}

fn report(what: &str, per: u32, mut round: impl FnMut() -> Result<Duration>) -> Result<()> {
    let mut times = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    let ns = |time: Duration| time.as_nanos() / u128::from(per);
    println!("{what:60} median {:>8} ns  best {:>8} ns", ns(times[ROUNDS / 2]), ns(times[0]));
    Ok(())
}

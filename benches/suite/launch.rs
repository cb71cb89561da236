//! What launching costs: kernels that do nothing.

use crate::Outcome;
use criterion::{Criterion, Throughput};
use halite::Session;
use halite::hal::{
    CommandListBuilder, DeviceInfo, KernelSource, NativeKernel, RecordedCommand, Result as HalResult,
    Signature,
};
use halite::isa::{CoreKind, KernelBuilder, Program, ProgramError};

/// Launches in a row.
const ROW: usize = 100;

pub(crate) fn bench(criterion: &mut Criterion, session: &Session, info: &DeviceInfo, name: &str) -> Outcome {
    let device = session.open_device(&info.id.to_string())?;
    let stream = device.create_stream()?;
    let kernel = device.load(&empty_kernel(info)?)?;
    let launch = || stream.launch(&kernel, [1, 1, 1], &[]);
    let mut commands = CommandListBuilder::new();
    for _ in 0..ROW {
        commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: [1, 1, 1], args: Vec::new() });
    }
    let list = device.finish(commands)?;

    let mut group = criterion.benchmark_group(name);
    group.bench_function("single", |bencher| {
        bencher.iter(|| -> HalResult<()> {
            launch()?;
            stream.synchronize()
        });
    });
    group.throughput(Throughput::Elements(ROW as u64));
    group.bench_function("back_to_back", |bencher| {
        bencher.iter(|| -> HalResult<()> {
            (0..ROW).try_for_each(|_| launch())?;
            stream.synchronize()
        });
    });
    group.bench_function("replay", |bencher| {
        bencher.iter(|| -> HalResult<()> {
            stream.replay(&list, &[], &[])?;
            stream.synchronize()
        });
    });
    group.finish();
    // A failure within a measurement poisons the stream and shows here.
    Ok(stream.synchronize()?)
}

/// The least that a device can be asked to run.
fn empty_kernel(info: &DeviceInfo) -> HalResult<KernelSource> {
    if info.accepts("native") {
        let kernel = NativeKernel::new("nothing", Signature::default(), |_| Ok(()));
        return Ok(KernelSource::Native(kernel));
    }
    if info.accepts("npu-program") {
        let halt = || Program::new(vec![KernelBuilder::new("nothing", CoreKind::Vector).finish()?]);
        let refused = |error: ProgramError| halite::hal::Error::unsupported(error.to_string());
        return Ok(KernelSource::Binary {
            format: "npu-program",
            bytes: halt().map_err(refused)?.to_bytes().into(),
            entry: "nothing".to_owned(),
            workgroup: [1, 1, 1],
            signature: Signature::default(),
            requires: Vec::new(),
        });
    }
    let formats = info.kernel_formats.join(", ");
    Err(halite::hal::Error::unsupported(format!("there is no empty kernel in its formats ({formats})")))
}

//! What launching costs: kernels that do nothing, without layers (but those of `HALITE_LAYERS`) and inside of each that
//! is meant to be cheap.

use crate::Outcome;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use halite::Session;
use halite::hal::{
    CommandListBuilder, Device, DeviceInfo, KernelSource, Layer, NativeKernel, RecordedCommand,
    Result as HalResult, Signature,
};
use halite::isa::{CoreKind, KernelBuilder, Program, ProgramError};
use halite::layers::validate::Validate;

/// Launches in a row.
const ROW: usize = 100;

pub(crate) fn bench(criterion: &mut Criterion, session: &Session, info: &DeviceInfo, name: &str) -> Outcome {
    let open = || session.open_device(&info.id.to_string());
    let mut group = criterion.benchmark_group(name);
    launches(&mut group, &open()?, info, "")?;
    // A benchmark that breaks rules would measure reports.
    let validate = Validate::on_finding(|finding| panic!("{finding}"));
    launches(&mut group, &validate.wrap(open()?)?, info, "/validate")?;
    group.finish();
    Ok(())
}

fn launches(
    group: &mut BenchmarkGroup<'_, WallTime>,
    device: &Device,
    info: &DeviceInfo,
    suffix: &str,
) -> Outcome {
    let stream = device.create_stream()?;
    let kernel = device.load(&empty_kernel(info)?)?;
    let launch = || stream.launch(&kernel, [1, 1, 1], &[]);
    let mut commands = CommandListBuilder::new();
    for _ in 0..ROW {
        commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: [1, 1, 1], args: Vec::new() });
    }
    let list = device.finish(commands)?;

    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("single{suffix}"), |bencher| {
        bencher.iter(|| -> HalResult<()> {
            launch()?;
            stream.synchronize()
        });
    });
    group.throughput(Throughput::Elements(ROW as u64));
    group.bench_function(format!("back_to_back{suffix}"), |bencher| {
        bencher.iter(|| -> HalResult<()> {
            (0..ROW).try_for_each(|_| launch())?;
            stream.synchronize()
        });
    });
    group.bench_function(format!("replay{suffix}"), |bencher| {
        bencher.iter(|| -> HalResult<()> {
            stream.replay(&list, &[], &[])?;
            stream.synchronize()
        });
    });
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

//! What launching costs, next to the driver's own calls for the same kernel: one thread that does next to nothing.

use crate::cuda::{Driver, PTX};
use crate::opencl::Queue;
use crate::race::Side;
use crate::report::{Pair, Report, Work};
use crate::{Outcome, Subject, failure};
use halite::DType;
use halite::hal::{
    Access, Arg, ArgType, CommandListBuilder, KernelSource, MemoryKind, NativeKernel, RecordedArg,
    RecordedCommand, RecordedRange, Signature,
};
use std::time::{Duration, Instant};

/// Launches in a row.
const ROW: usize = 100;
/// Speed over the driver's: its time and a tenth.
const REQUIRED_ON_CUDA: f64 = 1.0 / 1.1;
pub(crate) const BUFFER_BYTES: usize = 4096;

const OPENCL_SOURCE: &str = "__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void nothing(__global float *x) { x[0] = 1.0f; }
";

pub(crate) fn bench(subject: &Subject, report: &mut Report) -> Outcome {
    if !subject.is_cuda() && !subject.is_opencl() {
        report.note("left out: this device's driver is not known here");
        return Ok(());
    }
    let device = subject.engine.device();
    let stream = device.create_stream()?;
    let source = source(subject).ok_or_else(|| failure("there is no kernel in this device's formats"))?;
    let kernel = device.load(&source)?;
    let buffer = device.allocate(BUFFER_BYTES as u64, MemoryKind::Device)?.all();
    let args = [Arg::Buffer(buffer.clone())];
    let mut commands = CommandListBuilder::new();
    for _ in 0..ROW {
        let arg = RecordedArg::Buffer(RecordedRange::Fixed(buffer.clone()));
        commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: [1, 1, 1], args: vec![arg] });
    }
    let list = device.finish(commands)?;

    let launches = |row: usize| {
        let (stream, kernel, args) = (&stream, &kernel, &args);
        move |count| {
            timed(count, || {
                (0..row).try_for_each(|_| stream.launch(kernel, [1, 1, 1], args))?;
                Ok(stream.synchronize()?)
            })
        }
    };
    let replay = |count| {
        timed(count, || {
            stream.replay(&list, &[], &[])?;
            Ok(stream.synchronize()?)
        })
    };
    let own = Own::open(subject)?;
    let required = subject.is_cuda().then_some(REQUIRED_ON_CUDA);
    let own_row = |row: usize| {
        let own = &own;
        move |count| timed(count, || own.launch(row))
    };
    let row = Work::Times(ROW as f64);
    let sides = vec![
        Side::new("HAL launch", launches(ROW)),
        Side::new("driver's launch", own_row(ROW)),
        Side::new("HAL replay", replay),
    ];
    let pairs = [
        Pair { ours: 0, peer: Some(1), required },
        Pair { ours: 2, peer: Some(1), required: None },
        Pair { ours: 2, peer: Some(0), required: None },
    ];
    report.measure(&format!("{ROW} launches, one wait; each"), sides, &[row; 3], &pairs)?;
    let sides = vec![Side::new("HAL launch", launches(1)), Side::new("driver's launch", own_row(1))];
    let pairs = [Pair { ours: 0, peer: Some(1), required: None }];
    report.measure("a launch and a wait", sides, &[Work::Times(1.0); 2], &pairs)
}

pub(crate) fn timed(count: u64, mut run: impl FnMut() -> Outcome) -> Outcome<Duration> {
    let begin = Instant::now();
    for _ in 0..count {
        run()?;
    }
    Ok(begin.elapsed())
}

/// A kernel of one argument that does next to nothing.
pub(crate) fn source(subject: &Subject) -> Option<KernelSource> {
    let (entry, workgroup, requires) = ("nothing".to_owned(), [1, 1, 1], Vec::new());
    let buffer = ArgType::Buffer { dtype: DType::F32, access: Access::Write };
    let signature = Signature::new(vec![buffer]);
    if subject.is_cuda() {
        let bytes = PTX.as_bytes().into();
        return Some(KernelSource::Binary { format: "ptx", bytes, entry, workgroup, signature, requires });
    }
    if subject.info.accepts("native") {
        return Some(KernelSource::Native(NativeKernel::new(entry, signature, |_| Ok(()))));
    }
    let (language, source, options) = ("opencl-c", OPENCL_SOURCE.into(), String::new());
    subject.is_opencl().then_some(KernelSource::Text {
        language,
        source,
        entry,
        options,
        workgroup,
        signature,
        requires,
    })
}

/// The driver's own queue with the same kernel.
enum Own {
    OpenCl { queue: Queue, kernel: crate::opencl::Kernel, buffer: crate::opencl::Object },
    Cuda { driver: Driver, function: crate::cuda::Function, buffer: crate::cuda::Memory },
}

impl Own {
    fn open(subject: &Subject) -> Outcome<Self> {
        if subject.is_cuda() {
            let driver = Driver::open(subject.info.id.index)?;
            let (function, buffer) = (driver.function(c"nothing")?, driver.buffer(BUFFER_BYTES)?);
            return Ok(Self::Cuda { driver, function, buffer });
        }
        let queue = Queue::open(&subject.info.name)?;
        let (kernel, buffer) = (queue.kernel(OPENCL_SOURCE, "nothing")?, queue.buffer(BUFFER_BYTES)?);
        Ok(Self::OpenCl { queue, kernel, buffer })
    }

    /// `row` launches, with their argument, and a wait.
    fn launch(&self, row: usize) -> Outcome {
        match self {
            Self::OpenCl { queue, kernel, buffer } => {
                (0..row).try_for_each(|_| queue.launch(kernel, buffer, 1, 1))?;
                queue.finish()
            }
            Self::Cuda { driver, function, buffer } => {
                (0..row).try_for_each(|_| driver.launch(function, buffer))?;
                driver.synchronize()
            }
        }
    }
}

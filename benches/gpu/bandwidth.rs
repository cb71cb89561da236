//! Bytes a second: copies, a kernel that copies, and fused chains of elementwise operations.

use crate::cuda::Driver;
use crate::opencl::Queue;
use crate::race::Side;
use crate::report::{Pair, Report, Work};
use crate::{Outcome, Subject, failure};
use halite::hal::{Access, Arg, ArgType, BufferSlice, Device, Kernel, KernelSource, MemoryKind, Signature};
use halite::{DType, Engine, Tensor, eval};
use std::time::{Duration, Instant};

/// Bytes of a buffer: several times what the largest caches of such devices hold.
const OPENCL_BYTES: usize = 64 << 20;
const CUDA_BYTES: usize = 1 << 30;

/// Shares of the copy's bytes a second.
const REQUIRED_ON_POCL: f64 = 0.8;
const REQUIRED_ON_CUDA: f64 = 0.9;

/// Threads of a workgroup of the copy kernel, each with four numbers.
const THREADS: usize = 256;
const OPENCL_COPY: &str = "__kernel __attribute__((reqd_work_group_size(256, 1, 1)))
void copy(__global const float4 *in, __global float4 *out) { out[get_global_id(0)] = in[get_global_id(0)]; }
";
const CUDA_COPY: &str = "struct alignas(16) Four { float x, y, z, w; };
extern \"C\" __global__ void copy(const Four *in, Four *out) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    out[i] = in[i];
}
";

pub(crate) fn bench(subject: &Subject, report: &mut Report) -> Outcome {
    let bytes = if subject.is_cuda() { CUDA_BYTES } else { OPENCL_BYTES };
    let engine = &subject.engine;
    let device = engine.device();
    let copy = Copy::new(device, bytes)?;
    let work = Work::Bytes(2.0 * bytes as f64);
    let megabytes = bytes >> 20;
    let required = if subject.is_cuda() {
        Some(REQUIRED_ON_CUDA)
    } else {
        subject.is_pocl().then_some(REQUIRED_ON_POCL)
    };

    // None where there is no compiler.
    let kernel = copy_kernel(subject).map_err(|error| report.note(format!("no copy kernel: {error}"))).ok();
    let kernel_side =
        || kernel.as_ref().map(|kernel| Side::new("copy kernel", |count| copy.run_kernel(kernel, count)));
    let mut sides = vec![Side::new("HAL copy", |count| copy.run(count))];
    let mut pairs = Vec::new();
    match own_copy(subject, bytes) {
        Ok(own) => {
            sides.push(Side::new("driver's copy", own));
            pairs.push(Pair { ours: 0, peer: Some(1), required: required.filter(|_| subject.is_cuda()) });
        }
        Err(error) => report.note(format!("no copy of the driver's: {error}")),
    }
    if let Some(side) = kernel_side() {
        pairs.push(Pair { ours: sides.len(), peer: Some(0), required: None });
        sides.push(side);
    }
    if pairs.is_empty() {
        pairs.push(Pair { ours: 0, peer: None, required: None });
    }
    report.measure(&format!("copy, {megabytes} MiB"), sides, &[work; 3], &pairs)?;

    for chain in CHAINS {
        let inputs: Vec<Tensor> =
            (0..chain.inputs).map(|n| values(engine, bytes / 4, n)).collect::<Outcome<_>>()?;
        let mut sides = vec![
            Side::new("fused chain", |count| chain.run(engine, &inputs, count)),
            Side::new("HAL copy", |count| copy.run(count)),
        ];
        let chain_work = Work::Bytes(((chain.inputs + 1) * bytes) as f64);
        let mut works = vec![chain_work, work];
        let mut pairs = vec![Pair { ours: 0, peer: Some(1), required }];
        if let Some(side) = kernel_side() {
            sides.push(side);
            works.push(work);
            pairs.push(Pair { ours: 0, peer: Some(2), required });
        }
        let case = format!("{}, {megabytes} MiB", chain.name);
        report.measure(&case, sides, &works, &pairs)?;
    }
    Ok(())
}

/// Several operations that become one kernel.
struct Chain {
    name: &'static str,
    inputs: usize,
    compute: fn(&[Tensor]) -> halite::ops::Result<Tensor>,
}

const CHAINS: [Chain; 2] = [
    Chain {
        name: "5 operations on 1 input",
        inputs: 1,
        compute: |x| x[0].mul(0.5)?.add(1.0)?.relu()?.sub(0.25)?.mul(2.0),
    },
    Chain {
        name: "5 operations on 2 inputs",
        inputs: 2,
        compute: |x| x[0].mul(0.5)?.add(&x[1])?.relu()?.mul(&x[1])?.sub(0.25),
    },
];

impl Chain {
    /// The time until the device is done with `count` evaluations, planned once.
    fn run(&self, engine: &Engine, inputs: &[Tensor], count: u64) -> Outcome<Duration> {
        let begin = Instant::now();
        for _ in 0..count {
            eval(&[&(self.compute)(inputs)?])?;
        }
        engine.synchronize()?;
        Ok(begin.elapsed())
    }
}

fn values(engine: &Engine, elements: usize, stream: usize) -> Outcome<Tensor> {
    let tensor = engine.uniform(&[elements], -1.0, 1.0, 7, stream as u32)?;
    eval(&[&tensor])?;
    Ok(tensor)
}

/// Two buffers with a stream to copy from one to the other.
struct Copy {
    stream: halite::hal::Stream,
    dst: BufferSlice,
    src: BufferSlice,
}

impl Copy {
    fn new(device: &Device, bytes: usize) -> Outcome<Self> {
        let stream = device.create_stream()?;
        let buffer = || device.allocate(bytes as u64, MemoryKind::Device);
        let (dst, src) = (buffer()?.all(), buffer()?.all());
        for slice in [&dst, &src] {
            stream.fill(slice, &[1])?;
        }
        stream.synchronize()?;
        Ok(Self { stream, dst, src })
    }

    /// The time until the device is done with `count` copies.
    fn run(&self, count: u64) -> Outcome<Duration> {
        let begin = Instant::now();
        for _ in 0..count {
            self.stream.copy(&self.dst, &self.src)?;
        }
        self.stream.synchronize()?;
        Ok(begin.elapsed())
    }

    /// The same by a kernel.
    fn run_kernel(&self, kernel: &Kernel, count: u64) -> Outcome<Duration> {
        let groups = self.dst.len_bytes() / (THREADS * 16) as u64;
        let args = [Arg::Buffer(self.src.clone()), Arg::Buffer(self.dst.clone())];
        let begin = Instant::now();
        for _ in 0..count {
            self.stream.launch(kernel, [groups as u32, 1, 1], &args)?;
        }
        self.stream.synchronize()?;
        Ok(begin.elapsed())
    }
}

fn copy_kernel(subject: &Subject) -> Outcome<Kernel> {
    let (language, source) = if subject.is_cuda() {
        ("cuda-c", CUDA_COPY)
    } else if subject.is_opencl() {
        ("opencl-c", OPENCL_COPY)
    } else {
        return Err(failure("this device has another language"));
    };
    let buffer = |access| ArgType::Buffer { dtype: DType::F32, access };
    Ok(subject.engine.device().load(&KernelSource::Text {
        language,
        source: source.into(),
        entry: "copy".into(),
        options: String::new(),
        workgroup: [THREADS as u32, 1, 1],
        signature: Signature::new(vec![buffer(Access::Read), buffer(Access::Write)]),
        requires: Vec::new(),
    })?)
}

type OwnCopy = Box<dyn FnMut(u64) -> Outcome<Duration>>;

/// Copies by the driver's own calls, in memory of their own.
fn own_copy(subject: &Subject, bytes: usize) -> Outcome<OwnCopy> {
    if subject.is_cuda() {
        let driver = Driver::open(subject.info.id.index)?;
        let (dst, src) = (driver.buffer(bytes)?, driver.buffer(bytes)?);
        return Ok(Box::new(move |count| {
            let begin = Instant::now();
            for _ in 0..count {
                driver.copy(&dst, &src, bytes)?;
            }
            driver.synchronize()?;
            Ok(begin.elapsed())
        }));
    }
    if !subject.is_opencl() {
        return Err(failure("this device's driver is not known here"));
    }
    let queue = Queue::open(&subject.info.name)?;
    let (dst, src) = (queue.buffer(bytes)?, queue.buffer(bytes)?);
    for buffer in [&dst, &src] {
        queue.write(buffer, &vec![1.0; bytes / size_of::<f32>()])?;
    }
    Ok(Box::new(move |count| {
        let begin = Instant::now();
        for _ in 0..count {
            queue.copy(&dst, &src, bytes)?;
        }
        queue.finish()?;
        Ok(begin.elapsed())
    }))
}

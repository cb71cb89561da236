//! What a test is given: the device, what it is opened by, and the steps that tests have in common.

use crate::outcome::{Outcome, Stop, failed, skipped, unsupported};
use crate::program::{Format, TestKernel};
use crate::random::Random;
use crate::target::{PluginAccess, Target};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    Arg, ArgType, Buffer, BufferSlice, Device, DeviceInfo, ErrorKind, Event, Kernel, KernelSource,
    MemoryKind, Result, Scalar, Stream, as_bytes, from_bytes,
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Longer than any work of a test; a wait that reaches it has found something that never ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of the fills that keep a device without programs busy.
const FILL_BYTES: usize = 1 << 20;

/// What tests of one run share.
pub(crate) struct Shared {
    /// Rounds of `test_spin` that take a millisecond.
    pub(crate) spin: OnceLock<f64>,
    /// Fills of [`FILL_BYTES`] that take a millisecond.
    pub(crate) fills: OnceLock<f64>,
}

/// A launch that is accepted, and fails as enqueued work.
pub(crate) struct Failing {
    device: Device,
    kernel: Kernel,
}

impl Failing {
    pub(crate) fn launch(&self, stream: &Stream) -> Result<()> {
        let len = |arg: &ArgType| match arg {
            ArgType::Buffer { dtype, .. } => (4 * dtype.size() as u64).max(self.kernel.workspace_bytes()),
            ArgType::Scalar(_) => 0,
        };
        // Streams that fail side by side must not share what they might write.
        let fresh = |arg: &ArgType| -> Result<Arg> {
            Ok(self.device.allocate(len(arg), MemoryKind::Device)?.all().into())
        };
        let args = self.kernel.signature().args.iter().map(fresh).collect::<Result<Vec<_>>>()?;
        stream.launch(&self.kernel, [1, 1, 1], &args)
    }
}

/// The device under test, and what tests do with it.
pub struct Context {
    pub(crate) target: Arc<Target>,
    pub(crate) device: Device,
    pub(crate) shared: Arc<Shared>,
    pub(crate) seed: u64,
    pub(crate) test: String,
    pub(crate) fill_limit_bytes: u64,
    /// `test_spin`, loaded when a stream is first to be kept busy: loading takes longer than the work.
    pub(crate) spin: OnceLock<Kernel>,
}

impl Context {
    /// The device; other tests use it before and after.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    /// The device, opened once more.
    pub(crate) fn open(&self) -> Result<Device> {
        self.target.open()
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The plugin behind the device; without one the test is unsupported.
    pub(crate) fn plugin(&self) -> Result<&dyn PluginAccess, Stop> {
        self.target.plugin.as_deref().ok_or_else(|| unsupported("the device comes from no plugin"))
    }

    /// Random numbers of this test.
    pub(crate) fn random(&self) -> Random {
        Random::named(self.seed, &self.test)
    }

    pub(crate) fn stream(&self) -> Result<Stream> {
        self.device.create_stream()
    }

    pub(crate) fn streams<const N: usize>(&self) -> Result<[Stream; N]> {
        let streams = (0..N).map(|_| self.stream()).collect::<Result<Vec<_>>>()?;
        Ok(streams.try_into().unwrap_or_else(|_| unreachable!("there are N of them")))
    }

    /// Device memory, whose contents are not defined yet.
    pub(crate) fn buffer(&self, len: usize) -> Result<BufferSlice> {
        Ok(self.device.allocate(len as u64, MemoryKind::Device)?.all())
    }

    /// Device memory that will hold these bytes when the stream has come so far.
    pub(crate) fn upload(&self, stream: &Stream, bytes: &[u8]) -> Result<BufferSlice> {
        let buffer = self.buffer(bytes.len())?;
        stream.write(&buffer, bytes)?;
        Ok(buffer)
    }

    pub(crate) fn upload_words(&self, stream: &Stream, words: &[u32]) -> Result<BufferSlice> {
        self.upload(stream, as_bytes(words))
    }

    /// Memory of another kind; a device that lacks it says so, and leaves the test out.
    pub(crate) fn buffer_of(&self, len: u64, kind: MemoryKind) -> Result<Buffer, Stop> {
        match self.device.allocate(len, kind) {
            Err(error) if *error.kind() == ErrorKind::Unsupported && kind != MemoryKind::Device => {
                Err(unsupported(format!("no {kind:?} memory: {}", error.message())))
            }
            other => Ok(other?),
        }
    }

    /// The format of the device's test programs; without one the test is unsupported.
    pub(crate) fn format(&self) -> Result<Format, Stop> {
        if let Some(format) = Format::of(self.info(), &self.target.programs) {
            return Ok(format);
        }
        let formats: Vec<&str> = self.info().kernel_formats.iter().map(String::as_str).collect();
        match formats.iter().find(|format| **format != "builtin") {
            None => Err(unsupported("the device takes no programs")),
            Some(format) => Err(skipped(format!(
                "there is no test program in the format {format}; name one with --program"
            ))),
        }
    }

    /// A kernel of the test programs.
    pub(crate) fn kernel(&self, kernel: TestKernel) -> Result<Kernel, Stop> {
        let format = self.format()?;
        if kernel == TestKernel::Fail && !format.can_fail() {
            return Err(skipped(format!(
                "no kernel of format {} fails without taking the device along",
                format.name()
            )));
        }
        if kernel.signature().args.len() > self.info().limits.max_args as usize {
            return Err(unsupported(format!(
                "kernels take at most {} arguments",
                self.info().limits.max_args
            )));
        }
        match (self.device.load(&format.source(kernel)), format) {
            // A program of the user's may lack a kernel.
            (Err(error), Format::Own(_))
                if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::InvalidArgument) =>
            {
                Err(skipped(format!("the test program has no kernel {}: {error}", kernel.name())))
            }
            (loaded, _) => Ok(loaded?),
        }
    }

    /// Something to launch that is accepted and fails as work; a device that has nothing of the kind leaves the test out.
    pub(crate) fn failing(&self) -> Result<Failing, Stop> {
        let reason = match self.kernel(TestKernel::Fail) {
            Ok(kernel) => return Ok(Failing { device: self.device.clone(), kernel }),
            Err(failure @ Stop::Failed(_)) => return Err(failure),
            Err(reason) => reason,
        };
        let Some(dtype) = self.info().dtypes.first().filter(|_| self.info().accepts("builtin")) else {
            return Err(reason);
        };
        let op = BuiltinOp::new(BuiltinKind::Fault, vec![OperandDesc::contiguous(*dtype, &[4])])?;
        match self.device.load(&KernelSource::Builtin(op)) {
            Err(error) if *error.kind() == ErrorKind::Unsupported => Err(match reason {
                Stop::Unsupported(_) => unsupported(
                    "nothing fails on request: the device takes no programs, and has no built-in 'fault'",
                ),
                reason => reason,
            }),
            kernel => Ok(Failing { device: self.device.clone(), kernel: kernel? }),
        }
    }

    /// A built-in; what the device does not offer leaves the test out.
    pub(crate) fn builtin(&self, op: BuiltinOp) -> Result<Kernel, Stop> {
        if !self.info().accepts("builtin") {
            return Err(unsupported("the device takes no built-ins"));
        }
        let what = format!("'{}' of {}", op.name(), op.operands[op.operands.len() - 1].dtype);
        match self.device.load(&KernelSource::Builtin(op)) {
            Err(error) if *error.kind() == ErrorKind::Unsupported => {
                Err(unsupported(format!("no built-in {what}: {}", error.message())))
            }
            other => Ok(other?),
        }
    }

    /// Launches a built-in, with the scratch memory that it asks for.
    pub(crate) fn run_builtin(
        &self,
        stream: &Stream,
        kernel: &Kernel,
        operands: &[&BufferSlice],
    ) -> Result<()> {
        let mut args: Vec<Arg> = operands.iter().map(|slice| Arg::from((*slice).clone())).collect();
        if kernel.workspace_bytes() > 0 {
            args.push(self.device.allocate(kernel.workspace_bytes(), MemoryKind::Device)?.all().into());
        }
        stream.launch(kernel, [1, 1, 1], &args)
    }

    /// Keeps a stream busy for about this long, where the device can; gives what the last of it writes to.
    ///
    /// A device that does its work within the calls is idle when this returns.
    pub(crate) fn busy(&self, stream: &Stream, time: Duration) -> Result<BufferSlice, Stop> {
        match self.spin() {
            Ok(spin) => {
                let rounds = self.spin_rounds(spin, time)?;
                let x = self.upload_words(stream, &[0])?;
                stream.launch(spin, [1, 1, 1], &[x.clone().into(), Scalar::U32(rounds).into()])?;
                Ok(x)
            }
            Err(Stop::Unsupported(_) | Stop::Skipped(_)) => self.busy_with_fills(stream, time),
            Err(failure) => Err(failure),
        }
    }

    fn spin(&self) -> Result<&Kernel, Stop> {
        if let Some(spin) = self.spin.get() {
            return Ok(spin);
        }
        let spin = self.kernel(TestKernel::Spin)?;
        Ok(self.spin.get_or_init(|| spin))
    }

    fn busy_with_fills(&self, stream: &Stream, time: Duration) -> Result<BufferSlice, Stop> {
        let per_ms = match self.shared.fills.get() {
            Some(fills) => *fills,
            None => {
                let measured = self.measure_fills()?;
                *self.shared.fills.get_or_init(|| measured)
            }
        };
        let buffer = self.fill_target()?;
        for round in 0..(per_ms * time.as_secs_f64() * 1e3).clamp(1.0, 4000.0) as u32 {
            stream.fill(&buffer, &[round as u8])?;
        }
        Ok(buffer)
    }

    fn fill_target(&self) -> Result<BufferSlice> {
        self.buffer(FILL_BYTES.min(self.info().limits.max_allocation_bytes as usize) & !7)
    }

    fn measure_fills(&self) -> Result<f64> {
        const COUNT: u32 = 16;
        // A stream of its own, on which nothing is before them.
        let (stream, buffer) = (self.stream()?, self.fill_target()?);
        let mut shortest = f64::INFINITY;
        // A busy host makes any one of them longer, and none shorter.
        for _ in 0..5 {
            let begin = Instant::now();
            for round in 0..COUNT {
                stream.fill(&buffer, &[round as u8])?;
            }
            stream.synchronize()?;
            shortest = shortest.min(begin.elapsed().as_secs_f64() * 1e3);
        }
        Ok(f64::from(COUNT) / shortest.max(1e-3))
    }

    /// Rounds of `test_spin` that take about this long.
    pub(crate) fn spin_rounds(&self, spin: &Kernel, time: Duration) -> Result<u32> {
        let per_ms = match self.shared.spin.get() {
            Some(rounds) => *rounds,
            None => {
                let measured = self.measure_spin(spin)?;
                *self.shared.spin.get_or_init(|| measured)
            }
        };
        Ok((per_ms * time.as_secs_f64() * 1e3).clamp(1.0, f64::from(u32::MAX / 2)) as u32)
    }

    fn measure_spin(&self, spin: &Kernel) -> Result<f64> {
        let stream = self.stream()?;
        let x = self.upload_words(&stream, &[0])?;
        let mut rounds = 1000u32;
        loop {
            let mut ms = f64::INFINITY;
            // The shortest of some: a busy host makes any one of them longer, and none shorter.
            for _ in 0..4 {
                stream.synchronize()?;
                let begin = Instant::now();
                stream.launch(spin, [1, 1, 1], &[x.clone().into(), Scalar::U32(rounds).into()])?;
                stream.synchronize()?;
                ms = ms.min(begin.elapsed().as_secs_f64() * 1e3);
                if ms < 4.0 {
                    break;
                }
            }
            if ms >= 4.0 || rounds >= 1 << 30 {
                return Ok(f64::from(rounds) / ms.max(1e-3));
            }
            rounds *= 4;
        }
    }
}

/// What the range holds when the stream has come so far.
pub(crate) fn download(stream: &Stream, slice: &BufferSlice) -> Result<Vec<u8>> {
    let mut bytes = vec![0xcd; slice.len_bytes() as usize];
    stream.read_blocking(slice, &mut bytes)?;
    Ok(bytes)
}

pub(crate) fn download_words(stream: &Stream, slice: &BufferSlice) -> Result<Vec<u32>> {
    Ok(from_bytes(&download(stream, slice)?))
}

/// Compares bytes; a difference is told by its first place.
pub(crate) fn same_bytes(got: &[u8], expected: &[u8], what: &str) -> Outcome {
    ensure_eq!(got.len(), expected.len(), "{what}: bytes");
    match got.iter().zip(expected).position(|(got, expected)| got != expected) {
        None => Ok(()),
        Some(place) => {
            let count = got.iter().zip(expected).filter(|(got, expected)| got != expected).count();
            Err(failed(format!(
                "{what}: byte {place} of {} is {:#04x}, expected {:#04x}; {count} bytes differ",
                got.len(),
                got[place],
                expected[place]
            )))
        }
    }
}

/// Reads a range and compares it.
pub(crate) fn holds(stream: &Stream, slice: &BufferSlice, expected: &[u8], what: &str) -> Outcome {
    same_bytes(&download(stream, slice)?, expected, what)
}

pub(crate) fn holds_words(stream: &Stream, slice: &BufferSlice, expected: &[u32], what: &str) -> Outcome {
    let got = download_words(stream, slice)?;
    ensure_eq!(got.len(), expected.len(), "{what}: elements");
    match got.iter().zip(expected).position(|(got, expected)| got != expected) {
        None => Ok(()),
        Some(place) => {
            Err(failed(format!("{what}: element {place} is {}, expected {}", got[place], expected[place])))
        }
    }
}

/// Waits for an event that must end.
pub(crate) fn ends(event: &Event, what: &str) -> Outcome {
    match event.wait(Some(PATIENCE)) {
        Err(error) if matches!(error.kind(), ErrorKind::Timeout { .. }) => {
            Err(failed(format!("{what} is not over after {PATIENCE:?}")))
        }
        other => Ok(other?),
    }
}

/// Waits, for a while, until something is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool, Stop>) -> Outcome {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(100);
    while !condition()? {
        if begin.elapsed() > Duration::from_secs(5) {
            return Err(failed(format!("{what}: still not so after 5 s")));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

//! A suite that cannot fail is worth nothing: devices that break one promise each, and the tests that notice.

mod common;

use common::cpu;
use halite_conformance::{ExpectedFailure, ExpectedFailures, Options, Report, Target, Verdict};
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{
    Arg, Binding, Buffer, BufferSlice, Command, CommandList, Device, DeviceInfo, Error, ErrorKind, Event,
    Health, HostMemory, Kernel, KernelSource, Layer, MemoryInfo, MemoryKind, Result, Scalar,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a device does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Every seventh write never arrives.
    LosesWrites,
    /// A write changes the byte behind its range, where there is one.
    WritesBeyond,
    /// A fill leaves its last byte out.
    FillsShort,
    /// Patterns of a fill begin a byte late.
    ShiftsPatterns,
    /// A copy takes the beginning of the source's buffer.
    CopiesFromTheStart,
    /// A fill takes effect behind the command after it.
    Reorders,
    /// Streams do not wait for events.
    IgnoresWaits,
    /// Events are done as soon as they are recorded.
    EventsTooEarly,
    /// A read does not wait for what is before it.
    ReadsTooEarly,
    /// Time runs from the later event to the earlier.
    TimeBackwards,
    /// Takes another format's name than it loads.
    ClaimsTooMuch,
    /// Claims built-ins and has none.
    DeniesBuiltins,
    /// Adds the right operand to itself.
    AddsWrong,
    /// Launches a workgroup too few.
    DropsAWorkgroup,
    /// Passes the last two numbers of a launch in the wrong order.
    SwapsNumbers,
    /// Synchronising hides failures.
    HidesFailures,
    /// A reset forgets nothing.
    ResetsNothing,
    /// A full device says that the request is too large.
    ConfusesFullAndTooLarge,
    /// Keeps every buffer.
    Leaks,
    /// Counts no memory.
    CountsNothing,
    /// A replay leaves its last command out.
    ReplaysShort,
    /// A driver that panics when it makes streams.
    Panics,
    /// A synchronisation that never ends.
    Hangs,
    /// Is lost by the first fill.
    IsLost,
    /// Takes fewer arguments than every device must.
    ClaimsTooLittle,
    /// Claims to import memory, and takes none.
    DeniesImports,
    /// Copies imported memory to its own.
    ImportsACopy,
    /// Never lets go of imported memory.
    KeepsImports,
}

/// Each flaw with a test that must notice it.
const NOTICED_BY: [(Flaw, &str); 28] = [
    (Flaw::LosesWrites, "transfer/write-at-"),
    (Flaw::WritesBeyond, "transfer/write-at-3-len-64"),
    (Flaw::FillsShort, "fill/pattern-of-1-at-1-len-3"),
    (Flaw::ShiftsPatterns, "fill/pattern-of-4-at-4-len-12"),
    (Flaw::CopiesFromTheStart, "transfer/copy-to-3-from-5-len-64"),
    (Flaw::Reorders, "order/commands-run-in-order"),
    (Flaw::IgnoresWaits, "order/a-wait-holds-back-a-fill"),
    (Flaw::EventsTooEarly, "order/a-wait-means-the-work-is-over"),
    (Flaw::ReadsTooEarly, "launch/kernel-and-buffers-may-go"),
    (Flaw::TimeBackwards, "time/work-takes-time"),
    (Flaw::ClaimsTooMuch, "honesty/format-npu-program"),
    (Flaw::DeniesBuiltins, "builtin/add-is-there"),
    (Flaw::AddsWrong, "builtin/add-f32"),
    (Flaw::DropsAWorkgroup, "launch/grid-of-7"),
    (Flaw::SwapsNumbers, "launch/arithmetic-wraps"),
    (Flaw::HidesFailures, "failure/arrives-at-synchronize"),
    (Flaw::ResetsNothing, "failure/a-reset-forgets"),
    (Flaw::ConfusesFullAndTooLarge, "allocation/full-is-out-of-memory"),
    (Flaw::Leaks, "allocation/size-4096"),
    (Flaw::CountsNothing, "allocation/used-memory-is-counted"),
    (Flaw::ReplaysShort, "list/fills-and-copies"),
    (Flaw::Panics, "discovery/opens-again-and-again"),
    (Flaw::Hangs, "order/an-idle-stream-synchronises"),
    (Flaw::IsLost, "fill/last-one-wins"),
    (Flaw::ClaimsTooLittle, "discovery/limits-of-launches-are-plausible"),
    (Flaw::DeniesImports, "import/the-device-sees-64-bytes"),
    (Flaw::ImportsACopy, "import/the-host-sees-64-bytes"),
    (Flaw::KeepsImports, "import/goes-with-the-last-handle"),
];

fn broken(flaw: Flaw) -> Target {
    cpu(vec![Arc::new(flaw) as Arc<dyn Layer>])
}

fn run(target: &Target, filter: &str, expected: ExpectedFailures) -> Report {
    let options = Options {
        filters: vec![filter.into()],
        expected,
        time_limit: Duration::from_secs(5),
        ..Options::default()
    };
    halite_conformance::run(target, &options, &mut |_| {}).unwrap()
}

#[test]
fn every_flaw_is_noticed_and_without_it_the_test_passes() {
    for (flaw, test) in NOTICED_BY {
        let sound = run(&cpu(Vec::new()), test, ExpectedFailures::default());
        assert!(sound.succeeded() && sound.counts().skipped == 0, "{test}: {}", common::failures(&sound));
        let report = run(&broken(flaw), test, ExpectedFailures::default());
        assert!(!report.succeeded(), "{flaw:?} is not noticed by {test}");
        println!("{flaw:?}: {}", common::failures(&report).replace('\n', " "));
    }
}

#[test]
fn what_hangs_or_panics_fails_and_the_run_goes_on() {
    let report = run(&broken(Flaw::Hangs), "order/an-idle-stream-synchronises", ExpectedFailures::default());
    assert!(report.tests[0].reason.contains("did not end within 5 s"), "{}", report.tests[0].reason);
    let report = run(&broken(Flaw::Panics), "discovery/", ExpectedFailures::default());
    assert!(report.tests.iter().any(|test| test.reason.contains("panic: no stream today")));
    assert!(report.counts().passed > 10, "{:?}", report.counts());
    let report = run(&broken(Flaw::IsLost), "fill/", ExpectedFailures::default());
    assert!(report.tests.len() > 20 && report.tests.iter().any(|test| test.reason.contains("lost")));
}

#[test]
fn random_programs_notice_and_tell_the_seed_and_the_step() {
    for flaw in [Flaw::LosesWrites, Flaw::FillsShort, Flaw::CopiesFromTheStart, Flaw::Reorders] {
        let report = run(&broken(flaw), "random/one-stream-", ExpectedFailures::default());
        let failure = report.failures().next().unwrap_or_else(|| panic!("{flaw:?} is not noticed"));
        assert!(
            failure.reason.contains("seed ") && failure.reason.contains("the last being"),
            "{}",
            failure.reason
        );
    }
}

#[test]
fn expected_failures_do_not_fail_a_run_and_unexpected_passes_do() {
    let list = |test: &str| {
        let (test, reason) = (test.to_owned(), "the fill is short".to_owned());
        ExpectedFailures::new([ExpectedFailure { test, reason }])
    };
    let test = "fill/pattern-of-1-at-1-len-3";
    let report = run(&broken(Flaw::FillsShort), test, list(test));
    assert_eq!((report.succeeded(), report.tests[0].verdict), (true, Verdict::ExpectedFailure));
    assert!(report.tests[0].reason.starts_with("the fill is short ("), "{}", report.tests[0].reason);
    let report = run(&cpu(Vec::new()), test, list(test));
    assert_eq!((report.succeeded(), report.tests[0].verdict), (false, Verdict::UnexpectedPass));
    let listed_by_the_target = broken(Flaw::FillsShort).with_expected_failures(list(test));
    assert!(run(&listed_by_the_target, test, ExpectedFailures::default()).succeeded());
}

#[test]
fn a_filter_that_names_nothing_is_refused() {
    let options = Options { filters: vec!["no/such".into()], ..Options::default() };
    let error = halite_conformance::run(&cpu(Vec::new()), &options, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
}

#[test]
fn reports_count_every_test_once() {
    let report = run(&broken(Flaw::FillsShort), "fill/", ExpectedFailures::default());
    assert_eq!(report.counts().total(), report.tests.len());
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["counts"]["failed"], report.failures().count());
    assert_eq!(json["groups"][0]["group"], "fill");
    assert_eq!(json["succeeded"], false);
    assert_eq!(json["tests"].as_array().unwrap().len(), report.tests.len());
}

impl Layer for Flaw {
    fn name(&self) -> &str {
        "broken"
    }

    fn wrap(&self, inner: Device) -> Result<Device> {
        let mut info = inner.info().clone();
        match self {
            Self::ClaimsTooMuch => info.kernel_formats.push("npu-program".into()),
            Self::ClaimsTooLittle => info.limits.max_args = 2,
            _ => {}
        }
        let shared = Arc::new(Shared { flaw: *self, calls: AtomicU64::new(0), lost: Mutex::default() });
        Ok(Device::new(Arc::new(BrokenDevice { shared, inner, info, kept: Mutex::default() })))
    }
}

struct Shared {
    flaw: Flaw,
    calls: AtomicU64,
    lost: Mutex<bool>,
}

impl Shared {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    /// Whether this call is one of every `period`.
    fn nth(&self, period: u64) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) % period == period - 1
    }
}

struct BrokenDevice {
    shared: Arc<Shared>,
    inner: Device,
    info: DeviceInfo,
    kept: Mutex<Vec<Buffer>>,
}

impl driver::Device for BrokenDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        let memory = self.inner.driver().memory()?;
        Ok(if self.shared.has(Flaw::CountsNothing) {
            MemoryInfo { used_bytes: 0, buffers: 0, ..memory }
        } else {
            memory
        })
    }

    fn health(&self) -> Health {
        if *self.shared.lost.lock().unwrap() {
            return Health::Lost { reason: "it fell off the bus".into() };
        }
        self.inner.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        let buffer = self.inner.driver().allocate(len_bytes, kind).map_err(|error| match error.kind() {
            ErrorKind::OutOfMemory { requested, free } if self.shared.has(Flaw::ConfusesFullAndTooLarge) => {
                Error::new(ErrorKind::TooLarge { requested: *requested, limit: *free }, "too large")
            }
            _ => error,
        })?;
        if self.shared.has(Flaw::Leaks) {
            self.kept.lock().unwrap().push(buffer.clone());
        }
        Ok(buffer)
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        match self.shared.flaw {
            Flaw::DeniesImports => Err(Error::unsupported("not today")),
            Flaw::ImportsACopy => {
                // SAFETY: the memory is valid for its length, and the test's own thread calls.
                let bytes =
                    unsafe { std::slice::from_raw_parts(memory.as_ptr().as_ptr(), memory.len_bytes()) };
                self.inner.import(&HostMemory::from(bytes.to_vec()))
            }
            flaw => {
                let buffer = self.inner.driver().import(memory)?;
                if flaw == Flaw::KeepsImports {
                    self.kept.lock().unwrap().push(buffer.clone());
                }
                Ok(buffer)
            }
        }
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        if self.shared.has(Flaw::Panics) {
            std::panic::resume_unwind(Box::new("no stream today"));
        }
        let inner = self.inner.driver().create_stream()?;
        let second = self.inner.driver().create_stream()?;
        Ok(Box::new(BrokenStream { shared: self.shared.clone(), inner, second, late: Mutex::default() }))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        if self.shared.has(Flaw::DeniesBuiltins) && source.format() == "builtin" {
            return Err(Error::unsupported("not today"));
        }
        self.inner.load(source)
    }
}

struct BrokenStream {
    shared: Arc<Shared>,
    inner: Box<dyn driver::Stream>,
    /// Another queue, for work that runs where it should not.
    second: Box<dyn driver::Stream>,
    /// A fill that is held back behind the next command.
    late: Mutex<Option<(BufferSlice, Vec<u8>)>>,
}

impl BrokenStream {
    fn has(&self, flaw: Flaw) -> bool {
        self.shared.has(flaw)
    }

    /// Lets what was held back run.
    fn flush(&self) -> Result<()> {
        match self.late.lock().unwrap().take() {
            Some((dst, pattern)) => self.inner.fill(&dst, &pattern),
            None => Ok(()),
        }
    }
}

impl driver::Stream for BrokenStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        if self.has(Flaw::LosesWrites) && self.shared.nth(7) {
            return Ok(());
        }
        self.inner.write(dst, src)?;
        if self.has(Flaw::WritesBeyond)
            && let Ok(behind) = dst.buffer().slice(dst.offset() + dst.len_bytes(), 1)
        {
            self.inner.fill(&behind, &[0x42])?;
        }
        self.flush()
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.flush()?;
        if self.has(Flaw::ReadsTooEarly) {
            self.second.read_blocking(src, dst)
        } else {
            self.inner.read_blocking(src, dst)
        }
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.flush()?;
        self.inner.read(src, dst)
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        let start = src.buffer().slice(0, src.len_bytes())?;
        let wrong = self.has(Flaw::CopiesFromTheStart) && !start.overlaps(dst);
        self.inner.copy(dst, if wrong { &start } else { src })?;
        self.flush()
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        match self.shared.flaw {
            Flaw::FillsShort if dst.len_bytes() > 0 && pattern.len() == 1 => {
                self.inner.fill(&dst.slice(0, dst.len_bytes() - 1)?, pattern)
            }
            Flaw::ShiftsPatterns => {
                let mut shifted = pattern.to_vec();
                shifted.rotate_right(1);
                self.inner.fill(dst, &shifted)
            }
            Flaw::Reorders => {
                self.flush()?;
                *self.late.lock().unwrap() = Some((dst.clone(), pattern.to_vec()));
                Ok(())
            }
            Flaw::IsLost => {
                *self.shared.lost.lock().unwrap() = true;
                Err(Error::new(ErrorKind::DeviceLost, "it fell off the bus"))
            }
            _ => self.inner.fill(dst, pattern),
        }
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        let mut args = args.to_vec();
        let mut grid = grid;
        match self.shared.flaw {
            Flaw::AddsWrong if kernel.name() == "add" => args[0] = args[1].clone(),
            Flaw::DropsAWorkgroup if grid[0] > 1 => grid[0] -= 1,
            Flaw::SwapsNumbers if args.len() == 5 => args.swap(3, 4),
            _ => {}
        }
        self.inner.launch(kernel, grid, &args)?;
        self.flush()
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        let (count, done) = (list.commands().len(), Cell::new(0));
        list.enqueue(buffers, scalars, |command| {
            done.set(done.get() + 1);
            if self.has(Flaw::ReplaysShort) && done.get() == count {
                return Ok(());
            }
            match command {
                Command::Copy { dst, src } => self.copy(&dst, &src),
                Command::Fill { dst, pattern } => self.fill(&dst, &pattern),
                Command::Launch { kernel, grid, args } => self.launch(&kernel, grid, &args),
            }
        })
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        self.flush()?;
        Ok(Box::new(BrokenEvent { shared: self.shared.clone(), inner: self.inner.record()? }))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        if self.has(Flaw::IgnoresWaits) { Ok(()) } else { self.inner.wait(event) }
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.flush()?;
        if self.has(Flaw::Hangs) {
            std::thread::sleep(Duration::from_secs(3600));
        }
        let result = self.inner.synchronize(timeout);
        if self.has(Flaw::HidesFailures) { Ok(()) } else { result }
    }

    fn reset(&self) -> Result<()> {
        if self.has(Flaw::ResetsNothing) {
            let _ = self.inner.synchronize(None);
            return Ok(());
        }
        self.inner.reset()
    }
}

struct BrokenEvent {
    shared: Arc<Shared>,
    inner: Box<dyn driver::Event>,
}

impl driver::Event for BrokenEvent {
    fn is_done(&self) -> Result<bool> {
        if self.shared.has(Flaw::EventsTooEarly) { Ok(true) } else { self.inner.is_done() }
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        if self.shared.has(Flaw::EventsTooEarly) { Ok(()) } else { self.inner.wait(timeout) }
    }

    fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        let time = self.inner.elapsed_since(earlier)?;
        Ok(if self.shared.has(Flaw::TimeBackwards) { Duration::ZERO.saturating_sub(time) } else { time })
    }

    fn inner(&self) -> Option<&dyn driver::Event> {
        Some(&*self.inner)
    }
}

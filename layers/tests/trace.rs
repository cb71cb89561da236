//! The layer `trace`: what a program does is in its file, each thing once, in order, with its bytes and times.

#![allow(missing_docs)]

use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::annotate::{self, Label, Note};
use halite_hal::driver::{self, Backend, HostBytes, HostTarget};
use halite_hal::null::{NullBackend, NullConfig};
use halite_hal::{
    Access, Arg, ArgType, Binding, Buffer, BufferSlice, CommandList, CommandListBuilder, DType, Device,
    DeviceId, DeviceInfo, Error, ErrorKind, Event, Health, Kernel, KernelSource, Layer, MemoryInfo,
    MemoryKind, NativeKernel, Pool, PoolConfig, RecordedArg, RecordedCommand, RecordedRange, Result, Scalar,
    Signature, Stream, Workgroup, select_layers,
};
use halite_layers::trace::{Detail, TraceLayer};
use serde_json::Value;
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How far a stream's clock may be misplaced on the host's axis while other tests keep the cores busy.
const MISPLACED_US: f64 = 1000.0;
/// Times are written in microseconds with three decimals, and read back as f64.
const ROUNDING_US: f64 = 0.002;

fn cpu() -> Device {
    CpuBackend::new(CpuConfig { threads: Some(2), memory_limit_bytes: Some(64 << 20) }).open(0).unwrap()
}

fn null() -> Device {
    NullBackend::new(NullConfig::default()).open(0).unwrap()
}

/// A file of this test's own, which is not there yet.
fn file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("trace-{name}.json"));
    let _ = std::fs::remove_file(&path);
    path
}

fn traced(path: &Path, detail: Detail, inner: Device) -> Device {
    TraceLayer::to_file(path).with_detail(detail).wrap(inner).unwrap()
}

fn kernel(
    device: &Device,
    name: &str,
    args: Vec<ArgType>,
    run: impl Fn(&mut Workgroup<'_>) -> std::result::Result<(), String> + Send + Sync + 'static,
) -> Kernel {
    device.load(&KernelSource::Native(NativeKernel::new(name, Signature::new(args), run))).unwrap()
}

/// Adds 1 to every element.
fn increment(device: &Device) -> Kernel {
    let arg = ArgType::Buffer { dtype: DType::U32, access: Access::ReadWrite };
    kernel(device, "increment", vec![arg], |workgroup| {
        workgroup.write_all::<u32>(0)?.iter_mut().for_each(|value| *value += 1);
        Ok(())
    })
}

fn sleeping(device: &Device, time: Duration) -> Kernel {
    kernel(device, "sleep", vec![], move |_| {
        thread::sleep(time);
        Ok(())
    })
}

fn buffer(device: &Device, len: u64) -> Buffer {
    device.allocate(len, MemoryKind::Device).unwrap()
}

/// One event of the file.
#[derive(Debug, Clone)]
struct Line(Value);

impl Line {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.text("name")
    }

    fn is_a(&self, category: &str) -> bool {
        self.text("cat") == category
    }

    fn arg(&self, key: &str) -> &Value {
        &self.0["args"][key]
    }

    fn number(&self, key: &str) -> u64 {
        self.arg(key).as_u64().unwrap_or_else(|| panic!("{key} of {self:?}"))
    }

    fn begin(&self) -> f64 {
        self.0["ts"].as_f64().unwrap()
    }

    fn duration(&self) -> f64 {
        self.0["dur"].as_f64().unwrap_or_else(|| panic!("duration of {self:?}"))
    }

    fn end(&self) -> f64 {
        self.begin() + self.duration()
    }

    fn thread(&self) -> (u64, u64) {
        (self.0["pid"].as_u64().unwrap(), self.0["tid"].as_u64().unwrap())
    }
}

/// The events of a complete file.
fn lines(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap();
    let values: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let last = values.last().expect("there is an end");
    assert_eq!((&last["name"], &last["args"]["lost_notes"]), (&"halite_trace_end".into(), &0.into()));
    values.into_iter().map(Line).collect()
}

fn of<'a>(lines: &'a [Line], category: &str) -> Vec<&'a Line> {
    lines.iter().filter(|line| line.is_a(category)).collect()
}

fn names(lines: &[&Line]) -> Vec<String> {
    lines.iter().map(|line| line.name().to_owned()).collect()
}

/// Commands of each stream follow one another, in the order of the file; spans of each host thread nest.
#[track_caller]
fn assert_orderly(lines: &[Line]) {
    let mut streams: HashMap<(u64, u64), f64> = HashMap::new();
    let mut threads: BTreeMap<(u64, u64), Vec<&Line>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.text("ph") == "X") {
        if line.is_a("host") {
            threads.entry(line.thread()).or_default().push(line);
            continue;
        }
        let last = streams.entry(line.thread()).or_insert(f64::MIN);
        assert!(line.begin() >= *last - ROUNDING_US, "{line:?} begins before {last}");
        *last = line.end();
    }
    for mut spans in threads.into_values() {
        spans.sort_by(|a, b| (a.begin(), -a.duration()).partial_cmp(&(b.begin(), -b.duration())).unwrap());
        let mut open: Vec<&Line> = Vec::new();
        for span in spans {
            open.retain(|outer| outer.end() > span.begin() + ROUNDING_US);
            for outer in &open {
                assert!(span.end() <= outer.end() + ROUNDING_US, "{span:?} is not inside {outer:?}");
            }
            open.push(span);
        }
    }
}

#[test]
fn every_command_is_there_once_with_its_bytes() {
    let path = file("commands");
    {
        let device = traced(&path, Detail::Loops, cpu());
        let stream = device.create_stream().unwrap();
        let (a, b) = (buffer(&device, 400), buffer(&device, 400));
        let increment = increment(&device);
        stream.write(&a.all(), vec![1; 400]).unwrap();
        stream.fill(&b.all(), &[0]).unwrap();
        for _ in 0..3 {
            stream.launch(&increment, [1, 1, 1], &[a.all().into()]).unwrap();
        }
        {
            let _label = annotate::scope(|| Label::new("my op").with("shape", "u32[100]"));
            stream.launch(&increment, [1, 1, 1], &[b.all().into()]).unwrap();
            stream.launch(&increment, [0, 1, 1], &[b.all().into()]).unwrap();
        }
        stream.copy(&b.slice(0, 100).unwrap(), &a.slice(0, 100).unwrap()).unwrap();
        stream.write_blocking(&b.slice(100, 8).unwrap(), &[0; 8]).unwrap();
        let read = stream.read(&a.slice(0, 40).unwrap()).unwrap();
        assert_eq!(read.wait().unwrap()[..4], 0x0101_0104_u32.to_le_bytes());
        let mut bytes = [0; 12];
        stream.read_blocking(&b.slice(0, 12).unwrap(), &mut bytes).unwrap();
        stream.synchronize().unwrap();
    }
    let lines = lines(&path);
    assert_orderly(&lines);
    let launches = of(&lines, "launch");
    assert_eq!(names(&launches), ["increment", "increment", "increment", "my op"]);
    for launch in &launches {
        assert_eq!((launch.number("read"), launch.number("written")), (400, 400));
        assert_eq!((launch.arg("kernel"), launch.arg("grid")), (&"increment".into(), &"1x1x1".into()));
        assert!(launch.duration() > 0.0);
    }
    assert_eq!(launches[3].arg("shape"), "u32[100]");
    let copies: Vec<_> =
        of(&lines, "copy").iter().map(|line| (line.name().to_owned(), line.number("bytes"))).collect();
    let expected = [("write", 400), ("fill", 400), ("copy", 100), ("write", 8), ("read", 40), ("read", 12)];
    assert_eq!(copies, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    let host = names(&of(&lines, "host"));
    for call in ["allocate", "create stream", "load", "read", "write", "synchronize"] {
        assert!(host.iter().any(|name| name == call), "{call} is missing in {host:?}");
    }
    let allocated: Vec<u64> =
        of(&lines, "memory").iter().filter(|l| l.name() == "allocated").map(|l| l.number("bytes")).collect();
    assert_eq!(allocated, [400, 800, 400, 0]);
    let processes: Vec<_> = lines.iter().filter(|line| line.name() == "process_name").collect();
    assert!(processes[0].arg("name").as_str().unwrap().starts_with("cpu:0: "), "{processes:?}");
}

/// Two launches and a copy, labelled; the first range is a slot.
fn record(device: &Device, kernel: &Kernel) -> CommandList {
    let fixed = buffer(device, 64);
    let slot = |offset| RecordedRange::Slot { slot: 0, offset, len: 16 };
    let mut commands = CommandListBuilder::new();
    for (name, offset) in [("first", 0), ("second", 16)] {
        let _label = annotate::scope(|| Label::new(name));
        let args = vec![RecordedArg::Buffer(slot(offset))];
        commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: [1, 1, 1], args });
    }
    let args = vec![RecordedArg::Buffer(slot(0))];
    commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: [1, 0, 1], args });
    let dst = RecordedRange::Fixed(fixed.slice(0, 16).unwrap());
    commands.push(RecordedCommand::Copy { dst, src: slot(16) });
    device.finish(commands).unwrap()
}

fn replay(path: &Path, detail: Detail, inner: Device, times: usize) -> Vec<Line> {
    {
        let device = traced(path, detail, inner);
        let list = record(&device, &increment(&device));
        let stream = device.create_stream().unwrap();
        let bound = buffer(&device, 32);
        for _ in 0..times {
            stream.replay(&list, &[bound.all()], &[]).unwrap();
        }
        stream.synchronize().unwrap();
    }
    let lines = lines(path);
    assert_orderly(&lines);
    lines
}

#[test]
fn replays_are_taken_apart_where_the_device_has_no_graph() {
    let lines = replay(&file("apart"), Detail::Loops, cpu(), 50);
    let launches = of(&lines, "launch");
    assert_eq!(names(&launches), ["first", "second"].repeat(50));
    assert!(launches.iter().all(|line| (line.number("read"), line.number("written")) == (16, 16)));
    assert_eq!(of(&lines, "copy").len(), 50);
    assert!(of(&lines, "replay").is_empty());
}

#[test]
fn replays_stay_whole_where_that_is_asked_for_or_the_device_has_a_graph() {
    let brief = replay(&file("brief"), Detail::Brief, cpu(), 3);
    let graph = replay(&file("graph"), Detail::Loops, Odd::wrap(null(), false), 3);
    for lines in [brief, graph] {
        let replays = of(&lines, "replay");
        assert_eq!(names(&replays), ["replay of 3 commands"; 3]);
        for replay in replays {
            assert_eq!(replay.arg("steps"), "first, second, copy");
            assert_eq!((replay.number("launches"), replay.number("commands")), (2, 3));
        }
        assert!(of(&lines, "launch").is_empty() && of(&lines, "copy").is_empty());
    }
    let every = replay(&file("every"), Detail::Every, Odd::wrap(null(), false), 3);
    assert_eq!(names(&of(&every, "launch")), ["first", "second"].repeat(3));
}

#[test]
fn times_are_those_of_the_work_on_the_hosts_axis() {
    const WORK: Duration = Duration::from_millis(15);
    let path = file("times");
    let begin;
    let host_us;
    {
        let device = traced(&path, Detail::Loops, cpu());
        begin = Instant::now();
        let stream = device.create_stream().unwrap();
        let sleep = sleeping(&device, WORK);
        stream.launch(&sleep, [1, 1, 1], &[]).unwrap();
        stream.launch(&sleep, [1, 1, 1], &[]).unwrap();
        stream.synchronize().unwrap();
        // The stream is idle now, which must not count as the next launch's time.
        thread::sleep(4 * WORK);
        stream.launch(&sleep, [1, 1, 1], &[]).unwrap();
        stream.synchronize().unwrap();
        host_us = begin.elapsed().as_secs_f64() * 1e6;
    }
    let lines = lines(&path);
    let work_us = WORK.as_secs_f64() * 1e6;
    let launches = of(&lines, "launch");
    assert_eq!(launches.len(), 3);
    for launch in &launches {
        assert!(launch.duration() >= work_us - ROUNDING_US, "{launch:?}");
        // A loaded machine takes its time, but not all of the pause.
        assert!(launch.duration() < 3.0 * work_us, "{launch:?}");
    }
    assert!(launches[2].begin() - launches[1].end() > 3.0 * work_us, "{launches:?}");
    assert!(launches[2].end() - launches[0].begin() < host_us);
    // Host threads and streams share the axis: the last wait ends when the last launch does.
    let waits: Vec<_> = of(&lines, "host").into_iter().filter(|line| line.name() == "synchronize").collect();
    let (wait, launch) = (waits[1], launches[2]);
    let after_launch = wait.end() - launch.end();
    assert!((-MISPLACED_US..work_us).contains(&after_launch), "{launch:?} {wait:?}");
}

#[test]
fn many_threads_and_streams_lose_nothing() {
    const THREADS: u64 = 4;
    const LAUNCHES: u64 = 500;
    let path = file("threads");
    {
        let device = traced(&path, Detail::Loops, cpu());
        let shared = device.create_stream().unwrap();
        let increment = increment(&device);
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (device, shared, increment) = (&device, &shared, &increment);
                let run = move || {
                    let own = device.create_stream().unwrap();
                    let memory = buffer(device, 4 * (number + 1));
                    let _label = annotate::scope(|| Label::new(format!("thread {number}")));
                    for launch in 0..LAUNCHES {
                        let stream = if launch % 2 == 0 { &own } else { shared };
                        let args: [Arg; 1] = [memory.all().into()];
                        stream.launch(increment, [1, 1, 1], &args).unwrap();
                        // Streams of one thread alternate on the same memory.
                        let other = if launch % 2 == 0 { shared } else { &own };
                        other.wait(&stream.record().unwrap()).unwrap();
                    }
                    own.synchronize().unwrap();
                };
                thread::Builder::new().name(format!("worker {number}")).spawn_scoped(scope, run).unwrap();
            }
        });
        shared.synchronize().unwrap();
    }
    let lines = lines(&path);
    assert_orderly(&lines);
    let mut launches: HashMap<(String, u64), u64> = HashMap::new();
    for line in of(&lines, "launch") {
        assert_eq!(line.text("ph"), "X", "{line:?}");
        *launches.entry((line.name().to_owned(), line.number("written"))).or_default() += 1;
    }
    let expected = (0..THREADS).map(|number| ((format!("thread {number}"), 4 * (number + 1)), LAUNCHES));
    assert_eq!(launches, expected.collect());
    let hosts: Vec<_> =
        lines.iter().filter(|l| l.name() == "thread_name").map(|l| l.arg("name").as_str().unwrap()).collect();
    for name in ["host worker 0", "host worker 3", "stream 1", "stream 5"] {
        assert!(hosts.contains(&name), "{name} is missing in {hosts:?}");
    }
}

#[test]
fn notes_of_programs_are_there_and_nest() {
    let path = file("notes");
    let reason = "no \"exp\" on this device";
    {
        let device = traced(&path, Detail::Loops, null());
        let stream = device.create_stream().unwrap();
        let pool = Pool::new(device.clone(), MemoryKind::Device, PoolConfig::default());
        {
            let mut outer = annotate::span(&device, || Label::new("evaluate"));
            drop(annotate::span(&device, || Label::new("plan").with("nodes", "7")));
            let _memory = pool.allocate(&stream, 1000).unwrap();
            for _ in 0..2 {
                let stats = pool.stats();
                annotate::note(device.id(), || Note::Pool(&stats));
            }
            outer.detail("launches", || "3".into());
        }
        let target = DeviceId::new("cpu", 0);
        annotate::note(device.id(), || Note::Fallback { op: "exp", reason, target: &target });
        // Notes about other devices are none of this file's business.
        drop(annotate::span(&null(), || Label::new("stranger")));
    }
    let lines = lines(&path);
    assert_orderly(&lines);
    let span = |name: &str| lines.iter().find(|line| line.name() == name).unwrap_or_else(|| panic!("{name}"));
    let (outer, inner, allocate) = (span("evaluate"), span("plan"), span("allocate"));
    assert_eq!((outer.arg("launches"), inner.arg("nodes")), (&"3".into(), &"7".into()));
    for inside in [inner, allocate] {
        assert!(outer.begin() <= inside.begin() && inside.end() <= outer.end() + ROUNDING_US);
        assert_eq!(outer.thread(), inside.thread());
    }
    let fallback = span("fallback: exp");
    assert_eq!((fallback.arg("reason"), fallback.arg("to")), (&reason.into(), &"cpu:0".into()));
    let pool: Vec<_> = of(&lines, "memory").into_iter().filter(|line| line.name() == "pool").collect();
    assert_eq!(pool.len(), 1, "the same state is written once");
    assert_eq!(pool[0].number("in use"), 1024);
    assert!(!lines.iter().any(|line| line.name() == "stranger"));
}

#[test]
fn what_fails_and_what_is_skipped_behind_it_is_marked() {
    let path = file("failures");
    {
        let device = traced(&path, Detail::Loops, cpu());
        let stream = device.create_stream().unwrap();
        let good = sleeping(&device, Duration::from_millis(5));
        let bad = kernel(&device, "bad", vec![], |_| Err("out of \"cheese\"".into()));
        // All four are enqueued before the failure is known.
        for kernel in [&good, &bad, &good, &good] {
            stream.launch(kernel, [1, 1, 1], &[]).unwrap();
        }
        assert!(stream.synchronize().is_err());
        stream.reset().unwrap();
        stream.launch(&good, [1, 1, 1], &[]).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(
            device.allocate(u64::from(u32::MAX), MemoryKind::Device).unwrap_err().kind(),
            &ErrorKind::TooLarge { requested: u64::from(u32::MAX), limit: 64 << 20 }
        );
    }
    let lines = lines(&path);
    let launches = of(&lines, "launch");
    let phases: Vec<_> = launches.iter().map(|line| line.text("ph")).collect();
    assert_eq!(phases, ["X", "i", "i", "i", "X"], "{launches:?}");
    assert!(launches[1].arg("failed").as_str().unwrap().contains("out of \"cheese\""), "{launches:?}");
    assert_eq!((launches[2].arg("skipped"), launches[3].arg("skipped")), (&true.into(), &true.into()));
}

#[test]
fn a_file_that_cannot_be_written_fails_the_opening_and_is_named() {
    let below_a_file = file("wrong-place");
    std::fs::write(&below_a_file, "").unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    for path in [below_a_file.join("trace.json"), folder.join("absent/trace.json"), folder] {
        let error = TraceLayer::to_file(&path).wrap(null()).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
        let (message, path) = (error.to_string(), path.display().to_string());
        for part in ["HALITE_TRACE", path.as_str(), "cannot be written"] {
            assert!(message.contains(part), "{part} is missing: {message}");
        }
    }
}

#[test]
fn a_program_that_does_not_end_leaves_whole_lines() {
    let path = file("unfinished");
    let device = traced(&path, Detail::Loops, cpu());
    let stream = device.create_stream().unwrap();
    let increment = increment(&device);
    let memory = buffer(&device, 4);
    for _ in 0..100 {
        stream.launch(&increment, [1, 1, 1], &[memory.all().into()]).unwrap();
    }
    stream.synchronize().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.ends_with("]\n"));
        // As a viewer reads it: a bracket, then events with commas behind.
        let mut launches = 0;
        let mut rest = text.lines();
        assert_eq!(rest.next(), Some("["));
        for line in rest {
            let event: Value = serde_json::from_str(line.strip_suffix(',').expect("a comma")).unwrap();
            launches += usize::from(event["cat"] == "launch");
        }
        if launches == 100 {
            break;
        }
        assert!(Instant::now() < deadline, "{launches} launches after 10 s");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn devices_that_are_opened_in_turn_share_the_file_and_a_later_session_goes_on_with_it() {
    let path = file("shared");
    {
        let layer = TraceLayer::to_file(&path);
        for _ in 0..2 {
            drop(layer.wrap(null()).unwrap().create_stream().unwrap());
        }
        // Another layer, while the first is there.
        drop(TraceLayer::to_file(&path).wrap(null()).unwrap());
    }
    let processes = |lines: &[Line]| -> Vec<(u64, u64)> {
        lines.iter().filter(|line| line.name() == "process_name").map(Line::thread).collect()
    };
    assert_eq!(processes(&lines(&path)).len(), 3);
    drop(TraceLayer::to_file(&path).wrap(null()).unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    let values: Vec<Value> = serde_json::from_str(&text).unwrap();
    let all: Vec<_> = values.into_iter().map(Line).collect();
    let mut processes = processes(&all);
    processes.dedup();
    assert_eq!(processes.len(), 4, "every opening has a number of its own");
    // Somebody else's file under that name is not continued, but overwritten.
    std::fs::write(&path, "[1]").unwrap();
    drop(TraceLayer::to_file(&path).wrap(null()).unwrap());
    assert_eq!(lines(&path).iter().filter(|line| line.name() == "process_name").count(), 1);
}

#[test]
fn a_device_without_a_clock_gives_instants() {
    let path = file("clockless");
    {
        let device = traced(&path, Detail::Loops, Odd::wrap(null(), true));
        let stream = device.create_stream().unwrap();
        let kernel = kernel(&device, "k", vec![], |_| Ok(()));
        for _ in 0..3 {
            stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
        }
        stream.synchronize().unwrap();
    }
    let lines = lines(&path);
    let launches = of(&lines, "launch");
    assert_eq!(launches.len(), 3);
    assert!(
        launches.iter().all(|line| line.text("ph") == "i" && line.arg("untimed") == true),
        "{launches:?}"
    );
    let names = lines.iter().filter(|line| line.name() == "thread_name").map(|line| line.arg("name"));
    assert!(names.into_iter().any(|name| name == "stream 1 (without device times)"));
}

#[test]
fn work_that_never_ends_holds_nothing_up_for_long() {
    let path = file("paused");
    let null = NullBackend::new(NullConfig::default()).open_null(0).unwrap();
    null.pause();
    let begin = Instant::now();
    {
        let device = traced(&path, Detail::Loops, null.device());
        let stream = device.create_stream().unwrap();
        let kernel = kernel(&device, "k", vec![], |_| Ok(()));
        for _ in 0..70_000 {
            stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
        }
    }
    // One second at the end, and the attempts to read the clock.
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let lines = lines(&path);
    let launches = of(&lines, "launch");
    assert_eq!(launches.len(), 70_000, "beyond the limit of events, launches are still counted");
    assert!(launches.iter().all(|line| line.arg("untimed") == true));
}

#[test]
fn settings_are_checked_and_the_file_must_be_named() {
    let known: [Arc<dyn Layer>; 1] = [Arc::new(TraceLayer::to_file(file("settings")))];
    for settings in ["trace", "trace:detail", "trace: brief"] {
        assert_eq!(select_layers(settings, &known).unwrap()[0].name(), "trace");
    }
    let error = select_layers("trace:loud", &known).err().expect("there is no such setting");
    assert!(error.message().contains("'detail' and 'brief', got 'loud'"), "{error}");
    if std::env::var_os("HALITE_TRACE").is_none() {
        let error = TraceLayer::from_env().wrap(null()).unwrap_err();
        assert!(error.message().contains("HALITE_TRACE=FILE"), "{error}");
        let error = select_layers("trace", &halite_layers::all()).err().expect("no file is named");
        assert!(error.message().contains("HALITE_TRACE=FILE"), "{error}");
    }
    let named = TraceLayer::to_file(file("process").with_extension("%p"));
    drop(named.wrap(null()).unwrap());
    drop(named);
    assert!(!lines(&file("process").with_extension(std::process::id().to_string())).is_empty());
}

/// A device that makes graphs of command lists, and whose events may have no times.
struct Odd {
    inner: Device,
    is_clockless: bool,
}

struct OddStream {
    inner: Box<dyn driver::Stream>,
    is_clockless: bool,
}

struct ClocklessEvent(Box<dyn driver::Event>);

impl Odd {
    fn wrap(inner: Device, is_clockless: bool) -> Device {
        Device::new(Arc::new(Self { inner, is_clockless }))
    }
}

impl driver::Device for Odd {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.inner.memory()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.inner.allocate(len_bytes, kind)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        let inner = self.inner.driver().create_stream()?;
        Ok(Box::new(OddStream { inner, is_clockless: self.is_clockless }))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.inner.load(source)
    }

    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>> {
        Ok(Some(Box::new(commands.len())))
    }
}

impl driver::Stream for OddStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        self.inner.write(dst, src)
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.inner.read_blocking(src, dst)
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.inner.read(src, dst)
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        self.inner.copy(dst, src)
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        self.inner.fill(dst, pattern)
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        self.inner.launch(kernel, grid, args)
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        assert_eq!(
            list.object::<usize>(),
            Some(&list.commands().len()),
            "the graph is found through the layer"
        );
        self.inner.replay(list, buffers, scalars)
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        let event = self.inner.record()?;
        Ok(if self.is_clockless { Box::new(ClocklessEvent(event)) } else { event })
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.inner.wait(event)
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.inner.synchronize(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.inner.reset()
    }
}

impl driver::Event for ClocklessEvent {
    fn is_done(&self) -> Result<bool> {
        self.0.is_done()
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.0.wait(timeout)
    }

    fn elapsed_since(&self, _earlier: &Event) -> Result<Duration> {
        Err(Error::unsupported("this device has no clock"))
    }

    fn inner(&self) -> Option<&dyn driver::Event> {
        Some(self.0.as_ref())
    }
}

#[test]
fn a_streams_handle_may_be_dropped_before_its_work_is_over() {
    let path = file("dropped");
    {
        let device = traced(&path, Detail::Loops, cpu());
        let sleep = sleeping(&device, Duration::from_millis(20));
        let stream: Stream = device.create_stream().unwrap();
        for _ in 0..3 {
            stream.launch(&sleep, [1, 1, 1], &[]).unwrap();
        }
    }
    let lines = lines(&path);
    let launches = of(&lines, "launch");
    assert_eq!(launches.len(), 3);
    assert!(launches.iter().all(|line| line.text("ph") == "X"), "{launches:?}");
}

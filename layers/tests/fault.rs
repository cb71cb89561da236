//! The layers `fault` and `verify` on devices without a driver: what each rule does, and that nothing else happens.

#![allow(missing_docs)]

use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend;
use halite_hal::null::{NullBackend, NullConfig};
use halite_hal::{
    Arg, Buffer, CommandListBuilder, DType, Device, Error, ErrorKind, Health, Kernel, KernelSource, Layer,
    MemoryKind, Pool, PoolConfig, RecordedArg, RecordedCommand, RecordedRange, Registry, Stream,
    select_layers,
};
use halite_layers::fault::Fault;
use halite_layers::verify::{ATTEMPTS, Verify};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long enough that a loaded machine does not reach it by itself, short enough to wait for.
const DELAY: Duration = Duration::from_millis(60);

fn cpu() -> Device {
    CpuBackend::new(CpuConfig { threads: Some(2), memory_limit_bytes: Some(1 << 20) }).open(0).unwrap()
}

fn null() -> Device {
    NullBackend::new(NullConfig { memory_bytes: 1 << 20, ..NullConfig::default() }).open(0).unwrap()
}

fn faulty(script: &str) -> (Device, Stream) {
    let device = Fault::with_script(script).unwrap().wrap(cpu()).unwrap();
    let stream = device.create_stream().unwrap();
    (device, stream)
}

fn buffer(device: &Device, len: u64) -> Buffer {
    device.allocate(len, MemoryKind::Device).unwrap()
}

fn bytes(stream: &Stream, buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len_bytes() as usize];
    stream.read_blocking(&buffer.all(), &mut bytes).unwrap();
    bytes
}

fn builtin(op: BuiltinOp) -> KernelSource {
    KernelSource::Builtin(op)
}

/// `out = value`, for `len` bytes.
fn fill_source(value: u8, len: u64) -> KernelSource {
    let kind = BuiltinKind::Fill { value_bits: value.into() };
    builtin(BuiltinOp::new(kind, vec![OperandDesc::contiguous(DType::U8, &[len])]).unwrap())
}

fn fill_kernel(device: &Device, value: u8, len: u64) -> Kernel {
    device.load(&fill_source(value, len)).unwrap()
}

fn launch(stream: &Stream, kernel: &Kernel, out: &Buffer) -> Result<(), Error> {
    stream.launch(kernel, [1, 1, 1], &[Arg::Buffer(out.all())])
}

#[track_caller]
fn assert_injected<T: std::fmt::Debug>(result: Result<T, Error>, kind: &ErrorKind, rule: &str) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(&format!("injected by the rule '{rule}'")), "{error}");
    assert!(error.message().contains("HALITE_LAYERS"), "{error}");
    assert!(error.device().is_some() && error.call().is_some(), "{error}");
    error
}

fn refused() -> ErrorKind {
    ErrorKind::Backend { code: -1, message: "INJECTED_FAILURE".into() }
}

#[test]
fn an_allocation_fails_as_on_a_full_device_and_then_succeeds() {
    let device = Fault::with_script("allocate@2=out-of-memory").unwrap().wrap(null()).unwrap();
    let _first = buffer(&device, 100);
    let result = device.allocate(100, MemoryKind::Device);
    let kind = ErrorKind::OutOfMemory { requested: 100, free: 99 };
    let error = assert_injected(result, &kind, "allocate@2=out-of-memory");
    assert!(error.is_retryable());
    assert_eq!(buffer(&device, 100).len_bytes(), 100);
    assert_eq!(device.memory().unwrap().used_bytes, 200 - 100, "the refused allocation took nothing");
}

#[test]
fn a_limit_of_bytes_counts_what_is_in_use() {
    let device = Fault::with_script("allocate>1KiB=out-of-memory").unwrap().wrap(null()).unwrap();
    let first = buffer(&device, 1000);
    let error = device.allocate(25, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 25, free: 24 }, "{error}");
    assert_eq!(buffer(&device, 24).len_bytes(), 24);
    drop(first);
    assert_eq!(buffer(&device, 1024).len_bytes(), 1024);
}

#[test]
fn a_pool_goes_on_below_a_limit_of_bytes_by_giving_segments_back() {
    let device = Fault::with_script("allocate>64KiB=out-of-memory").unwrap().wrap(null()).unwrap();
    let stream = device.create_stream().unwrap();
    let pool = Pool::new(device.clone(), MemoryKind::Device, PoolConfig::default());
    for len in [40_000, 50_000, 60_000] {
        drop(pool.allocate(&stream, len).unwrap());
    }
    assert!(pool.stats().trims >= 2 && device.memory().unwrap().used_bytes <= 64 << 10);
    let held = pool.allocate(&stream, 40_000).unwrap();
    let error = pool.allocate(&stream, 40_000).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutOfMemory { requested: 40_000, .. }), "{error}");
    assert!(error.message().contains("injected by the rule 'allocate>64KiB=out-of-memory'"), "{error}");
    drop(held);
}

#[test]
fn a_build_fails_with_a_log_and_may_be_tried_again() {
    let (device, _) = faulty("load@1=build-error");
    let error = device.load(&fill_source(1, 8)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Build { log } if log.contains("injected")), "{error}");
    assert!(error.message().contains("kernel 'fill'"), "{error}");
    assert_eq!(fill_kernel(&device, 1, 8).name(), "fill");
}

#[test]
fn a_refused_call_changes_nothing_and_poisons_nothing() {
    for (script, rule) in
        [("launch@2=fail", "launch@2=fail"), ("seed=3; stream%3=fail once", "stream%3=fail once")]
    {
        let (device, stream) = faulty(script);
        let out = buffer(&device, 8);
        let [one, two] = [1, 2].map(|value| fill_kernel(&device, value, 8));
        if rule.starts_with("stream") {
            stream.fill(&out.all(), &[9]).unwrap();
        }
        launch(&stream, &one, &out).unwrap();
        assert_injected(launch(&stream, &two, &out), &refused(), rule);
        assert_eq!(bytes(&stream, &out), [1; 8]);
        launch(&stream, &two, &out).unwrap();
        assert_eq!(bytes(&stream, &out), [2; 8]);
    }
}

#[test]
fn every_call_can_be_refused() {
    let (device, stream) = faulty(
        "fill@1=fail; write@1=link; read@1=link; copy@1=link; record@1=out-of-memory; wait@1=fail; \
         create-stream@2=out-of-memory; allocate@3=fail; load@1=out-of-memory",
    );
    let [from, to] = [0, 1].map(|_| buffer(&device, 4));
    assert_eq!(stream.fill(&from.all(), &[1]).unwrap_err().kind(), &refused());
    assert!(
        assert_injected(stream.write(&from.all(), vec![1; 4]), &ErrorKind::Link, "write@1=link")
            .is_retryable()
    );
    assert_injected(stream.read_blocking(&from.all(), &mut [0; 4]), &ErrorKind::Link, "read@1=link");
    assert_injected(stream.copy(&to.all(), &from.all()), &ErrorKind::Link, "copy@1=link");
    assert!(matches!(stream.record().unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
    let event = stream.record().unwrap();
    assert_injected(stream.wait(&event), &refused(), "wait@1=fail");
    assert!(matches!(device.create_stream().unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
    assert_eq!(device.allocate(4, MemoryKind::Device).unwrap_err().kind(), &refused());
    assert!(matches!(device.load(&fill_source(1, 4)).unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
    // Everything goes on.
    stream.write_blocking(&from.all(), &[5; 4]).unwrap();
    stream.copy(&to.all(), &from.all()).unwrap();
    stream.wait(&event).unwrap();
    assert_eq!(bytes(&stream, &to), [5; 4]);
}

#[test]
fn work_that_fails_poisons_its_stream_and_whoever_waits_for_it() {
    let (device, stream) = faulty("launch@1=fault");
    let other = device.create_stream().unwrap();
    let [out, beside] = [0, 1].map(|_| buffer(&device, 8));
    stream.fill(&out.all(), &[7]).unwrap();
    let before = stream.record().unwrap();
    launch(&stream, &fill_kernel(&device, 1, 8), &out).unwrap();
    let behind = stream.record().unwrap();
    let pending = stream.read(&out.all());
    other.wait(&behind).unwrap();
    // Failures are noticed after a few calls, and what is enqueued meanwhile is skipped.
    let noticed = (0..9).find_map(|_| stream.fill(&out.all(), &[3]).err());
    assert_eq!(noticed.expect("some call notices").kind(), &ErrorKind::Fault);
    before.wait(None).unwrap();
    for _ in 0..2 {
        assert_injected(behind.wait(None), &ErrorKind::Fault, "launch@1=fault");
        assert_injected(stream.synchronize(), &ErrorKind::Fault, "launch@1=fault");
        assert_injected(other.synchronize(), &ErrorKind::Fault, "launch@1=fault");
    }
    assert!(pending.and_then(halite_hal::PendingRead::wait).is_err());
    assert!(other.fill(&beside.all(), &[1]).is_err());
    assert_injected(stream.read_blocking(&out.all(), &mut [0; 8]), &ErrorKind::Fault, "launch@1=fault");
    stream.reset().unwrap();
    other.reset().unwrap();
    assert_eq!(bytes(&stream, &out), [7; 8], "what came behind the failure was skipped");
    launch(&other, &fill_kernel(&device, 4, 8), &out).unwrap();
    assert_eq!(bytes(&other, &out), [4; 8]);
    assert_eq!(behind.is_done().unwrap_err().kind(), &ErrorKind::Fault, "an event keeps its failure");
}

#[test]
fn slow_work_delays_its_end_and_not_the_caller() {
    let (device, stream) = faulty("launch@1=slow:60ms");
    let out = buffer(&device, 8);
    let kernel = fill_kernel(&device, 1, 8);
    let before = stream.record().unwrap();
    let start = Instant::now();
    launch(&stream, &kernel, &out).unwrap();
    let event = stream.record().unwrap();
    let other = device.create_stream().unwrap();
    other.wait(&event).unwrap();
    assert!(start.elapsed() < DELAY, "enqueueing waited");
    assert!(before.is_done().is_ok());
    if start.elapsed() < DELAY / 2 {
        assert!(!event.is_done().unwrap());
        let short = Some(Duration::from_millis(1));
        assert!(matches!(event.wait(short).unwrap_err().kind(), ErrorKind::Timeout { .. }));
        assert!(stream.synchronize_timeout(Duration::ZERO).is_err());
        assert_eq!(event.elapsed_since(&before).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    }
    other.synchronize().unwrap();
    assert!(start.elapsed() >= DELAY, "another stream waits as long");
    event.wait(None).unwrap();
    assert!(event.elapsed_since(&before).unwrap() >= DELAY);
    assert_eq!(bytes(&stream, &out), [1; 8]);
}

#[test]
fn corrupted_copies_change_what_arrives_and_not_where_it_came_from() {
    let sent: Vec<u8> = (0..200).collect();
    let differing = |bytes: &[u8]| bytes.iter().zip(&sent).filter(|(a, b)| a != b).count();
    let (device, stream) = faulty("write@2=corrupt; copy@2=corrupt; read@4=corrupt; read@6=corrupt");
    let [from, to] = [0, 1].map(|_| buffer(&device, 200));
    stream.write(&from.all(), &sent[..]).unwrap();
    stream.write_blocking(&to.all(), &sent).unwrap();
    assert_eq!(differing(&bytes(&stream, &from)), 0, "read 1 of what write 1 wrote");
    assert_eq!(differing(&bytes(&stream, &to)), 1, "write 2 flipped a bit");
    stream.copy(&to.all(), &from.all()).unwrap();
    assert_eq!(differing(&bytes(&stream, &to)), 0, "copy 1 is in order");
    assert_eq!(differing(&bytes(&stream, &to)), 1, "read 4 flipped a bit");
    stream.copy(&to.all(), &from.all()).unwrap();
    assert!(differing(&bytes(&stream, &to)) > 0, "copy 2 overwrote bytes");
    let changed = stream.read(&from.all()).unwrap().wait().unwrap();
    assert!(differing(&changed) > 0, "read 6 did not arrive as it was");
    assert_eq!(differing(&bytes(&stream, &from)), 0, "sources are as they were");
}

#[test]
fn verified_copies_are_made_again_until_they_are_right() {
    let sent: Vec<u8> = (0..250).collect();
    let fault =
        Fault::with_script("write@1=corrupt; read@5=corrupt; copy@1=corrupt; read~0.1=corrupt").unwrap();
    let device = Verify.wrap(fault.wrap(cpu()).unwrap()).unwrap();
    let stream = device.create_stream().unwrap();
    let [from, to] = [0, 1].map(|_| buffer(&device, 250));
    let again = |work: &dyn Fn() -> Result<(), Error>| {
        // Three bad reads in a row are reported, and may be tried again.
        (0..9).find_map(|_| work().map_err(|error| assert_eq!(error.kind(), &ErrorKind::Link)).ok()).unwrap();
    };
    for _ in 0..40 {
        again(&|| stream.write(&from.all(), &sent[..]));
        again(&|| stream.copy(&to.all(), &from.all()));
        again(&|| stream.read(&to.all())?.wait().map(|bytes| assert_eq!(bytes, sent)));
        let mut bytes = vec![0; 250];
        again(&|| stream.write_blocking(&to.all(), &sent));
        let mut read = || stream.read_blocking(&to.all(), &mut bytes);
        (0..9).find_map(|_| read().ok()).unwrap();
        assert_eq!(bytes, sent);
    }
}

#[test]
fn a_link_that_never_delivers_is_reported_by_verify() {
    let fault = Fault::with_script("copy%1=corrupt").unwrap();
    let device = Verify.wrap(fault.wrap(cpu()).unwrap()).unwrap();
    let stream = device.create_stream().unwrap();
    let [from, to] = [0, 1].map(|_| buffer(&device, 16));
    stream.write(&from.all(), vec![1; 16]).unwrap();
    let error = stream.copy(&to.all(), &from.all()).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Link);
    assert!(error.is_retryable() && error.message().contains(&format!("{ATTEMPTS} times")), "{error}");
    // Recorded copies are looked at too.
    let mut list = CommandListBuilder::new();
    list.push(RecordedCommand::Copy {
        dst: RecordedRange::Fixed(to.all()),
        src: RecordedRange::Fixed(from.all()),
    });
    let list = device.finish(list).unwrap();
    assert_eq!(stream.replay(&list, &[], &[]).unwrap_err().kind(), &ErrorKind::Link);
}

#[test]
fn waits_end_early_while_the_work_goes_on() {
    let (device, stream) = faulty("synchronize@1=timeout; event@2=timeout");
    let out = buffer(&device, 8);
    stream.fill(&out.all(), &[6]).unwrap();
    let event = stream.record().unwrap();
    let limit = Duration::from_secs(5);
    let result = stream.synchronize_timeout(limit);
    let error = assert_injected(result, &ErrorKind::Timeout { after: limit }, "synchronize@1=timeout");
    assert!(error.is_retryable());
    stream.synchronize().unwrap();
    event.wait(None).unwrap();
    event.wait(None).expect("a point that was seen over stays so");
    let later = stream.record().unwrap();
    assert!(matches!(later.wait(None).unwrap_err().kind(), ErrorKind::Timeout { .. }));
    later.wait(None).unwrap();
    assert_eq!(bytes(&stream, &out), [6; 8]);
}

#[test]
fn a_lost_device_stays_lost_with_the_first_reason_and_can_be_opened_anew() {
    let mut registry = Registry::new();
    registry.register(Arc::new(NullBackend::default())).unwrap();
    registry.add_layer(Arc::new(Fault::with_script("openings=1; fill@2=lost; device@20=lost").unwrap()));
    let device = registry.open("null").unwrap();
    let stream = device.create_stream().unwrap();
    let out = buffer(&device, 8);
    stream.fill(&out.all(), &[1]).unwrap();
    let [before, unseen] = [0, 1].map(|_| stream.record().unwrap());
    before.wait(None).unwrap();
    assert_eq!(device.health(), Health::Ok);
    assert_injected(stream.fill(&out.all(), &[1]), &ErrorKind::DeviceLost, "fill@2=lost");
    let Health::Lost { reason } = device.health() else { panic!("the device is lost") };
    let list = CommandListBuilder::new();
    let failures = [
        device.memory().err(),
        device.allocate(8, MemoryKind::Device).err(),
        device.create_stream().err(),
        device.load(&fill_source(1, 8)).err(),
        device.finish(list).err(),
        stream.write(&out.all(), vec![0; 8]).err(),
        stream.write_blocking(&out.all(), &[0; 8]).err(),
        stream.read(&out.all()).err(),
        stream.read_blocking(&out.all(), &mut [0; 8]).err(),
        stream.fill(&out.all(), &[0]).err(),
        stream.record().err(),
        stream.wait(&before).err(),
        stream.synchronize().err(),
        stream.reset().err(),
        unseen.wait(None).err(),
    ];
    for (index, failure) in failures.into_iter().enumerate() {
        let failure = failure.unwrap_or_else(|| panic!("call {index} succeeded on a lost device"));
        assert_eq!(failure.kind(), &ErrorKind::DeviceLost, "call {index}");
        assert!(
            failure.message().starts_with(&reason) && failure.message().ends_with("open the device anew"),
            "{failure}"
        );
    }
    assert!(before.is_done().unwrap(), "what was seen done stays done");

    let anew = registry.open("null").unwrap();
    assert_eq!(anew.health(), Health::Ok);
    let stream = anew.create_stream().unwrap();
    let out = buffer(&anew, 8);
    for _ in 0..30 {
        stream.fill(&out.all(), &[1]).unwrap();
    }
}

#[test]
fn recorded_commands_count_one_by_one() {
    let (device, stream) = faulty("launch@5=fail; fill@3=fault; copy@3=corrupt");
    let [first, second] = [0, 1].map(|_| buffer(&device, 16));
    let mut list = CommandListBuilder::new();
    let slot = |slot| RecordedRange::Slot { slot, offset: 0, len: 16 };
    list.push(RecordedCommand::Fill { dst: slot(0), pattern: vec![1] });
    for value in [2, 3] {
        let kernel = fill_kernel(&device, value, 16);
        list.push(RecordedCommand::Launch {
            kernel,
            grid: [1, 1, 1],
            args: vec![RecordedArg::Buffer(slot(0))],
        });
    }
    list.push(RecordedCommand::Copy { dst: slot(1), src: slot(0) });
    let list = device.finish(list).unwrap();
    let bindings = [first.all(), second.all()];
    let replay = || stream.replay(&list, &bindings, &[]);
    replay().unwrap();
    replay().unwrap();
    assert_eq!((bytes(&stream, &first), bytes(&stream, &second)), (vec![3; 16], vec![3; 16]));
    // The third replay has the third fill and copy, and the fifth launch. Its fill poisons before the launch is refused.
    let replayed = replay().and_then(|()| stream.synchronize());
    assert_injected(replayed, &ErrorKind::Fault, "fill@3=fault");
    stream.reset().unwrap();
    assert_eq!(bytes(&stream, &second), [3; 16]);
    replay().unwrap();
    assert_eq!(bytes(&stream, &second), [3; 16]);
}

#[test]
fn the_same_script_and_calls_give_the_same_faults() {
    let outcomes = |seed: u64| -> Vec<bool> {
        let (device, stream) = faulty(&format!("seed={seed}; fill~0.2=fail; write~0.2=link; device~0=lost"));
        let out = buffer(&device, 8);
        (0..200u32)
            .map(|call| match call % 2 {
                0 => stream.fill(&out.all(), &[1]).is_ok(),
                _ => stream.write(&out.all(), vec![1; 8]).is_ok(),
            })
            .collect()
    };
    assert_eq!(outcomes(4), outcomes(4));
    assert_ne!(outcomes(4), outcomes(5));
    let failures = outcomes(4).iter().filter(|succeeded| !**succeeded).count();
    // 40 are expected, with a standard deviation of 5.7: five of them.
    assert!((12..70).contains(&failures), "{failures}");
}

#[test]
fn devices_that_are_not_named_are_not_wrapped() {
    let fault = Fault::with_script("on=npu; fill%1=fail").unwrap();
    let inner = cpu();
    let device = fault.wrap(inner.clone()).unwrap();
    assert!(Arc::ptr_eq(device.driver(), inner.driver()));
    let fault = Fault::with_script("on=cpu:0; fill%1=fail").unwrap();
    assert!(!Arc::ptr_eq(fault.wrap(inner.clone()).unwrap().driver(), inner.driver()));
}

#[test]
fn the_layer_is_chosen_by_variable_with_a_script_or_a_file() {
    let known = halite_layers::all();
    let chosen = |list: &str| select_layers(list, &known);
    assert_eq!(chosen("fault:launch@3=fail; seed=2, verify").unwrap().len(), 2);
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.txt");
    std::fs::write(&file, "# every write\nwrite%1=link\n").unwrap();
    let layers = chosen(&format!("fault:@{}", file.display())).unwrap();
    let device = layers[0].wrap(cpu()).unwrap();
    let out = buffer(&device, 1);
    let result = device.create_stream().unwrap().write(&out.all(), vec![1]);
    assert_injected(result, &ErrorKind::Link, "write%1=link");

    std::fs::write(&file, "write%1=link\nread@1=lnk").unwrap();
    for (list, parts) in [
        (format!("fault:@{}", file.display()), &["faults.txt", "line 2, column 8", "'lnk'"][..]),
        ("fault:@/absent/faults".into(), &["/absent/faults", "cannot be read"]),
        ("fault:nonsense".into(), &["HALITE_LAYERS", "column 1", "'nonsense'"]),
        ("fault:".into(), &["column 1", "expected a rule"]),
        ("fault".into(), &["HALITE_LAYERS=fault:launch@3=fail"]),
        ("verify:3".into(), &["takes no settings"]),
    ] {
        let error = chosen(&list).err().unwrap_or_else(|| panic!("{list} is accepted"));
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
        for part in parts {
            assert!(error.message().contains(part), "'{part}' is missing in '{error}'");
        }
    }
    let error = Fault::new().wrap(cpu()).unwrap_err();
    assert!(error.message().contains("HALITE_LAYERS=fault:launch@3=fail"), "{error}");
}

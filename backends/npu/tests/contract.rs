//! The driver's contract on real plugins: the emulator, which runs work on a thread of its own, the example, and the
//! minimal one, which leaves to the host whatever the interface lets it.

mod common;

use common::{Folder, download, open_emulator, plugin, search, upload};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{
    Access, Arg, ArgType, DType, Device, ErrorKind, Health, Kernel, KernelSource, MemoryKind, Scalar,
    Signature, as_bytes, from_bytes,
};
use halite_npu_isa::{BinaryOp, CoreKind, Dim, Inst, KernelBuilder, Pipe, Program};
use std::sync::Arc;
use std::time::Duration;

/// Every kind of device under test; those in C only where there is a compiler.
fn each_device(name: &str, test: impl Fn(&Device)) {
    test(&open_emulator(&[]));
    let folder = Folder::new(name);
    for path in [folder.minimal(&[]), folder.example()].into_iter().flatten() {
        test(&plugin(path).open(0).unwrap());
    }
}

/// As [`each_device`], with two openings of each by one backend.
fn each_device_twice(name: &str, test: impl Fn(&Device, &Device)) {
    let open_twice = |path| {
        let backend = plugin(path);
        test(&backend.open(0).unwrap(), &backend.open(0).unwrap());
    };
    open_twice(common::emulator());
    let folder = Folder::new(name);
    for path in [folder.minimal(&[]), folder.example()].into_iter().flatten() {
        open_twice(path);
    }
}

/// Kernels for a vector core: `double` writes x + x for up to 1024 elements, `stop` ends with a trap, `spin` works for
/// as long as its argument says and then doubles the first element.
fn program() -> Arc<[u8]> {
    use halite_npu_isa::{Access, ArgType, DType};
    let row = |n| [Dim::ONE, Dim::ONE, Dim::ONE, n];
    let mut double = KernelBuilder::new("double", CoreKind::Vector);
    let (x, out) = (double.buffer(Access::Read), double.buffer(Access::Write));
    let n = double.scalar(ArgType::U32);
    double.load_ub(DType::F32, 0, x, row(Dim::new(n, 4, 4)));
    double.sync(Pipe::Mte2, Pipe::V, 0);
    double.binary(BinaryOp::Add, DType::F32, 4096, 0, 0, n);
    double.sync(Pipe::V, Pipe::Mte3, 0);
    double.store_ub(DType::F32, out, 4096, row(Dim::new(n, 4, 4)));

    let mut stop = KernelBuilder::new("stop", CoreKind::Vector);
    stop.push(Inst::Trap { code: 42 });

    let mut spin = KernelBuilder::new("spin", CoreKind::Vector);
    let out = spin.buffer(Access::ReadWrite);
    let rounds = spin.scalar(ArgType::U32);
    spin.load_ub(DType::F32, 0, out, row(Dim::new(1, 4, 4)));
    spin.sync(Pipe::Mte2, Pipe::V, 0);
    spin.repeat(0, rounds, 1, |k, _| k.push(Inst::Mark { id: 0 }));
    spin.binary(BinaryOp::Add, DType::F32, 4096, 0, 0, 1);
    spin.sync(Pipe::V, Pipe::Mte3, 0);
    spin.store_ub(DType::F32, out, 4096, row(Dim::new(1, 4, 4)));

    let kernels = [double, stop, spin].map(|kernel| kernel.finish().unwrap());
    Program::new(kernels.into()).unwrap().to_bytes().into()
}

fn load(device: &Device, entry: &str, args: Vec<ArgType>) -> halite_hal::Result<Kernel> {
    device.load(&KernelSource::Binary {
        format: "npu-program",
        bytes: program(),
        entry: entry.into(),
        workgroup: [1, 1, 1],
        signature: Signature::new(args),
        requires: Vec::new(),
    })
}

const F32_IN: ArgType = ArgType::Buffer { dtype: DType::F32, access: Access::Read };
const F32_OUT: ArgType = ArgType::Buffer { dtype: DType::F32, access: Access::Write };
const F32_BOTH: ArgType = ArgType::Buffer { dtype: DType::F32, access: Access::ReadWrite };

#[test]
fn memory_is_counted_and_given_back() {
    each_device("counted", |device| {
        let before = device.memory().unwrap();
        let buffer = device.allocate(1000, MemoryKind::Device).unwrap();
        let during = device.memory().unwrap();
        assert_eq!((during.used_bytes, during.buffers), (before.used_bytes + 1000, before.buffers + 1));
        assert_eq!(during.free_bytes, before.free_bytes - 1000);
        drop(buffer);
        assert_eq!(device.memory().unwrap(), before);
    });
}

#[test]
fn memory_kinds_that_a_plugin_lacks_are_unsupported() {
    let folder = Folder::new("kinds");
    let minimal = folder.minimal(&[]).map(|path| plugin(path).open(0).unwrap());
    for device in [Some(open_emulator(&[])), minimal].into_iter().flatten() {
        let error = device.allocate(8, MemoryKind::HostVisible).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unsupported);
    }
}

#[test]
fn enqueued_work_holds_its_buffers_until_it_is_done() {
    each_device("held", |device| {
        let stream = device.create_stream().unwrap();
        let target = device.allocate(1 << 16, MemoryKind::Device).unwrap();
        for round in 0..200u32 {
            let temporary = upload(device, &stream, &[round as u8; 1 << 10]);
            stream.copy(&target.slice(u64::from(round % 64) << 10, 1 << 10).unwrap(), &temporary).unwrap();
        }
        stream.synchronize().unwrap();
        assert_eq!(device.memory().unwrap().used_bytes, 1 << 16);
        assert_eq!(download(&stream, &target.slice(0, 1).unwrap()), [192]);
    });
}

#[test]
fn a_full_device_says_what_was_asked_and_what_is_free() {
    let folder = Folder::new("full");
    let text = halite_profiles::Machine::builtin_yaml().replace("global: 8 GiB", "global: 1 MiB");
    let file = folder.file("small.yaml", text);
    let mut devices = vec![open_emulator(&[("machine", file.to_str().unwrap())])];
    if let Some(path) = folder.minimal(&[]) {
        devices.push(plugin(path).open(0).unwrap());
    }
    for device in devices {
        let _taken = device.allocate(500 << 10, MemoryKind::Device).unwrap();
        let _more = device.allocate(500 << 10, MemoryKind::Device).unwrap();
        let error = device.allocate(100 << 10, MemoryKind::Device).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 100 << 10, free: 24 << 10 }, "{error}");
        assert!(error.is_retryable());
        device.allocate(24 << 10, MemoryKind::Device).unwrap();
        let error = device.allocate(2 << 20, MemoryKind::Device).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
    }
}

#[test]
fn memory_of_work_in_flight_is_waited_for_when_the_device_is_full() {
    let folder = Folder::new("reclaim");
    let text = halite_profiles::Machine::builtin_yaml().replace("global: 8 GiB", "global: 1 MiB");
    let device = open_emulator(&[("machine", folder.file("small.yaml", text).to_str().unwrap())]);
    let stream = device.create_stream().unwrap();
    let spin = load(&device, "spin", vec![F32_BOTH, ArgType::Scalar(DType::U32)]).unwrap();
    for _ in 0..4 {
        let half = device.allocate(600 << 10, MemoryKind::Device).unwrap();
        let first = half.slice(0, 4).unwrap();
        stream.launch(&spin, [1, 1, 1], &[first.into(), Scalar::U32(200_000).into()]).unwrap();
    }
    stream.synchronize().unwrap();
}

#[test]
fn builtins_copy_fill_and_add() {
    each_device("builtins", |device| {
        let stream = device.create_stream().unwrap();
        let desc = OperandDesc::contiguous(DType::F32, &[2, 3]);
        let kernel = |kind, count| {
            let op = BuiltinOp::new(kind, vec![desc.clone(); count]).unwrap();
            device.load(&KernelSource::Builtin(op)).unwrap()
        };
        let run = |kernel: &Kernel, mut args: Vec<Arg>| {
            if kernel.workspace_bytes() > 0 {
                let workspace = device.allocate(kernel.workspace_bytes(), MemoryKind::Device).unwrap();
                args.push(workspace.all().into());
            }
            stream.launch(kernel, [1, 1, 1], &args).unwrap();
        };
        let [lhs, rhs, out] = [1., 2., 0.].map(|value: f32| {
            upload(device, &stream, as_bytes(&[value, f32::INFINITY, -0., value, f32::NAN, 1e38]))
        });
        run(&kernel(BuiltinKind::Add, 3), vec![lhs.into(), rhs.clone().into(), out.clone().into()]);
        let sums = from_bytes::<f32>(&download(&stream, &out));
        assert_eq!(sums[..4], [3., f32::INFINITY, -0., 3.]);
        assert!(sums[2].is_sign_negative() && sums[4].is_nan());
        run(&kernel(BuiltinKind::Copy, 2), vec![rhs.clone().into(), out.clone().into()]);
        assert_eq!(download(&stream, &out), download(&stream, &rhs));
        let value_bits = u64::from(1.25f32.to_bits());
        run(&kernel(BuiltinKind::Fill { value_bits }, 1), vec![out.clone().into()]);
        assert_eq!(from_bytes::<f32>(&download(&stream, &out)), [1.25; 6]);
    });
}

#[test]
fn builtins_that_a_plugin_lacks_are_unsupported_with_its_reason() {
    each_device("lacking", |device| {
        let strings = OperandDesc::contiguous(DType::F64, &[4, 4]);
        let op = BuiltinOp::new(BuiltinKind::MatMul, vec![strings; 3]).unwrap();
        let error = device.load(&KernelSource::Builtin(op)).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unsupported, "{error}");
        assert_eq!(error.call(), Some("builtin_validate"));
    });
}

#[test]
fn a_program_runs_on_slices_and_counts_its_work() {
    let device = open_emulator(&[]);
    let stream = device.create_stream().unwrap();
    let double = load(&device, "double", vec![F32_IN, F32_OUT, ArgType::Scalar(DType::U32)]).unwrap();
    let values: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let x = upload(&device, &stream, as_bytes(&values));
    let out = upload(&device, &stream, as_bytes(&[-1f32; 1000]));
    let args =
        [x.slice(4, 3988).unwrap().into(), out.slice(8, 3988).unwrap().into(), Arg::Scalar(Scalar::U32(997))];
    stream.launch(&double, [1, 1, 1], &args).unwrap();
    let got = from_bytes::<f32>(&download(&stream, &out));
    assert_eq!((got[1], got[2], got[998], got[999]), (-1., 2., 1994., -1.));

    let counters = halite_npu::counters(&device).unwrap();
    let value = |key: &str| counters.iter().find(|counter| counter.key == key).map(|counter| counter.value);
    assert_eq!(value("launches"), Some(1.));
    assert_eq!((value("global.read"), value("global.written")), (Some(3988.), Some(3988.)));
    assert_eq!(value("copied.to_device"), Some(8000.));
    assert!(value("host.busy").is_some_and(|share| share > 0. && share <= 1.));
}

#[test]
fn programs_that_are_damaged_or_do_not_fit_their_signature_are_refused() {
    let device = open_emulator(&[]);
    let kind = |result: halite_hal::Result<Kernel>| result.unwrap_err().kind().clone();
    assert_eq!(kind(load(&device, "triple", vec![])), ErrorKind::Unavailable);
    assert_eq!(kind(load(&device, "double", vec![F32_IN])), ErrorKind::BadFormat);
    assert_eq!(
        kind(load(&device, "double", vec![F32_IN, F32_IN, ArgType::Scalar(DType::U32)])),
        ErrorKind::BadFormat
    );
    assert_eq!(
        kind(load(&device, "double", vec![F32_IN, F32_OUT, ArgType::Scalar(DType::F32)])),
        ErrorKind::BadFormat
    );
    let mut bytes = program().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    for bytes in [bytes, Vec::new(), vec![0; 64]] {
        let error = device
            .load(&KernelSource::Binary {
                format: "npu-program",
                bytes: bytes.into(),
                entry: "stop".into(),
                workgroup: [1, 1, 1],
                signature: Signature::default(),
                requires: Vec::new(),
            })
            .unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::BadFormat, "{error}");
        assert!(error.message().contains("byte"), "{error}");
    }
}

#[test]
fn events_order_streams_and_tell_time() {
    let device = open_emulator(&[]);
    let (first, second) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let spin = load(&device, "spin", vec![F32_BOTH, ArgType::Scalar(DType::U32)]).unwrap();
    let value = upload(&device, &first, as_bytes(&[1f32]));
    let start = first.record().unwrap();
    first.launch(&spin, [1, 1, 1], &[value.clone().into(), Scalar::U32(2_000_000).into()]).unwrap();
    let end = first.record().unwrap();
    assert!(!end.is_done().unwrap());
    let limit = Duration::from_millis(1);
    assert_eq!(end.wait(Some(limit)).unwrap_err().kind(), &ErrorKind::Timeout { after: limit });
    assert!(matches!(first.synchronize_timeout(limit).unwrap_err().kind(), ErrorKind::Timeout { .. }));
    second.wait(&end).unwrap();
    assert_eq!(from_bytes::<f32>(&download(&second, &value)), [2.]);
    assert!(end.is_done().unwrap() && start.is_done().unwrap());
    end.wait(Some(Duration::ZERO)).unwrap();
    assert!(end.elapsed_since(&start).unwrap() > Duration::ZERO);
    let never = second.record().unwrap();
    never.wait(None).unwrap();
    assert!(never.elapsed_since(&end).is_ok());
}

#[test]
fn a_fault_poisons_the_stream_and_who_waits_for_it_until_reset() {
    let device = open_emulator(&[]);
    let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let stop = load(&device, "stop", vec![]).unwrap();
    let buffer = upload(&device, &stream, &[1; 8]);
    let before = stream.record().unwrap();
    stream.launch(&stop, [1, 1, 1], &[]).unwrap();
    let skipped = stream.write(&buffer, vec![2; 8]);
    let after = stream.record().unwrap();
    other.wait(&after).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Fault, "{error}");
    assert!(error.message().contains("code 42"), "{error}");
    assert_eq!(error.device(), Some("npu:0"));
    assert!(skipped.is_ok() || skipped.unwrap_err().kind() == &ErrorKind::Fault);
    before.wait(None).unwrap();
    assert_eq!(after.wait(None).unwrap_err().kind(), &ErrorKind::Fault);
    assert_eq!(stream.write(&buffer, vec![3; 8]).unwrap_err().kind(), &ErrorKind::Fault);
    assert_eq!(stream.record().unwrap().is_done().unwrap_err().kind(), &ErrorKind::Fault);
    assert_eq!(other.synchronize().unwrap_err().kind(), &ErrorKind::Fault);
    for stream in [&stream, &other] {
        stream.reset().unwrap();
        assert_eq!(download(stream, &buffer), [1; 8]);
        stream.synchronize().unwrap();
    }
    assert_eq!(device.health(), Health::Ok);
    // A failure from before the reset stays with its events and poisons nothing that came after.
    assert!(after.is_done().is_err());
    stream.synchronize().unwrap();
}

#[test]
fn the_loader_keeps_a_stream_failed_where_the_plugin_forgets() {
    let folder = Folder::new("forgetful");
    let defines = ["FAIL_FILLS=HALITE_STATUS_LINK", "LIE_FORGETFUL"];
    let Some(path) = folder.minimal(&defines) else { return };
    let device = plugin(path).open(0).unwrap();
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[1; 8]);
    stream.fill(&buffer, &[2]).unwrap();
    let event = stream.record().unwrap();
    assert_eq!(event.wait(None).unwrap_err().kind(), &ErrorKind::Link);
    assert_eq!(stream.write(&buffer, vec![3; 8]).unwrap_err().kind(), &ErrorKind::Link);
    assert_eq!(stream.synchronize().unwrap_err().kind(), &ErrorKind::Link);
    // Without stream_reset, the loader goes on with a new stream.
    stream.reset().unwrap();
    assert_eq!(download(&stream, &buffer), [1; 8]);
}

#[test]
fn completions_and_workspaces_that_lie_are_errors() {
    let folder = Folder::new("lying-work");
    let Some(path) = folder.minimal(&["LIE_STATE=7"]) else { return };
    let device = plugin(path).open(0).unwrap();
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[1; 8]);
    let error = stream.read_blocking(&buffer, &mut [0; 8]).unwrap_err();
    assert!(error.message().contains("unknown completion state 7"), "{error}");
    let Some(path) = folder.minimal(&["LIE_WORKSPACE"]) else { return };
    let device = plugin(path).open(0).unwrap();
    let op = BuiltinOp::new(BuiltinKind::Copy, vec![OperandDesc::contiguous(DType::F32, &[1]); 2]).unwrap();
    let error = device.load(&KernelSource::Builtin(op)).unwrap_err();
    assert!(error.message().contains("workspace of 18446744073709551615"), "{error}");
}

#[test]
fn a_lost_device_stays_lost_and_can_be_opened_anew() {
    let device = open_emulator(&[("lose_after", "3")]);
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[1; 64]);
    stream.write(&buffer, vec![2; 64]).unwrap();
    stream.synchronize().unwrap();
    let event = stream.record().unwrap();
    event.wait(None).unwrap();
    // The loss comes in the middle of the copy: before or after the read has recorded its event.
    let read = stream.read(&buffer).and_then(|pending| pending.wait());
    assert_eq!(read.unwrap_err().kind(), &ErrorKind::DeviceLost);
    let Health::Lost { reason } = device.health() else { panic!("the device is lost") };
    assert!(reason.contains("lose_after"), "{reason}");
    let lost = [
        device.allocate(8, MemoryKind::Device).map(drop),
        device.create_stream().map(drop),
        device.memory().map(drop),
        stream.write(&buffer, vec![0; 64]),
        stream.synchronize(),
        stream.reset(),
        stream.record().map(drop),
        load(&device, "stop", vec![]).map(drop),
    ];
    for result in lost {
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::DeviceLost);
    }
    event.wait(None).unwrap();
    drop((stream, buffer, device));
    assert_eq!(open_emulator(&[]).health(), Health::Ok);
}

#[test]
fn a_dropped_stream_runs_its_work_to_the_end() {
    let device = open_emulator(&[]);
    let stream = device.create_stream().unwrap();
    let spin = load(&device, "spin", vec![F32_BOTH, ArgType::Scalar(DType::U32)]).unwrap();
    let value = upload(&device, &stream, as_bytes(&[3f32]));
    stream.launch(&spin, [1, 1, 1], &[value.clone().into(), Scalar::U32(1_000_000).into()]).unwrap();
    let event = stream.record().unwrap();
    drop((stream, spin));
    event.wait(None).unwrap();
    let other = device.create_stream().unwrap();
    assert_eq!(from_bytes::<f32>(&download(&other, &value)), [6.]);
}

#[test]
fn objects_of_another_device_are_refused() {
    let (npu, folder) = (open_emulator(&[]), Folder::new("foreign"));
    let Some(path) = folder.minimal(&[]) else { return };
    let list = std::env::join_paths([common::emulator(), path]).unwrap();
    let other = search(list).open(1).unwrap();
    let stream = npu.create_stream().unwrap();
    let foreign = other.allocate(8, MemoryKind::Device).unwrap().all();
    assert_eq!(stream.write(&foreign, vec![0; 8]).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let event = other.create_stream().unwrap().record().unwrap();
    assert_eq!(stream.wait(&event).unwrap_err().kind(), &ErrorKind::InvalidArgument);
}

#[test]
fn objects_of_another_opening_of_the_same_device_are_refused() {
    each_device_twice("openings", |first, second| {
        let (stream, other) = (first.create_stream().unwrap(), second.create_stream().unwrap());
        let (own, theirs) = (upload(first, &stream, &[1; 8]), upload(second, &other, &[2; 8]));
        let op = BuiltinOp::new(BuiltinKind::Copy, vec![OperandDesc::contiguous(DType::F32, &[2]); 2]);
        let kernel = second.load(&KernelSource::Builtin(op.unwrap())).unwrap();
        let target = first.allocate(8, MemoryKind::Device).unwrap().all();
        let event = other.record().unwrap();
        let refusals = [
            stream.read(&theirs).map(drop),
            stream.copy(&own, &theirs),
            stream.launch(&kernel, [1, 1, 1], &[own.clone().into(), target.into()]),
            stream.wait(&event),
        ];
        for refusal in refusals {
            let error = refusal.unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
            assert!(error.message().contains("another opening of npu:0"), "{error}");
        }
        assert_eq!((download(&stream, &own), download(&other, &theirs)), (vec![1; 8], vec![2; 8]));
    });
}

#[test]
fn objects_of_a_lost_device_are_refused_by_its_next_opening() {
    let lost = open_emulator(&[("lose_after", "2")]);
    let stream = lost.create_stream().unwrap();
    let stale = upload(&lost, &stream, &[1; 8]);
    let stop = load(&lost, "stop", vec![]).unwrap();
    let event = stream.record().unwrap();
    let read = stream.read(&stale).and_then(|pending| pending.wait());
    assert_eq!(read.unwrap_err().kind(), &ErrorKind::DeviceLost);

    let device = open_emulator(&[]);
    let stream = device.create_stream().unwrap();
    let fresh = upload(&device, &stream, &[2; 8]);
    for refusal in [
        stream.write(&stale, vec![3; 8]),
        stream.copy(&fresh, &stale),
        stream.launch(&stop, [1, 1, 1], &[]),
        stream.wait(&event),
    ] {
        let error = refusal.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    }
    // Refused, and so not poisoned; dropping what is stale leaves the new opening's memory alone.
    drop((stale, stop, event, lost));
    assert_eq!(download(&stream, &fresh), [2; 8]);
    assert_eq!(device.health(), Health::Ok);
}

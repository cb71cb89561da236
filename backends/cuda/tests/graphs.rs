//! Command lists as CUDA graphs: the same results as command by command, with whatever is bound.

mod common;

use common::*;
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    BufferSlice, CommandList, CommandListBuilder, DType, Device, ErrorKind, Kernel, KernelSource, MemoryKind,
    RecordedArg, RecordedCommand, RecordedRange, Scalar, Stream, as_bytes, from_bytes,
};

fn slot(slot: usize, offset: u64, len: u64) -> RecordedRange {
    RecordedRange::Slot { slot, offset, len }
}

fn launch(kernel: &Kernel, args: Vec<RecordedArg>) -> RecordedCommand {
    RecordedCommand::Launch { kernel: kernel.clone(), grid: [4, 1, 1], args }
}

fn finish(device: &Device, commands: Vec<RecordedCommand>) -> CommandList {
    let mut list = CommandListBuilder::new();
    commands.into_iter().for_each(|command| list.push(command));
    device.finish(list).unwrap()
}

/// Copies 100 numbers from slot 0 to slot 1, adds 1 to the first n of them and doubles them as floats into slot 2; fills
/// the tail of slot 2 with patterns of every kind.
fn step(device: &Device) -> CommandList {
    let increment = increment(device);
    let twice = load(device, "twice", vec![F32_IN, F32_OUT, U32]).unwrap();
    let n = RecordedArg::ScalarSlot(0);
    let fill = |offset, len, pattern: &[u8]| RecordedCommand::Fill {
        dst: slot(2, offset, len),
        pattern: pattern.into(),
    };
    finish(
        device,
        vec![
            RecordedCommand::Copy { dst: slot(1, 0, 400), src: slot(0, 0, 400) },
            launch(&increment, vec![RecordedArg::Buffer(slot(1, 0, 400)), n.clone()]),
            launch(
                &twice,
                vec![
                    RecordedArg::Buffer(slot(1, 0, 400)),
                    RecordedArg::Buffer(slot(2, 0, 400)),
                    RecordedArg::Scalar(Scalar::U32(100)),
                ],
            ),
            fill(400, 3, &[7]),
            fill(404, 0, &[7]),
            fill(404, 4, &[1, 2]),
            fill(408, 8, &[1, 2, 3, 4]),
            fill(416, 16, &[1, 2, 3, 4, 5, 6, 7, 8]),
            RecordedCommand::Launch {
                kernel: increment,
                grid: [0, 1, 1],
                args: vec![RecordedArg::Buffer(slot(1, 0, 400)), n],
            },
        ],
    )
}

/// Numbers whose bits, one more, are those of a float.
fn input(device: &Device, stream: &Stream, value: f32) -> BufferSlice {
    upload_u32(device, stream, &[value.to_bits() - 1; 100])
}

fn expect(stream: &Stream, out: &BufferSlice, value: f32, n: usize) {
    let bytes = download(stream, out);
    let numbers = from_bytes::<f32>(&bytes[..400]);
    assert!(numbers[..n].iter().all(|number| *number == 2. * value), "{value}");
    assert!(numbers[n..].iter().all(|number| *number == 2. * f32::from_bits(value.to_bits() - 1)));
    let expected =
        [&[7, 7, 7, 0xEE, 1, 2, 1, 2, 1, 2, 3, 4, 1, 2, 3, 4][..], &[1, 2, 3, 4, 5, 6, 7, 8].repeat(2)]
            .concat();
    assert_eq!(bytes[400..], expected);
}

#[test]
fn a_list_does_the_same_at_every_replay_whatever_is_bound() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let list = step(device);
        for round in 0..3 {
            for index in 0..7u8 {
                let value = f32::from(1 + index + 10 * round);
                let n = u32::from(index) * 10 + 3;
                let between = device.allocate(400, MemoryKind::Device).unwrap().all();
                let out = upload(device, &stream, &[0xEE; 432]);
                let buffers = [input(device, &stream, value), between, out.clone()];
                stream.replay(&list, &buffers, &[Scalar::U32(n)]).unwrap();
                expect(&stream, &out, value, n as usize);
            }
        }
    });
}

#[test]
fn replays_with_the_same_bindings_are_one_launch_each() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let list = step(&device);
    let sets: Vec<[BufferSlice; 3]> = (0..6)
        .map(|value| {
            let between = device.allocate(400, MemoryKind::Device).unwrap().all();
            [input(&device, &stream, 1. + value as f32), between, upload(&device, &stream, &[0xEE; 432])]
        })
        .collect();
    let replay = |set: usize, n: u32| {
        stream.replay(&list, &sets[set], &[Scalar::U32(n)]).unwrap();
        expect(&stream, &sets[set][2], 1. + set as f32, n as usize);
    };
    let counts = || {
        ["cuGraphLaunch", "cuGraphInstantiateWithFlags", "cuGraphExecKernelNodeSetParams", "cuLaunchKernel"]
            .map(|name| fake.count(name))
    };
    replay(0, 100);
    assert_eq!(counts(), [0, 0, 0, 3]);
    for _ in 0..5 {
        replay(0, 100);
    }
    assert_eq!(counts(), [5, 1, 0, 3]);
    // Another number: the one node that uses it.
    replay(0, 50);
    assert_eq!(counts(), [6, 1, 1, 3]);
    // Two sets of buffers in turn have a graph each.
    for _ in 0..3 {
        replay(1, 50);
        replay(0, 50);
    }
    assert_eq!(counts(), [12, 2, 1, 3]);
    // Beyond the fourth, the graph that has not been used for longest gets new parameters: all nodes of theirs.
    for set in [2, 3, 4, 5] {
        replay(set, 50);
    }
    assert_eq!(counts(), [16, 4, 1 + 2 * 3, 3]);
    replay(0, 50);
    drop((list, sets, stream, device));
    wait_until("the context is released", || fake.count("context") == 0);
    assert_eq!(fake.count("graph"), 0);
}

#[test]
fn a_list_holds_its_memory_and_a_replay_holds_its_bindings() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let gates = Gates::new(device);
        let increment = increment(device);
        let fixed = upload_u32(device, &stream, &[1; 100]);
        let n = || RecordedArg::Scalar(Scalar::U32(100));
        let list = finish(
            device,
            vec![
                launch(&increment, vec![RecordedArg::Buffer(RecordedRange::Fixed(fixed.clone())), n()]),
                RecordedCommand::Copy { dst: slot(0, 0, 400), src: RecordedRange::Fixed(fixed.clone()) },
                launch(&increment, vec![RecordedArg::Buffer(slot(0, 0, 400)), n()]),
            ],
        );
        drop(fixed);
        for round in 1..5 {
            let gate = gates.close(&stream);
            let bound = device.allocate(400, MemoryKind::Device).unwrap().all();
            stream.replay(&list, std::slice::from_ref(&bound), &[]).unwrap();
            let read = stream.read(&bound).unwrap();
            drop(bound);
            gate.open();
            assert_eq!(from_bytes::<u32>(&read.wait().unwrap()), [2 + round; 100]);
        }
        let gate = gates.close(&stream);
        let bound = device.allocate(400, MemoryKind::Device).unwrap().all();
        stream.replay(&list, &[bound], &[]).unwrap();
        drop(list);
        gate.open();
        stream.synchronize().unwrap();
        drop(gates);
        assert_eq!(device.memory().unwrap().used_bytes, 0);
    });
}

#[test]
fn products_are_part_of_a_graph() {
    each_device(|device| {
        if !device.info().has_feature("cublaslt") {
            println!("skipped: {} has no cuBLASLt", device.id());
            return;
        }
        let stream = device.create_stream().unwrap();
        let dense = |shape: &[u64]| OperandDesc::contiguous(DType::F32, shape);
        let op = BuiltinOp::new(BuiltinKind::MatMul, vec![dense(&[2, 32]), dense(&[32, 4]), dense(&[2, 4])]);
        let matmul = device.load(&KernelSource::Builtin(op.unwrap())).unwrap();
        let workspace = device.allocate(matmul.workspace_bytes(), MemoryKind::Device).unwrap().all();
        let mut args: Vec<_> =
            [slot(0, 0, 256), slot(1, 0, 512), slot(2, 0, 32)].map(RecordedArg::Buffer).into();
        if matmul.workspace_bytes() > 0 {
            args.push(RecordedArg::Buffer(RecordedRange::Fixed(workspace)));
        }
        let list = finish(
            device,
            vec![
                RecordedCommand::Launch { kernel: matmul, grid: [1, 1, 1], args },
                RecordedCommand::Copy { dst: slot(2, 32, 32), src: slot(2, 0, 32) },
            ],
        );
        for index in 0..8u8 {
            let value = f32::from(index);
            let lhs = upload(device, &stream, as_bytes(&[value; 64]));
            let rhs = upload(device, &stream, as_bytes(&[2f32; 128]));
            let out = device.allocate(64, MemoryKind::Device).unwrap().all();
            stream.replay(&list, &[lhs, rhs, out.clone()], &[]).unwrap();
            assert_eq!(from_bytes::<f32>(&download(&stream, &out)), [64. * value; 16]);
        }
    });
}

#[test]
fn what_cannot_be_in_a_graph_runs_command_by_command() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let list = step(device);
        let between = device.allocate(400, MemoryKind::Device).unwrap().all();
        for index in 0..4u8 {
            // Now and then a binding is host memory.
            let value = f32::from(index) + 1.;
            let kind = if index % 2 == 0 { MemoryKind::Device } else { MemoryKind::Pinned };
            let source = device.allocate(400, kind).unwrap().all();
            stream.copy(&source, &input(device, &stream, value)).unwrap();
            let out = upload(device, &stream, &[0xEE; 432]);
            stream.replay(&list, &[source, between.clone(), out.clone()], &[Scalar::U32(9)]).unwrap();
            expect(&stream, &out, value, 9);
        }
        let host = device.allocate(400, MemoryKind::HostVisible).unwrap().all();
        let source = upload_u32(device, &stream, &[5; 100]);
        let commands = vec![
            RecordedCommand::Copy { dst: RecordedRange::Fixed(host.clone()), src: slot(0, 0, 400) },
            RecordedCommand::Fill { dst: RecordedRange::Fixed(host.slice(0, 4).unwrap()), pattern: vec![1] },
        ];
        let list = finish(device, commands);
        for _ in 0..3 {
            stream.replay(&list, std::slice::from_ref(&source), &[]).unwrap();
            assert_eq!(download_u32(&stream, &host)[..2], [0x0101_0101, 5]);
        }
    });
}

#[test]
fn a_graph_that_the_driver_refuses_runs_command_by_command() {
    for function in [
        "cuGraphCreate",
        "cuGraphAddKernelNode",
        "cuGraphAddMemcpyNode",
        "cuGraphAddMemsetNode",
        "cuGraphInstantiateWithFlags",
    ] {
        let Some(fake) = Fake::new(&[]) else { return };
        let device = fake.open();
        let stream = device.create_stream().unwrap();
        let list = step(&device);
        let between = device.allocate(400, MemoryKind::Device).unwrap().all();
        fake.fail(function, 801, 0);
        for index in 0..3u8 {
            let value = f32::from(index) + 1.;
            let out = upload(&device, &stream, &[0xEE; 432]);
            let buffers = [input(&device, &stream, value), between.clone(), out.clone()];
            stream.replay(&list, &buffers, &[Scalar::U32(9)]).unwrap();
            expect(&stream, &out, value, 9);
        }
        assert_eq!(fake.count("cuGraphLaunch"), 0, "{function}");
        assert_eq!(fake.count("graph"), 0, "{function}");
    }
}

#[test]
fn a_graph_whose_parameters_cannot_be_changed_is_built_anew() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let list = step(&device);
    let out = upload(&device, &stream, &[0xEE; 432]);
    let between = device.allocate(400, MemoryKind::Device).unwrap().all();
    let buffers = [input(&device, &stream, 3.), between, out.clone()];
    for (round, n) in [(0, 1), (1, 1), (2, 2), (3, 3)] {
        if round == 2 {
            fake.fail("cuGraphExecKernelNodeSetParams", 910, 0);
        }
        stream.replay(&list, &buffers, &[Scalar::U32(n)]).unwrap();
        expect(&stream, &out, 3., n as usize);
    }
    assert_eq!(fake.count("cuGraphInstantiateWithFlags"), 2);
    assert_eq!(fake.count("cuGraphLaunch"), 3);
}

#[test]
fn streams_replay_one_list_at_once() {
    each_device(|device| {
        let list = step(device);
        std::thread::scope(|scope| {
            for seed in 0..3u8 {
                let list = &list;
                scope.spawn(move || {
                    let stream = device.create_stream().unwrap();
                    for round in 0..20u8 {
                        let value = f32::from(1 + seed * 20 + round);
                        let between = device.allocate(400, MemoryKind::Device).unwrap().all();
                        let out = upload(device, &stream, &[0xEE; 432]);
                        let buffers = [input(device, &stream, value), between, out.clone()];
                        stream.replay(list, &buffers, &[Scalar::U32(round.into())]).unwrap();
                        expect(&stream, &out, value, round.into());
                    }
                });
            }
        });
    });
}

#[test]
fn a_poisoned_stream_replays_nothing() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let list = step(&device);
    let between = device.allocate(400, MemoryKind::Device).unwrap().all();
    let buffers = [input(&device, &stream, 3.), between, upload(&device, &stream, &[0xEE; 432])];
    for _ in 0..2 {
        stream.replay(&list, &buffers, &[Scalar::U32(1)]).unwrap();
    }
    let gates = Gates::new(&device);
    let gate = gates.close(&stream);
    let event = stream.record().unwrap();
    fake.fail("cuEventSynchronize", 998, 0);
    event.wait(None).unwrap_err();
    gate.open();
    let error = stream.replay(&list, &buffers, &[Scalar::U32(1)]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Backend { code: 998, .. }), "{error}");
    stream.reset().unwrap();
    stream.replay(&list, &buffers, &[Scalar::U32(1)]).unwrap();
    stream.synchronize().unwrap();
}

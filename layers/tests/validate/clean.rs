//! Clean programs: no finding, and the same numbers as without the layer.

use super::*;
use halite_hal::{CommandListBuilder, Event, Pool, PoolConfig, RecordedArg, RecordedCommand, RecordedRange};
use std::thread;

/// Knuth's MMIX generator; the high bits are good.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// A buffer with what should lie in it, and the points that the next use has to come after.
struct Cell {
    buffer: Buffer,
    expected: Vec<u8>,
    last_write: Option<(usize, Event)>,
    reads: Vec<(usize, Event)>,
}

const LEN: usize = 97;

/// Lets `stream` wait for what uses a cell, as a program must; by event or, now and then, on the host.
fn order(random: &mut Random, streams: &[Stream], stream: usize, cell: &Cell, writes: bool) {
    let mut waits: Vec<_> = cell.last_write.iter().collect();
    if writes {
        waits.extend(&cell.reads);
    }
    for (other, event) in waits.into_iter().filter(|(other, _)| *other != stream) {
        match random.below(10) {
            0 => event.wait(None).unwrap(),
            1 => streams[*other].synchronize().unwrap(),
            _ => streams[stream].wait(event).unwrap(),
        }
    }
}

fn used(streams: &[Stream], stream: usize, cell: &mut Cell, writes: bool) {
    let point = (stream, streams[stream].record().unwrap());
    if writes {
        cell.last_write = Some(point);
        cell.reads.clear();
    } else {
        cell.reads.push(point);
    }
}

fn random_program(seed: u64) {
    let bench = Bench::cpu();
    let mut random = Random(seed);
    let streams: Vec<_> = (0..4).map(|_| bench.device.create_stream().unwrap()).collect();
    let (increment, update) = (bench.increment(), bench.increment_in_place());
    let fresh = |bench: &Bench, random: &mut Random| {
        let mut cell = Cell {
            buffer: bench.buffer(LEN as u64),
            expected: Vec::new(),
            last_write: None,
            reads: Vec::new(),
        };
        let (stream, value) = (random.below(4), random.below(256) as u8);
        cell.expected = vec![value; LEN];
        streams[stream].write(&cell.buffer.all(), cell.expected.clone()).unwrap();
        used(&streams, stream, &mut cell, true);
        cell
    };
    let mut cells: Vec<Cell> = (0..6).map(|_| fresh(&bench, &mut random)).collect();
    for _ in 0..300 {
        let stream = random.below(4);
        let (to, from) = (random.below(6), random.below(6));
        match random.below(7) {
            0 => {
                let start = random.below(LEN);
                let range = start..start + random.below(LEN - start + 1);
                order(&mut random, &streams, stream, &cells[to], true);
                let slice = cells[to].buffer.slice(range.start as u64, range.len() as u64).unwrap();
                streams[stream].fill(&slice, &[9]).unwrap();
                cells[to].expected[range].fill(9);
                used(&streams, stream, &mut cells[to], true);
            }
            1 | 2 if to != from => {
                order(&mut random, &streams, stream, &cells[to], true);
                order(&mut random, &streams, stream, &cells[from], false);
                let (target, source) = (cells[to].buffer.all(), cells[from].buffer.all());
                streams[stream].copy(&target, &source).unwrap();
                cells[to].expected = cells[from].expected.clone();
                used(&streams, stream, &mut cells[to], true);
                used(&streams, stream, &mut cells[from], false);
            }
            3 if to != from => {
                order(&mut random, &streams, stream, &cells[to], true);
                order(&mut random, &streams, stream, &cells[from], false);
                let args = [arg(&cells[from].buffer), arg(&cells[to].buffer)];
                streams[stream].launch(&increment, [1, 1, 1], &args).unwrap();
                cells[to].expected = cells[from].expected.iter().map(|v| v.wrapping_add(1)).collect();
                used(&streams, stream, &mut cells[to], true);
                used(&streams, stream, &mut cells[from], false);
            }
            4 => {
                order(&mut random, &streams, stream, &cells[to], true);
                streams[stream].launch(&update, [1, 1, 1], &[arg(&cells[to].buffer)]).unwrap();
                cells[to].expected.iter_mut().for_each(|v| *v = v.wrapping_add(1));
                used(&streams, stream, &mut cells[to], true);
            }
            5 => {
                order(&mut random, &streams, stream, &cells[to], false);
                let mut bytes = vec![0; LEN];
                streams[stream].read_blocking(&cells[to].buffer.all(), &mut bytes).unwrap();
                assert_eq!(bytes, cells[to].expected, "seed {seed}");
            }
            _ => cells[to] = fresh(&bench, &mut random),
        }
    }
    drop(cells);
    bench.nothing_found();
}

#[test]
fn random_programs_that_order_their_streams() {
    (0..20).for_each(random_program);
}

#[test]
fn order_travels_along_chains_of_events_and_through_the_host() {
    let bench = Bench::cpu();
    let buffer = bench.buffer(8);
    let streams: Vec<_> = (0..5).map(|_| bench.device.create_stream().unwrap()).collect();
    for (index, stream) in streams.iter().enumerate() {
        stream.fill(&buffer.all(), &[index as u8]).unwrap();
        if let Some(next) = streams.get(index + 1) {
            next.wait(&stream.record().unwrap()).unwrap();
        }
    }
    // The last stream's end is the end of all.
    streams[4].synchronize().unwrap();
    streams[1].fill(&buffer.all(), &[9]).unwrap();
    let event = streams[1].record().unwrap();
    while !event.is_done().unwrap() {
        thread::yield_now();
    }
    streams[2].fill(&buffer.all(), &[8]).unwrap();
    let mut bytes = [0; 8];
    streams[2].read_blocking(&buffer.all(), &mut bytes).unwrap();
    streams[3].fill(&buffer.all(), &[7]).unwrap();
    let pending = streams[3].read(&buffer.all()).unwrap();
    assert_eq!((bytes, pending.wait().unwrap()), ([8; 8], vec![7; 8]));
    streams[0].fill(&buffer.all(), &[6]).unwrap();
    streams[0].reset().unwrap();
    streams[4].fill(&buffer.all(), &[5]).unwrap();
    streams[4].synchronize().unwrap();
    bench.nothing_found();
}

#[test]
fn streams_may_read_together_and_write_beside_each_other() {
    let bench = Bench::cpu();
    let (input, out) = (bench.written(64), bench.buffer(64));
    let increment = bench.increment();
    for (index, stream) in bench.streams.iter().enumerate() {
        let half = out.slice(index as u64 * 32, 32).unwrap();
        let args = [Arg::Buffer(input.slice(0, 32).unwrap()), Arg::Buffer(half)];
        stream.launch(&increment, [1, 1, 1], &args).unwrap();
    }
    bench.streams.iter().for_each(|stream| stream.synchronize().unwrap());
    let mut bytes = [0; 64];
    bench.streams[0].read_blocking(&out.all(), &mut bytes).unwrap();
    assert_eq!(bytes, [1; 64]);
    bench.nothing_found();
}

#[test]
fn threads_with_streams_of_their_own() {
    let bench = Bench::cpu();
    let shared = bench.written(256);
    let increment = bench.increment();
    thread::scope(|scope| {
        for part in 0..4u64 {
            let (bench, shared, increment) = (&bench, &shared, &increment);
            scope.spawn(move || {
                let stream = bench.device.create_stream().unwrap();
                let pool = Pool::new(bench.device.clone(), MemoryKind::Device, PoolConfig::default());
                for _ in 0..50 {
                    let (a, b) = (pool.allocate(&stream, 64).unwrap(), pool.allocate(&stream, 64).unwrap());
                    stream.copy(&a, &shared.slice(part * 64, 64).unwrap()).unwrap();
                    stream.launch(increment, [1, 1, 1], &[Arg::from(&a), Arg::from(&b)]).unwrap();
                    stream.copy(&shared.slice(part * 64, 64).unwrap(), &b).unwrap();
                }
                stream.synchronize().unwrap();
            });
        }
    });
    let mut bytes = [0; 256];
    bench.streams[1].read_blocking(&shared.all(), &mut bytes).unwrap();
    assert_eq!(bytes, [50; 256]);
    bench.nothing_found();
}

#[test]
fn replays_with_slots_and_scalars() {
    let bench = Bench::cpu();
    let slot = |slot, offset| RecordedRange::Slot { slot, offset, len: 32 };
    let mut commands = CommandListBuilder::new();
    commands.push(RecordedCommand::Fill { dst: slot(0, 0), pattern: vec![1, 2] });
    commands.push(RecordedCommand::Copy { dst: slot(0, 32), src: slot(0, 0) });
    let args = vec![RecordedArg::Buffer(slot(0, 32)), RecordedArg::Buffer(slot(1, 0))];
    commands.push(RecordedCommand::Launch { kernel: bench.increment(), grid: [1, 1, 1], args });
    // Nothing is run over an empty grid, so nothing is read.
    let args = vec![RecordedArg::Buffer(slot(2, 0)), RecordedArg::Buffer(slot(1, 32))];
    commands.push(RecordedCommand::Launch { kernel: bench.increment(), grid: [1, 0, 1], args });
    let list = bench.device.finish(commands).unwrap();
    let buffers: Vec<_> = (0..3).map(|_| bench.buffer(64)).collect();
    let bindings: Vec<_> = buffers.iter().map(Buffer::all).collect();
    for _ in 0..3 {
        bench.streams[0].replay(&list, &bindings, &[]).unwrap();
    }
    let mut bytes = [0; 32];
    bench.streams[0].read_blocking(&buffers[1].slice(0, 32).unwrap(), &mut bytes).unwrap();
    assert_eq!(bytes[..4], [2, 3, 2, 3]);
    bench.nothing_found();
}

#[test]
fn a_failed_stream_that_is_reset() {
    let bench = Bench::cpu();
    let buffer = bench.written(8);
    let failing = bench.kernel("failing", &[bytes(Access::ReadWrite)], |_| Err("no".to_owned()));
    let [first, second] = &bench.streams;
    first.launch(&failing, [1, 1, 1], &[arg(&buffer)]).unwrap();
    let event = first.record().unwrap();
    assert!(event.wait(None).is_err());
    // The work is over, though it failed.
    second.fill(&buffer.all(), &[1]).unwrap();
    second.synchronize().unwrap();
    assert!(first.synchronize().is_err());
    first.reset().unwrap();
    first.fill(&buffer.all(), &[2]).unwrap();
    first.synchronize().unwrap();
    bench.nothing_found();
}

#[test]
fn many_short_lived_streams_share_slots() {
    let bench = Bench::cpu();
    let buffer = bench.written(8);
    for value in 0..500 {
        let stream = bench.device.create_stream().unwrap();
        stream.fill(&buffer.all(), &[value as u8]).unwrap();
        stream.synchronize().unwrap();
    }
    bench.nothing_found();
}

#[test]
fn events_of_the_layer_answer_as_those_inside() {
    let bench = Bench::cpu();
    let first = bench.streams[0].record().unwrap();
    let second = bench.streams[0].record().unwrap();
    second.wait(None).unwrap();
    assert!(first.is_done().unwrap());
    second.elapsed_since(&first).unwrap();
    bench.nothing_found();
}

#[test]
fn a_layer_around_itself_is_one_layer() {
    let (layer, findings) = Validate::collecting();
    let device = layer.wrap(layer.wrap(cpu_device(None)).unwrap()).unwrap();
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(8, MemoryKind::Device).unwrap();
    stream.fill(&buffer.all(), &[1]).unwrap();
    stream.read_blocking(&buffer.all(), &mut [0; 8]).unwrap();
    drop((stream, buffer, device));
    assert_eq!((findings.take().len(), layer.report_leaks()), (0, 0));
}

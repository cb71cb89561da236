//! Many threads, streams, events and failures at once, checked against a model on the host.

mod common;

use common::*;
use halite_hal::{Access, ArgType, Buffer, DType, Event, Scalar, Stream, from_bytes};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const TIME: Duration = Duration::from_secs(2);
const LEN: usize = 300;

/// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// A stream with a buffer that only it uses, and what that buffer must hold.
struct Lane {
    stream: Stream,
    buffer: Buffer,
    expected: Vec<u32>,
}

#[test]
fn random_programs_of_many_threads_compute_what_they_should() {
    for threads in [1, 2, 4] {
        let device = device(threads);
        let affine =
            native(&device, vec![buffer_arg(Access::ReadWrite), ArgType::Scalar(DType::U32)], |workgroup| {
                let amount = workgroup.scalar(1)?.to_bits() as u32;
                let chunk = LEN.div_ceil(workgroup.count()[0] as usize);
                for value in workgroup.write_chunk::<u32>(0, chunk)? {
                    *value = value.wrapping_mul(3).wrapping_add(amount);
                }
                Ok(())
            });
        let bad = failing(&device, "on purpose");
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let end = Instant::now() + TIME / 3;
        thread::scope(|scope| {
            for seed in 0..4 {
                let (device, affine, bad, events) = (&device, &affine, &bad, &events);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    let mut lanes: Vec<_> = (0..3)
                        .map(|_| Lane {
                            stream: device.create_stream().unwrap(),
                            buffer: allocate(device, LEN),
                            expected: vec![0; LEN],
                        })
                        .collect();
                    while Instant::now() < end {
                        let which = random.below(3) as usize;
                        let lane = &mut lanes[which];
                        match random.below(20) {
                            0 => assert_eq!(read(&lane.stream, &lane.buffer), lane.expected),
                            1 => {
                                let value = random.below(256) as u8;
                                lane.stream.fill(&lane.buffer.all(), &[value]).unwrap();
                                lane.expected.fill(u32::from_ne_bytes([value; 4]));
                            }
                            2 => {
                                let event = lane.stream.record().unwrap();
                                let mut events = events.lock().unwrap();
                                events.push(event);
                                if events.len() > 100 {
                                    events.remove(0);
                                }
                            }
                            // Of any thread's streams, so programs of all threads are tied together. Recorded
                            // before, hence never a cycle.
                            3..6 => {
                                let event = {
                                    let events = events.lock().unwrap();
                                    let any = random.below(events.len().max(1) as u64) as usize;
                                    events.get(any).cloned()
                                };
                                if let Some(event) = event {
                                    lane.stream.wait(&event).unwrap();
                                }
                            }
                            6 => {
                                let pending = lane.stream.read(&lane.buffer.all()).unwrap();
                                assert_eq!(from_bytes::<u32>(&pending.wait().unwrap()), lane.expected);
                            }
                            7 => lane.stream.synchronize().unwrap(),
                            8 => {
                                // A stream that fails on its own and is dropped while poisoned.
                                let stream = device.create_stream().unwrap();
                                stream.launch(bad, [5, 1, 1], &[]).unwrap();
                                if random.below(2) == 0 {
                                    stream.synchronize().unwrap_err();
                                    stream.reset().unwrap();
                                    stream.synchronize().unwrap();
                                }
                            }
                            _ => {
                                let grid = [1, 2, 7, 64][random.below(4) as usize];
                                let amount = random.below(1000) as u32;
                                let args = [arg(&lane.buffer), Scalar::U32(amount).into()];
                                lane.stream.launch(affine, [grid, 1, 1], &args).unwrap();
                                for value in &mut lane.expected {
                                    *value = value.wrapping_mul(3).wrapping_add(amount);
                                }
                            }
                        }
                    }
                    for lane in lanes {
                        assert_eq!(read(&lane.stream, &lane.buffer), lane.expected);
                    }
                });
            }
        });
        assert_eq!(device.memory().unwrap().buffers, 0);
    }
}

#[test]
fn devices_come_and_go_while_they_work() {
    let end = Instant::now() + TIME / 2;
    let mut random = Random(7);
    while Instant::now() < end {
        let device = device(1 + random.below(4) as usize);
        let kernel = increment(&device);
        let buffer = allocate(&device, LEN);
        let stream = device.create_stream().unwrap();
        for _ in 0..random.below(20) {
            stream.launch(&kernel, [3, 1, 1], &[arg(&buffer)]).unwrap();
        }
        if random.below(2) == 0 {
            stream.synchronize().unwrap();
        }
    }
}

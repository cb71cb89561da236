//! Many threads at once: on streams of their own, on one stream, and waiting for the same events.

use super::{Tests, in_threads};
use crate::context::{PATIENCE, ends, holds, same_bytes};
use crate::outcome::failed;
use halite_hal::Event;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

pub(super) fn tests(tests: &mut Tests) {
    for count in [2usize, 8, 32] {
        tests.add(
            format!("{count}-threads-with-their-own-streams"),
            "threads do not disturb each other",
            move |context| {
                in_threads(count, |index| {
                    let stream = context.stream()?;
                    let mut random = crate::Random::new(index as u64);
                    for _ in 0..20 {
                        let len = 1 + random.index(3000);
                        let bytes = random.bytes(len);
                        let (first, second) = (context.upload(&stream, &bytes)?, context.buffer(len)?);
                        stream.copy(&second, &first)?;
                        holds(&stream, &second, &bytes, "the copy")?;
                    }
                    Ok(())
                })
            },
        );
    }
    tests.add(
        "one-stream-for-many-threads",
        "commands of each thread keep their order on a shared stream",
        |context| {
            let stream = context.stream()?;
            let buffers = (0..8).map(|_| context.buffer(256)).collect::<Result<Vec<_>, _>>()?;
            in_threads(8, |index| {
                for value in 0..200u8 {
                    stream.fill(&buffers[index], &[value])?;
                }
                Ok(())
            })?;
            buffers.iter().try_for_each(|buffer| holds(&stream, buffer, &[199; 256], "a thread's buffer"))
        },
    );
    tests.add(
        "one-stream-reads-for-many-threads",
        "reads of many threads on one stream give each its own bytes",
        |context| {
            let stream = context.stream()?;
            in_threads(8, |index| {
                let buffer = context.upload(&stream, &vec![index as u8; 700 + index])?;
                for _ in 0..20 {
                    holds(&stream, &buffer, &vec![index as u8; 700 + index], "the blocking read")?;
                    same_bytes(&stream.read(&buffer)?.wait()?, &vec![index as u8; 700 + index], "the read")?;
                }
                Ok(())
            })
        },
    );
    tests.add("many-threads-wait-for-one-event", "an event wakes every thread that waits", |context| {
        let stream = context.stream()?;
        context.busy(&stream, Duration::from_millis(20))?;
        let event = stream.record()?;
        in_threads(16, |_| {
            ends(&event, "the event")?;
            ensure!(event.is_done()?, "it is not done after its wait");
            Ok(())
        })
    });
    tests.add(
        "many-threads-synchronise-one-stream",
        "a stream may be synchronised by many threads while others enqueue",
        |context| {
            let stream = context.stream()?;
            let buffer = context.buffer(4096)?;
            in_threads(8, |index| {
                for value in 0..50u8 {
                    if index % 2 == 0 {
                        stream.fill(&buffer, &[value])?;
                    } else {
                        stream.synchronize_timeout(PATIENCE)?;
                    }
                }
                Ok(())
            })?;
            holds(&stream, &buffer, &[49; 4096], "the buffer")
        },
    );
    tests.add(
        "many-threads-record-and-ask",
        "events are recorded and asked about by many threads at once",
        |context| {
            let stream = context.stream()?;
            let events: Mutex<Vec<Event>> = Mutex::default();
            let lock = || events.lock().map_err(|_| failed("a thread panicked"));
            in_threads(8, |_| {
                for _ in 0..100 {
                    let event = stream.record()?;
                    lock()?.push(event);
                    let last = lock()?.last().cloned();
                    if let Some(event) = last {
                        let _ = event.is_done()?;
                    }
                }
                Ok(())
            })?;
            stream.synchronize()?;
            let events = lock()?;
            ensure_eq!(events.len(), 800, "events");
            for event in events.iter() {
                ensure!(event.is_done()?, "an event is not done after the synchronisation");
            }
            Ok(())
        },
    );
    tests.add(
        "events-pass-between-threads",
        "a thread may wait for an event that another recorded on its stream",
        |context| {
            let buffer = context.buffer(1 << 16)?;
            let (sender, receiver) = channel::<(u8, Event)>();
            let (answer, answered) = channel::<()>();
            let shared = &buffer;
            thread::scope(|scope| {
                let producer = scope.spawn(move || -> crate::Outcome {
                    let stream = context.stream()?;
                    for value in 0..30u8 {
                        stream.fill(shared, &[value])?;
                        sender
                            .send((value, stream.record()?))
                            .map_err(|_| failed("the other thread is gone"))?;
                        answered.recv().map_err(|_| failed("the other thread is gone"))?;
                    }
                    Ok(())
                });
                let consumer = scope.spawn(move || -> crate::Outcome {
                    let stream = context.stream()?;
                    for (value, event) in receiver {
                        stream.wait(&event)?;
                        holds(&stream, shared, &vec![value; 1 << 16], "what was passed on")?;
                        let _ = answer.send(());
                    }
                    Ok(())
                });
                let outcomes = [consumer.join(), producer.join()];
                outcomes
                    .into_iter()
                    .try_for_each(|outcome| outcome.unwrap_or_else(|_| Err(failed("a thread panicked"))))
            })
        },
    );
    tests.add(
        "handles-are-dropped-by-other-threads",
        "whoever drops the last handle may be any thread",
        |context| {
            for _ in 0..10 {
                let stream = context.stream()?;
                let buffer = context.upload(&stream, &[1; 5000])?;
                let event = stream.record()?;
                let read = stream.read(&buffer)?;
                thread::scope(|scope| {
                    scope.spawn(move || drop(buffer));
                    scope.spawn(move || drop(stream));
                    scope.spawn(move || drop(event));
                    scope.spawn(move || drop(read));
                });
            }
            Ok(())
        },
    );
    tests.add(
        "many-threads-make-streams",
        "streams are made and dropped by many threads at once",
        |context| {
            in_threads(8, |index| {
                for value in 0..25u8 {
                    let stream = context.stream()?;
                    let buffer = context.upload(&stream, &[value ^ index as u8; 33])?;
                    holds(&stream, &buffer, &[value ^ index as u8; 33], "the buffer")?;
                }
                Ok(())
            })
        },
    );
    tests.add(
        "many-threads-ask-the-device",
        "memory and health may be asked for while others work",
        |context| {
            in_threads(8, |index| {
                let stream = context.stream()?;
                for value in 0..50u8 {
                    if index % 2 == 0 {
                        let memory = context.device().memory()?;
                        ensure!(memory.free_bytes <= memory.total_bytes, "{memory:?}");
                        ensure_eq!(context.device().health(), halite_hal::Health::Ok, "the health");
                    } else {
                        let buffer = context.upload(&stream, &[value; 3000])?;
                        holds(&stream, &buffer, &[value; 3000], "the buffer")?;
                    }
                }
                Ok(())
            })
        },
    );
}

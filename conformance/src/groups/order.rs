//! Order: within a stream, between streams by events, and never by anything else; and waits with a limit.

use super::Tests;
use crate::context::{Context, PATIENCE, ends, eventually, holds};
use crate::outcome::Outcome;
use halite_hal::{BufferSlice, ErrorKind, Event, Stream};
use std::time::{Duration, Instant};

pub(super) fn tests(tests: &mut Tests) {
    one_stream(tests);
    two_streams(tests);
    many_streams(tests);
    events(tests);
    time_outs(tests);
    independence(tests);
}

/// `to` waits for everything on `from`.
pub(super) fn after(to: &Stream, from: &Stream) -> halite_hal::Result<()> {
    to.wait(&from.record()?)
}

fn one_stream(tests: &mut Tests) {
    tests.add(
        "commands-run-in-order",
        "writes, copies and fills of a stream take effect one after the other",
        |context| {
            let stream = context.stream()?;
            let (a, b) = (context.buffer(4096)?, context.buffer(4096)?);
            for round in 0..100u8 {
                stream.fill(&a, &[round])?;
                stream.copy(&b, &a)?;
                stream.write(&a, vec![255; 4096])?;
            }
            holds(&stream, &b, &[99; 4096], "the last copy")?;
            holds(&stream, &a, &[255; 4096], "the last write")
        },
    );
    tests.add("a-chain-of-a-thousand-copies", "each copy sees the one before it", |context| {
        let stream = context.stream()?;
        let buffers = [context.upload(&stream, &[7; 999])?, context.upload(&stream, &[0; 999])?];
        for round in 0..1000 {
            stream.copy(&buffers[(round + 1) % 2], &buffers[round % 2])?;
        }
        holds(&stream, &buffers[0], &[7; 999], "the buffer")
    });
    tests.add("small-and-large-commands-mix", "a small command does not overtake a large one", |context| {
        let stream = context.stream()?;
        let len = (4u64 << 20).min(context.info().limits.max_allocation_bytes) as usize;
        let large = context.buffer(len)?;
        let end = large.slice(len as u64 - 1, 1)?;
        for round in 0..20u8 {
            stream.fill(&large, &[round])?;
            stream.write(&end, vec![round + 100])?;
            holds(&stream, &end, &[round + 100], "the last byte")?;
        }
        Ok(())
    });
    tests.add(
        "synchronised-work-is-over",
        "after a synchronisation every event before it is done",
        |context| {
            let stream = context.stream()?;
            let buffer = context.buffer(1 << 16)?;
            let mut events = Vec::new();
            for round in 0..50u8 {
                stream.fill(&buffer, &[round])?;
                events.push(stream.record()?);
            }
            stream.synchronize()?;
            for (number, event) in events.iter().enumerate() {
                ensure!(event.is_done()?, "event {number} is not done");
            }
            Ok(())
        },
    );
    tests.add(
        "an-idle-stream-synchronises",
        "a stream without work is over at once, again and again",
        |context| {
            let stream = context.stream()?;
            for _ in 0..100 {
                stream.synchronize()?;
                stream.synchronize_timeout(Duration::ZERO)?;
            }
            Ok(())
        },
    );
}

fn two_streams(tests: &mut Tests) {
    tests.add("a-wait-orders-two-streams", "what waits for an event sees what was before it", |context| {
        let [first, second] = context.streams()?;
        let buffer = context.buffer(1 << 16)?;
        for round in 0..50u8 {
            first.fill(&buffer, &[round])?;
            after(&second, &first)?;
            holds(&second, &buffer, &vec![round; 1 << 16], "what the second stream sees")?;
            after(&first, &second)?;
        }
        Ok(())
    });
    tests.add("a-wait-holds-back-a-fill", "work behind a wait does not begin before the event", |context| {
        let [first, second] = context.streams()?;
        let buffer = context.buffer(1 << 20)?;
        for _ in 0..10 {
            context.busy(&first, Duration::from_millis(2))?;
            first.fill(&buffer, &[1])?;
            after(&second, &first)?;
            second.fill(&buffer, &[2])?;
            after(&first, &second)?;
            holds(&first, &buffer, &vec![2; 1 << 20], "the buffer")?;
        }
        Ok(())
    });
    tests.add("ping-pong", "two streams pass a buffer back and forth a hundred times", |context| {
        let streams: [Stream; 2] = context.streams()?;
        let buffers = [context.buffer(1000)?, context.buffer(1000)?];
        streams[0].fill(&buffers[0], &[42])?;
        for round in 0..100 {
            let (this, that) = (&streams[round % 2], &streams[(round + 1) % 2]);
            this.copy(&buffers[(round + 1) % 2], &buffers[round % 2])?;
            this.fill(&buffers[round % 2], &[0])?;
            after(that, this)?;
        }
        holds(&streams[0], &buffers[0], &[42; 1000], "the buffer")
    });
    tests.add("a-wait-for-the-own-event", "a stream may wait for its own event", |context| {
        let stream = context.stream()?;
        let buffer = context.buffer(100)?;
        for round in 0..20u8 {
            stream.fill(&buffer, &[round])?;
            after(&stream, &stream)?;
        }
        holds(&stream, &buffer, &[19; 100], "the buffer")
    });
    tests.add("a-wait-for-what-is-over", "an event that is done holds nothing back", |context| {
        let [first, second] = context.streams()?;
        let buffer = context.upload(&first, &[5; 100])?;
        let event = first.record()?;
        first.synchronize()?;
        second.wait(&event)?;
        second.wait(&event)?;
        holds(&second, &buffer, &[5; 100], "the buffer")
    });
    tests.add("a-wait-outlives-the-event-and-its-stream", "a wait holds what it waits for", |context| {
        let second = context.stream()?;
        let buffer = context.buffer(1 << 18)?;
        {
            let first = context.stream()?;
            context.busy(&first, Duration::from_millis(5))?;
            first.fill(&buffer, &[3])?;
            after(&second, &first)?;
        }
        holds(&second, &buffer, &vec![3; 1 << 18], "the buffer")
    });
    tests.add("both-wait-for-each-other-in-turn", "waits in both directions end", |context| {
        let [first, second] = context.streams()?;
        for _ in 0..100 {
            let (a, b) = (first.record()?, second.record()?);
            second.wait(&a)?;
            first.wait(&b)?;
        }
        first.synchronize_timeout(PATIENCE)?;
        Ok(second.synchronize_timeout(PATIENCE)?)
    });
}

/// A source whose value reaches a sink through `width` branches, each on a stream of its own.
fn diamond(context: &Context, width: usize, rounds: u8) -> Outcome {
    let (source, sink) = (context.stream()?, context.stream()?);
    let branches = (0..width).map(|_| context.stream()).collect::<Result<Vec<_>, _>>()?;
    let seed = context.buffer(512)?;
    let parts = (0..width).map(|_| context.buffer(512)).collect::<Result<Vec<_>, _>>()?;
    let whole = context.buffer(512 * width)?;
    for round in 0..rounds {
        source.fill(&seed, &[round])?;
        let begun = source.record()?;
        for (index, (branch, part)) in branches.iter().zip(&parts).enumerate() {
            branch.wait(&begun)?;
            branch.copy(part, &seed)?;
            branch.fill(&part.slice(0, 1)?, &[index as u8])?;
            after(&sink, branch)?;
        }
        for (index, part) in parts.iter().enumerate() {
            sink.copy(&whole.slice(512 * index as u64, 512)?, part)?;
        }
        // The next round writes what this one reads.
        after(&source, &sink)?;
        let mut expected = vec![round; 512 * width];
        (0..width).for_each(|index| expected[512 * index] = index as u8);
        holds(&sink, &whole, &expected, "the sink")?;
    }
    Ok(())
}

fn many_streams(tests: &mut Tests) {
    for width in [2usize, 4, 16] {
        tests.add(format!("diamond-of-{width}"), "branches part and join by events", move |context| {
            diamond(context, width, 10)
        });
    }
    tests.add("a-chain-over-eight-streams", "a value passes through eight streams in order", |context| {
        let streams: [Stream; 8] = context.streams()?;
        let buffers = (0..9).map(|_| context.buffer(2000)).collect::<Result<Vec<_>, _>>()?;
        streams[0].fill(&buffers[0], &[77])?;
        for (index, stream) in streams.iter().enumerate() {
            if index > 0 {
                after(stream, &streams[index - 1])?;
            }
            stream.copy(&buffers[index + 1], &buffers[index])?;
        }
        holds(&streams[7], &buffers[8], &[77; 2000], "the end of the chain")
    });
    tests.add("a-hundred-streams-wait-for-one-event", "an event lets all who wait go on", |context| {
        let source = context.stream()?;
        let buffer = context.buffer(4096)?;
        context.busy(&source, Duration::from_millis(5))?;
        source.fill(&buffer, &[9])?;
        let event = source.record()?;
        let streams = (0..100).map(|_| context.stream()).collect::<Result<Vec<_>, _>>()?;
        let copies = (0..100).map(|_| context.buffer(4096)).collect::<Result<Vec<_>, _>>()?;
        for (stream, copy) in streams.iter().zip(&copies) {
            stream.wait(&event)?;
            stream.copy(copy, &buffer)?;
        }
        for (stream, copy) in streams.iter().zip(&copies) {
            holds(stream, copy, &[9; 4096], "a copy")?;
        }
        Ok(())
    });
    tests.add(
        "one-stream-waits-for-a-hundred",
        "a stream goes on when all that it waits for is over",
        |context| {
            let sink = context.stream()?;
            let whole = context.buffer(100)?;
            let streams = (0..100).map(|_| context.stream()).collect::<Result<Vec<_>, _>>()?;
            for (index, stream) in streams.iter().enumerate() {
                stream.fill(&whole.slice(index as u64, 1)?, &[index as u8])?;
                after(&sink, stream)?;
            }
            let expected: Vec<u8> = (0..100).collect();
            holds(&sink, &whole, &expected, "the parts of all streams")
        },
    );
    tests.add("streams-come-and-go", "five hundred streams are made, used and dropped", |context| {
        let buffer = context.buffer(64)?;
        for round in 0..500usize {
            let stream = context.stream()?;
            stream.fill(&buffer, &[round as u8])?;
            stream.synchronize()?;
        }
        holds(&context.stream()?, &buffer, &[499usize as u8; 64], "the buffer")
    });
    tests.add(
        "ten-thousand-events",
        "ten thousand events of one stream are all reached, in order",
        |context| {
            let stream = context.stream()?;
            let buffer = context.buffer(64)?;
            let mut events = Vec::with_capacity(10_000);
            for round in 0..10_000usize {
                if round % 100 == 0 {
                    stream.fill(&buffer, &[round as u8])?;
                }
                events.push(stream.record()?);
            }
            ends(&events[9_999], "the last event")?;
            for (number, event) in events.iter().enumerate() {
                ensure!(event.is_done()?, "event {number} is not done, and the last one is");
            }
            Ok(())
        },
    );
    tests.add("ten-thousand-waits", "two streams wait for each other ten thousand times", |context| {
        let streams: [Stream; 2] = context.streams()?;
        let buffer = context.buffer(64)?;
        for round in 0..10_000usize {
            let (this, that) = (&streams[round % 2], &streams[(round + 1) % 2]);
            if round % 50 == 0 {
                this.fill(&buffer, &[(round / 50) as u8])?;
            }
            after(that, this)?;
        }
        holds(&streams[0], &buffer, &[199; 64], "the buffer")
    });
}

fn busy_event(
    context: &Context,
    stream: &Stream,
    time: Duration,
) -> Result<(BufferSlice, Event), crate::Stop> {
    let x = context.busy(stream, time)?;
    Ok((x, stream.record()?))
}

fn events(tests: &mut Tests) {
    tests.add("an-event-of-an-idle-stream-is-done", "an event behind no work is reached", |context| {
        let event = context.stream()?.record()?;
        ends(&event, "the event")?;
        ensure!(event.is_done()?, "it is not done after its wait");
        Ok(())
    });
    tests.add("an-event-stays-done", "an event that was reached never changes", |context| {
        let stream = context.stream()?;
        let event = stream.record()?;
        ends(&event, "the event")?;
        for _ in 0..20 {
            context.busy(&stream, Duration::from_micros(200))?;
            ensure!(event.is_done()?, "later work undid the event");
            event.wait(Some(Duration::ZERO))?;
        }
        Ok(stream.synchronize()?)
    });
    tests.add("a-later-event-implies-earlier-ones", "events of a stream are reached in order", |context| {
        let stream = context.stream()?;
        let buffer = context.buffer(1 << 18)?;
        for _ in 0..20 {
            let mut events = Vec::new();
            for value in 0..10u8 {
                stream.fill(&buffer, &[value])?;
                events.push(stream.record()?);
            }
            while !events[9].is_done()? {
                // From the last to the first: whatever is done has all before it done.
                let done = events.iter().rev().map(Event::is_done).collect::<Result<Vec<_>, _>>()?;
                ensure!(
                    done.windows(2).all(|pair| pair[1] || !pair[0]),
                    "an event is done before an earlier one"
                );
            }
        }
        Ok(())
    });
    tests.add(
        "a-done-event-means-the-work-is-over",
        "when an event is done, what was before it can be read elsewhere",
        |context| {
            let [first, second] = context.streams()?;
            let buffer = context.buffer(1 << 20)?;
            for value in 0..10u8 {
                context.busy(&first, Duration::from_millis(2))?;
                first.fill(&buffer, &[value])?;
                let event = first.record()?;
                eventually("the event is done", || Ok(event.is_done()?))?;
                // Ordered by the host alone.
                holds(&second, &buffer, &vec![value; 1 << 20], "what another stream sees")?;
            }
            Ok(())
        },
    );
    tests.add(
        "a-wait-means-the-work-is-over",
        "after the host has waited for an event, its work can be read elsewhere",
        |context| {
            let [first, second] = context.streams()?;
            let buffer = context.buffer(1 << 20)?;
            for value in 0..10u8 {
                context.busy(&first, Duration::from_millis(2))?;
                first.fill(&buffer, &[value])?;
                ends(&first.record()?, "the fill")?;
                holds(&second, &buffer, &vec![value; 1 << 20], "what another stream sees")?;
            }
            Ok(())
        },
    );
    tests.add(
        "events-outlive-their-stream",
        "an event may be waited for after its stream is dropped",
        |context| {
            let (buffer, event);
            {
                let stream = context.stream()?;
                context.busy(&stream, Duration::from_millis(5))?;
                buffer = context.upload(&stream, &[8; 100])?;
                event = stream.record()?;
            }
            ends(&event, "the event")?;
            holds(&context.stream()?, &buffer, &[8; 100], "the buffer")
        },
    );
    tests.add("events-may-be-dropped", "an event that nobody waits for changes nothing", |context| {
        let stream = context.stream()?;
        let buffer = context.buffer(100)?;
        for value in 0..100u8 {
            drop(stream.record()?);
            stream.fill(&buffer, &[value])?;
            drop(stream.record()?);
        }
        holds(&stream, &buffer, &[99; 100], "the buffer")
    });
    tests.add("clones-are-one-event", "clones of an event are reached together", |context| {
        let stream = context.stream()?;
        let (_x, event) = busy_event(context, &stream, Duration::from_millis(2))?;
        let clone = event.clone();
        drop(stream);
        ends(&event, "the event")?;
        drop(event);
        ensure!(clone.is_done()?, "the clone is not done");
        Ok(())
    });
    tests.add(
        "events-know-their-device",
        "an event tells which device recorded it, and has an id of its own",
        |context| {
            let stream = context.stream()?;
            let (first, second) = (stream.record()?, stream.record()?);
            ensure!(first.device().is_same_opening(context.device().id()), "it is of {}", first.device());
            ensure!(first.id() != second.id(), "two events have one id");
            Ok(())
        },
    );
}

fn time_outs(tests: &mut Tests) {
    for (name, limit) in [("zero", Duration::ZERO), ("one-millisecond", Duration::from_millis(1))] {
        tests.add(
            format!("a-wait-of-{name}-ends"),
            "a wait with a limit ends with a time-out that tells it, and the work goes on",
            move |context| {
                let stream = context.stream()?;
                let (x, event) = busy_event(context, &stream, Duration::from_millis(60))?;
                let begin = Instant::now();
                match event.wait(Some(limit)) {
                    // A device that works within its calls is done by now.
                    Ok(()) => ensure!(event.is_done()?, "the wait ended without a time-out before the work"),
                    Err(error) => {
                        ensure_kind!(Err::<(), _>(error.clone()), ErrorKind::Timeout { .. }, "the wait");
                        ensure_eq!(*error.kind(), ErrorKind::Timeout { after: limit }, "the time-out");
                        ensure!(error.is_retryable(), "a time-out is not retryable: {error}");
                        let took = begin.elapsed();
                        ensure!(took < Duration::from_secs(5), "the wait of {limit:?} took {took:?}");
                    }
                }
                ends(&event, "the work")?;
                stream.synchronize()?;
                ensure!(x.len_bytes() > 0, "no memory");
                Ok(())
            },
        );
        tests.add(
            format!("a-synchronisation-of-{name}-ends"),
            "a synchronisation with a limit ends with a time-out that tells it, and the work goes on",
            move |context| {
                let stream = context.stream()?;
                let (_x, event) = busy_event(context, &stream, Duration::from_millis(60))?;
                match stream.synchronize_timeout(limit) {
                    Ok(()) => ensure!(event.is_done()?, "the synchronisation ended before the work"),
                    Err(error) => {
                        ensure_eq!(
                            *error.kind(),
                            ErrorKind::Timeout { after: limit },
                            "the error of {error}"
                        );
                    }
                }
                stream.synchronize_timeout(PATIENCE)?;
                ensure!(event.is_done()?, "the event is not done after the synchronisation");
                Ok(())
            },
        );
    }
    tests.add("time-outs-do-not-poison", "a stream takes work after a time-out", |context| {
        let stream = context.stream()?;
        context.busy(&stream, Duration::from_millis(20))?;
        for _ in 0..5 {
            let _ = stream.synchronize_timeout(Duration::from_micros(10));
        }
        let buffer = context.upload(&stream, &[4; 100])?;
        holds(&stream, &buffer, &[4; 100], "the buffer")
    });
    tests.add("long-limits-are-legal", "a limit of centuries is as good as none", |context| {
        let stream = context.stream()?;
        let (_x, event) = busy_event(context, &stream, Duration::from_millis(2))?;
        event.wait(Some(Duration::MAX))?;
        Ok(stream.synchronize_timeout(Duration::MAX)?)
    });
}

fn independence(tests: &mut Tests) {
    tests.add(
        "a-dropped-stream-runs-to-its-end",
        "work of a dropped stream is done all the same",
        |context| {
            let buffer = context.buffer(1 << 16)?;
            let event = {
                let stream = context.stream()?;
                context.busy(&stream, Duration::from_millis(10))?;
                stream.fill(&buffer, &[6])?;
                stream.record()?
            };
            ends(&event, "the work")?;
            holds(&context.stream()?, &buffer, &vec![6; 1 << 16], "the buffer")
        },
    );
    tests.add(
        "everything-may-be-dropped-at-work",
        "handles may go while their work is under way",
        |context| {
            for _ in 0..10 {
                let [first, second] = context.streams()?;
                context.busy(&first, Duration::from_millis(2))?;
                after(&second, &first)?;
                let buffer = context.upload(&second, &[1; 10_000])?;
                drop(second.read(&buffer)?);
                drop((buffer, second, first));
            }
            Ok(())
        },
    );
    tests.add(
        "enqueueing-does-not-wait",
        "a stream that waits for another takes a thousand commands at once",
        |context| {
            let [first, second] = context.streams()?;
            let buffer = context.buffer(256)?;
            context.busy(&first, Duration::from_millis(200))?;
            let event = first.record()?;
            second.wait(&event)?;
            let begin = Instant::now();
            for value in 0..1000usize {
                second.fill(&buffer, &[value as u8])?;
            }
            let took = begin.elapsed();
            // Whoever works within the calls is done before the commands; whoever does not must not have waited.
            let waited = took > Duration::from_secs(10);
            ensure!(!waited, "a thousand commands took {took:?}");
            holds(&second, &buffer, &[999usize as u8; 256], "the buffer")
        },
    );
    tests.add(
        "a-blocked-stream-blocks-no-other",
        "work that waits for nothing goes on beside work that waits",
        |context| {
            let [first, second, third] = context.streams()?;
            let (_x, event) = busy_event(context, &first, Duration::from_millis(100))?;
            second.wait(&event)?;
            let held = context.upload(&second, &[1; 100])?;
            let free = context.upload(&third, &[2; 100])?;
            holds(&third, &free, &[2; 100], "what waits for nothing")?;
            holds(&second, &held, &[1; 100], "what waited")
        },
    );
}

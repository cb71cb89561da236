//! Failures of enqueued work: the first one wins, poisons its stream and those that wait, and is forgotten by a reset.

use super::Tests;
use super::order::after;
use crate::context::{Context, Failing, PATIENCE, eventually, holds};
use crate::outcome::{Outcome, Stop};
use halite_hal::{CommandListBuilder, ErrorKind, Health, RecordedCommand, RecordedRange, Stream};
use std::time::Duration;

pub(super) fn tests(tests: &mut Tests) {
    reporting(tests);
    skipping(tests);
    travelling(tests);
    resetting(tests);
    refusals(tests);
}

fn failing(context: &Context) -> Result<Failing, Stop> {
    context.failing()
}

fn fail(stream: &Stream, failing: &Failing) -> halite_hal::Result<()> {
    failing.launch(stream)
}

/// A stream whose work has failed, and is known to have.
fn failed_stream(context: &Context) -> Result<Stream, Stop> {
    let stream = context.stream()?;
    fail(&stream, &failing(context)?)?;
    ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the synchronisation behind the failure");
    Ok(stream)
}

/// A stream may not know of its failure yet when it takes work; it must not run it, and must not hide the failure.
fn taken_or_failed(result: halite_hal::Result<()>, what: &str) -> Outcome {
    if result.is_err() {
        ensure_kind!(result, ErrorKind::Fault, "{what}");
    }
    Ok(())
}

fn reporting(tests: &mut Tests) {
    tests.add(
        "arrives-at-synchronize",
        "a synchronisation reports the failure, again and again",
        |context| {
            let stream = context.stream()?;
            fail(&stream, &failing(context)?)?;
            for round in 0..3 {
                ensure_kind!(stream.synchronize(), ErrorKind::Fault, "synchronisation {round}");
            }
            Ok(())
        },
    );
    tests.add(
        "arrives-at-events",
        "events behind the failure report it, those before it are done",
        |context| {
            let stream = context.stream()?;
            let kernel = failing(context)?;
            let before = stream.record()?;
            fail(&stream, &kernel)?;
            let behind = stream.record()?;
            before.wait(Some(PATIENCE))?;
            ensure_kind!(behind.wait(Some(PATIENCE)), ErrorKind::Fault, "the wait behind the failure");
            ensure_kind!(behind.is_done(), ErrorKind::Fault, "asking the event behind the failure");
            ensure!(before.is_done()?, "the event before the failure is not done");
            Ok(())
        },
    );
    tests.add("arrives-at-pending-reads", "a read behind the failure fails with it", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[1; 100])?;
        fail(&stream, &failing(context)?)?;
        let read = stream.read(&buffer).and_then(|read| read.wait());
        ensure_kind!(read, ErrorKind::Fault, "the read");
        ensure_kind!(stream.read_blocking(&buffer, &mut [0; 100]), ErrorKind::Fault, "the blocking read");
        Ok(())
    });
    tests.add(
        "is-told-by-new-events",
        "a failed stream still records, and its events report the failure",
        |context| {
            let stream = failed_stream(context)?;
            let event = stream.record()?;
            ensure_kind!(event.wait(Some(PATIENCE)), ErrorKind::Fault, "the wait for a new event");
            ensure_kind!(event.is_done(), ErrorKind::Fault, "asking a new event");
            Ok(())
        },
    );
    tests.add("first-one-wins", "everyone is told the first failure, in the same words", |context| {
        let (stream, kernel) = (context.stream()?, failing(context)?);
        fail(&stream, &kernel)?;
        let first = stream.record()?;
        taken_or_failed(fail(&stream, &kernel), "the second failing launch")?;
        let second = stream.record()?;
        let told = ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the synchronisation");
        for event in [first, second] {
            let error = ensure_kind!(event.wait(Some(PATIENCE)), ErrorKind::Fault, "an event");
            ensure_eq!(error.message(), told.message(), "the words of an event");
        }
        Ok(())
    });
    tests.add("names-the-device", "the failure names its device and has a message", |context| {
        let error =
            ensure_kind!(failed_stream(context)?.synchronize(), ErrorKind::Fault, "the synchronisation");
        let id = context.device().id().to_string();
        ensure_eq!(error.device(), Some(id.as_str()), "the device in the error");
        ensure!(!error.message().is_empty(), "the error has no message");
        ensure!(!error.is_retryable(), "a fault is no passing condition");
        Ok(())
    });
    tests.add("is-no-loss", "a fault of a kernel leaves the device healthy", |context| {
        failed_stream(context)?;
        ensure_eq!(context.device().health(), Health::Ok, "the health");
        Ok(())
    });
}

fn skipping(tests: &mut Tests) {
    tests.add("work-behind-is-skipped", "what was enqueued behind the failure does not run", |context| {
        let (stream, other) = (context.stream()?, context.stream()?);
        let buffer = context.upload(&stream, &[1; 1000])?;
        stream.synchronize()?;
        fail(&stream, &failing(context)?)?;
        taken_or_failed(stream.fill(&buffer, &[2]), "the fill")?;
        taken_or_failed(stream.write(&buffer, vec![3; 1000]), "the write")?;
        ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the synchronisation");
        holds(&other, &buffer, &[1; 1000], "the buffer")
    });
    tests.add("work-before-is-done", "what was enqueued before the failure has run", |context| {
        let (stream, other) = (context.stream()?, context.stream()?);
        let buffer = context.upload(&stream, &[4; 1000])?;
        fail(&stream, &failing(context)?)?;
        ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the synchronisation");
        holds(&other, &buffer, &[4; 1000], "the buffer")
    });
    tests.add(
        "known-failures-refuse-work",
        "once the failure is known, every call that would enqueue reports it",
        |context| {
            let stream = failed_stream(context)?;
            let (buffer, other) = (context.buffer(64)?, context.buffer(64)?);
            let kernel = failing(context)?;
            ensure_kind!(stream.write(&buffer, vec![0; 64]), ErrorKind::Fault, "a write");
            ensure_kind!(stream.write_blocking(&buffer, &[0; 64]), ErrorKind::Fault, "a blocking write");
            ensure_kind!(stream.fill(&buffer, &[1]), ErrorKind::Fault, "a fill");
            ensure_kind!(stream.copy(&other, &buffer), ErrorKind::Fault, "a copy");
            ensure_kind!(fail(&stream, &kernel), ErrorKind::Fault, "a launch");
            let mut list = CommandListBuilder::new();
            list.push(RecordedCommand::Fill { dst: RecordedRange::Fixed(buffer.clone()), pattern: vec![1] });
            let list = context.device().finish(list)?;
            ensure_kind!(stream.replay(&list, &[], &[]), ErrorKind::Fault, "a replay");
            Ok(())
        },
    );
    tests.add("skipped-work-frees-its-buffers", "buffers of skipped work are given back", |context| {
        let (stream, kernel) = (context.stream()?, failing(context)?);
        let before = context.device().memory()?.used_bytes;
        for _ in 0..10 {
            let buffer = context.buffer(1 << 18)?;
            let _ = stream.fill(&buffer, &[1]);
            let _ = fail(&stream, &kernel);
            let _ = stream.fill(&buffer, &[2]);
        }
        ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the synchronisation");
        eventually("used memory returns to where it was", || {
            Ok(context.device().memory()?.used_bytes <= before)
        })
    });
    tests.add("a-failed-stream-may-be-dropped", "dropping a failed stream harms nobody", |context| {
        let kernel = failing(context)?;
        for _ in 0..20 {
            let stream = context.stream()?;
            fail(&stream, &kernel)?;
            let _ = stream.record()?;
        }
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[1; 10])?;
        holds(&stream, &buffer, &[1; 10], "the buffer of another stream")
    });
}

fn travelling(tests: &mut Tests) {
    tests.add(
        "travels-through-a-wait",
        "a stream that waits for failed work fails the same way",
        |context| {
            let (stream, waiting) = (context.stream()?, context.stream()?);
            fail(&stream, &failing(context)?)?;
            after(&waiting, &stream)?;
            let own = ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the failed stream");
            let theirs = ensure_kind!(waiting.synchronize(), ErrorKind::Fault, "the stream that waits");
            ensure_eq!(theirs.message(), own.message(), "the words of the stream that waits");
            Ok(())
        },
    );
    tests.add(
        "travels-from-a-known-failure",
        "waiting for an event that has failed fails the stream",
        |context| {
            let stream = failed_stream(context)?;
            let waiting = context.stream()?;
            taken_or_failed(waiting.wait(&stream.record()?), "the wait")?;
            ensure_kind!(waiting.synchronize(), ErrorKind::Fault, "the stream that waits");
            Ok(())
        },
    );
    tests.add(
        "travels-along-a-chain",
        "a failure passes through streams that wait for each other",
        |context| {
            let streams: [Stream; 5] = context.streams()?;
            context.busy(&streams[0], Duration::from_millis(5)).map(drop)?;
            fail(&streams[0], &failing(context)?)?;
            for pair in streams.windows(2) {
                after(&pair[1], &pair[0])?;
            }
            for (number, stream) in streams.iter().enumerate() {
                ensure_kind!(stream.synchronize(), ErrorKind::Fault, "stream {number} of the chain");
            }
            Ok(())
        },
    );
    tests.add("leaves-others-alone", "a stream that does not wait goes on", |context| {
        let (stream, other) = (context.stream()?, context.stream()?);
        fail(&stream, &failing(context)?)?;
        let buffer = context.upload(&other, &[8; 500])?;
        ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the failed stream");
        other.synchronize()?;
        holds(&other, &buffer, &[8; 500], "the other stream's buffer")
    });
    tests.add(
        "does-not-travel-backwards",
        "a stream that was waited for does not fail with the one that waits",
        |context| {
            let (stream, failing_one) = (context.stream()?, context.stream()?);
            let kernel = failing(context)?;
            let buffer = context.upload(&stream, &[1; 100])?;
            after(&failing_one, &stream)?;
            fail(&failing_one, &kernel)?;
            ensure_kind!(failing_one.synchronize(), ErrorKind::Fault, "the failing stream");
            stream.synchronize()?;
            holds(&stream, &buffer, &[1; 100], "the buffer")
        },
    );
    tests.add(
        "waits-before-the-failure-are-kept",
        "an event before the failure lets others go on",
        |context| {
            let (stream, waiting) = (context.stream()?, context.stream()?);
            let kernel = failing(context)?;
            let buffer = context.upload(&stream, &[6; 100])?;
            let before = stream.record()?;
            fail(&stream, &kernel)?;
            waiting.wait(&before)?;
            holds(&waiting, &buffer, &[6; 100], "what was done before the failure")?;
            ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the failed stream");
            Ok(waiting.synchronize()?)
        },
    );
}

fn resetting(tests: &mut Tests) {
    tests.add("a-reset-forgets", "after a reset a stream works as if new", |context| {
        let stream = failed_stream(context)?;
        for round in 0..5u8 {
            stream.reset()?;
            stream.synchronize()?;
            let buffer = context.upload(&stream, &[round; 100])?;
            holds(&stream, &buffer, &[round; 100], "the buffer")?;
            fail(&stream, &failing(context)?)?;
            ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the synchronisation");
        }
        Ok(stream.reset()?)
    });
    tests.add("events-keep-their-failure", "a reset changes no event that has failed", |context| {
        let stream = context.stream()?;
        fail(&stream, &failing(context)?)?;
        let event = stream.record()?;
        ensure_kind!(event.wait(Some(PATIENCE)), ErrorKind::Fault, "the event before the reset");
        stream.reset()?;
        ensure_kind!(event.is_done(), ErrorKind::Fault, "the event after the reset");
        ensure_kind!(event.wait(Some(PATIENCE)), ErrorKind::Fault, "the wait after the reset");
        Ok(stream.synchronize()?)
    });
    tests.add(
        "a-reset-waits-for-the-work",
        "a reset right behind the failing launch waits and forgets",
        |context| {
            let (stream, kernel) = (context.stream()?, failing(context)?);
            context.busy(&stream, Duration::from_millis(10)).map(drop)?;
            fail(&stream, &kernel)?;
            stream.reset()?;
            stream.synchronize()?;
            let buffer = context.upload(&stream, &[2; 100])?;
            holds(&stream, &buffer, &[2; 100], "the buffer")
        },
    );
    tests.add(
        "only-the-failed-stream-is-reset",
        "streams that failed with another one are reset for themselves",
        |context| {
            let (stream, waiting) = (context.stream()?, context.stream()?);
            fail(&stream, &failing(context)?)?;
            after(&waiting, &stream)?;
            ensure_kind!(waiting.synchronize(), ErrorKind::Fault, "the stream that waits");
            stream.reset()?;
            stream.synchronize()?;
            ensure_kind!(
                waiting.synchronize(),
                ErrorKind::Fault,
                "the stream that waits, after the other's reset"
            );
            waiting.reset()?;
            Ok(waiting.synchronize()?)
        },
    );
    tests.add("a-healthy-stream-stays-so", "a reset of a stream without a failure only waits", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[3; 4096])?;
        context.busy(&stream, Duration::from_millis(5)).map(drop)?;
        let event = stream.record()?;
        stream.reset()?;
        ensure!(event.is_done()?, "the reset did not wait");
        holds(&stream, &buffer, &[3; 4096], "the buffer")
    });
    tests.add("memory-survives-failures", "buffers keep their bytes through failure and reset", |context| {
        let stream = context.stream()?;
        let bytes = context.random().bytes(10_000);
        let buffer = context.upload(&stream, &bytes)?;
        let kernel = failing(context)?;
        for _ in 0..10 {
            fail(&stream, &kernel)?;
            stream.reset()?;
        }
        holds(&stream, &buffer, &bytes, "the buffer")
    });
}

fn refusals(tests: &mut Tests) {
    type Refused = fn(&Context, &Stream) -> Result<halite_hal::Result<()>, Stop>;
    let calls: [(&str, Refused); 4] = [
        ("copy", |context, stream| {
            let buffer = context.upload(stream, &[0; 8])?;
            Ok(stream.copy(&buffer, &buffer))
        }),
        ("fill", |context, stream| Ok(stream.fill(&context.upload(stream, &[0; 8])?, &[]))),
        ("write", |context, stream| Ok(stream.write(&context.upload(stream, &[0; 8])?, vec![0; 7]))),
        ("read", |context, stream| Ok(stream.read_blocking(&context.upload(stream, &[0; 8])?, &mut [0; 9]))),
    ];
    for (name, refused) in calls {
        tests.add(
            format!("a-refused-{name}-poisons-nothing"),
            "a call that is refused enqueues nothing, and the stream goes on",
            move |context| {
                let stream = context.stream()?;
                ensure_kind!(refused(context, &stream)?, ErrorKind::InvalidArgument, "the call");
                stream.synchronize()?;
                let event = stream.record()?;
                event.wait(Some(PATIENCE))?;
                let buffer = context.upload(&stream, &[1; 50])?;
                holds(&stream, &buffer, &[1; 50], "the buffer")
            },
        );
    }
}

//! A lost device stays lost, says so to everyone, and may be opened anew.

use super::Tests;
use crate::context::{Context, PATIENCE, holds};
use crate::outcome::{Outcome, Stop, skipped};
use crate::program::TestKernel;
use halite_hal::{BufferSlice, Device, ErrorKind, Event, Health, MemoryKind, Stream};

/// A device that was lost in the middle of a command, and what was made before.
struct Lost {
    device: Device,
    stream: Stream,
    buffer: BufferSlice,
    /// Of work that was done before.
    done: Event,
}

/// Before this command the device is well: a write, and what layers around the device do of their own.
const LAST_COMMAND: u64 = 60;

/// A device that is lost in the middle of enqueued work, with work that was done before.
fn lose(context: &Context) -> Result<Lost, Stop> {
    let Some(open) = &context.target().losing else {
        return Err(skipped("there is no way to lose this device on purpose"));
    };
    let device = open(LAST_COMMAND)?;
    let stream = device.create_stream()?;
    let buffer = device.allocate(64, MemoryKind::Device)?.all();
    stream.write(&buffer, vec![1; 64])?;
    let done = stream.record()?;
    done.wait(Some(PATIENCE))?;
    for value in 0..1000u32 {
        if stream.fill(&buffer, &value.to_le_bytes()).is_err() {
            break;
        }
    }
    ensure_kind!(stream.synchronize(), ErrorKind::DeviceLost, "the synchronisation after the loss");
    Ok(Lost { device, stream, buffer, done })
}

pub(super) fn tests(tests: &mut Tests) {
    tests.add(
        "health-tells-the-reason",
        "a lost device says so, with the first reason, for good",
        |context| {
            let lost = lose(context)?;
            let Health::Lost { reason } = lost.device.health() else {
                return Err(crate::outcome::failed("the device says that it is well"));
            };
            ensure!(!reason.is_empty(), "there is no reason");
            for _ in 0..5 {
                ensure_eq!(
                    lost.device.health(),
                    Health::Lost { reason: reason.clone() },
                    "the health, asked again"
                );
            }
            Ok(())
        },
    );
    type Call = fn(&Lost) -> halite_hal::Result<()>;
    let calls: [(&str, Call); 9] = [
        ("allocate", |lost| lost.device.allocate(8, MemoryKind::Device).map(drop)),
        ("create-stream", |lost| lost.device.create_stream().map(drop)),
        ("memory", |lost| lost.device.memory().map(drop)),
        ("write", |lost| lost.stream.write(&lost.buffer, vec![0; 64])),
        ("read", |lost| lost.stream.read_blocking(&lost.buffer, &mut [0; 64])),
        ("fill", |lost| lost.stream.fill(&lost.buffer, &[0])),
        ("synchronize", |lost| lost.stream.synchronize()),
        ("reset", |lost| lost.stream.reset()),
        ("record", |lost| lost.stream.record().and_then(|event| event.wait(Some(PATIENCE)))),
    ];
    for (name, call) in calls {
        tests.add(
            format!("{name}-fails"),
            "calls on a lost device fail with the loss, again and again",
            move |context| {
                let lost = lose(context)?;
                for round in 0..3 {
                    ensure_kind!(call(&lost), ErrorKind::DeviceLost, "call {round}");
                }
                Ok(())
            },
        );
    }
    tests.add("load-fails", "a lost device loads nothing", |context| {
        let lost = lose(context)?;
        let source = context.format()?.source(TestKernel::Copy);
        ensure_kind!(lost.device.load(&source), ErrorKind::DeviceLost, "loading");
        Ok(())
    });
    tests.add(
        "what-was-done-stays-done",
        "events that were reached before the loss stay reached",
        |context| {
            let lost = lose(context)?;
            lost.done.wait(Some(PATIENCE))?;
            ensure!(lost.done.is_done()?, "an event from before the loss is not done any more");
            Ok(())
        },
    );
    tests.add("description-stays", "a lost device still tells what it is", |context| {
        let lost = lose(context)?;
        ensure_eq!(lost.device.info().name, context.info().name, "the name");
        Ok(())
    });
    tests.add("everything-may-be-dropped", "objects of a lost device may go, in any order", |context| {
        for order in 0..3 {
            let Lost { device, stream, buffer, done } = lose(context)?;
            match order {
                0 => drop((device, stream, buffer, done)),
                1 => drop((done, buffer, stream, device)),
                _ => drop((buffer, device, done, stream)),
            }
        }
        Ok(())
    });
    tests.add("opens-anew", "a lost device may be opened anew, and works", |context| {
        let lost = lose(context)?;
        let device = context.open()?;
        ensure_eq!(device.health(), Health::Ok, "the health of the new opening");
        ensure!(
            !device.id().is_same_opening(lost.device.id()),
            "the new opening has the mark of the lost one"
        );
        let stream = device.create_stream()?;
        let buffer = device.allocate(100, MemoryKind::Device)?.all();
        stream.fill(&buffer, &[5])?;
        holds(&stream, &buffer, &[5; 100], "the buffer of the new opening")
    });
    tests.add(
        "stale-objects-are-refused",
        "a new opening takes no objects of the lost one, and is not harmed by them",
        |context| {
            let lost = lose(context)?;
            let device = context.open()?;
            let stream = device.create_stream()?;
            let buffer = device.allocate(64, MemoryKind::Device)?.all();
            stream.fill(&buffer, &[7])?;
            let results: [(&str, halite_hal::Result<()>); 4] = [
                ("a write", stream.write(&lost.buffer, vec![0; 64])),
                ("a copy", stream.copy(&buffer, &lost.buffer)),
                ("a fill", stream.fill(&lost.buffer, &[0])),
                ("a wait", stream.wait(&lost.done)),
            ];
            for (what, result) in results {
                ensure_kind!(result, ErrorKind::InvalidArgument, "{what} with a stale object");
            }
            drop(lost);
            let outcome: Outcome = holds(&stream, &buffer, &[7; 64], "the buffer of the new opening");
            outcome
        },
    );
}

//! Several openings of one device: their objects do not mix, and data passes between them through the host. Links between
//! them are in `peer.rs`.

use super::{Tests, in_threads};
use crate::context::{Context, holds, same_bytes};
use crate::outcome::{Outcome, Stop, unsupported};
use crate::program::TestKernel;
use halite_hal::{
    BufferSlice, CommandListBuilder, Device, ErrorKind, MemoryKind, RecordedCommand, RecordedRange, Stream,
};
use std::sync::Arc;

/// Another opening, with a stream and memory of its own.
struct Other {
    device: Device,
    stream: Stream,
    buffer: BufferSlice,
}

fn other(context: &Context) -> Result<Other, Stop> {
    let device = context.open()?;
    let stream = device.create_stream()?;
    let buffer = device.allocate(64, MemoryKind::Device)?.all();
    stream.fill(&buffer, &[2])?;
    stream.synchronize()?;
    Ok(Other { device, stream, buffer })
}

/// Another opening that is apart; a backend that opens a device once has none.
fn apart(context: &Context) -> Result<Other, Stop> {
    let other = other(context)?;
    if other.device.id().is_same_opening(context.device().id()) {
        return Err(unsupported("the device is opened once, and its handles share everything"));
    }
    Ok(other)
}

fn refuses(result: halite_hal::Result<()>, what: &str) -> Outcome {
    ensure_kind!(result, ErrorKind::InvalidArgument, "{what} of another opening");
    Ok(())
}

pub(super) fn tests(tests: &mut Tests) {
    type Call = fn(&Stream, &BufferSlice, &Other) -> halite_hal::Result<()>;
    let calls: [(&str, Call); 8] = [
        ("write", |stream, _, other| stream.write(&other.buffer, vec![9; 64])),
        ("blocking-write", |stream, _, other| stream.write_blocking(&other.buffer, &[9; 64])),
        ("read", |stream, _, other| stream.read(&other.buffer).and_then(|read| read.wait()).map(drop)),
        ("blocking-read", |stream, _, other| stream.read_blocking(&other.buffer, &mut [0; 64])),
        ("fill", |stream, _, other| stream.fill(&other.buffer, &[9])),
        ("copy-from", |stream, own, other| stream.copy(own, &other.buffer)),
        ("copy-to", |stream, own, other| stream.copy(&other.buffer, own)),
        ("wait", |stream, _, other| stream.wait(&other.stream.record()?)),
    ];
    for (name, call) in calls {
        tests.add(
            format!("{name}-stays-within-an-opening"),
            "objects of another opening are refused, and neither is harmed",
            move |context| {
                let (stream, other) = (context.stream()?, apart(context)?);
                let own = context.upload(&stream, &[1; 64])?;
                stream.synchronize()?;
                refuses(call(&stream, &own, &other), "an object")?;
                stream.synchronize()?;
                holds(&stream, &own, &[1; 64], "the own buffer")?;
                holds(&other.stream, &other.buffer, &[2; 64], "the other opening's buffer")
            },
        );
    }
    tests.add(
        "launch-stays-within-an-opening",
        "kernels and buffers of another opening are refused",
        |context| {
            let (kernel, stream, other) =
                (context.kernel(TestKernel::Update)?, context.stream()?, apart(context)?);
            let args = [other.buffer.clone().into(), super::launch::number(4), super::launch::number(1)];
            refuses(stream.launch(&kernel, [1, 1, 1], &args), "a buffer")?;
            refuses(other.stream.launch(&kernel, [1, 1, 1], &args), "a kernel")?;
            stream.synchronize()?;
            Ok(other.stream.synchronize()?)
        },
    );
    tests.add(
        "lists-stay-within-an-opening",
        "lists are finished and replayed within one opening",
        |context| {
            let (stream, other) = (context.stream()?, apart(context)?);
            let recorded = |buffer: &BufferSlice| {
                let mut list = CommandListBuilder::new();
                list.push(RecordedCommand::Fill {
                    dst: RecordedRange::Fixed(buffer.clone()),
                    pattern: vec![3],
                });
                list
            };
            refuses(context.device().finish(recorded(&other.buffer)).map(drop), "a buffer")?;
            let list = other.device.finish(recorded(&other.buffer))?;
            refuses(stream.replay(&list, &[], &[]), "a list")?;
            Ok(stream.synchronize()?)
        },
    );
    tests.add(
        "time-stays-within-an-opening",
        "the time between events of two openings is refused",
        |context| {
            let (stream, other) = (context.stream()?, apart(context)?);
            let (own, theirs) = (stream.record()?, other.stream.record()?);
            stream.synchronize()?;
            other.stream.synchronize()?;
            refuses(own.elapsed_since(&theirs).map(drop), "an event")
        },
    );
    tests.add(
        "bytes-pass-through-the-host",
        "what one opening wrote reaches another through host bytes",
        |context| {
            let (stream, other) = (context.stream()?, context.open()?);
            let their_stream = other.create_stream()?;
            for len in [1usize, 4099, 1 << 20] {
                let bytes = context.random().bytes(len);
                let own = context.upload(&stream, &bytes)?;
                let theirs = other.allocate(len as u64, MemoryKind::Device)?.all();
                let shared: Arc<[u8]> = stream.read(&own)?.wait()?.into();
                their_stream.write(&theirs, shared.clone())?;
                holds(&their_stream, &theirs, &bytes, "the other opening's buffer")?;
                same_bytes(&shared, &bytes, "the shared bytes")?;
            }
            Ok(())
        },
    );
    tests.add(
        "openings-work-side-by-side",
        "openings compute at once without disturbing each other",
        |context| {
            in_threads(3, |index| {
                let device = context.open()?;
                let stream = device.create_stream()?;
                let buffer = device.allocate(10_000, MemoryKind::Device)?.all();
                for round in 0..20u8 {
                    let value = round.wrapping_mul(3) ^ index as u8;
                    stream.fill(&buffer, &[value])?;
                    holds(&stream, &buffer, &[value; 10_000], "the buffer")?;
                }
                Ok(())
            })
        },
    );
    tests.add("closing-one-leaves-the-other", "an opening that goes away leaves others working", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[4; 1000])?;
        for _ in 0..5 {
            drop(other(context)?);
        }
        holds(&stream, &buffer, &[4; 1000], "the buffer")
    });
}

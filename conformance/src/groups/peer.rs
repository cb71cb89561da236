//! Copies from one device to another of the same backend, on streams of the one that they go to.

use super::{Tests, in_threads};
use crate::context::{Context, PATIENCE, ends, holds, same_bytes};
use crate::outcome::{Outcome, Stop, failed, skipped, unsupported};
use crate::program::TestKernel;
use halite_hal::driver::Backend as _;
use halite_hal::null::NullBackend;
use halite_hal::{BufferSlice, Device, DeviceInfo, ErrorKind, Health, MemoryKind, Stream};
use std::time::Duration;

/// The device, another one, and a stream of the first that copies from the second.
struct Pair {
    peer: Device,
    /// Of the peer.
    there: Stream,
    /// Of the device.
    here: Stream,
    link: Stream,
}

pub(super) fn tests(tests: &mut Tests) {
    claims(tests);
    contents(tests);
    order(tests);
    failures(tests);
}

/// Another opening of the device.
fn again(context: &Context) -> Result<Device, Stop> {
    let other = context.open()?;
    if other.id().is_same_opening(context.device().id()) {
        return Err(skipped("no link to another device of this machine, and this one is opened once"));
    }
    Ok(other)
}

/// A device that this one has a link to, and the link: another one of the machine, or else another opening of this one.
fn linked(context: &Context) -> Result<(Device, Stream), Stop> {
    let own = context.device().id();
    let registry = context.target().registry();
    for info in registry.probe().devices {
        if info.id.backend != own.backend || info.id == *own {
            continue;
        }
        let peer = registry.open_id(&info.id)?;
        match context.device().create_peer_stream(&peer) {
            Err(error) if *error.kind() == ErrorKind::Unsupported => {}
            link => return Ok((peer, link?)),
        }
    }
    let peer = again(context)?;
    match context.device().create_peer_stream(&peer) {
        Err(error) if *error.kind() == ErrorKind::Unsupported => {
            Err(failed(format!("copies from others are claimed, but not even from another opening: {error}")))
        }
        link => Ok((peer, link?)),
    }
}

fn pair(context: &Context) -> Result<Pair, Stop> {
    if !context.info().has_feature(DeviceInfo::PEER_COPY) {
        return Err(unsupported("the device copies from no other one"));
    }
    let (peer, link) = linked(context)?;
    Ok(Pair { there: peer.create_stream()?, here: context.stream()?, link, peer })
}

impl Pair {
    /// Memory of the peer that will hold these bytes when its stream has come so far.
    fn there(&self, bytes: &[u8]) -> Result<BufferSlice, Stop> {
        let buffer = self.peer.allocate(bytes.len() as u64, MemoryKind::Device)?.all();
        self.there.write(&buffer, bytes)?;
        Ok(buffer)
    }

    /// The link's later work comes behind all that the peer's stream has by now.
    fn follow(&self) -> Outcome {
        Ok(self.link.wait(&self.there.record()?)?)
    }
}

fn claims(tests: &mut Tests) {
    tests.add(
        "not-claimed-is-unsupported",
        "a device that claims no copies from others makes no such stream",
        |context| {
            if context.info().has_feature(DeviceInfo::PEER_COPY) {
                return Ok(());
            }
            let other = again(context)?;
            ensure_kind!(
                context.device().create_peer_stream(&other),
                ErrorKind::Unsupported,
                "a stream with a peer"
            );
            Ok(())
        },
    );
    tests.add("no-peer-of-its-own", "a device is no peer of itself", |context| {
        let device = context.device();
        ensure_kind!(device.create_peer_stream(device), ErrorKind::InvalidArgument, "a stream with itself");
        Ok(())
    });
    tests.add(
        "other-backends-share-no-link",
        "a device of another backend is no peer, and the error says so",
        |context| {
            let null = NullBackend::default().open(0)?;
            let error = ensure_kind!(
                context.device().create_peer_stream(&null),
                ErrorKind::Unsupported,
                "a stream with another"
            );
            ensure!(error.message().contains("null:0"), "the error does not name the device: {error}");
            Ok(())
        },
    );
    tests.add("knows-its-ends", "a stream with a peer is of its own device, and tells the peer", |context| {
        let pair = pair(context)?;
        ensure!(
            pair.link.device().id().is_same_opening(context.device().id()),
            "it is of {}",
            pair.link.device().id()
        );
        let peer = pair.link.peer().ok_or_else(|| failed("it tells no peer"))?;
        ensure!(peer.id().is_same_opening(pair.peer.id()), "its peer is {}", peer.id());
        ensure!(pair.here.peer().is_none(), "a plain stream tells a peer");
        Ok(())
    });
}

fn contents(tests: &mut Tests) {
    for len in [1usize, 3, 64, 4093, 70_001] {
        tests.add(
            format!("bytes-arrive-{len}"),
            "what a peer's memory holds arrives, and stays there",
            move |context| {
                let (pair, bytes) = (pair(context)?, context.random().bytes(len));
                let (from, to) = (pair.there(&bytes)?, context.buffer(len)?);
                pair.follow()?;
                pair.link.copy(&to, &from)?;
                holds(&pair.link, &to, &bytes, "the copy")?;
                holds(&pair.there, &from, &bytes, "the source")
            },
        );
    }
    for (to_offset, from_offset, len) in [(1u64, 3u64, 61u64), (7, 0, 1), (100, 33, 4001)] {
        tests.add(
            format!("from-{from_offset}-to-{to_offset}-len-{len}"),
            "a range of a peer's memory goes to a range of the device's, and nothing else changes",
            move |context| {
                let pair = pair(context)?;
                let bytes = context.random().bytes(5000);
                let from = pair.there(&bytes)?;
                let to = context.upload(&pair.link, &[0xee; 5000])?;
                pair.follow()?;
                pair.link.copy(&to.slice(to_offset, len)?, &from.slice(from_offset, len)?)?;
                let (to_offset, from_offset, len) = (to_offset as usize, from_offset as usize, len as usize);
                let mut expected = vec![0xee; 5000];
                expected[to_offset..to_offset + len].copy_from_slice(&bytes[from_offset..from_offset + len]);
                holds(&pair.link, &to, &expected, "the target")
            },
        );
    }
    tests.add("no-bytes", "a copy of no bytes is done, and moves nothing", |context| {
        let pair = pair(context)?;
        let (from, to) = (pair.there(&[1; 8])?, context.upload(&pair.link, &[2; 8])?);
        pair.link.copy(&to.slice(4, 0)?, &from.slice(8, 0)?)?;
        pair.link.synchronize()?;
        holds(&pair.link, &to, &[2; 8], "the target")
    });
    tests.add("a-large-one", "megabytes arrive whole", |context| {
        let pair = pair(context)?;
        let limit =
            context.info().limits.max_allocation_bytes.min(pair.peer.info().limits.max_allocation_bytes);
        let len = (8u64 << 20 | 5).min(limit) as usize;
        let bytes = context.random().bytes(len);
        let (from, to) = (pair.there(&bytes)?, context.buffer(len)?);
        pair.follow()?;
        pair.link.copy(&to, &from)?;
        holds(&pair.link, &to, &bytes, "the copy")
    });
    for kind in [MemoryKind::HostVisible, MemoryKind::Pinned] {
        tests.add(
            format!(
                "from-{}-memory",
                format!("{kind:?}").to_lowercase().replace("hostvisible", "host-visible")
            ),
            "a peer's memory of other kinds is a source too",
            move |context| {
                let pair = pair(context)?;
                let from = match pair.peer.allocate(100, kind) {
                    Err(error) if *error.kind() == ErrorKind::Unsupported => {
                        return Err(unsupported(format!("no {kind:?} memory: {}", error.message())));
                    }
                    buffer => buffer?.all(),
                };
                pair.there.fill(&from, &[6])?;
                pair.follow()?;
                let to = context.buffer(100)?;
                pair.link.copy(&to, &from)?;
                holds(&pair.link, &to, &[6; 100], "the copy")
            },
        );
    }
    tests.add("a-stream-in-all-else", "a stream with a peer does everything that others do", |context| {
        let pair = pair(context)?;
        let (a, b) = (context.buffer(64)?, context.buffer(64)?);
        pair.link.fill(&a, &[1, 2])?;
        pair.link.copy(&b, &a)?;
        pair.link.write(&b.slice(10, 3)?, vec![7, 8, 9])?;
        let mut expected = [1, 2].repeat(32);
        expected[10..13].copy_from_slice(&[7, 8, 9]);
        holds(&pair.link, &b, &expected, "the buffer")?;
        if let Ok(kernel) = context.kernel(TestKernel::Update) {
            let x = context.upload_words(&pair.link, &[5, 6])?;
            let args = [x.clone().into(), super::launch::number(2), super::launch::number(1)];
            pair.link.launch(&kernel, [1, 1, 1], &args)?;
            crate::context::holds_words(&pair.link, &x, &[16, 19], "what the kernel wrote")?;
        }
        pair.link.reset()?;
        Ok(pair.link.synchronize()?)
    });
}

fn order(tests: &mut Tests) {
    tests.add(
        "waits-for-the-peers-work",
        "a copy behind a peer's event finds what came before it",
        |context| {
            let pair = pair(context)?;
            let other_way = pair.peer.create_stream()?;
            for round in 0..10u8 {
                let from = pair.there(&[0xaa; 3000])?;
                other_way.wait(&pair.there.record()?)?;
                // Work that the copy must not overtake.
                for _ in 0..20 {
                    other_way.fill(&from, &[0xbb])?;
                }
                pair.there.wait(&other_way.record()?)?;
                pair.there.fill(&from, &[round])?;
                pair.follow()?;
                let to = context.buffer(3000)?;
                pair.link.copy(&to, &from)?;
                holds(&pair.link, &to, &[round; 3000], "the copy")?;
            }
            Ok(())
        },
    );
    tests.add(
        "waits-for-the-own-devices-work",
        "a copy behind an event of its device comes after that work",
        |context| {
            let pair = pair(context)?;
            let (from, to) = (pair.there(&[2; 1000])?, context.buffer(1000)?);
            context.busy(&pair.here, Duration::from_millis(10))?;
            pair.here.fill(&to, &[1])?;
            pair.link.wait(&pair.here.record()?)?;
            pair.follow()?;
            pair.link.copy(&to, &from)?;
            pair.link.synchronize()?;
            holds(&pair.here, &to, &[2; 1000], "the target")
        },
    );
    tests.add(
        "streams-wait-for-the-copy",
        "streams of the device that wait for the copy find its bytes",
        |context| {
            let pair = pair(context)?;
            let bytes = context.random().bytes(40_000);
            let (from, to, again) = (pair.there(&bytes)?, context.buffer(40_000)?, context.buffer(40_000)?);
            pair.follow()?;
            pair.link.copy(&to, &from)?;
            pair.here.wait(&pair.link.record()?)?;
            pair.here.copy(&again, &to)?;
            holds(&pair.here, &again, &bytes, "the copy of the copy")
        },
    );
    tests.add("copies-run-in-order", "of copies to one range, the last one wins", |context| {
        let pair = pair(context)?;
        let sources = (0..30u8).map(|value| pair.there(&[value; 500])).collect::<Result<Vec<_>, _>>()?;
        let to = context.buffer(500)?;
        pair.follow()?;
        for source in &sources {
            pair.link.copy(&to, source)?;
        }
        holds(&pair.link, &to, &[29; 500], "the target")
    });
    tests.add("back-and-forth", "bytes go to and fro by events alone, without the host", |context| {
        let pair = pair(context)?;
        let back = match pair.peer.create_peer_stream(context.device()) {
            Err(error) if *error.kind() == ErrorKind::Unsupported => {
                return Err(unsupported(format!("no link leads back: {}", error.message())));
            }
            back => back?,
        };
        let (here, there) = (context.buffer(256)?, pair.there(&[0; 256])?);
        pair.follow()?;
        let mut expected = vec![0u8; 256];
        for round in 0..40u8 {
            pair.link.copy(&here, &there)?;
            pair.link.fill(&here.slice(u64::from(round), 1)?, &[round + 1])?;
            back.wait(&pair.link.record()?)?;
            back.copy(&there, &here)?;
            back.fill(&there.slice(255 - u64::from(round), 1)?, &[0x80 | round])?;
            pair.link.wait(&back.record()?)?;
            expected[usize::from(round)] = round + 1;
            expected[255 - usize::from(round)] = 0x80 | round;
        }
        pair.link.copy(&here, &there)?;
        holds(&pair.link, &here, &expected, "the bytes")
    });
    tests.add(
        "memory-is-held",
        "sources, streams and devices may be dropped while a copy is under way",
        |context| {
            let pair = pair(context)?;
            let to = context.buffer(2000)?;
            let from = pair.there(&[9; 2000])?;
            context.busy(&pair.here, Duration::from_millis(20))?;
            pair.link.wait(&pair.here.record()?)?;
            pair.follow()?;
            pair.link.copy(&to, &from)?;
            let done = pair.link.record()?;
            let Pair { peer, there, here, link } = pair;
            drop((from, there, peer, link));
            ends(&done, "the copy")?;
            holds(&here, &to, &[9; 2000], "the target")
        },
    );
    tests.add("many-threads", "several threads copy over links of their own", |context| {
        let first = pair(context)?;
        let peer = &first.peer;
        in_threads(3, |index| {
            let link = context.device().create_peer_stream(peer)?;
            let there = peer.create_stream()?;
            for round in 0..20u8 {
                let value = index as u8 * 50 + round;
                let from = peer.allocate(700, MemoryKind::Device)?.all();
                there.fill(&from, &[value])?;
                link.wait(&there.record()?)?;
                let to = context.buffer(700)?;
                link.copy(&to, &from)?;
                same_bytes(&link.read(&to)?.wait()?, &[value; 700], "a thread's copy")?;
            }
            Ok(())
        })
    });
}

/// A peer that is lost after a while, and a stream of it.
fn losing(context: &Context) -> Result<(Device, Stream), Stop> {
    if !context.info().has_feature(DeviceInfo::PEER_COPY) {
        return Err(unsupported("the device copies from no other one"));
    }
    let Some(open) = &context.target().losing else {
        return Err(skipped("there is no way to lose this device on purpose"));
    };
    let peer = open(60)?;
    let there = peer.create_stream()?;
    Ok((peer, there))
}

/// Uses a device that is to be lost until it is.
fn lose(there: &Stream, range: &BufferSlice) -> Outcome {
    for value in 0..1000u32 {
        if there.fill(range, &value.to_le_bytes()).is_err() {
            break;
        }
    }
    ensure_kind!(there.synchronize(), ErrorKind::DeviceLost, "the peer's synchronisation");
    Ok(())
}

fn failures(tests: &mut Tests) {
    tests.add(
        "what-does-not-fit-is-refused",
        "wrong lengths, targets of the peer and other devices' events are refused",
        |context| {
            let pair = pair(context)?;
            let (from, to) = (pair.there(&[1; 64])?, context.upload(&pair.link, &[2; 64])?);
            let refuses = |result: halite_hal::Result<()>, what: &str| -> Outcome {
                ensure_kind!(result, ErrorKind::InvalidArgument, "{what}");
                Ok(())
            };
            refuses(pair.link.copy(&to, &from.slice(0, 63)?), "a copy of another length")?;
            refuses(pair.link.copy(&from, &to), "a copy to the peer")?;
            refuses(pair.link.fill(&from, &[3]), "a fill of the peer's memory")?;
            refuses(pair.link.read(&from).map(drop), "a read of the peer's memory")?;
            refuses(pair.here.copy(&to, &from), "a copy on a plain stream")?;
            refuses(pair.here.wait(&pair.there.record()?), "a plain stream's wait for the peer")?;
            pair.link.synchronize()?;
            holds(&pair.link, &to, &[2; 64], "the target")?;
            holds(&pair.there, &from, &[1; 64], "the source")
        },
    );
    tests.add(
        "a-failed-event-poisons",
        "a stream that waits for a failed event of its peer fails the same way",
        |context| {
            let pair = pair(context)?;
            let failing = context.failing()?;
            let back = match pair.peer.create_peer_stream(context.device()) {
                Err(error) if *error.kind() == ErrorKind::Unsupported => {
                    return Err(unsupported(format!("no link leads back: {}", error.message())));
                }
                back => back?,
            };
            failing.launch(&pair.here)?;
            let failed = pair.here.record()?;
            let buffer = pair.there(&[1; 16])?;
            pair.there.synchronize()?;
            // The failure may be known already when it is waited for, or at the fill.
            let _ = back.wait(&failed).and_then(|()| back.fill(&buffer, &[2]));
            ensure_kind!(back.synchronize(), ErrorKind::Fault, "the synchronisation");
            back.reset()?;
            holds(&pair.there, &buffer, &[1; 16], "what the failed stream was to fill")?;
            ensure_kind!(pair.here.synchronize(), ErrorKind::Fault, "the failed stream");
            ensure_eq!(pair.peer.health(), Health::Ok, "the peer's health");
            Ok(())
        },
    );
    tests.add(
        "a-peer-lost-while-waited-for",
        "a stream that waits for a device that is lost meanwhile has a failed link, and the device itself goes on",
        |context| {
            let (peer, there) = losing(context)?;
            let limit = peer.info().limits.max_allocation_bytes;
            let large = peer.allocate(limit.min(8 << 20) & !7, MemoryKind::Device)?.all();
            let link = context.device().create_peer_stream(&peer)?;
            let own = context.upload(&link, &[5; 64])?;
            for _ in 0..20 {
                there.fill(&large, &[1])?;
            }
            link.wait(&there.record()?)?;
            link.fill(&own, &[6])?;
            let behind = link.record()?;
            lose(&there, &large.slice(0, 4)?)?;
            // What was waited for may have been done before the loss.
            let waited = link.synchronize_timeout(PATIENCE);
            let is_done = waited.is_ok();
            if !is_done {
                ensure_kind!(waited, ErrorKind::Link, "the stream that waits");
                ensure_kind!(behind.wait(Some(PATIENCE)), ErrorKind::Link, "the event behind the wait");
                link.reset()?;
            }
            ensure_eq!(context.device().health(), Health::Ok, "the device's own health");
            let stream = context.stream()?;
            holds(&stream, &own, &[if is_done { 6 } else { 5 }; 64], "what was filled behind the wait")?;
            link.fill(&own, &[8])?;
            holds(&link, &own, &[8; 64], "a buffer of the device")
        },
    );
    tests.add(
        "a-lost-peer-is-an-error",
        "copies from a lost device fail, and the device itself goes on",
        |context| {
            let (peer, there) = losing(context)?;
            let from = peer.allocate(64, MemoryKind::Device)?.all();
            there.write(&from, vec![1; 64])?;
            there.synchronize()?;
            let link = context.device().create_peer_stream(&peer)?;
            lose(&there, &from)?;
            let to = context.upload(&link, &[5; 64])?;
            let copied = link.copy(&to, &from).and_then(|()| link.synchronize_timeout(PATIENCE));
            ensure_kind!(copied, ErrorKind::Link, "a copy from the lost device");
            ensure_eq!(context.device().health(), Health::Ok, "the device's own health");
            let stream = context.stream()?;
            let own = context.upload(&stream, &[8; 64])?;
            holds(&stream, &own, &[8; 64], "a buffer of the device")
        },
    );
}

//! Allocation: every size, every kind, what is too large and what has no room now, and what comes back.

use super::Tests;
use crate::context::{Context, PATIENCE, download, eventually, holds, same_bytes};
use crate::outcome::{Outcome, Stop, skipped};
use halite_hal::{Buffer, Device, ErrorKind, MemoryKind};
use std::collections::BTreeSet;
use std::time::Duration;

const SIZES: [usize; 16] =
    [0, 1, 2, 3, 7, 63, 64, 65, 255, 257, 4095, 4096, 4097, 65_537, 1_000_003, (4 << 20) + 1];

/// Memory of a device that is filled.
const SMALL_BYTES: u64 = 4 << 20;

pub(super) fn tests(tests: &mut Tests) {
    for size in SIZES {
        tests.add(
            format!("size-{size}"),
            "memory of any size holds what is written to it, up to its last byte",
            move |context| {
                let stream = context.stream()?;
                let bytes = context.random().bytes(size);
                let buffer = context.device().allocate(size as u64, MemoryKind::Device)?;
                ensure_eq!(buffer.len_bytes(), size as u64, "the buffer's length");
                stream.write(&buffer.all(), &bytes[..])?;
                holds(&stream, &buffer.all(), &bytes, "the buffer")
            },
        );
    }
    identity(tests);
    kinds(tests);
    accounting(tests);
    fragmentation(tests);
    limits(tests);
    full(tests);
}

fn identity(tests: &mut Tests) {
    tests.add("buffers-tell-what-they-are", "a buffer knows its device, kind and length", |context| {
        let buffer = context.device().allocate(77, MemoryKind::Device)?;
        ensure!(
            buffer.device().is_same_opening(context.device().id()),
            "the buffer is of {}",
            buffer.device()
        );
        ensure_eq!((buffer.kind(), buffer.len_bytes()), (MemoryKind::Device, 77), "kind and length");
        Ok(())
    });
    tests.add("buffers-are-distinct", "each buffer has an id and memory of its own", |context| {
        let stream = context.stream()?;
        let buffers = (0..32).map(|_| context.buffer(100)).collect::<Result<Vec<_>, _>>()?;
        let ids: BTreeSet<u64> = buffers.iter().map(|buffer| buffer.buffer().id()).collect();
        ensure_eq!(ids.len(), 32, "distinct ids");
        for (value, buffer) in buffers.iter().enumerate() {
            stream.fill(buffer, &[value as u8])?;
        }
        for (value, buffer) in buffers.iter().enumerate() {
            holds(&stream, buffer, &[value as u8; 100], "a buffer")?;
        }
        Ok(())
    });
    tests.add("empty-buffers-are-distinct", "buffers of no bytes are objects, too", |context| {
        let (first, second) = (context.buffer(0)?, context.buffer(0)?);
        ensure!(!first.buffer().is_same(second.buffer()), "two empty buffers are one");
        ensure!(!first.overlaps(&second) && !first.overlaps(&first), "an empty range overlaps something");
        Ok(())
    });
    tests.add("clones-are-one-buffer", "a clone of a handle names the same memory", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[1; 64])?;
        let clone = buffer.clone();
        stream.fill(&clone, &[2])?;
        drop(clone);
        holds(&stream, &buffer, &[2; 64], "the buffer")
    });
}

const KINDS: [(MemoryKind, &str); 3] = [
    (MemoryKind::Device, "device"),
    (MemoryKind::HostVisible, "host-visible"),
    (MemoryKind::Pinned, "pinned"),
];

fn kinds(tests: &mut Tests) {
    for (kind, name) in KINDS {
        tests.add(
            format!("kind-{name}"),
            "memory of each kind that is there takes writes, copies, fills and reads",
            move |context| {
                let stream = context.stream()?;
                let mut bytes = context.random().bytes(5003);
                let buffer = context.buffer_of(5003, kind)?;
                ensure_eq!(buffer.kind(), kind, "the kind");
                stream.write(&buffer.all(), &bytes[..])?;
                stream.copy(&buffer.slice(0, 100)?, &buffer.slice(4000, 100)?)?;
                stream.fill(&buffer.slice(100, 10)?, &[0xee])?;
                bytes.copy_within(4000..4100, 0);
                bytes[100..110].fill(0xee);
                holds(&stream, &buffer.all(), &bytes, "the buffer")
            },
        );
        tests.add(
            format!("kind-{name}-of-zero-bytes"),
            "each kind that is there may be empty",
            move |context| {
                context.buffer_of(1, kind)?;
                ensure_eq!(context.buffer_of(0, kind)?.len_bytes(), 0, "the length");
                Ok(())
            },
        );
        for (other, other_name) in KINDS {
            tests.add(
                format!("copy-{name}-to-{other_name}"),
                "copies go between all kinds of memory",
                move |context| {
                    let stream = context.stream()?;
                    let bytes = context.random().bytes(3001);
                    let (from, to) =
                        (context.buffer_of(3001, kind)?.all(), context.buffer_of(3001, other)?.all());
                    stream.write(&from, &bytes[..])?;
                    stream.copy(&to, &from)?;
                    holds(&stream, &to, &bytes, "the target")
                },
            );
        }
    }
    for (kind, name) in &KINDS[1..] {
        let kind = *kind;
        tests.add(
            format!("host-sees-{name}"),
            "the host reads through the pointer what the device wrote, after a synchronisation",
            move |context| {
                let stream = context.stream()?;
                let buffer = context.buffer_of(4099, kind)?;
                let bytes = context.random().bytes(4099);
                let source = context.upload(&stream, &bytes)?;
                stream.copy(&buffer.all(), &source)?;
                stream.synchronize()?;
                let seen = through_pointer(&buffer)?.to_vec();
                same_bytes(&seen, &bytes, "what the host sees")
            },
        );
        tests.add(
            format!("device-sees-{name}"),
            "the device reads what the host wrote through the pointer before the work was enqueued",
            move |context| {
                let stream = context.stream()?;
                let buffer = context.buffer_of(4099, kind)?;
                stream.fill(&buffer.all(), &[0])?;
                stream.synchronize()?;
                let bytes = context.random().bytes(4099);
                through_pointer(&buffer)?.copy_from_slice(&bytes);
                let target = context.buffer(4099)?;
                stream.copy(&target, &buffer.all())?;
                holds(&stream, &target, &bytes, "the copy")
            },
        );
    }
}

/// The memory of a buffer that the host addresses; no work on it is under way.
#[allow(clippy::mut_from_ref, reason = "the buffer's memory is not the handle's")]
fn through_pointer(buffer: &Buffer) -> Result<&mut [u8], Stop> {
    let Some(pointer) = buffer.host_pointer() else {
        return Err(crate::outcome::failed(format!(
            "{:?} memory has no pointer for the host",
            buffer.kind()
        )));
    };
    // SAFETY: the pointer is valid for the buffer's length while a handle lives (`Buffer::host_pointer`), and so for the
    // borrow; the callers have synchronised the only stream that uses it, and hold one such slice at a time.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), buffer.len_bytes() as usize) })
}

fn accounting(tests: &mut Tests) {
    tests.add(
        "used-memory-is-counted",
        "used memory and live buffers grow and shrink with allocations",
        |context| {
            let before = context.device().memory()?;
            let buffers = (0..4).map(|_| context.buffer(100_000)).collect::<Result<Vec<_>, _>>()?;
            let during = context.device().memory()?;
            ensure!(
                during.used_bytes >= before.used_bytes + 400_000,
                "{} bytes were in use, {} are with 400,000 more",
                before.used_bytes,
                during.used_bytes
            );
            ensure!(
                during.buffers >= before.buffers + 4,
                "{} buffers were live, {} are with 4 more",
                before.buffers,
                during.buffers
            );
            drop(buffers);
            eventually("used memory returns to where it was", || {
                let after = context.device().memory()?;
                Ok(after.used_bytes <= before.used_bytes && after.buffers <= before.buffers)
            })
        },
    );
    tests.add("work-holds-its-buffers", "a buffer that is dropped stays until its work is over", |context| {
        let stream = context.stream()?;
        let target = context.upload(&stream, &[0; 64 << 10])?;
        for round in 0..200u64 {
            let temporary = context.upload(&stream, &[round as u8; 1 << 10])?;
            stream.copy(&target.slice((round % 64) << 10, 1 << 10)?, &temporary)?;
        }
        let got = download(&stream, &target)?;
        for (place, part) in got.chunks(1 << 10).enumerate() {
            let last = if place < 8 { 192 + place } else { 128 + place };
            same_bytes(part, &[last as u8; 1 << 10], "a part")?;
        }
        Ok(())
    });
    tests.add(
        "memory-goes-while-the-stream-stays",
        "what finished work held is freed, though its stream lives on",
        |context| {
            let stream = context.stream()?;
            let before = context.device().memory()?.used_bytes;
            for _ in 0..10 {
                let buffer = context.buffer(1 << 20)?;
                stream.fill(&buffer, &[1])?;
                drop(buffer);
                stream.synchronize()?;
            }
            eventually("used memory returns to where it was", || {
                Ok(context.device().memory()?.used_bytes <= before)
            })
        },
    );
    tests.add("allocates-in-many-threads", "eight threads may allocate and free at once", |context| {
        super::in_threads(8, |index| {
            let stream = context.stream()?;
            for round in 0..50usize {
                let value = (index * 50 + round) as u8;
                let buffer = context.upload(&stream, &vec![value; 1 + 97 * round])?;
                holds(&stream, &buffer, &vec![value; 1 + 97 * round], "the buffer")?;
            }
            Ok(())
        })
    });
}

fn fragmentation(tests: &mut Tests) {
    tests.add("a-thousand-small-buffers", "a thousand small buffers live side by side", |context| {
        let stream = context.stream()?;
        let buffers = (0..1000u32)
            .map(|value| context.upload_words(&stream, &[value, !value]))
            .collect::<Result<Vec<_>, _>>()?;
        for (value, buffer) in (0..1000u32).zip(&buffers).step_by(37) {
            crate::context::holds_words(&stream, buffer, &[value, !value], "a buffer")?;
        }
        Ok(())
    });
    tests.add(
        "holes-are-filled",
        "memory between live buffers is freed and taken again, and they keep their bytes",
        |context| {
            let stream = context.stream()?;
            let mut random = context.random();
            let mut live = Vec::new();
            for _ in 0..128 {
                let len = 1 + random.index(40_000);
                let bytes = random.bytes(len);
                live.push((context.upload(&stream, &bytes)?, bytes));
            }
            for round in 0..4 {
                // Every other one goes, and others of other sizes take the room.
                let mut index = 0;
                live.retain(|_| {
                    index += 1;
                    index % 2 == round % 2
                });
                stream.synchronize()?;
                while live.len() < 128 {
                    let len = 1 + random.index(60_000);
                    let bytes = random.bytes(len);
                    live.push((context.upload(&stream, &bytes)?, bytes));
                }
            }
            for (buffer, bytes) in &live {
                holds(&stream, buffer, bytes, "a buffer")?;
            }
            Ok(())
        },
    );
}

fn limits(tests: &mut Tests) {
    for (name, beyond) in [("one-byte-beyond-the-limit", 1), ("far-beyond-the-limit", 1 << 40)] {
        tests.add(
            format!("too-large-by-{name}"),
            "more than the device can ever allocate is too large, with the numbers",
            move |context| {
                let info = context.info();
                let limit = info.limits.max_allocation_bytes.min(info.memory_bytes);
                let requested = limit.saturating_add(beyond);
                refuse_as_too_large(context, requested, limit)
            },
        );
    }
    tests.add(
        "too-large-by-everything",
        "the largest number is too large, and overflows nothing",
        |context| {
            let info = context.info();
            let limit = info.limits.max_allocation_bytes.min(info.memory_bytes);
            refuse_as_too_large(context, u64::MAX, limit)
        },
    );
    tests.add("refusals-take-no-memory", "an allocation that is refused changes no account", |context| {
        let before = context.device().memory()?.used_bytes;
        for _ in 0..100 {
            ensure!(
                context.device().allocate(u64::MAX / 2, MemoryKind::Device).is_err(),
                "half of all bytes were given"
            );
        }
        ensure_eq!(context.device().memory()?.used_bytes, before, "used memory");
        Ok(())
    });
}

fn refuse_as_too_large(context: &Context, requested: u64, limit: u64) -> Outcome {
    let result = context.device().allocate(requested, MemoryKind::Device);
    let error = ensure_kind!(result, ErrorKind::TooLarge { .. }, "allocating {requested} bytes");
    ensure_eq!(*error.kind(), ErrorKind::TooLarge { requested, limit }, "the numbers");
    ensure!(!error.is_retryable(), "too large may be tried again: {error}");
    Ok(())
}

/// A device that is quickly full; one with much memory is left out.
fn small(context: &Context) -> Result<Device, Stop> {
    if let Some(open) = &context.target().small {
        return Ok(open(SMALL_BYTES)?);
    }
    let bytes = context.info().memory_bytes;
    if bytes > context.fill_limit_bytes {
        let limit = context.fill_limit_bytes;
        return Err(skipped(format!(
            "filling {bytes} bytes takes long, and memory of more than {limit} is not filled"
        )));
    }
    Ok(context.open()?)
}

/// Buffers that leave the device without room for `piece` more bytes.
fn fill_up(device: &Device, piece: u64) -> Result<(Vec<Buffer>, halite_hal::Error), Stop> {
    let mut buffers = Vec::new();
    loop {
        match device.allocate(piece, MemoryKind::Device) {
            Ok(buffer) => buffers.push(buffer),
            Err(error) => return Ok((buffers, error)),
        }
        let taken = buffers.len() as u64 * piece;
        if taken > device.info().memory_bytes {
            let total = device.info().memory_bytes;
            return Err(crate::outcome::failed(format!("{taken} bytes were given of {total}")));
        }
    }
}

/// A piece that fills the device in few steps.
fn piece_of(device: &Device) -> u64 {
    let info = device.info();
    (info.memory_bytes / 8).min(info.limits.max_allocation_bytes).max(1)
}

fn full(tests: &mut Tests) {
    tests.add(
        "full-is-out-of-memory",
        "a full device says what was asked for, and may be asked again",
        |context| {
            let device = small(context)?;
            let piece = piece_of(&device);
            let (buffers, error) = fill_up(&device, piece)?;
            let error = ensure_kind!(
                Err::<(), _>(error),
                ErrorKind::OutOfMemory { .. },
                "allocating {piece} bytes more"
            );
            let ErrorKind::OutOfMemory { requested, free } = *error.kind() else {
                unreachable!("the kind was compared")
            };
            // Layers may ask for a little more on their own account.
            ensure!(
                (piece..piece + 4096).contains(&requested),
                "{piece} bytes were asked for, the error says {requested}"
            );
            ensure!(free < device.info().memory_bytes, "{free} bytes are free on a full device");
            ensure!(error.is_retryable(), "out of memory is not retryable: {error}");
            ensure!(!buffers.is_empty(), "the device was full at once");
            Ok(())
        },
    );
    tests.add("full-recovers", "after something was freed, a full device has room again", |context| {
        let device = small(context)?;
        let piece = piece_of(&device);
        let (mut buffers, _) = fill_up(&device, piece)?;
        for _ in 0..4 {
            buffers.pop();
            let again = device.allocate(piece, MemoryKind::Device);
            buffers.push(again?);
            ensure_kind!(
                device.allocate(piece, MemoryKind::Device),
                ErrorKind::OutOfMemory { .. },
                "allocating on the full device"
            );
        }
        Ok(())
    });
    tests.add(
        "full-leaves-the-rest-alone",
        "buffers keep their bytes and work when there is no more room",
        |context| {
            let device = small(context)?;
            let piece = piece_of(&device);
            let stream = device.create_stream()?;
            let (buffers, _) = fill_up(&device, piece)?;
            for (value, buffer) in buffers.iter().enumerate() {
                stream.fill(&buffer.all(), &[value as u8])?;
            }
            ensure!(device.allocate(piece, MemoryKind::Device).is_err(), "the full device had room");
            for (value, buffer) in buffers.iter().enumerate() {
                holds(
                    &stream,
                    &buffer.slice(0, piece.min(1000))?,
                    &vec![value as u8; piece.min(1000) as usize],
                    "a buffer",
                )?;
            }
            Ok(())
        },
    );
    tests.add("full-and-empty-again", "everything that was taken comes back", |context| {
        let device = small(context)?;
        let piece = piece_of(&device);
        let mut counts = Vec::new();
        for _ in 0..4 {
            let (buffers, _) = fill_up(&device, piece)?;
            counts.push(buffers.len());
        }
        ensure!(
            counts.windows(2).all(|pair| pair[0] == pair[1]),
            "{counts:?} pieces fit, one time after the other"
        );
        Ok(())
    });
    tests.add("full-has-room-for-no-bytes", "no bytes may be allocated on a full device", |context| {
        let device = small(context)?;
        let (_buffers, _) = fill_up(&device, piece_of(&device))?;
        device.allocate(0, MemoryKind::Device)?;
        Ok(())
    });
    tests.add(
        "full-of-work-in-flight",
        "memory of dropped buffers is there again when their work is over",
        |context| {
            let device = small(context)?;
            let stream = device.create_stream()?;
            let limits = device.info();
            let half = (limits.memory_bytes / 8 * 5).min(limits.limits.max_allocation_bytes);
            if half * 2 <= limits.memory_bytes {
                return Err(skipped(
                    "two of the largest allocations fit the device's memory; it takes a largest one above half of it",
                ));
            }
            for value in 0..6u8 {
                let buffer = match device.allocate(half, MemoryKind::Device) {
                    // To wait is allowed, and not demanded; the caller then sees to it.
                    Err(error) if matches!(error.kind(), ErrorKind::OutOfMemory { .. }) => {
                        stream.synchronize()?;
                        device.allocate(half, MemoryKind::Device)?.all()
                    }
                    other => other?.all(),
                };
                stream.fill(&buffer, &[value])?;
                stream.fill(&buffer, &[value])?;
            }
            let event = stream.record()?;
            event.wait(Some(PATIENCE))?;
            Ok(())
        },
    );
    tests.add(
        "too-large-and-out-of-memory-differ",
        "what never fits is told from what does not fit now",
        |context| {
            let device = small(context)?;
            let (buffers, _) = fill_up(&device, piece_of(&device))?;
            let info = device.info();
            let largest = info.limits.max_allocation_bytes.min(info.memory_bytes);
            let beyond = device.allocate(largest + 1, MemoryKind::Device);
            ensure_kind!(beyond, ErrorKind::TooLarge { .. }, "one byte beyond the largest allocation");
            let now = device.allocate(largest, MemoryKind::Device);
            ensure_kind!(now, ErrorKind::OutOfMemory { .. }, "the largest allocation on a full device");
            drop(buffers);
            // Memory may take a moment to be noticed as free.
            std::thread::sleep(Duration::from_millis(1));
            device.allocate(piece_of(&device), MemoryKind::Device)?;
            Ok(())
        },
    );
}

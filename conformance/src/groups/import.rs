//! Memory of the host that the device uses in place: seen by both sides, held for as long as it is used, and no longer.

use super::Tests;
use super::list::record;
use crate::context::{Context, PATIENCE, eventually, holds, same_bytes};
use crate::outcome::{Outcome, Stop, skipped, unsupported};
use crate::program::TestKernel;
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    Arg, Buffer, DType, ErrorKind, HostMemory, MemoryKind, RecordedCommand, RecordedRange, Scalar, as_bytes,
    from_bytes,
};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) fn tests(tests: &mut Tests) {
    claims(tests);
    contents(tests);
    lifetimes(tests);
    uses(tests);
}

/// What imported memory begins at; a device that takes none leaves the test out.
fn alignment(context: &Context) -> Result<u64, Stop> {
    match context.info().limits.import_alignment_bytes {
        0 => Err(unsupported("the device takes no memory of the host in place")),
        alignment => Ok(alignment),
    }
}

/// Memory with these bytes, and the buffer over it.
fn import(context: &Context, bytes: &[u8]) -> Result<(HostMemory, Buffer), Stop> {
    alignment(context)?;
    let memory = HostMemory::zeroed(bytes.len())?;
    put(&memory, 0, bytes);
    let buffer = context.device().import(&memory)?;
    Ok((memory, buffer))
}

/// Writes from the host; no work uses the memory meanwhile.
fn put(memory: &HostMemory, offset: usize, bytes: &[u8]) {
    assert!(offset + bytes.len() <= memory.len_bytes(), "a test writes within its memory");
    // SAFETY: within the memory, by the check above; tests order this against the device's work.
    unsafe { memory.as_ptr().as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

/// What the host sees; no work writes the memory meanwhile.
fn get(memory: &HostMemory) -> Vec<u8> {
    // SAFETY: the memory is valid for its length; tests order this against the device's work.
    unsafe { std::slice::from_raw_parts(memory.as_ptr().as_ptr(), memory.len_bytes()) }.to_vec()
}

fn claims(tests: &mut Tests) {
    tests.add(
        "not-claimed-is-unsupported",
        "a device that claims no alignment of imported memory takes none",
        |context| {
            if context.info().limits.import_alignment_bytes != 0 {
                return Ok(());
            }
            let memory = HostMemory::zeroed(4096)?;
            ensure_kind!(context.device().import(&memory), ErrorKind::Unsupported, "an import");
            let empty = HostMemory::zeroed(0)?;
            ensure_kind!(context.device().import(&empty), ErrorKind::Unsupported, "an import of no bytes");
            Ok(())
        },
    );
    tests.add(
        "alignment-is-a-power-of-two",
        "the claimed alignment is one that memory can have",
        |context| {
            let alignment = alignment(context)?;
            ensure!(alignment.is_power_of_two() && alignment <= 1 << 20, "the alignment is {alignment}");
            Ok(())
        },
    );
    tests.add(
        "it-is-the-memory-itself",
        "the buffer is host-visible, at the memory's own address",
        |context| {
            let (memory, buffer) = import(context, &[1; 1000])?;
            ensure_eq!(buffer.kind(), MemoryKind::HostVisible, "the kind");
            ensure_eq!(buffer.len_bytes(), 1000, "the length");
            ensure_eq!(buffer.host_pointer(), Some(memory.as_ptr()), "the address");
            ensure!(buffer.device().is_same_opening(context.device().id()), "it is of {}", buffer.device());
            Ok(())
        },
    );
    tests.add(
        "no-bytes",
        "memory without bytes is imported, and used by commands that do nothing",
        |context| {
            let (_, buffer) = import(context, &[])?;
            ensure_eq!(buffer.len_bytes(), 0, "the length");
            let stream = context.stream()?;
            stream.fill(&buffer.all(), &[1])?;
            stream.write(&buffer.all(), Vec::new())?;
            Ok(stream.synchronize()?)
        },
    );
    tests.add("misaligned-is-refused", "memory that begins elsewhere is an invalid argument", |context| {
        let alignment = alignment(context)? as usize;
        if alignment == 1 {
            return Err(unsupported("the device takes memory at any address"));
        }
        let owner = HostMemory::zeroed(2 * alignment + 64)?;
        for offset in [1, alignment / 2] {
            // SAFETY: `offset` is below the length, and 64 bytes follow it; the owner keeps them.
            let memory = unsafe { HostMemory::from_raw(owner.as_ptr().add(offset), 64, owner.clone()) };
            let error =
                ensure_kind!(context.device().import(&memory), ErrorKind::InvalidArgument, "at {offset}");
            ensure!(
                error.message().contains(&alignment.to_string()),
                "the error does not name {alignment}: {error}"
            );
        }
        Ok(())
    });
    tests.add(
        "counts-as-no-memory-of-the-device",
        "imported memory changes nothing in what the device says is in use",
        |context| {
            alignment(context)?;
            let before = context.device().memory()?;
            let (_, buffer) = import(context, &[0; 100_000])?;
            let with = context.device().memory()?;
            ensure_eq!(with.used_bytes, before.used_bytes, "the bytes in use");
            ensure_eq!(with.buffers, before.buffers, "the buffers");
            drop(buffer);
            let after = context.device().memory()?;
            ensure_eq!((after.used_bytes, after.buffers), (before.used_bytes, before.buffers), "afterwards");
            Ok(())
        },
    );
}

fn contents(tests: &mut Tests) {
    for len in [1usize, 7, 64, 4093, 70_001] {
        tests.add(
            format!("the-device-sees-{len}-bytes"),
            "the device finds what the host wrote before",
            move |context| {
                let bytes = context.random().bytes(len);
                let (_memory, buffer) = import(context, &bytes)?;
                holds(&context.stream()?, &buffer.all(), &bytes, "the imported memory")
            },
        );
        tests.add(
            format!("the-host-sees-{len}-bytes"),
            "the host finds in its memory what the device wrote, and nothing else changes",
            move |context| {
                let (memory, buffer) = import(context, &vec![0xee; len + 2])?;
                let (bytes, stream) = (context.random().bytes(len), context.stream()?);
                stream.write(&buffer.slice(1, len as u64)?, bytes.clone())?;
                stream.synchronize()?;
                let seen = get(&memory);
                same_bytes(&seen[1..=len], &bytes, "the host's memory")?;
                ensure_eq!((seen[0], seen[len + 1]), (0xee, 0xee), "the bytes around");
                Ok(())
            },
        );
    }
    tests.add(
        "turns-are-taken",
        "host and device write in turns, and each sees the other's bytes",
        |context| {
            let (memory, buffer) = import(context, &[0; 333])?;
            let stream = context.stream()?;
            for round in 0..20u8 {
                put(&memory, 0, &[round; 333]);
                holds(&stream, &buffer.all(), &[round; 333], "what the host wrote")?;
                stream.fill(&buffer.all(), &[0x80 | round])?;
                stream.record()?.wait(Some(PATIENCE))?;
                same_bytes(&get(&memory), &[0x80 | round; 333], "what the device wrote")?;
            }
            Ok(())
        },
    );
    tests.add(
        "copies-to-and-from",
        "copies join imported memory and the device's own, at odd offsets",
        |context| {
            let bytes = context.random().bytes(5000);
            let (memory, buffer) = import(context, &bytes)?;
            let (own, stream) = (context.buffer(5000)?, context.stream()?);
            stream.fill(&own, &[0])?;
            stream.copy(&own.slice(13, 3001)?, &buffer.slice(7, 3001)?)?;
            stream.copy(&buffer.slice(3500, 1001)?, &own.slice(100, 1001)?)?;
            stream.copy(&buffer.slice(4600, 99)?, &buffer.slice(1, 99)?)?;
            stream.synchronize()?;
            let mut expected = bytes.clone();
            // Byte i of the own buffer is byte i - 6 of the imported one.
            expected[3500..4501].copy_from_slice(&bytes[94..1095]);
            let begin = expected[1..100].to_vec();
            expected[4600..4699].copy_from_slice(&begin);
            same_bytes(&get(&memory), &expected, "the imported memory")
        },
    );
    tests.add("a-large-one", "megabytes are imported as they are", |context| {
        let len = (16 << 20).min(context.info().limits.max_allocation_bytes as usize) | 1;
        let len = if len as u64 > context.info().limits.max_allocation_bytes { len - 1 } else { len };
        let (memory, buffer) = import(context, &context.random().bytes(len))?;
        let (own, stream) = (context.buffer(len)?, context.stream()?);
        stream.copy(&own, &buffer.all())?;
        holds(&stream, &own, &get(&memory), "the device's copy")
    });
}

/// An owner that tells when it is dropped.
struct Flag(Arc<AtomicBool>, #[expect(dead_code, reason = "held, not read")] HostMemory);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Memory whose end is told.
fn flagged(len: usize) -> Result<(HostMemory, Arc<AtomicBool>), Stop> {
    let (pages, gone) = (HostMemory::zeroed(len)?, Arc::new(AtomicBool::new(false)));
    let first: NonNull<u8> = pages.as_ptr();
    // SAFETY: the pages live in the owner, and nothing refers to their bytes.
    Ok((unsafe { HostMemory::from_raw(first, len, Flag(gone.clone(), pages)) }, gone))
}

fn goes(gone: &AtomicBool) -> Outcome {
    eventually("the owner of imported memory is dropped", || Ok(gone.load(Ordering::Acquire)))
}

fn lifetimes(tests: &mut Tests) {
    tests.add("goes-with-the-last-handle", "the memory's owner lives as long as a buffer does", |context| {
        alignment(context)?;
        let (memory, gone) = flagged(1000)?;
        let buffer = context.device().import(&memory)?;
        let slice = buffer.slice(10, 20)?;
        drop((memory, buffer));
        ensure!(!gone.load(Ordering::Acquire), "the owner is gone while a range is held");
        drop(slice);
        goes(&gone)
    });
    tests.add("work-holds-it", "the memory's owner lives until work that uses it is over", |context| {
        alignment(context)?;
        let (memory, gone) = flagged(1000)?;
        let buffer = context.device().import(&memory)?;
        let stream = context.stream()?;
        context.busy(&stream, Duration::from_millis(30))?;
        stream.fill(&buffer.all(), &[7])?;
        let (own, end) = (context.buffer(1000)?, {
            let before = stream.record()?;
            stream.copy(&context.buffer(1)?, &context.upload(&stream, &[1])?)?;
            before
        });
        stream.copy(&own, &buffer.all())?;
        drop((memory, buffer));
        if !end.is_done()? {
            ensure!(!gone.load(Ordering::Acquire), "the owner is gone while work uses the memory");
        }
        holds(&stream, &own, &[7; 1000], "what the work copied")?;
        stream.synchronize()?;
        goes(&gone)
    });
    tests.add(
        "outlives-the-device-handle",
        "imported memory stays usable after the device's handle",
        |context| {
            alignment(context)?;
            let device = context.open()?;
            let stream = device.create_stream()?;
            let (memory, gone) = flagged(100)?;
            let buffer = device.import(&memory)?;
            drop((device, memory));
            stream.fill(&buffer.all(), &[3])?;
            holds(&stream, &buffer.all(), &[3; 100], "the memory")?;
            drop((buffer, stream));
            goes(&gone)
        },
    );
    tests.add("again-after-its-end", "memory is imported again once its buffer is gone", |context| {
        alignment(context)?;
        let memory = HostMemory::zeroed(5000)?;
        let stream = context.stream()?;
        for round in 1..=5u8 {
            let mut buffer = None;
            // What held it may let go a little later, on a thread of the driver.
            eventually("the memory is imported again", || {
                buffer = context.device().import(&memory).ok();
                Ok(buffer.is_some())
            })?;
            let Some(buffer) = buffer else { continue };
            stream.fill(&buffer.all(), &[round])?;
            stream.synchronize()?;
            same_bytes(&get(&memory), &[round; 5000], "the memory")?;
        }
        Ok(())
    });
    tests.add(
        "not-twice-at-once",
        "memory that a buffer is over already is refused, and stays as it is",
        |context| {
            let (memory, buffer) = import(context, &[4; 100])?;
            for handle in [&memory, &memory.clone()] {
                let error = ensure_kind!(
                    context.device().import(handle),
                    ErrorKind::InvalidArgument,
                    "a second import"
                );
                ensure!(error.message().contains("imported already"), "the error does not say why: {error}");
            }
            holds(&context.stream()?, &buffer.all(), &[4; 100], "the memory")
        },
    );
    tests.add("many-at-once", "a hundred pieces of memory are imported side by side", |context| {
        let pairs = (0..100u8).map(|index| import(context, &[index; 100])).collect::<Result<Vec<_>, _>>()?;
        let stream = context.stream()?;
        for (index, (_, buffer)) in pairs.iter().enumerate().rev() {
            holds(&stream, &buffer.all(), &[index as u8; 100], "a piece")?;
        }
        Ok(())
    });
    tests.add("stays-within-an-opening", "another opening's streams refuse imported memory", |context| {
        let (_memory, buffer) = import(context, &[1; 64])?;
        let other = context.open()?;
        if other.id().is_same_opening(context.device().id()) {
            return Err(unsupported("the device is opened once, and its handles share everything"));
        }
        let stream = other.create_stream()?;
        ensure_kind!(stream.fill(&buffer.all(), &[2]), ErrorKind::InvalidArgument, "a fill");
        holds(&context.stream()?, &buffer.all(), &[1; 64], "the memory")
    });
    tests.add(
        "a-lost-device-takes-none",
        "a lost device imports nothing, and lets go of what it had",
        |context| {
            alignment(context)?;
            let Some(open) = &context.target().losing else {
                return Err(skipped("there is no way to lose this device on purpose"));
            };
            let device = open(60)?;
            let (memory, gone) = flagged(100)?;
            let buffer = device.import(&memory)?;
            let stream = device.create_stream()?;
            for value in 0..1000u32 {
                if stream.fill(&buffer.all(), &value.to_le_bytes()).is_err() {
                    break;
                }
            }
            ensure_kind!(stream.synchronize(), ErrorKind::DeviceLost, "the synchronisation");
            let other = HostMemory::zeroed(100)?;
            ensure_kind!(device.import(&other), ErrorKind::DeviceLost, "an import");
            drop((buffer, memory, stream, device));
            goes(&gone)
        },
    );
}

fn uses(tests: &mut Tests) {
    tests.add("kernels-use-it", "kernels read and write imported memory in place", |context| {
        alignment(context)?;
        let kernel = context.kernel(TestKernel::Affine)?;
        let words: Vec<u32> = (0..500).collect();
        let (_source, from) = import(context, as_bytes(&words))?;
        let (memory, to) = import(context, &[0; 2000])?;
        let stream = context.stream()?;
        let number = |value| Arg::from(Scalar::U32(value));
        let args = [from.all().into(), to.all().into(), number(500), number(3), number(1)];
        stream.launch(&kernel, [1, 1, 1], &args)?;
        stream.synchronize()?;
        let expected: Vec<u32> = words.iter().map(|word| word * 3 + 1).collect();
        ensure_eq!(from_bytes::<u32>(&get(&memory)), expected, "what the kernel wrote");
        Ok(())
    });
    tests.add("built-ins-use-it", "built-ins read and write imported memory in place", |context| {
        alignment(context)?;
        let operand = OperandDesc::contiguous(DType::F32, &[300]);
        let op = BuiltinOp::new(BuiltinKind::Add, vec![operand; 3])?;
        let add = context.builtin(op)?;
        let values: Vec<f32> = (0..300u16).map(f32::from).collect();
        let (_source, lhs) = import(context, as_bytes(&values))?;
        let (memory, out) = import(context, &[0; 1200])?;
        let stream = context.stream()?;
        let rhs = context.upload(&stream, as_bytes(&vec![0.5f32; 300]))?;
        context.run_builtin(&stream, &add, &[&lhs.all(), &rhs, &out.all()])?;
        stream.synchronize()?;
        let expected: Vec<f32> = values.iter().map(|value| value + 0.5).collect();
        ensure_eq!(from_bytes::<f32>(&get(&memory)), expected, "the sums");
        Ok(())
    });
    tests.add("lists-use-it", "recorded commands use imported memory, and hold it", |context| {
        alignment(context)?;
        let (memory, gone) = flagged(256)?;
        let buffer = context.device().import(&memory)?;
        let own = context.buffer(256)?;
        let fixed = |slice: &halite_hal::BufferSlice| RecordedRange::Fixed(slice.clone());
        let list = record(
            context,
            vec![
                RecordedCommand::Fill { dst: fixed(&buffer.all()), pattern: vec![1, 2] },
                RecordedCommand::Copy { dst: fixed(&own), src: fixed(&buffer.all()) },
            ],
        )?;
        drop((memory, buffer));
        let stream = context.stream()?;
        stream.replay(&list, &[], &[])?;
        holds(&stream, &own, &[1, 2].repeat(128), "the target")?;
        ensure!(!gone.load(Ordering::Acquire), "the owner is gone while a list uses the memory");
        drop(list);
        stream.synchronize()?;
        goes(&gone)
    });
}

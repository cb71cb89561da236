//! Copies between host and device and within the device: at any offset, of any length, and what is refused.

use super::Tests;
use crate::context::{Context, PATIENCE, download, holds, same_bytes};
use crate::outcome::Outcome;
use halite_hal::{BufferSlice, ErrorKind, HostBytes, Stream};
use std::sync::Arc;

/// Offsets and lengths around everything that a driver may align to.
const PLACES: [(usize, usize); 14] = [
    (0, 1),
    (0, 3),
    (0, 4096),
    (1, 1),
    (1, 2),
    (1, 255),
    (3, 64),
    (3, 4099),
    (5, 4),
    (7, 61),
    (63, 130),
    (64, 63),
    (255, 257),
    (4095, 4098),
];

/// Offset of the target, offset of the source, length.
const COPIES: [(usize, usize, usize); 14] = [
    (0, 0, 1),
    (0, 0, 4096),
    (1, 0, 3),
    (0, 1, 3),
    (1, 1, 255),
    (3, 5, 64),
    (5, 3, 4099),
    (7, 64, 61),
    (64, 7, 128),
    (63, 65, 1000),
    (2, 6, 4),
    (4, 12, 8),
    (255, 1, 257),
    (4095, 4097, 4098),
];

pub(super) fn tests(tests: &mut Tests) {
    for (offset, len) in PLACES {
        tests.add(
            format!("write-at-{offset}-len-{len}"),
            "a write changes its bytes and no other",
            move |context| write_at(context, offset, len),
        );
    }
    for (offset, len) in PLACES.into_iter().step_by(2) {
        tests.add(
            format!("read-at-{offset}-len-{len}"),
            "reads, blocking or not, give the bytes of their range",
            move |context| read_at(context, offset, len),
        );
    }
    for (to, from, len) in COPIES {
        tests.add(
            format!("copy-to-{to}-from-{from}-len-{len}"),
            "a copy moves its bytes and changes no other",
            move |context| copy_at(context, to, from, len),
        );
    }
    within_one_buffer(tests);
    host_side(tests);
    zero_bytes(tests);
    refusals(tests);
    tests.add("large", "16 MiB survive a write, a copy and a read", |context| {
        let len = ((16u64 << 20) + 7).min(context.info().limits.max_allocation_bytes / 3) as usize;
        let stream = context.stream()?;
        let expected = context.random().bytes(len);
        let first = context.upload(&stream, &expected)?;
        let second = context.buffer(len)?;
        stream.copy(&second, &first)?;
        holds(&stream, &second, &expected, "the copy")
    });
    tests.add("every-byte-value", "each value of a byte survives", |context| {
        let stream = context.stream()?;
        let bytes: Vec<u8> = (0..=255).collect();
        let buffer = context.upload(&stream, &bytes)?;
        holds(&stream, &buffer, &bytes, "the buffer")
    });
    tests.add("ring-of-64-buffers", "copies around a ring of buffers bring the bytes back", |context| {
        let stream = context.stream()?;
        let bytes = context.random().bytes(1021);
        let ring = (0..64).map(|_| context.upload(&stream, &[0; 1021])).collect::<Result<Vec<_>, _>>()?;
        stream.write(&ring[0], &bytes[..])?;
        for round in 0..128 {
            stream.copy(&ring[(round + 1) % 64], &ring[round % 64])?;
        }
        for buffer in &ring {
            holds(&stream, buffer, &bytes, "a buffer of the ring")?;
        }
        Ok(())
    });
}

fn write_at(context: &Context, offset: usize, len: usize) -> Outcome {
    let stream = context.stream()?;
    let mut random = context.random();
    let mut expected = random.bytes(offset + len + 67);
    let source = random.bytes(len);
    let buffer = context.upload(&stream, &expected)?;
    let part = buffer.slice(offset as u64, len as u64)?;
    stream.write(&part, &source[..])?;
    expected[offset..offset + len].copy_from_slice(&source);
    holds(&stream, &buffer, &expected, "after an asynchronous write, the buffer")?;
    let source = random.bytes(len);
    stream.write_blocking(&part, &source)?;
    expected[offset..offset + len].copy_from_slice(&source);
    holds(&stream, &buffer, &expected, "after a blocking write, the buffer")
}

fn read_at(context: &Context, offset: usize, len: usize) -> Outcome {
    let stream = context.stream()?;
    let bytes = context.random().bytes(offset + len + 67);
    let buffer = context.upload(&stream, &bytes)?;
    let part = buffer.slice(offset as u64, len as u64)?;
    let expected = &bytes[offset..offset + len];
    // The caller's memory around the target stays as it is.
    let mut around = vec![0x77; len + 2];
    stream.read_blocking(&part, &mut around[1..=len])?;
    same_bytes(&around[1..=len], expected, "the blocking read")?;
    ensure_eq!((around[0], around[len + 1]), (0x77, 0x77), "the bytes around the target");
    same_bytes(&stream.read(&part)?.wait()?, expected, "the asynchronous read")
}

fn copy_at(context: &Context, to: usize, from: usize, len: usize) -> Outcome {
    let stream = context.stream()?;
    let mut random = context.random();
    let (source, mut expected) = (random.bytes(from + len + 33), random.bytes(to + len + 65));
    let (src, dst) = (context.upload(&stream, &source)?, context.upload(&stream, &expected)?);
    stream.copy(&dst.slice(to as u64, len as u64)?, &src.slice(from as u64, len as u64)?)?;
    expected[to..to + len].copy_from_slice(&source[from..from + len]);
    holds(&stream, &dst, &expected, "the target")?;
    holds(&stream, &src, &source, "the source")
}

fn within_one_buffer(tests: &mut Tests) {
    for (name, to, from, len) in [
        ("copy-up-to-the-neighbour", 100, 0, 100),
        ("copy-down-to-the-neighbour", 0, 100, 100),
        ("copy-far-up", 501, 3, 95),
        ("copy-far-down", 2, 601, 99),
    ] {
        tests.add(
            name,
            "a copy within one buffer moves between ranges that do not overlap",
            move |context| {
                let stream = context.stream()?;
                let mut expected = context.random().bytes(700);
                let buffer = context.upload(&stream, &expected)?;
                stream.copy(&buffer.slice(to, len)?, &buffer.slice(from, len)?)?;
                let (to, from, len) = (to as usize, from as usize, len as usize);
                expected.copy_within(from..from + len, to);
                holds(&stream, &buffer, &expected, "the buffer")
            },
        );
    }
}

fn host_side(tests: &mut Tests) {
    tests.add("owned-bytes-of-every-form", "vectors, slices and shared bytes are written alike", |context| {
        let stream = context.stream()?;
        let bytes = context.random().bytes(333);
        let forms: [(&str, HostBytes); 3] = [
            ("a vector", bytes.clone().into()),
            ("a slice", bytes[..].into()),
            ("shared bytes", Arc::<[u8]>::from(&bytes[..]).into()),
        ];
        for (what, form) in forms {
            let buffer = context.upload(&stream, &[0; 333])?;
            stream.write(&buffer, form)?;
            holds(&stream, &buffer, &bytes, what)?;
        }
        Ok(())
    });
    tests.add(
        "host-bytes-may-go-at-once",
        "a write holds its bytes for as long as it needs them",
        |context| {
            let stream = context.stream()?;
            let buffers = (0..64u8).map(|_| context.buffer(10_007)).collect::<Result<Vec<_>, _>>()?;
            for (value, buffer) in (0..64u8).zip(&buffers) {
                stream.write(buffer, vec![value; 10_007])?;
                // Memory that was freed too early would be taken by this.
                drop(std::hint::black_box(vec![0xff_u8; 10_007]));
            }
            for (value, buffer) in (0..64u8).zip(&buffers) {
                holds(&stream, buffer, &[value; 10_007], "a buffer")?;
            }
            Ok(())
        },
    );
    for len in [5usize, 4096, 1 << 20] {
        tests.add(
            format!("borrowed-bytes-are-free-again-len-{len}"),
            "when a blocking write returns, its bytes may change",
            move |context| {
                let stream = context.stream()?;
                let (buffer, mut host) = (context.buffer(len)?, vec![0; len]);
                let mut copies = Vec::new();
                for value in 1..=8u8 {
                    host.fill(value);
                    stream.write_blocking(&buffer, &host)?;
                    let copy = context.buffer(len)?;
                    stream.copy(&copy, &buffer)?;
                    copies.push(copy);
                }
                host.fill(0);
                for (value, copy) in (1..=8u8).zip(&copies) {
                    holds(&stream, copy, &vec![value; len], "a copy")?;
                }
                Ok(())
            },
        );
    }
    tests.add("reads-come-in-any-order", "asynchronous reads may be taken in any order", |context| {
        let stream = context.stream()?;
        let buffer = context.buffer(257)?;
        let mut reads = Vec::new();
        for value in 0..50u8 {
            stream.fill(&buffer, &[value])?;
            reads.push((value, stream.read(&buffer)?));
        }
        let mut random = context.random();
        while !reads.is_empty() {
            let (value, read) = reads.swap_remove(random.index(reads.len()));
            same_bytes(&read.wait()?, &[value; 257], "a read")?;
        }
        Ok(())
    });
    tests.add("reads-may-be-dropped", "a read that nobody waits for harms nobody", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[7; 100_003])?;
        for _ in 0..32 {
            drop(stream.read(&buffer)?);
        }
        stream.synchronize()?;
        holds(&stream, &buffer, &[7; 100_003], "the buffer")
    });
    tests.add("a-read-has-an-event", "the event of a read is done when its bytes are there", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[9; 4099])?;
        let read = stream.read(&buffer)?;
        read.event().wait(Some(PATIENCE))?;
        ensure!(read.event().is_done()?, "the event is not done after its wait");
        same_bytes(&read.wait()?, &[9; 4099], "the read")
    });
    tests.add(
        "a-read-sees-what-is-before-it",
        "a blocking read comes behind everything enqueued",
        |context| {
            let stream = context.stream()?;
            let buffer = context.buffer(1 << 16)?;
            for value in 0..100u8 {
                stream.fill(&buffer, &[value])?;
                let expected = vec![value; 1 << 16];
                holds(&stream, &buffer, &expected, "the buffer")?;
            }
            Ok(())
        },
    );
    tests.add("a-read-keeps-what-it-saw", "later commands do not change what a read took", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[1; 1 << 18])?;
        let read = stream.read(&buffer)?;
        stream.fill(&buffer, &[2])?;
        stream.synchronize()?;
        same_bytes(&read.wait()?, &vec![1; 1 << 18], "the read")
    });
}

fn zero_bytes(tests: &mut Tests) {
    type Call = fn(&Stream, &BufferSlice) -> Outcome;
    let calls: [(&str, Call); 5] = [
        ("zero-byte-write", |stream, empty| Ok(stream.write(empty, Vec::new())?)),
        ("zero-byte-blocking-write", |stream, empty| Ok(stream.write_blocking(empty, &[])?)),
        ("zero-byte-blocking-read", |stream, empty| Ok(stream.read_blocking(empty, &mut [])?)),
        ("zero-byte-read", |stream, empty| same_bytes(&stream.read(empty)?.wait()?, &[], "the read")),
        ("zero-byte-copy", |stream, empty| Ok(stream.copy(empty, empty)?)),
    ];
    for (name, call) in calls {
        tests.add(name, "no bytes are legal, of empty buffers and at every offset", move |context| {
            let stream = context.stream()?;
            let full = context.upload(&stream, &[3; 10])?;
            for empty in [context.buffer(0)?, full.slice(0, 0)?, full.slice(5, 0)?, full.slice(10, 0)?] {
                call(&stream, &empty)?;
            }
            stream.synchronize()?;
            holds(&stream, &full, &[3; 10], "the buffer")
        });
    }
}

fn refusals(tests: &mut Tests) {
    for (name, to, from) in
        [("overlap-of-all", 0, 0), ("overlap-of-one-byte-below", 31, 0), ("overlap-of-one-byte-above", 0, 31)]
    {
        tests.add(
            format!("refuses-{name}"),
            "a copy between ranges that overlap is an invalid argument, and the stream goes on",
            move |context| {
                let stream = context.stream()?;
                let bytes = context.random().bytes(64);
                let buffer = context.upload(&stream, &bytes)?;
                let copy = stream.copy(&buffer.slice(to, 32)?, &buffer.slice(from, 32)?);
                ensure_kind!(copy, ErrorKind::InvalidArgument, "the copy");
                stream.synchronize()?;
                holds(&stream, &buffer, &bytes, "the buffer")
            },
        );
    }
    tests.add("refuses-other-lengths", "host and device ranges of a transfer have one length", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[4; 8])?;
        for len in [0usize, 7, 9] {
            ensure_kind!(stream.write(&buffer, vec![0; len]), ErrorKind::InvalidArgument, "a write of {len}");
            let result = stream.write_blocking(&buffer, &vec![0; len]);
            ensure_kind!(result, ErrorKind::InvalidArgument, "a blocking write of {len}");
            let result = stream.read_blocking(&buffer, &mut vec![0; len]);
            ensure_kind!(result, ErrorKind::InvalidArgument, "a blocking read of {len}");
        }
        let other = context.upload(&stream, &[5; 9])?;
        ensure_kind!(stream.copy(&buffer, &other), ErrorKind::InvalidArgument, "a copy of 9 bytes to 8");
        same_bytes(&download(&stream, &buffer)?, &[4; 8], "the buffer")
    });
    tests.add("refuses-ranges-outside", "a range outside of its buffer cannot be made", |context| {
        let buffer = context.buffer(64)?;
        for (offset, len) in
            [(0, 65), (64, 1), (65, 0), (1, 64), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)]
        {
            let slice = buffer.slice(offset, len);
            ensure_kind!(slice, ErrorKind::InvalidArgument, "{len} bytes at offset {offset} of 64");
        }
        ensure_eq!(buffer.slice(64, 0)?.len_bytes(), 0, "the empty range at the end");
        Ok(())
    });
}

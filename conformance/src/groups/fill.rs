//! Fills: patterns of every length over ranges of every size, and what is refused.

use super::Tests;
use crate::context::{download, holds, same_bytes};
use halite_hal::ErrorKind;

const PATTERN: [u8; 8] = [0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x07, 0x18];
/// What lies around the filled range.
const AROUND: u8 = 0x5a;

pub(super) fn tests(tests: &mut Tests) {
    for width in [1usize, 2, 4, 8] {
        for (offset, count) in [(0usize, 1usize), (1, 3), (3, 509), (0, 4096)] {
            let (offset, len) = (offset * width, count * width);
            tests.add(
                format!("pattern-of-{width}-at-{offset}-len-{len}"),
                format!("a pattern of {width} bytes repeats over exactly its range"),
                move |context| {
                    let stream = context.stream()?;
                    let mut expected = vec![AROUND; offset + len + 24];
                    let buffer = context.upload(&stream, &expected)?;
                    stream.fill(&buffer.slice(offset as u64, len as u64)?, &PATTERN[..width])?;
                    expected[offset..offset + len].copy_from_slice(&PATTERN[..width].repeat(count));
                    holds(&stream, &buffer, &expected, "the buffer")
                },
            );
        }
    }
    tests.add("offset-is-the-buffers", "patterns begin at the range, not at the buffer", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[AROUND; 64])?;
        // A slice of a slice: offsets add up.
        let part = buffer.slice(8, 48)?.slice(16, 16)?;
        stream.fill(&part, &PATTERN)?;
        let mut expected = [AROUND; 64];
        expected[24..40].copy_from_slice(&PATTERN.repeat(2));
        holds(&stream, &buffer, &expected, "the buffer")
    });
    tests.add("large", "a fill of 16 MiB is whole", |context| {
        let len = (16u64 << 20).min(context.info().limits.max_allocation_bytes) as usize & !7;
        let stream = context.stream()?;
        let buffer = context.buffer(len)?;
        stream.fill(&buffer, &PATTERN)?;
        let got = download(&stream, &buffer)?;
        same_bytes(&got, &PATTERN.repeat(len / 8), "the buffer")
    });
    tests.add("zero-bytes", "a fill of no bytes is legal and changes nothing", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[AROUND; 16])?;
        for offset in [0, 8, 16] {
            stream.fill(&buffer.slice(offset, 0)?, &PATTERN)?;
        }
        stream.fill(&context.buffer(0)?, &[1])?;
        stream.synchronize()?;
        holds(&stream, &buffer, &[AROUND; 16], "the buffer")
    });
    tests.add("last-one-wins", "fills of one range take effect in order", |context| {
        let stream = context.stream()?;
        let buffer = context.buffer(4099)?;
        for value in 0..=255u8 {
            stream.fill(&buffer, &[value])?;
        }
        holds(&stream, &buffer, &[255; 4099], "the buffer")
    });
    tests.add(
        "overlapping-ranges-in-order",
        "fills of ranges that overlap take effect in order",
        |context| {
            let stream = context.stream()?;
            let mut expected = vec![0u8; 1024];
            let buffer = context.upload(&stream, &expected)?;
            let mut random = context.random();
            for round in 0..200u8 {
                let begin = random.index(1024);
                let len = random.index(1024 - begin) + 1;
                stream.fill(&buffer.slice(begin as u64, len as u64)?, &[round])?;
                expected[begin..begin + len].fill(round);
            }
            holds(&stream, &buffer, &expected, "the buffer")
        },
    );
    for len in [0usize, 3, 5, 7, 9, 16] {
        tests.add(
            format!("refuses-patterns-of-{len}"),
            format!("a pattern of {len} bytes is an invalid argument, and the stream goes on"),
            move |context| {
                let stream = context.stream()?;
                let buffer = context.upload(&stream, &[AROUND; 240])?;
                let pattern = vec![1; len];
                ensure_kind!(stream.fill(&buffer, &pattern), ErrorKind::InvalidArgument, "the fill");
                stream.synchronize()?;
                holds(&stream, &buffer, &[AROUND; 240], "the buffer")
            },
        );
    }
    for width in [2u64, 4, 8] {
        tests.add(
            format!("refuses-what-{width}-does-not-divide"),
            format!("offset and length of a pattern of {width} bytes are multiples of it"),
            move |context| {
                let stream = context.stream()?;
                let buffer = context.upload(&stream, &[AROUND; 64])?;
                let pattern = &PATTERN[..width as usize];
                for (offset, len) in
                    [(0, width + 1), (1, width), (width - 1, 2 * width), (width, 2 * width - 1)]
                {
                    let part = buffer.slice(offset, len)?;
                    ensure_kind!(
                        stream.fill(&part, pattern),
                        ErrorKind::InvalidArgument,
                        "{len} bytes at offset {offset}"
                    );
                }
                stream.synchronize()?;
                holds(&stream, &buffer, &[AROUND; 64], "the buffer")
            },
        );
    }
}

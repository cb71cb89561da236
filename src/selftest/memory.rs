//! Transfers, copies, fills, order and events, straight through the HAL.

use super::Notes;
use halite_hal::{Device, Event, MemoryKind, Result, Stream};
use std::time::Duration;

/// Lengths around everything that a driver may align to, and one of several pages.
const LENGTHS: [usize; 8] = [0, 1, 3, 255, 256, 4096, 4099, (1 << 20) + 7];
/// Longer than anything here takes on any device.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn run(device: &Device, notes: &mut Notes<'_>) {
    let stream = match device.create_stream() {
        Ok(stream) => stream,
        Err(error) => return notes.fail("a stream", error),
    };
    let mut case = |name: &str, check: &dyn Fn(&Device, &Stream) -> Result<Option<String>>| {
        notes.begin(name);
        match check(device, &stream) {
            Ok(None) => notes.pass(),
            Ok(Some(difference)) => notes.fail(name, difference),
            Err(error) => notes.fail(name, error),
        }
    };
    for len in LENGTHS {
        case(&format!("write and read {len} bytes"), &|device, stream| round_trip(device, stream, len));
    }
    for len in LENGTHS {
        case(&format!("copy {len} bytes between offsets"), &|device, stream| {
            copy_at_offsets(device, stream, len)
        });
    }
    for pattern in [&[0xa5u8][..], &[1, 2], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8]] {
        case(&format!("fill with {} bytes", pattern.len()), &|device, stream| fill(device, stream, pattern));
    }
    case("commands of a stream run in order", &order);
    case("a stream waits for another one's event", &cross_stream);
    case("events come in the order of their times", &times);
    case("freed memory returns", &memory_returns);
    // What a failed case left enqueued must not hold memory that the next suite needs.
    if let Err(error) = stream.synchronize() {
        notes.fail("the end of the suite", error);
    }
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) as u8).collect()
}

/// Where two byte strings differ first.
fn difference(got: &[u8], expected: &[u8]) -> Option<String> {
    let place = got.iter().zip(expected).position(|(got, expected)| got != expected)?;
    Some(format!("byte {place} of {} is {}, expected {}", got.len(), got[place], expected[place]))
}

fn round_trip(device: &Device, stream: &Stream, len: usize) -> Result<Option<String>> {
    let buffer = device.allocate(len as u64, MemoryKind::Device)?;
    let expected = bytes(len, 1);
    stream.write(&buffer.all(), expected.clone())?;
    let mut got = vec![0; len];
    stream.read_blocking(&buffer.all(), &mut got)?;
    Ok(difference(&got, &expected))
}

fn copy_at_offsets(device: &Device, stream: &Stream, len: usize) -> Result<Option<String>> {
    let align = device.info().limits.offset_alignment_bytes as usize;
    let whole = len + 2 * align;
    let (from, to) = (
        device.allocate(whole as u64, MemoryKind::Device)?,
        device.allocate(whole as u64, MemoryKind::Device)?,
    );
    let (source, mut expected) = (bytes(whole, 2), bytes(whole, 3));
    stream.write(&from.all(), source.clone())?;
    stream.write(&to.all(), expected.clone())?;
    stream.copy(&to.slice(2 * align as u64, len as u64)?, &from.slice(align as u64, len as u64)?)?;
    expected[2 * align..].copy_from_slice(&source[align..align + len]);
    let mut got = vec![0; whole];
    stream.read_blocking(&to.all(), &mut got)?;
    Ok(difference(&got, &expected))
}

fn fill(device: &Device, stream: &Stream, pattern: &[u8]) -> Result<Option<String>> {
    let len = pattern.len() * 1031;
    let buffer = device.allocate(len as u64, MemoryKind::Device)?;
    stream.fill(&buffer.all(), pattern)?;
    let mut got = vec![0; len];
    stream.read_blocking(&buffer.all(), &mut got)?;
    Ok(difference(&got, &pattern.repeat(1031)))
}

fn order(device: &Device, stream: &Stream) -> Result<Option<String>> {
    const LEN: usize = 4096;
    let (a, b) =
        (device.allocate(LEN as u64, MemoryKind::Device)?, device.allocate(LEN as u64, MemoryKind::Device)?);
    for round in 0..100u8 {
        stream.fill(&a.all(), &[round])?;
        stream.copy(&b.all(), &a.all())?;
        stream.fill(&a.all(), &[255])?;
    }
    let mut got = vec![0; LEN];
    stream.read_blocking(&b.all(), &mut got)?;
    Ok(difference(&got, &[99; LEN]))
}

fn cross_stream(device: &Device, stream: &Stream) -> Result<Option<String>> {
    const LEN: usize = 1 << 16;
    let other = device.create_stream()?;
    let buffer = device.allocate(LEN as u64, MemoryKind::Device)?;
    for round in 0..20u8 {
        stream.fill(&buffer.all(), &[round])?;
        let filled = stream.record()?;
        other.wait(&filled)?;
        let mut got = vec![0; LEN];
        other.read_blocking(&buffer.all(), &mut got)?;
        if let Some(difference) = difference(&got, &[round; LEN]) {
            return Ok(Some(format!("round {round}: {difference}")));
        }
    }
    Ok(None)
}

fn times(device: &Device, stream: &Stream) -> Result<Option<String>> {
    let buffer = device.allocate(1 << 20, MemoryKind::Device)?;
    let mut events: Vec<Event> = vec![stream.record()?];
    for round in 0..8 {
        stream.fill(&buffer.all(), &[round])?;
        events.push(stream.record()?);
    }
    let last = &events[events.len() - 1];
    last.wait(Some(PATIENCE))?;
    for (number, event) in events.iter().enumerate() {
        if !event.is_done()? {
            return Ok(Some(format!("event {number} is not done, but the last one is")));
        }
    }
    let whole = last.elapsed_since(&events[0])?;
    let parts = events.windows(2).map(|pair| pair[1].elapsed_since(&pair[0])).sum::<Result<Duration>>()?;
    // Readings are rounded one by one.
    let slack = Duration::from_micros(events.len() as u64);
    if parts > whole + slack || whole > parts + slack {
        return Ok(Some(format!("the parts take {parts:?}, the whole {whole:?}")));
    }
    Ok(None)
}

fn memory_returns(device: &Device, stream: &Stream) -> Result<Option<String>> {
    stream.synchronize()?;
    let before = device.memory()?.used_bytes;
    for _ in 0..10 {
        let buffer = device.allocate(1 << 20, MemoryKind::Device)?;
        stream.fill(&buffer.all(), &[1])?;
        drop(buffer);
        // The fill holds the buffer until it is done; a small device has no room for ten.
        stream.synchronize()?;
    }
    // Buffers go when the last command that uses them is done, which other threads may still be noting.
    for _ in 0..1000 {
        if device.memory()?.used_bytes <= before {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Some(format!("{} bytes are in use, {before} were before", device.memory()?.used_bytes)))
}

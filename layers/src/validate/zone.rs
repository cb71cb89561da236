//! Red zones: bytes behind the end of a buffer that nobody may touch.
//!
//! The layer asks for [`BYTES`] more than the caller did, fills them with a pattern, and gives out a handle that does
//! not show them. What is given back is looked at: at once where the host addresses the memory, and otherwise when the
//! caller next waits, through a stream of the layer's own.
//!
//! What was found intact serves the next allocation of the same length. Pools reuse nothing inside of this layer, and to
//! ask a driver for every intermediate value of every step would cost more than all checks together.

use super::finding::FindingKind;
use super::object::Object;
use super::place::Place;
use super::report::Draft;
use super::state::State;
use super::{host, lock};
use halite_hal::driver::HostBytes;
use halite_hal::{Buffer, Device, MemoryKind, Result, Stream};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Length of a zone.
pub(super) const BYTES: u64 = 64;

/// What lies in an untouched zone: neither zeros, nor ones, nor one byte again and again, nor a common float.
pub(super) const PATTERN: [u8; BYTES as usize] = {
    let mut pattern = [0; BYTES as usize];
    let mut i = 0;
    while i < pattern.len() {
        pattern[i] = (i as u8).wrapping_mul(37) ^ 0xA5;
        i += 1;
    }
    pattern
};

/// Given-back buffers that wait for a look; with this many, the next allocation looks.
pub(super) const MOST_GRAVES: usize = 256;

/// A device that does not show a few bytes within this time will not show them at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// The zones of one device.
#[derive(Default)]
pub(super) struct Zones {
    is_on: AtomicBool,
    /// Bytes of zones that the device holds now.
    bytes: AtomicU64,
    /// Carries patterns to the device and back. Apart from the caller's, whose failures are none of ours.
    stream: Mutex<Option<Stream>>,
    graves: Mutex<Vec<(Buffer, Suspect)>>,
    spares: Mutex<Spares>,
}

/// Memory with intact zones that nobody uses, by kind and length without the zone.
#[derive(Default)]
struct Spares {
    memory: HashMap<(MemoryKind, u64), Vec<Buffer>>,
    bytes: u64,
    count: u64,
}

/// Beyond this all spare memory goes back to the driver.
const MOST_SPARE_BYTES: u64 = 256 << 20;

/// A buffer that the caller has given back.
pub(super) struct Grave {
    /// With its zone.
    pub(super) memory: Buffer,
    /// `None` when its zone is known to be broken.
    pub(super) suspect: Option<Suspect>,
}

/// A zone to look at, and what to say if it is broken.
#[derive(Clone)]
pub(super) struct Suspect {
    /// The buffer's id.
    pub(super) id: u64,
    /// Where the zone begins.
    pub(super) len: u64,
    pub(super) origin: Arc<Place>,
    /// The kernel that was last given the buffer to write.
    pub(super) kernel: Option<Arc<str>>,
}

impl Zones {
    /// Learns whether the device keeps what is written: some, for tests, do not.
    pub(super) fn probe(&self, device: &Device, memory: &Buffer) {
        let keeps = memory.host_pointer().is_some()
            || device.create_stream().is_ok_and(|stream| {
                let kept = keep(&stream, memory).is_ok_and(|bytes| bytes == PATTERN);
                *lock(&self.stream) = Some(stream);
                kept
            });
        self.is_on.store(keeps, Ordering::Relaxed);
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Marks the zone behind the first `len` bytes; whether that worked.
    pub(super) fn mark(&self, memory: &Buffer, len: u64) -> bool {
        let marked = host::mark(memory, len)
            || memory.slice(len, BYTES).is_ok_and(|zone| {
                let stream = lock(&self.stream);
                stream.as_ref().is_some_and(|stream| stream.write(&zone, pattern()).is_ok())
            });
        // The bytes count in either case: they are there.
        self.bytes.fetch_add(BYTES, Ordering::Relaxed);
        marked
    }

    /// The memory goes, and the zone with it.
    fn release(&self, memory: Buffer) {
        drop(memory);
        self.bytes.fetch_sub(BYTES, Ordering::Relaxed);
    }

    /// Keeps memory whose zone is intact for the next allocation of its length.
    fn spare(&self, memory: Buffer, len: u64) {
        let mut spares = lock(&self.spares);
        let surplus = if spares.bytes + len > MOST_SPARE_BYTES {
            std::mem::take(&mut *spares)
        } else {
            Spares::default()
        };
        spares.bytes += len;
        spares.count += 1;
        spares.memory.entry((memory.kind(), len)).or_default().push(memory);
        drop(spares);
        self.release_all(surplus);
    }

    /// Memory of this length that was used before; its zone is marked.
    pub(super) fn reuse(&self, kind: MemoryKind, len: u64) -> Option<Buffer> {
        let mut spares = lock(&self.spares);
        let memory = spares.memory.get_mut(&(kind, len))?.pop()?;
        spares.bytes -= len;
        spares.count -= 1;
        Some(memory)
    }

    /// Bytes and number of spare buffers, without zones.
    pub(super) fn spares(&self) -> (u64, u64) {
        let spares = lock(&self.spares);
        (spares.bytes, spares.count)
    }

    /// Gives spare memory back to the driver.
    pub(super) fn release_spares(&self) {
        let spares = std::mem::take(&mut *lock(&self.spares));
        self.release_all(spares);
    }

    fn release_all(&self, spares: Spares) {
        spares.memory.into_values().flatten().for_each(|memory| self.release(memory));
    }

    /// Looks into several zones, `None` where the device does not show them.
    fn look(&self, zones: &[(&Buffer, u64)]) -> Vec<Option<Vec<u8>>> {
        let mut own = lock(&self.stream);
        let Some(stream) = own.as_ref() else { return vec![None; zones.len()] };
        let reads = zones.iter().map(|(memory, len)| stream.read(&memory.slice(*len, BYTES)?));
        let reads: Vec<_> = reads.collect();
        let last = reads.iter().rev().find_map(|read| read.as_ref().ok());
        let is_there = last.is_some_and(|read| read.event().wait(Some(PATIENCE)).is_ok());
        if !is_there {
            // It hangs, is lost, or fails: no verdict, now and from now on.
            self.is_on.store(false, Ordering::Relaxed);
            *own = None;
            return vec![None; zones.len()];
        }
        reads.into_iter().map(|read| read.and_then(|read| read.wait()).ok()).collect()
    }
}

impl State {
    /// Takes back a buffer with a zone. Never blocks: it may be dropped anywhere.
    pub(super) fn bury(&self, grave: Grave) {
        let Grave { memory, suspect } = grave;
        let Some(suspect) = suspect else { return self.zones.release(memory) };
        match host::zone(&memory, suspect.len) {
            Some(bytes) => {
                let is_broken = self.judge(&suspect, &bytes);
                self.put_away(memory, suspect.len, is_broken);
            }
            // After the device is closed nobody would look again.
            None if self.is_lost() || self.is_closed() || !self.zones.is_on() => self.zones.release(memory),
            None => lock(&self.zones.graves).push((memory, suspect)),
        }
    }

    /// Looks at what was given back, and frees it. May wait for the layer's own copies.
    pub(super) fn exhume(&self) {
        let graves = std::mem::take(&mut *lock(&self.zones.graves));
        if graves.is_empty() {
            return;
        }
        if !self.is_lost() {
            let zones: Vec<_> = graves.iter().map(|(memory, suspect)| (memory, suspect.len)).collect();
            let looks = self.zones.look(&zones);
            for ((memory, suspect), bytes) in graves.into_iter().zip(looks) {
                let is_broken = bytes.is_none_or(|bytes| self.judge(&suspect, &bytes));
                self.put_away(memory, suspect.len, is_broken);
            }
            return;
        }
        graves.into_iter().for_each(|(memory, _)| self.zones.release(memory));
    }

    fn put_away(&self, memory: Buffer, len: u64, is_broken: bool) {
        if is_broken || self.is_lost() || self.is_closed() {
            self.zones.release(memory);
        } else {
            self.zones.spare(memory, len);
        }
    }

    /// How many buffers were given back and not looked at yet.
    pub(super) fn graves(&self) -> usize {
        lock(&self.zones.graves).len()
    }

    /// Looks at zones of live buffers; which of them are broken.
    pub(super) fn inspect(&self, zones: &[(&Buffer, Suspect)]) -> Vec<bool> {
        let mut broken = vec![false; zones.len()];
        let mut remote = Vec::new();
        for (index, (memory, suspect)) in zones.iter().enumerate() {
            match host::zone(memory, suspect.len) {
                Some(bytes) => broken[index] = self.judge(suspect, &bytes),
                None => remote.push(index),
            }
        }
        if remote.is_empty() || self.is_lost() || !self.zones.is_on() {
            return broken;
        }
        let asked: Vec<_> = remote.iter().map(|&index| (zones[index].0, zones[index].1.len)).collect();
        for (index, bytes) in remote.into_iter().zip(self.zones.look(&asked)) {
            broken[index] = bytes.is_some_and(|bytes| self.judge(&zones[index].1, &bytes));
        }
        broken
    }

    /// Reports a zone that is not as it was; whether it is broken.
    fn judge(&self, suspect: &Suspect, bytes: &[u8]) -> bool {
        let is_changed = |index: &usize| bytes.get(*index) != PATTERN.get(*index);
        let mut changed = (0..PATTERN.len()).filter(is_changed);
        let Some(first) = changed.next() else { return false };
        let last = changed.next_back().unwrap_or(first);
        let Suspect { id, len, origin, kernel } = suspect;
        let (from, to) = (len + first as u64, len + last as u64);
        let by = match kernel {
            Some(kernel) => format!("the last kernel that was given it to write is '{kernel}'"),
            None => "no kernel was given it to write, so a copy or the host went too far".to_owned(),
        };
        self.reporter.report(Draft {
            kind: FindingKind::RedZone,
            key: format!("{kernel:?}"),
            object: Object::Buffer(*id, *len).to_string(),
            message: format!("bytes {from} to {to} were overwritten, behind the end at {len}; {by}"),
            origin: Some(origin.clone()),
            remedy: "compare the kernel's indices with the length of its argument, and the grid with what it covers"
                .to_owned(),
        });
        true
    }
}

/// Writes the pattern and reads it back, within a limit.
fn keep(stream: &Stream, memory: &Buffer) -> Result<Vec<u8>> {
    stream.write(&memory.all(), pattern())?;
    let read = stream.read(&memory.all())?;
    read.event().wait(Some(PATIENCE))?;
    read.wait()
}

fn pattern() -> HostBytes {
    static SHARED: OnceLock<Arc<[u8]>> = OnceLock::new();
    SHARED.get_or_init(|| Arc::from(PATTERN)).clone().into()
}

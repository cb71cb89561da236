//! A plugin, linked into the fuzz target `plugin_table`, that answers whatever an input says.
//!
//! It may lie in every value: statuses, texts, counts, claims, handles, addresses, completions. It keeps the interface's
//! rules about memory, and holds the host to its own: work stays in the plugin until it has reported that the work is
//! over, and touches the host's memory as late as that. So memory that the loader frees too early is seen by the
//! sanitizer, and handles that it gives back too early, twice or never are seen here; a panic in any function ends the
//! process.
//!
//! Each call takes a byte of the answers, which says whether it is honest, refuses, reports a success without a result,
//! or lies; zeros are honest, and so is the plugin whose answers have run out.

mod calls;

pub use calls::entry;

use calls::TABLE;
use halite_hal::plugin::{
    ABI_MAJOR, ChangedTable, Error, FUNCTIONS, Plugin, STATUS_DEVICE_LOST, STATUS_OK, Status, TableChange,
    set_fixed_text,
};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_char;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What every copy from the device writes, so that the target sees whether it has taken place.
pub const MARK: u8 = 0xA5;
/// How long a call takes that does not come back in time; the target's limit is below it.
pub const HANG: Duration = Duration::from_millis(40);
/// Blocks of the host's memory are no longer than this.
const LONGEST_BLOCK: u64 = 1 << 16;
/// Alignment of the blocks; more than the interface demands, less than a plugin may claim.
const BLOCK_ALIGNMENT: usize = 256;
/// The code of f32.
const F32: u32 = 11;

/// How the plugin starts, and what its table looks like, as the first bytes of an input say. Most values of most bytes
/// are harmless, so that inputs reach what lies behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Start {
    /// What the entry does: 0 to 199 are a success with a table.
    entry: u8,
    /// What `size_by` means: 0 to 199 are the right size.
    size: u8,
    size_by: u8,
    /// The right one up to 239.
    major: u8,
    minor: u8,
    /// From 128 on, bits that the plugin does not claim though it could.
    clear: u8,
    set: u8,
    /// Functions that are null, counted from 1.
    removed: [u8; 2],
    name: u8,
}

impl Start {
    /// Bytes of an input that this takes.
    pub const BYTES: usize = 10;

    /// How an input says.
    pub fn new(bytes: &[u8; Self::BYTES]) -> Self {
        let &[entry, size, size_by, major, minor, clear, set, first, second, name] = bytes;
        Self { entry, size, size_by, major, minor, clear, set, removed: [first, second], name }
    }
}

/// One run of the plugin: its answers, and what it has given out.
pub struct World {
    state: Mutex<State>,
    may_hang: bool,
    start: Start,
    _table: ChangedTable,
    address: *const Plugin,
}
// SAFETY: the address leads to the table beside it, which nobody changes.
unsafe impl Send for World {}
// SAFETY: as above; the state has its lock.
unsafe impl Sync for World {}

struct State {
    answers: VecDeque<u8>,
    next: u64,
    devices: BTreeMap<u64, ()>,
    /// Devices whose streams may copy from another, with that one.
    peers: BTreeSet<(u64, u64)>,
    memories: BTreeMap<u64, Memory>,
    streams: BTreeMap<u64, Stream>,
    events: BTreeMap<u64, Event>,
    /// Built-ins and programs: their device, and how often each was given out.
    code: BTreeMap<u64, (u64, u32)>,
    /// Kernels and their programs.
    kernels: BTreeMap<u64, u64>,
    /// Calls that cost much and are allowed once.
    expensive: u8,
    may_keep: bool,
}

struct Memory {
    device: u64,
    length: u64,
    block: Option<Arc<Block>>,
    /// Memory of the host that was imported.
    lent: Option<Lent>,
}

/// Memory that the host keeps until the handle is given back.
struct Lent(*const u8);
// SAFETY: the host's memory may be used from any thread until then, says the interface.
unsafe impl Send for Lent {}

struct Stream {
    device: u64,
    enqueued: u64,
    queue: VecDeque<(u64, Work)>,
}

struct Event {
    device: u64,
    /// How often the handle was given out and not given back, and how often in all.
    given: u32,
    ever: u32,
    /// Streams, and how many commands of each it stands for: several where one handle was given out twice.
    points: Vec<(u64, u64)>,
}

enum Work {
    Write { memory: u64, src: *const u8, length: usize },
    Read { memory: u64, dst: *mut u8, length: usize },
    Use { memories: Vec<u64>, code: Option<u64> },
    FromPeer { dst: u64, peer: u64, src: u64 },
    Wait { event: u64 },
}
// SAFETY: the host's memory may be used from any thread until the work is over, says the interface.
unsafe impl Send for Work {}

/// Memory that both sides may use.
struct Block(*mut u8, Layout);
// SAFETY: an owned allocation.
unsafe impl Send for Block {}
// SAFETY: this side only hands the address out.
unsafe impl Sync for Block {}

impl Block {
    fn new(length: u64) -> Self {
        let layout = Layout::from_size_align(length as usize, BLOCK_ALIGNMENT).expect("a short block");
        // SAFETY: the length is not 0 (`memory_alloc`).
        Self(unsafe { alloc_zeroed(layout) }, layout)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.0, self.1) }
    }
}

/// How a call is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Honest,
    Refuse,
    Silent,
    Lie(u8),
}

static CURRENT: Mutex<Option<Arc<World>>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Makes the plugin that [`entry`] starts from now on.
    ///
    /// No call into an earlier one may be under way or to come.
    pub fn begin(start: &Start, answers: &[u8], may_hang: bool) -> Arc<Self> {
        let table = start.table();
        let address = match start.entry {
            200..=209 => ptr::null(),
            210..=219 => table.as_ptr().wrapping_byte_add(1 + usize::from(start.entry % 7)),
            _ => table.as_ptr(),
        };
        let state = State {
            answers: answers.iter().copied().collect(),
            next: 0,
            devices: BTreeMap::new(),
            peers: BTreeSet::new(),
            memories: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            code: BTreeMap::new(),
            kernels: BTreeMap::new(),
            expensive: 1,
            may_keep: may_hang,
        };
        let state = Mutex::new(state);
        let world = Arc::new(Self { state, may_hang, start: start.clone(), _table: table, address });
        *lock(&CURRENT) = Some(world.clone());
        world
    }

    /// Everything was given back, unless an answer made the loader keep it for good.
    pub fn end(&self) -> bool {
        let state = lock(&self.state);
        let left = [
            ("devices", state.devices.len()),
            ("memories", state.memories.len()),
            ("streams", state.streams.len()),
            ("events", state.events.len()),
            ("built-ins and programs", state.code.len()),
        ];
        let is_clean = left.iter().all(|(_, count)| *count == 0);
        assert!(is_clean || state.may_keep, "the loader has not given back: {left:?}");
        is_clean
    }
}

impl Start {
    fn table(&self) -> ChangedTable {
        let name = |index: u8| FUNCTIONS[usize::from(index) % FUNCTIONS.len()];
        let removed =
            self.removed.iter().filter(|number| (1..=FUNCTIONS.len()).contains(&usize::from(**number)));
        let mut changes: Vec<_> = removed.map(|number| TableChange::Remove(name(number - 1))).collect();
        changes.push(TableChange::Major(if self.major < 240 { ABI_MAJOR } else { u32::from(self.major) }));
        changes.push(TableChange::Minor(u32::from(self.minor)));
        changes.push(TableChange::ClearFeatures(if self.clear < 128 { 0 } else { u64::from(self.clear) }));
        changes.push(TableChange::SetFeatures(u64::from(self.set)));
        changes.extend(match self.size {
            0..200 => None,
            200..210 => Some(TableChange::CutBehind(name(self.size_by))),
            210..220 => Some(TableChange::CutBefore(name(self.size_by))),
            220..235 => Some(TableChange::Size(u64::from(self.size_by) * 8)),
            235..245 => Some(TableChange::Size(u64::from(self.size_by) + 256)),
            _ => Some(TableChange::Size(u64::MAX >> (self.size_by % 64))),
        });
        let mut table = TABLE;
        set_text(&mut table.name, self.name);
        set_text(&mut table.version, self.name / 8);
        ChangedTable::new(&table, &changes).expect("every name is one of the table's")
    }
}

/// Fills a text field in one of several ways.
fn set_text(field: &mut [c_char], way: u8) {
    let bytes: &[u8] = match way % 6 {
        0 => return set_fixed_text(field, "a plain text, of words"),
        1 => b"",
        2 => return field.fill(b'x' as c_char),
        3 => b"\xff\xfe\x80 not UTF-8 \xc3",
        4 => b"a\n\x1b[2J\x07,,\t b,",
        _ => "\u{202e}\u{1F600}".as_bytes(),
    };
    field.fill(0);
    for (byte, source) in field.iter_mut().zip(bytes) {
        *byte = *source as c_char;
    }
}

impl State {
    fn byte(&mut self) -> u8 {
        self.answers.pop_front().unwrap_or(0)
    }

    fn answer(&mut self) -> Answer {
        match self.byte() {
            0..160 => Answer::Honest,
            160..200 => Answer::Refuse,
            200..215 => Answer::Silent,
            _ => Answer::Lie(self.byte()),
        }
    }

    /// A number, often one at a limit.
    fn number(&mut self) -> u64 {
        match self.byte() % 12 {
            0 => 0,
            1 => 1,
            2 => 3,
            3 => 64,
            4 => 1 << 20,
            5 => 1 << 21,
            6 => 1 << 56,
            7 => u64::MAX,
            8 => 1 << 63,
            9 => u64::from(u32::MAX),
            10 => (1 << 56) + 1,
            _ => u64::from(self.byte()) << (self.byte() % 57),
        }
    }

    /// A status that is no success, explained in some way; the device is lost by its own status.
    ///
    /// # Safety
    /// `error` is what the host passed to the call.
    unsafe fn refuse(&mut self, device: Option<u64>, error: *mut Error) -> Status {
        let status = match self.byte() % 18 {
            code @ 0..13 => Status::from(code) + 1,
            13 => 14,
            14 => -1,
            15 => Status::MIN,
            16 => Status::MAX,
            _ => STATUS_DEVICE_LOST,
        };
        // SAFETY: the host's error is whole and nobody else's during the call.
        let error = unsafe { &mut *error };
        assert!(error.struct_size >= size_of::<Error>() as u64 && error.text_capacity >= 256);
        // SAFETY: the text has its capacity, and is the call's own.
        let text = unsafe { std::slice::from_raw_parts_mut(error.text, error.text_capacity as usize) };
        assert_eq!(text[0], 0, "the host clears the text");
        let way = self.byte();
        set_text(text, way);
        error.native_code = i64::from(way as i8);
        error.detail = [self.number(), self.number()];
        if way >= 200 {
            (error.struct_size, error.text, error.text_capacity) = (0, ptr::null_mut(), u64::MAX);
        }
        if status == STATUS_DEVICE_LOST
            && let Some(device) = device
        {
            self.lose(device);
        }
        status
    }

    /// A handle for something new, or, for a lie, one of those that are out.
    fn handle(&mut self, answer: Answer, out: impl Iterator<Item = u64>) -> (u64, bool) {
        let out: Vec<_> = out.collect();
        self.next += 1;
        match answer {
            Answer::Silent => (0, false),
            Answer::Lie(index) if index % 2 == 1 && !out.is_empty() => {
                (out[usize::from(index) % out.len()], false)
            }
            Answer::Lie(_) => (u64::MAX - self.next, true),
            _ => (self.next, true),
        }
    }

    /// All work of a device ends.
    fn lose(&mut self, device: u64) {
        let own = self.streams.iter().filter(|(_, stream)| stream.device == device);
        for stream in own.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            self.run(stream, u64::MAX);
        }
    }

    /// Does the work of a stream up to a command.
    fn run(&mut self, stream: u64, up_to: u64) {
        loop {
            let Some(own) = self.streams.get_mut(&stream) else { return };
            let device = own.device;
            match own.queue.front() {
                Some((number, _)) if *number <= up_to => {}
                _ => return,
            }
            let Some((_, work)) = own.queue.pop_front() else { return };
            match work {
                Work::Write { memory, src, length } => {
                    self.assert_alive(device, memory);
                    // SAFETY: the host keeps the bytes until the work is over; it is not over before this.
                    let bytes = unsafe { std::slice::from_raw_parts(src, length) };
                    std::hint::black_box(bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
                }
                Work::Read { memory, dst, length } => {
                    self.assert_alive(device, memory);
                    // SAFETY: as above, of memory that is this copy's alone.
                    unsafe { ptr::write_bytes(dst, MARK, length) };
                }
                Work::Use { memories, code } => {
                    memories.iter().for_each(|memory| self.assert_alive(device, *memory));
                    assert!(
                        code.is_none_or(|code| self.code.contains_key(&code)),
                        "code is gone before its launch"
                    );
                }
                Work::FromPeer { dst, peer, src } => {
                    self.assert_alive(device, dst);
                    assert!(self.devices.contains_key(&peer), "a peer is closed before a copy from it");
                    self.assert_alive(peer, src);
                }
                Work::Wait { event } => {
                    let event = self.events.get(&event).expect("an event lives until nothing waits for it");
                    for (stream, up_to) in event.points.clone() {
                        self.run(stream, up_to);
                    }
                }
            }
        }
    }

    fn assert_alive(&self, device: u64, memory: u64) {
        let memory = self.memories.get(&memory).expect("memory lives until the work that uses it is over");
        assert_eq!(memory.device, device, "memory is used on its own device");
        if let Some(Lent(first)) = memory.lent {
            for offset in [0, memory.length as usize - 1] {
                // SAFETY: the host keeps what it has lent until the handle is given back, which is alive.
                std::hint::black_box(unsafe { first.add(offset).read_volatile() });
            }
        }
    }

    /// Whether work under way uses something.
    fn is_used(&self, uses: impl Fn(&Work) -> bool) -> bool {
        self.streams.values().flat_map(|stream| &stream.queue).any(|(_, work)| uses(work))
    }

    /// Checks a range that the host gives.
    fn check_range(&self, stream: u64, memory: u64, offset: u64, length: u64) {
        let device = self.streams.get(&stream).expect("the stream is open").device;
        let memory = self.memories.get(&memory).expect("the memory is allocated");
        assert_eq!(memory.device, device);
        assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= memory.length));
    }

    /// Takes work in, or refuses it.
    ///
    /// # Safety
    /// As [`refuse`](Self::refuse).
    unsafe fn enqueue(&mut self, stream: u64, work: Work, error: *mut Error) -> Status {
        let device = self.streams.get(&stream).expect("the stream is open").device;
        if self.answer() == Answer::Refuse {
            // SAFETY: the caller's own promise.
            return unsafe { self.refuse(Some(device), error) };
        }
        let own = self.streams.get_mut(&stream).expect("the stream is open");
        own.enqueued += 1;
        own.queue.push_back((own.enqueued, work));
        STATUS_OK
    }
}

/// Whether work under way uses this memory.
fn uses_memory(memory: u64) -> impl Fn(&Work) -> bool {
    move |work| match work {
        Work::Write { memory: own, .. } | Work::Read { memory: own, .. } => *own == memory,
        Work::Use { memories, .. } => memories.contains(&memory),
        Work::FromPeer { dst, src, .. } => [*dst, *src].contains(&memory),
        Work::Wait { .. } => false,
    }
}

impl State {
    /// A built-in or a program.
    fn new_code(&mut self, device: u64, answer: Answer) -> u64 {
        let known: Vec<_> =
            self.code.iter().filter(|(_, (owner, _))| *owner == device).map(|(handle, _)| *handle).collect();
        let (handle, _) = self.handle(answer, known.into_iter());
        if handle != 0 {
            self.code.entry(handle).or_insert((device, 0)).1 += 1;
        }
        handle
    }

    fn release_code(&mut self, device: u64, handle: u64) {
        let (owner, given) =
            self.code.get_mut(&handle).expect("code is given back as often as it was given out");
        assert_eq!(*owner, device);
        *given -= 1;
        if *given == 0 {
            let uses = |work: &Work| matches!(work, Work::Use { code: Some(own), .. } if *own == handle);
            assert!(!self.is_used(uses), "code is given back while work uses it");
            self.code.remove(&handle);
            self.kernels.retain(|_, program| *program != handle);
        }
    }
}

/// The plugin of now, with its state.
fn world() -> Arc<World> {
    lock(&CURRENT).clone().expect("the host calls what it was given")
}

impl World {
    /// Does not come back for a while, without the lock.
    fn hang(&self) {
        if self.may_hang {
            std::thread::sleep(HANG);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

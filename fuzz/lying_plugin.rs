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

use halite_hal::plugin::{
    ABI_MAJOR, ACCESS_READ, ACCESS_WRITE, ARGUMENT_BUFFER, Argument, ArgumentInfo, BuiltinDesc,
    COMPLETION_DONE, COMPLETION_FAILED, COMPLETION_PENDING, ChangedTable, Completion, Counter, DeviceInfo,
    Error, FEATURE_BUILTINS, FEATURE_PROGRAMS, FUNCTIONS, Host, KernelInfo, MEMORY_DEVICE, MemoryInfo,
    NO_TIMEOUT, OpenOption, Plugin, Range, STATUS_DEVICE_LOST, STATUS_OK, STATUS_OUT_OF_MEMORY, Status,
    TableChange, set_fixed_text,
};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_char, c_void};
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
}

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
        Work::Wait { .. } => false,
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

/// The entry of the plugin.
///
/// # Safety
/// As the header says; [`World::begin`] was called.
pub unsafe extern "C" fn entry(host: *const Host, out: *mut *const Plugin, error: *mut Error) -> Status {
    let world = world();
    // SAFETY: the host's structure lives as long as the process.
    let host = unsafe { &*host };
    if let (Some(log), true) = (host.log, world.start.entry % 5 == 1) {
        let mut long = [b'x'; 3000];
        long[2999] = 0;
        for text in [ptr::null(), c"a line\n\x1b[2J\xff".as_ptr(), long.as_ptr().cast()] {
            // SAFETY: null, or a text with an end.
            unsafe { log(world.start.entry.into(), text) };
        }
    }
    if world.start.entry >= 220 {
        // SAFETY: the host's error, during the call.
        return unsafe { world.state().refuse(None, error) };
    }
    // SAFETY: where the host wants the table, which stays until the world ends.
    unsafe { *out = world.address };
    STATUS_OK
}

unsafe extern "C" fn device_count(out: *mut u32, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    let count = match state.answer() {
        // SAFETY: the host's error, during the call.
        Answer::Refuse => return unsafe { state.refuse(None, error) },
        Answer::Silent => return STATUS_OK,
        Answer::Lie(200..) => {
            drop(state);
            world.hang();
            1
        }
        Answer::Lie(150..) => u32::MAX,
        Answer::Lie(140..) => 1025,
        Answer::Lie(count) => u32::from(count % 4),
        Answer::Honest => 1,
    };
    // SAFETY: where the host wants the number.
    unsafe { *out = count };
    STATUS_OK
}

/// Reads the options as a plugin would.
///
/// # Safety
/// They are what the host passed to the call.
unsafe fn read_options(count: u32, options: *const *const OpenOption) {
    for index in 0..count as usize {
        // SAFETY: the host passes as many options as it says, whole ones, with texts that end.
        let texts = unsafe {
            let option = &**options.add(index);
            assert_eq!(option.struct_size, size_of::<OpenOption>() as u64);
            [CStr::from_ptr(option.key), CStr::from_ptr(option.value)]
        };
        std::hint::black_box(texts.map(CStr::to_bytes).map(<[u8]>::len));
    }
}

unsafe extern "C" fn device_info(
    _index: u32,
    count: u32,
    options: *const *const OpenOption,
    out: *mut DeviceInfo,
    error: *mut Error,
) -> Status {
    let world = world();
    // SAFETY: what the host passed.
    unsafe { read_options(count, options) };
    let mut state = world.state();
    // SAFETY: the host's structure, which is the call's own.
    let info = unsafe { &mut *out };
    let answer = state.answer();
    match answer {
        // SAFETY: the host's error, during the call.
        Answer::Refuse => return unsafe { state.refuse(None, error) },
        Answer::Silent => return STATUS_OK,
        Answer::Honest | Answer::Lie(_) => {}
    }
    set_fixed_text(&mut info.name, "a device that lies");
    set_fixed_text(&mut info.program_format, "npu-program");
    info.memory_bytes = 1 << 30;
    info.max_allocation_bytes = 1 << 30;
    info.offset_alignment_bytes = 4;
    info.dtype_mask = 0x1fff;
    info.memory_kind_mask = 7;
    info.compute_units = 4;
    info.max_blocks = 64;
    info.max_arguments = 8;
    let Answer::Lie(lies) = answer else { return STATUS_OK };
    if lies >= 200 {
        drop(state);
        world.hang();
        return STATUS_OK;
    }
    for _ in 0..lies % 4 {
        let (field, number) = (state.byte(), state.number());
        match field % 16 {
            0 => info.memory_bytes = number,
            1 => info.max_allocation_bytes = number,
            2 => info.offset_alignment_bytes = number,
            3 => info.dtype_mask = number,
            4 => info.memory_kind_mask = number as u32,
            5 => info.compute_units = number as u32,
            6 => info.max_blocks = number as u32,
            7 => info.max_arguments = number as u32,
            8 => info.struct_size = number,
            9 => set_text(&mut info.vendor, number as u8),
            10 => set_text(&mut info.driver_version, number as u8),
            11 => set_text(&mut info.program_format, number as u8),
            12 => set_text(&mut info.capabilities, number as u8),
            _ => set_text(&mut info.name, number as u8),
        }
    }
    STATUS_OK
}

unsafe extern "C" fn device_open(
    _index: u32,
    count: u32,
    options: *const *const OpenOption,
    out: *mut u64,
    error: *mut Error,
) -> Status {
    let world = world();
    // SAFETY: what the host passed.
    unsafe { read_options(count, options) };
    let mut state = world.state();
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(None, error) };
    }
    if matches!(answer, Answer::Lie(200..)) {
        // Nobody may be there any more who would close it, so nothing is opened.
        drop(state);
        world.hang();
        return STATUS_OK;
    }
    let known: Vec<_> = state.devices.keys().copied().collect();
    let (handle, is_new) = state.handle(answer, known.into_iter());
    if is_new {
        state.devices.insert(handle, ());
    }
    // SAFETY: where the host wants the handle.
    unsafe { *out = handle };
    STATUS_OK
}

unsafe extern "C" fn device_close(device: u64) {
    let world = world();
    let mut state = world.state();
    state.lose(device);
    state.devices.remove(&device).expect("a device is closed once");
    assert!(state.memories.values().all(|memory| memory.device != device), "memory is freed before");
    assert!(state.streams.values().all(|stream| stream.device != device), "streams are destroyed before");
    assert!(state.events.values().all(|event| event.device != device), "events are destroyed before");
    assert!(state.code.values().all(|(owner, _)| *owner != device), "code is released before");
}

unsafe extern "C" fn memory_alloc(
    device: u64,
    kind: u32,
    length: u64,
    out: *mut u64,
    host_pointer: *mut *mut c_void,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.devices.contains_key(&device) && kind < 3 && length > 0);
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    if kind != MEMORY_DEVICE && length > LONGEST_BLOCK {
        return STATUS_OUT_OF_MEMORY;
    }
    let known: Vec<_> = state
        .memories
        .iter()
        .filter(|(_, memory)| memory.device == device)
        .map(|(handle, _)| *handle)
        .collect();
    let (handle, is_new) = state.handle(answer, known.into_iter());
    let mut address = ptr::null_mut();
    if is_new {
        let mut block = (kind != MEMORY_DEVICE).then(|| Arc::new(Block::new(length)));
        address = block.as_ref().map_or(ptr::null_mut(), |block| block.0);
        if let Answer::Lie(_) = answer {
            match state.byte() % 5 {
                0 => address = ptr::null_mut(),
                1 => address = address.wrapping_add(usize::from(state.byte())),
                2 => address = ptr::without_provenance_mut(usize::MAX & !63),
                // Memory that is somebody's already.
                3 => {
                    let other = state.memories.values().filter(|memory| memory.length >= length);
                    if let Some(other) = other.filter_map(|memory| memory.block.clone()).next() {
                        address = other.0;
                        block = Some(other);
                    }
                }
                _ => {}
            }
        }
        state.memories.insert(handle, Memory { device, length, block });
    }
    // SAFETY: where the host wants handle and address.
    unsafe { (*out, *host_pointer) = (handle, address.cast()) };
    STATUS_OK
}

unsafe extern "C" fn memory_free(device: u64, memory: u64) {
    let world = world();
    let mut state = world.state();
    assert!(!state.is_used(uses_memory(memory)), "memory is freed while work uses it");
    let own = state.memories.remove(&memory).expect("memory is freed once");
    assert_eq!(own.device, device);
}

unsafe extern "C" fn memory_info(device: u64, out: *mut MemoryInfo, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    let (free, total) = match state.answer() {
        // SAFETY: the host's error, during the call.
        Answer::Refuse => return unsafe { state.refuse(Some(device), error) },
        Answer::Silent => return STATUS_OK,
        Answer::Honest => (1 << 29, 1 << 30),
        Answer::Lie(_) => (state.number(), state.number()),
    };
    // SAFETY: the host's structure, which is the call's own.
    unsafe { ((*out).free_bytes, (*out).total_bytes) = (free, total) };
    STATUS_OK
}

unsafe extern "C" fn stream_create(device: u64, out: *mut u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    let known: Vec<_> = state
        .streams
        .iter()
        .filter(|(_, stream)| stream.device == device)
        .map(|(handle, _)| *handle)
        .collect();
    let (handle, is_new) = state.handle(answer, known.into_iter());
    if is_new {
        state.streams.insert(handle, Stream { device, enqueued: 0, queue: VecDeque::new() });
    }
    // SAFETY: where the host wants the handle.
    unsafe { *out = handle };
    STATUS_OK
}

unsafe extern "C" fn stream_destroy(stream: u64) {
    let world = world();
    let own = world.state().streams.remove(&stream).expect("a stream is destroyed once");
    assert!(own.queue.is_empty(), "a stream is destroyed while it works");
}

unsafe extern "C" fn stream_write(
    stream: u64,
    memory: u64,
    offset: u64,
    src: *const c_void,
    length: u64,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    state.check_range(stream, memory, offset, length);
    let work = Work::Write { memory, src: src.cast(), length: length as usize };
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, work, error) }
}

unsafe extern "C" fn stream_read(
    stream: u64,
    dst: *mut c_void,
    memory: u64,
    offset: u64,
    length: u64,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    state.check_range(stream, memory, offset, length);
    let work = Work::Read { memory, dst: dst.cast(), length: length as usize };
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, work, error) }
}

unsafe extern "C" fn stream_copy(
    stream: u64,
    dst: u64,
    dst_offset: u64,
    src: u64,
    src_offset: u64,
    length: u64,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    state.check_range(stream, dst, dst_offset, length);
    state.check_range(stream, src, src_offset, length);
    let overlap = dst == src && dst_offset < src_offset + length && src_offset < dst_offset + length;
    assert!(!overlap, "the ranges of a copy overlap");
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, Work::Use { memories: vec![dst, src], code: None }, error) }
}

unsafe extern "C" fn stream_fill(
    stream: u64,
    memory: u64,
    offset: u64,
    length: u64,
    pattern: *const u8,
    pattern_length: u32,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    state.check_range(stream, memory, offset, length);
    let step = u64::from(pattern_length);
    assert!(matches!(step, 1 | 2 | 4 | 8) && length % step == 0 && offset % step == 0);
    // SAFETY: the pattern is as long as the host says.
    std::hint::black_box(unsafe { std::slice::from_raw_parts(pattern, pattern_length as usize) }.to_vec());
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, Work::Use { memories: vec![memory], code: None }, error) }
}

unsafe extern "C" fn stream_wait_event(stream: u64, event: u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    let own = state.events.get(&event).expect("the event is there");
    assert!(!own.points.is_empty(), "a stream waits for an event that was recorded");
    assert_eq!(Some(own.device), state.streams.get(&stream).map(|stream| stream.device));
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, Work::Wait { event }, error) }
}

/// Answers where the work of `points` stands. What is reported as over has been done.
///
/// # Safety
/// The pointers are what the host passed to the call.
unsafe fn complete(
    world: &World,
    device: u64,
    points: &[(u64, u64)],
    without_limit: bool,
    out: *mut Completion,
    error: *mut Error,
) -> Status {
    let mut state = world.state();
    // SAFETY: the host's structure, which is the call's own.
    let out = unsafe { &mut *out };
    let do_all = |state: &mut State| points.iter().for_each(|(stream, up_to)| state.run(*stream, *up_to));
    let is_over = match state.byte() {
        0..120 => {
            do_all(&mut state);
            out.state = COMPLETION_DONE;
            true
        }
        120..160 => {
            out.state = COMPLETION_PENDING;
            false
        }
        160..200 => {
            state.may_keep |= without_limit;
            // SAFETY: the host's error, during the call.
            return unsafe { state.refuse(Some(device), error) };
        }
        200..225 => {
            do_all(&mut state);
            out.state = COMPLETION_FAILED;
            let has_status = state.byte() < 230;
            if has_status {
                // SAFETY: as above.
                out.status = unsafe { state.refuse(Some(device), error) };
            }
            has_status
        }
        225..232 => {
            out.state = 3 + u32::from(state.byte());
            false
        }
        232..240 => {
            do_all(&mut state);
            (out.state, out.struct_size) = (COMPLETION_DONE, u64::from(state.byte()));
            false
        }
        240..248 => {
            if let Some((stream, _)) = points.first() {
                let some = u64::from(state.byte());
                state.run(*stream, some);
            }
            out.state = COMPLETION_PENDING;
            false
        }
        _ => {
            drop(state);
            world.hang();
            state = world.state();
            do_all(&mut state);
            out.state = COMPLETION_DONE;
            true
        }
    };
    state.may_keep |= without_limit && !is_over;
    STATUS_OK
}

unsafe extern "C" fn stream_synchronize(
    stream: u64,
    timeout_ns: u64,
    out: *mut Completion,
    error: *mut Error,
) -> Status {
    let world = world();
    let (device, all) = {
        let state = world.state();
        let stream = state.streams.get(&stream).expect("the stream is open");
        (stream.device, stream.enqueued)
    };
    // SAFETY: what the host passed.
    unsafe { complete(&world, device, &[(stream, all)], timeout_ns == NO_TIMEOUT, out, error) }
}

unsafe extern "C" fn event_create(device: u64, out: *mut u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    let known: Vec<_> =
        state.events.iter().filter(|(_, event)| event.device == device).map(|(handle, _)| *handle).collect();
    let (handle, _) = state.handle(answer, known.into_iter());
    if handle != 0 {
        let event =
            state.events.entry(handle).or_insert(Event { device, given: 0, ever: 0, points: Vec::new() });
        event.given += 1;
        event.ever += 1;
    }
    // SAFETY: where the host wants the handle.
    unsafe { *out = handle };
    STATUS_OK
}

unsafe extern "C" fn event_destroy(event: u64) {
    let world = world();
    let mut state = world.state();
    let own = state.events.get_mut(&event).expect("an event is destroyed as often as it was made");
    own.given -= 1;
    if own.given == 0 {
        let waits = |work: &Work| matches!(work, Work::Wait { event: own } if *own == event);
        assert!(!state.is_used(waits), "an event is destroyed while a stream waits for it");
        state.events.remove(&event);
    }
}

unsafe extern "C" fn event_record(stream: u64, event: u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    let own = state.streams.get(&stream).expect("the stream is open");
    let (device, point) = (own.device, (stream, own.enqueued));
    if state.answer() == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    let event = state.events.get_mut(&event).expect("the event is there");
    assert_eq!(event.device, device);
    assert!(event.points.len() < event.ever as usize, "an event is recorded once");
    event.points.push(point);
    STATUS_OK
}

/// # Safety
/// As [`complete`].
unsafe fn complete_event(event: u64, without_limit: bool, out: *mut Completion, error: *mut Error) -> Status {
    let world = world();
    let (device, points) = {
        let state = world.state();
        let event = state.events.get(&event).expect("the event is there");
        (event.device, event.points.clone())
    };
    // SAFETY: the caller's own promise.
    unsafe { complete(&world, device, &points, without_limit, out, error) }
}

unsafe extern "C" fn event_wait(
    event: u64,
    timeout_ns: u64,
    out: *mut Completion,
    error: *mut Error,
) -> Status {
    let _ = timeout_ns;
    // SAFETY: what the host passed.
    unsafe { complete_event(event, false, out, error) }
}

unsafe extern "C" fn event_query(event: u64, out: *mut Completion, error: *mut Error) -> Status {
    // SAFETY: what the host passed.
    unsafe { complete_event(event, false, out, error) }
}

unsafe extern "C" fn event_elapsed(earlier: u64, later: u64, out: *mut u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    let device = state.events.get(&earlier).expect("the event is there").device;
    assert_eq!(state.events.get(&later).map(|event| event.device), Some(device));
    let nanoseconds = match state.answer() {
        // SAFETY: the host's error, during the call.
        Answer::Refuse => return unsafe { state.refuse(Some(device), error) },
        Answer::Silent => return STATUS_OK,
        Answer::Honest => 1_000,
        Answer::Lie(_) => state.number(),
    };
    // SAFETY: where the host wants the number.
    unsafe { *out = nanoseconds };
    STATUS_OK
}

unsafe extern "C" fn stream_reset(stream: u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    let own = state.streams.get(&stream).expect("the stream is open");
    assert!(own.queue.is_empty(), "a stream is reset while it works");
    let device = own.device;
    if state.answer() == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    STATUS_OK
}

unsafe extern "C" fn device_health(device: u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    if state.answer() == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    STATUS_OK
}

unsafe extern "C" fn device_counters(
    device: u64,
    capacity: u32,
    out: *const *mut Counter,
    count: *mut u32,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    let (own, way) = match state.answer() {
        // SAFETY: the host's error, during the call.
        Answer::Refuse => return unsafe { state.refuse(Some(device), error) },
        Answer::Silent => return STATUS_OK,
        Answer::Honest => (3, 0),
        Answer::Lie(255) if state.expensive > 0 => {
            state.expensive -= 1;
            (1 << 16, 0)
        }
        Answer::Lie(200..) => (u32::MAX - u32::from(state.byte()), 1),
        Answer::Lie(way) => (u32::from(state.byte()), way),
    };
    for index in 0..own.min(capacity) as usize {
        // SAFETY: the host gives room for as many counters as it says.
        let counter = unsafe { &mut **out.add(index) };
        set_text(&mut counter.key, way);
        set_text(&mut counter.unit, way / 2);
        counter.value = f64::from_bits(state.number());
        if way % 3 == 2 {
            counter.struct_size = 0;
        }
    }
    // SAFETY: where the host wants the number.
    unsafe { *count = own };
    STATUS_OK
}

unsafe extern "C" fn get_extension(_name: *const c_char) -> *const c_void {
    unreachable!("nobody asks for extensions")
}

/// Reads a description as a plugin would.
///
/// # Safety
/// It is what the host passed to the call.
unsafe fn read_desc(desc: *const BuiltinDesc) {
    // SAFETY: the host's structures are whole, and its arrays as long as it says.
    unsafe {
        let desc = &*desc;
        assert!(!CStr::from_ptr(desc.name).is_empty());
        for index in 0..desc.operand_count as usize {
            let operand = &**desc.operands.add(index);
            for axis in 0..operand.rank as usize {
                std::hint::black_box((*operand.shape.add(axis), *operand.strides.add(axis)));
            }
        }
        for index in 0..desc.attribute_count as usize {
            let attribute = &**desc.attributes.add(index);
            std::hint::black_box((CStr::from_ptr(attribute.key).to_bytes().len(), attribute.bits));
        }
    }
}

unsafe extern "C" fn builtin_validate(device: u64, desc: *const BuiltinDesc, error: *mut Error) -> Status {
    let world = world();
    // SAFETY: what the host passed.
    unsafe { read_desc(desc) };
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    if state.answer() == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    STATUS_OK
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

unsafe extern "C" fn builtin_prepare(
    device: u64,
    desc: *const BuiltinDesc,
    out: *mut u64,
    workspace_bytes: *mut u64,
    error: *mut Error,
) -> Status {
    let world = world();
    // SAFETY: what the host passed.
    unsafe { read_desc(desc) };
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    let handle = state.new_code(device, answer);
    let workspace = if let Answer::Lie(_) = answer { state.number() } else { 0 };
    // SAFETY: where the host wants the two.
    unsafe { (*out, *workspace_bytes) = (handle, workspace) };
    STATUS_OK
}

unsafe extern "C" fn builtin_release(device: u64, builtin: u64) {
    world().state().release_code(device, builtin);
}

unsafe extern "C" fn builtin_enqueue(
    stream: u64,
    builtin: u64,
    count: u32,
    ranges: *const *const Range,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.code.contains_key(&builtin));
    let mut memories = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the host passes as many ranges as it says, whole ones.
        let range = unsafe { &**ranges.add(index) };
        if range.length > 0 {
            state.check_range(stream, range.memory, range.offset, range.length);
            memories.push(range.memory);
        }
    }
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, Work::Use { memories, code: Some(builtin) }, error) }
}

unsafe extern "C" fn program_load(
    device: u64,
    bytes: *const c_void,
    length: u64,
    out: *mut u64,
    error: *mut Error,
) -> Status {
    let world = world();
    // SAFETY: the program is as long as the host says.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize) };
    std::hint::black_box(bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
    let mut state = world.state();
    assert!(state.devices.contains_key(&device));
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    let handle = state.new_code(device, answer);
    // SAFETY: where the host wants the handle.
    unsafe { *out = handle };
    STATUS_OK
}

unsafe extern "C" fn program_unload(device: u64, program: u64) {
    world().state().release_code(device, program);
}

unsafe extern "C" fn kernel_find(
    program: u64,
    name: *const c_char,
    out: *mut u64,
    error: *mut Error,
) -> Status {
    let world = world();
    // SAFETY: the host's texts end.
    std::hint::black_box(unsafe { CStr::from_ptr(name) }.to_bytes().len());
    let mut state = world.state();
    let device = state.code.get(&program).expect("the program is loaded").0;
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    let (handle, is_new) = state.handle(answer, std::iter::empty());
    if is_new {
        state.kernels.insert(handle, program);
    }
    // SAFETY: where the host wants the handle.
    unsafe { *out = handle };
    STATUS_OK
}

unsafe extern "C" fn kernel_launch(
    stream: u64,
    kernel: u64,
    blocks: u32,
    count: u32,
    arguments: *const *const Argument,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    let program = *state.kernels.get(&kernel).expect("a kernel lives as long as its program");
    assert!(blocks > 0 && state.code.contains_key(&program));
    let mut memories = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the host passes as many arguments as it says, whole ones.
        let argument = unsafe { &**arguments.add(index) };
        if argument.kind == ARGUMENT_BUFFER && argument.length > 0 {
            state.check_range(stream, argument.memory, argument.offset, argument.length);
            memories.push(argument.memory);
        }
    }
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, Work::Use { memories, code: Some(program) }, error) }
}

unsafe extern "C" fn kernel_info(kernel: u64, out: *mut KernelInfo, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    let program = *state.kernels.get(&kernel).expect("the kernel was found");
    let device = state.code.get(&program).map(|(device, _)| *device);
    // SAFETY: the host's structure, which is the call's own.
    let out = unsafe { &mut *out };
    match state.answer() {
        // SAFETY: the host's error, during the call.
        Answer::Refuse => return unsafe { state.refuse(device, error) },
        Answer::Silent => {}
        Answer::Honest => out.argument_count = 2,
        Answer::Lie(255) if state.expensive > 0 => {
            state.expensive -= 1;
            out.argument_count = u32::from(u16::MAX);
        }
        Answer::Lie(250..) => out.argument_count = u32::MAX,
        Answer::Lie(240..) => out.struct_size = state.number(),
        Answer::Lie(count) => {
            out.argument_count = u32::from(count);
            out.max_blocks = state.number() as u32;
        }
    }
    STATUS_OK
}

unsafe extern "C" fn kernel_argument(
    kernel: u64,
    _index: u32,
    out: *mut ArgumentInfo,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    let program = *state.kernels.get(&kernel).expect("the kernel was found");
    let device = state.code.get(&program).map(|(device, _)| *device);
    // SAFETY: the host's structure, which is the call's own.
    let out = unsafe { &mut *out };
    let answer = state.answer();
    match answer {
        // SAFETY: the host's error, during the call.
        Answer::Refuse => return unsafe { state.refuse(device, error) },
        Answer::Silent => return STATUS_OK,
        Answer::Honest | Answer::Lie(_) => {}
    }
    (out.kind, out.dtype, out.access) = (ARGUMENT_BUFFER, F32, ACCESS_READ | ACCESS_WRITE);
    if let Answer::Lie(field) = answer {
        let number = state.number();
        match field % 4 {
            0 => out.kind = number as u32,
            1 => out.dtype = number as u32,
            2 => out.access = number as u32,
            _ => out.struct_size = number,
        }
    }
    STATUS_OK
}

const TABLE: Plugin = Plugin {
    struct_size: size_of::<Plugin>() as u64,
    abi_major: ABI_MAJOR,
    abi_minor: 0,
    features: FEATURE_BUILTINS | FEATURE_PROGRAMS,
    name: [0; 64],
    version: [0; 32],
    device_count: Some(device_count),
    device_info: Some(device_info),
    device_open: Some(device_open),
    device_close: Some(device_close),
    memory_alloc: Some(memory_alloc),
    memory_free: Some(memory_free),
    memory_info: Some(memory_info),
    stream_create: Some(stream_create),
    stream_destroy: Some(stream_destroy),
    stream_write: Some(stream_write),
    stream_read: Some(stream_read),
    stream_copy: Some(stream_copy),
    stream_fill: Some(stream_fill),
    stream_wait_event: Some(stream_wait_event),
    stream_synchronize: Some(stream_synchronize),
    event_create: Some(event_create),
    event_destroy: Some(event_destroy),
    event_record: Some(event_record),
    event_wait: Some(event_wait),
    event_query: Some(event_query),
    event_elapsed: Some(event_elapsed),
    stream_reset: Some(stream_reset),
    device_health: Some(device_health),
    device_counters: Some(device_counters),
    get_extension: Some(get_extension),
    builtin_validate: Some(builtin_validate),
    builtin_prepare: Some(builtin_prepare),
    builtin_release: Some(builtin_release),
    builtin_enqueue: Some(builtin_enqueue),
    program_load: Some(program_load),
    program_unload: Some(program_unload),
    kernel_find: Some(kernel_find),
    kernel_launch: Some(kernel_launch),
    kernel_info: Some(kernel_info),
    kernel_argument: Some(kernel_argument),
};

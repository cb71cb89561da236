//! The functions of the plugin, in the order of the table.

use super::{Answer, Block, Event, F32, LONGEST_BLOCK, Lent, Memory, State, Stream, Work, World};
use super::{set_text, uses_memory, world};
use halite_hal::plugin::{
    ABI_MAJOR, ABI_MINOR, ACCESS_READ, ACCESS_WRITE, ARGUMENT_BUFFER, Argument, ArgumentInfo, BuiltinDesc,
    COMPLETION_DONE, COMPLETION_FAILED, COMPLETION_PENDING, Completion, Counter, DeviceInfo, Error,
    FEATURE_BUILTINS, FEATURE_PROGRAMS, Host, KernelInfo, MEMORY_DEVICE, MemoryInfo, NO_TIMEOUT, OpenOption,
    Plugin, Range, STATUS_OK, STATUS_OUT_OF_MEMORY, Status, set_fixed_text,
};
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::Arc;

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
    info.import_alignment_bytes = 64;
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
            13 => info.import_alignment_bytes = number,
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
    state.peers.retain(|(own, peer)| *own != device && *peer != device);
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
        state.memories.insert(handle, Memory { device, length, block, lent: None });
    }
    // SAFETY: where the host wants handle and address.
    unsafe { (*out, *host_pointer) = (handle, address.cast()) };
    STATUS_OK
}

unsafe extern "C" fn memory_import(
    device: u64,
    pointer: *mut c_void,
    length: u64,
    out: *mut u64,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(state.devices.contains_key(&device) && !pointer.is_null() && length > 0);
    let answer = state.answer();
    if answer == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    let own = state.memories.iter().filter(|(_, memory)| memory.device == device);
    let known: Vec<_> = own.map(|(handle, _)| *handle).collect();
    let (handle, is_new) = state.handle(answer, known.into_iter());
    if is_new {
        let lent = Some(Lent(pointer.cast_const().cast()));
        state.memories.insert(handle, Memory { device, length, block: None, lent });
    }
    // SAFETY: where the host wants the handle.
    unsafe { *out = handle };
    STATUS_OK
}

unsafe extern "C" fn peer_enable(device: u64, peer: u64, error: *mut Error) -> Status {
    let world = world();
    let mut state = world.state();
    assert!(device != peer && [device, peer].iter().all(|handle| state.devices.contains_key(handle)));
    if state.answer() == Answer::Refuse {
        // SAFETY: the host's error, during the call.
        return unsafe { state.refuse(Some(device), error) };
    }
    state.peers.insert((device, peer));
    STATUS_OK
}

unsafe extern "C" fn stream_copy_peer(
    stream: u64,
    dst: u64,
    dst_offset: u64,
    peer: u64,
    src: u64,
    src_offset: u64,
    length: u64,
    error: *mut Error,
) -> Status {
    let world = world();
    let mut state = world.state();
    state.check_range(stream, dst, dst_offset, length);
    let device = state.streams.get(&stream).expect("the stream is open").device;
    assert!(state.peers.contains(&(device, peer)), "the peer was enabled");
    let from = state.memories.get(&src).expect("the source is allocated");
    assert_eq!(from.device, peer);
    assert!(src_offset.checked_add(length).is_some_and(|end| end <= from.length));
    // SAFETY: the host's error, during the call.
    unsafe { state.enqueue(stream, Work::FromPeer { dst, peer, src }, error) }
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
    let device = state.streams.get(&stream).expect("the stream is open").device;
    assert!(own.device == device || state.peers.contains(&(device, own.device)));
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

/// The table, before a start changes it.
pub(super) const TABLE: Plugin = Plugin {
    struct_size: size_of::<Plugin>() as u64,
    abi_major: ABI_MAJOR,
    abi_minor: ABI_MINOR,
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
    memory_import: Some(memory_import),
    peer_enable: Some(peer_enable),
    stream_copy_peer: Some(stream_copy_peer),
};

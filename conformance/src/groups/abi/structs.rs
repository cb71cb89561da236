//! Structures of other sizes, messages in small rooms, and questions that a plugin must answer.

use super::super::Tests;
use super::raw::{Message, Options, Out, RawDevice, RawStream, function};
use crate::context::Context;
use crate::outcome::{Outcome, Stop, failed, unsupported};
use halite_hal::plugin::{self, Status};
use std::ptr;

/// Statuses with which a plugin refuses what is not there or not right.
const REFUSALS: [Status; 4] = [
    plugin::STATUS_INVALID_ARGUMENT,
    plugin::STATUS_UNAVAILABLE,
    plugin::STATUS_UNSUPPORTED,
    plugin::STATUS_TOO_LARGE,
];

pub(super) fn tests(tests: &mut Tests) {
    devices(tests);
    results(tests);
    builtins(tests);
    programs(tests);
}

/// Asks for the device's description with a structure of this size.
fn describe(context: &Context, size: usize) -> Result<Out<plugin::DeviceInfo>, Stop> {
    let access = context.plugin()?;
    let (options, mut message) = (Options::new(&access.options())?, Message::least());
    let info = function(access.table().device_info, "device_info")?;
    let mut out = Out::of(size);
    // SAFETY: the function has the header's type; the structures are in the interface's form, as large as they state, and
    // live during the call.
    let status = unsafe {
        info(access.index(), options.count(), options.as_ptr(), out.as_mut_ptr(), message.as_mut_ptr())
    };
    message.expect_ok(status, "device_info")?;
    out.check("device_info")?;
    Ok(out)
}

fn devices(tests: &mut Tests) {
    for more in [8usize, 128] {
        let size = size_of::<plugin::DeviceInfo>() + more;
        tests.add(
            format!("a-device-info-longer-by-{more}"),
            "a plugin writes the fields that it knows to a longer structure, and nothing beyond",
            move |context| {
                let (other, own) = (
                    describe(context, size)?.read(),
                    describe(context, size_of::<plugin::DeviceInfo>())?.read(),
                );
                ensure_eq!(other.memory_bytes, own.memory_bytes, "the memory");
                ensure_eq!(other.max_allocation_bytes, own.max_allocation_bytes, "the largest allocation");
                ensure_eq!(other.offset_alignment_bytes, own.offset_alignment_bytes, "the alignment");
                ensure_eq!(plugin::fixed_text(&other.name), plugin::fixed_text(&own.name), "the name");
                Ok(())
            },
        );
    }
    tests.add("texts-have-an-end", "fixed texts of a description end within their fields", |context| {
        let info = describe(context, size_of::<plugin::DeviceInfo>())?.read();
        let fields: [(&str, &[std::ffi::c_char]); 5] = [
            ("name", &info.name),
            ("vendor", &info.vendor),
            ("driver_version", &info.driver_version),
            ("program_format", &info.program_format),
            ("capabilities", &info.capabilities),
        ];
        for (field, text) in fields {
            ensure!(text.contains(&0), "{field} has no final zero");
        }
        Ok(())
    });
    tests.add("devices-are-counted-alike", "the number of devices is the same, asked again", |context| {
        let access = context.plugin()?;
        let count = function(access.table().device_count, "device_count")?;
        let mut counts = [0u32; 3];
        for out in &mut counts {
            let mut message = Message::least();
            // SAFETY: as in `describe`.
            let status = unsafe { count(out, message.as_mut_ptr()) };
            message.expect_ok(status, "device_count")?;
        }
        ensure!(counts[0] == counts[1] && counts[1] == counts[2], "the counts are {counts:?}");
        ensure!(access.index() < counts[0], "device {} of {} is open", access.index(), counts[0]);
        Ok(())
    });
    for (name, beyond) in [("the-next", 0u32), ("the-last", u32::MAX)] {
        tests.add(
            format!("{name}-device-is-not-there"),
            "a device beyond the count is refused, with a message",
            move |context| {
                let access = context.plugin()?;
                let count = function(access.table().device_count, "device_count")?;
                let (mut number, mut message) = (0, Message::least());
                // SAFETY: as in `describe`.
                let status = unsafe { count(&mut number, message.as_mut_ptr()) };
                message.expect_ok(status, "device_count")?;
                let index = number.max(beyond);
                let open = function(access.table().device_open, "device_open")?;
                let (mut handle, mut message) = (0, Message::least());
                // SAFETY: as in `describe`; there are no options.
                let status = unsafe { open(index, 0, ptr::null(), &mut handle, message.as_mut_ptr()) };
                message.expect(status, &REFUSALS, "device_open").map(drop)?;
                let info = function(access.table().device_info, "device_info")?;
                let (mut out, mut message) = (Out::sized(), Message::least());
                // SAFETY: as in `describe`.
                let status = unsafe { info(index, 0, ptr::null(), out.as_mut_ptr(), message.as_mut_ptr()) };
                message.expect(status, &REFUSALS, "device_info").map(drop)?;
                out.check("device_info")
            },
        );
    }
    for (name, more) in [("option", 0usize), ("longer-option", 64)] {
        tests.add(
            format!("an-unknown-{name}"),
            "an option that the plugin does not know is an invalid argument, with a message",
            move |context| {
                let access = context.plugin()?;
                let open = function(access.table().device_open, "device_open")?;
                let mut option = Out::<plugin::OpenOption>::of(size_of::<plugin::OpenOption>() + more);
                // SAFETY: the structure has room for this version's fields (`Out::of`); the texts are static.
                unsafe {
                    (*option.as_mut_ptr()).key = c"no.such.option".as_ptr();
                    (*option.as_mut_ptr()).value = c"1".as_ptr();
                }
                let options = [option.as_mut_ptr().cast_const()];
                let (mut handle, mut message) = (0, Message::of(2048));
                // SAFETY: as in `describe`.
                let status =
                    unsafe { open(access.index(), 1, options.as_ptr(), &mut handle, message.as_mut_ptr()) };
                message.expect(status, &[plugin::STATUS_INVALID_ARGUMENT], "device_open").map(drop)?;
                option.check("device_open")
            },
        );
    }
    tests.add(
        "openings-have-handles-of-their-own",
        "a device that is opened twice has two handles",
        |context| {
            let access = context.plugin()?;
            let (first, second) = (RawDevice::open(access)?, RawDevice::open(access)?);
            ensure!(first.handle != second.handle, "both are {}", first.handle);
            Ok(())
        },
    );
}

/// Calls with a result structure of this size and gives it back, checked.
fn memory_info(device: &RawDevice, size: usize) -> Result<Out<plugin::MemoryInfo>, Stop> {
    let call = function(device.table.memory_info, "memory_info")?;
    let (mut out, mut message) = (Out::of(size), Message::least());
    // SAFETY: as in `describe`; the device is open.
    let status = unsafe { call(device.handle, out.as_mut_ptr(), message.as_mut_ptr()) };
    message.expect_ok(status, "memory_info")?;
    out.check("memory_info")?;
    Ok(out)
}

fn results(tests: &mut Tests) {
    for more in [8usize, 32] {
        let size = size_of::<plugin::MemoryInfo>() + more;
        tests.add(
            format!("a-memory-info-longer-by-{more}"),
            "a plugin writes the fields that it knows to a longer structure, and nothing beyond",
            move |context| {
                let device = RawDevice::open(context.plugin()?)?;
                let (other, own) = (
                    memory_info(&device, size)?.read(),
                    memory_info(&device, size_of::<plugin::MemoryInfo>())?.read(),
                );
                ensure_eq!(other.free_bytes, own.free_bytes, "the free bytes");
                Ok(())
            },
        );
    }
    tests.add(
        "a-completion-that-is-longer",
        "a longer completion is filled as far as the plugin knows it",
        |context| {
            let device = RawDevice::open(context.plugin()?)?;
            let stream = RawStream::create(&device)?;
            let call = function(device.table.stream_synchronize, "stream_synchronize")?;
            let size = size_of::<plugin::Completion>() + 64;
            let (mut out, mut message) = (Out::<plugin::Completion>::of(size), Message::least());
            // SAFETY: as in `describe`; the stream is alive.
            let status =
                unsafe { call(stream.handle, plugin::NO_TIMEOUT, out.as_mut_ptr(), message.as_mut_ptr()) };
            message.expect_ok(status, "stream_synchronize")?;
            out.check("stream_synchronize")?;
            ensure_eq!(out.read().state, plugin::COMPLETION_DONE, "the state of an idle stream");
            Ok(())
        },
    );
    tests.add(
        "an-event-that-is-reached",
        "an event of an idle stream is done, in structures of both sizes",
        |context| {
            let device = RawDevice::open(context.plugin()?)?;
            let stream = RawStream::create(&device)?;
            let (create, destroy) = (
                function(device.table.event_create, "event_create")?,
                function(device.table.event_destroy, "event_destroy")?,
            );
            let (record, wait, query) = (
                function(device.table.event_record, "event_record")?,
                function(device.table.event_wait, "event_wait")?,
                function(device.table.event_query, "event_query")?,
            );
            let (mut event, mut message) = (0, Message::least());
            // SAFETY: as in `describe`; the device is open.
            let status = unsafe { create(device.handle, &mut event, message.as_mut_ptr()) };
            message.expect_ok(status, "event_create")?;
            let outcome = (|| -> Outcome {
                ensure!(event != 0, "event_create gives no handle");
                let mut message = Message::least();
                // SAFETY: stream and event are alive, and the event is recorded once.
                let status = unsafe { record(stream.handle, event, message.as_mut_ptr()) };
                message.expect_ok(status, "event_record")?;
                let (mut out, mut message) = (Out::<plugin::Completion>::sized(), Message::least());
                // SAFETY: as above; the result is a local.
                let status =
                    unsafe { wait(event, plugin::NO_TIMEOUT, out.as_mut_ptr(), message.as_mut_ptr()) };
                message.expect_ok(status, "event_wait")?;
                ensure_eq!(out.read().state, plugin::COMPLETION_DONE, "the state after the wait");
                let mut out = Out::<plugin::Completion>::of(size_of::<plugin::Completion>() + 16);
                let mut message = Message::least();
                // SAFETY: as above.
                let status = unsafe { query(event, out.as_mut_ptr(), message.as_mut_ptr()) };
                message.expect_ok(status, "event_query")?;
                ensure_eq!(out.read().state, plugin::COMPLETION_DONE, "the state, asked again");
                out.check("event_query")
            })();
            // SAFETY: the event is given back once, and not used afterwards.
            unsafe { destroy(event) };
            outcome
        },
    );
    for length in [1u64 << 62, u64::MAX] {
        tests.add(
            format!("an-allocation-of-{length}"),
            "absurd sizes are refused with a message, and overflow nothing",
            move |context| {
                let device = RawDevice::open(context.plugin()?)?;
                let call = function(device.table.memory_alloc, "memory_alloc")?;
                let (mut handle, mut host, mut message) = (0, ptr::null_mut(), Message::least());
                // SAFETY: as in `describe`; the device is open.
                let status = unsafe {
                    call(
                        device.handle,
                        plugin::MEMORY_DEVICE,
                        length,
                        &mut handle,
                        &mut host,
                        message.as_mut_ptr(),
                    )
                };
                let expected =
                    [plugin::STATUS_TOO_LARGE, plugin::STATUS_OUT_OF_MEMORY, plugin::STATUS_INVALID_ARGUMENT];
                message.expect(status, &expected, "memory_alloc").map(drop)
            },
        );
    }
    tests.add("unknown-extensions", "an extension that the plugin does not have is null", |context| {
        let Some(call) = context.plugin()?.table().get_extension else {
            return Err(unsupported("the plugin has no get_extension"));
        };
        for name in [c"", c"no.such.extension", c"halite"] {
            // SAFETY: the function has the header's type, and the name is static.
            let extension = unsafe { call(name.as_ptr()) };
            ensure!(extension.is_null(), "there is an extension {name:?}");
        }
        Ok(())
    });
    tests.add(
        "counters-in-small-rooms",
        "counters are written as far as there is room, and counted in full",
        |context| {
            let device = RawDevice::open(context.plugin()?)?;
            let Some(call) = device.table.device_counters else {
                return Err(unsupported("the plugin counts nothing"));
            };
            let ask = |rooms: &mut [Out<plugin::Counter>]| -> Result<u32, Stop> {
                let pointers: Vec<_> = rooms.iter_mut().map(Out::as_mut_ptr).collect();
                let (mut count, mut message) = (0, Message::least());
                // SAFETY: as in `describe`; as many structures as are stated, each as large as it states.
                let status = unsafe {
                    call(
                        device.handle,
                        pointers.len() as u32,
                        pointers.as_ptr(),
                        &mut count,
                        message.as_mut_ptr(),
                    )
                };
                message.expect_ok(status, "device_counters")?;
                rooms.iter().try_for_each(|room| room.check("device_counters"))?;
                Ok(count)
            };
            let all = ask(&mut [])?;
            ensure_eq!(ask(&mut [Out::sized()])?, all, "the count with room for one");
            let longer = size_of::<plugin::Counter>() + 32;
            let mut rooms: Vec<_> = (0..all).map(|_| Out::of(longer)).collect();
            ensure_eq!(ask(&mut rooms)?, all, "the count with room for all, in longer structures");
            for room in &rooms {
                ensure!(!plugin::fixed_text(&room.read().key).is_empty(), "a counter has no name");
            }
            Ok(())
        },
    );
}

/// Asks whether a built-in of four f32 (or other elements) is there; structures are longer by so much.
fn validate(
    context: &Context,
    name: &std::ffi::CStr,
    operands: usize,
    more: usize,
) -> Result<(Status, Message), Stop> {
    let device = RawDevice::open(context.plugin()?)?;
    if context.plugin()?.table().features & plugin::FEATURE_BUILTINS == 0 {
        return Err(unsupported("the plugin has no built-ins"));
    }
    let call = function(device.table.builtin_validate, "builtin_validate")?;
    let dtype =
        context.info().dtypes.iter().find(|dtype| dtype.size() == 4).or(context.info().dtypes.first());
    let dtype = plugin::dtype_code(*dtype.ok_or_else(|| failed("there are no element types"))?);
    let (shape, strides) = ([4u64], [1i64]);
    let mut descs: Vec<_> =
        (0..operands).map(|_| Out::<plugin::Operand>::of(size_of::<plugin::Operand>() + more)).collect();
    for desc in &mut descs {
        let raw = desc.as_mut_ptr();
        // SAFETY: the structure has room for this version's fields (`Out::of`); the arrays outlive the call.
        unsafe {
            (*raw).dtype = dtype;
            (*raw).rank = 1;
            (*raw).shape = shape.as_ptr();
            (*raw).strides = strides.as_ptr();
        }
    }
    let pointers: Vec<_> = descs.iter_mut().map(|desc| desc.as_mut_ptr().cast_const()).collect();
    let mut desc = Out::<plugin::BuiltinDesc>::of(size_of::<plugin::BuiltinDesc>() + more);
    // SAFETY: as above.
    unsafe {
        let raw = desc.as_mut_ptr();
        (*raw).name = name.as_ptr();
        (*raw).operand_count = operands as u32;
        (*raw).operands = pointers.as_ptr();
    }
    let mut message = Message::least();
    // SAFETY: as in `describe`; the device is open.
    let status = unsafe { call(device.handle, desc.as_mut_ptr(), message.as_mut_ptr()) };
    desc.check("builtin_validate")?;
    Ok((status, message))
}

fn builtins(tests: &mut Tests) {
    for more in [0usize, 8, 256] {
        tests.add(
            format!("a-built-in-described-in-{more}-more-bytes"),
            "descriptions of a later version are understood as far as they are known",
            move |context| {
                let (status, message) = validate(context, c"copy", 2, more)?;
                message.expect_ok(status, "builtin_validate")
            },
        );
    }
    tests.add(
        "an-unknown-built-in",
        "a built-in that the plugin lacks is unsupported, with a message",
        |context| {
            let (status, message) = validate(context, c"no_such_operation", 2, 0)?;
            message.expect(status, &[plugin::STATUS_UNSUPPORTED], "builtin_validate").map(drop)
        },
    );
    for (name, operands) in [("too-few-operands", 1usize), ("too-many-operands", 5)] {
        tests.add(
            format!("a-built-in-with-{name}"),
            "a wrong number of operands is refused, with a message",
            move |context| {
                let (status, message) = validate(context, c"copy", operands, 0)?;
                message.expect(status, &REFUSALS, "builtin_validate").map(drop)
            },
        );
    }
}

fn programs(tests: &mut Tests) {
    for (name, bytes) in [
        ("nothing", &b""[..]),
        ("text", b"this is no program, and it is longer than a header of one would be"),
    ] {
        tests.add(
            format!("a-program-of-{name}"),
            "what is no program is of a bad format, with a message in its room",
            move |context| {
                let device = RawDevice::open(context.plugin()?)?;
                if device.table.features & plugin::FEATURE_PROGRAMS == 0 {
                    return Err(unsupported("the plugin takes no programs"));
                }
                let call = function(device.table.program_load, "program_load")?;
                let (mut handle, mut message) = (0, Message::least());
                // SAFETY: as in `describe`; the bytes are static.
                let status = unsafe {
                    call(
                        device.handle,
                        bytes.as_ptr().cast(),
                        bytes.len() as u64,
                        &mut handle,
                        message.as_mut_ptr(),
                    )
                };
                let expected = [plugin::STATUS_BAD_FORMAT, plugin::STATUS_BUILD];
                message.expect(status, &expected, "program_load").map(drop)
            },
        );
    }
}

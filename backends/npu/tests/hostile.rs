//! Plugins that break every rule they can: each gets an error, and none takes the process down where that can be
//! prevented. `docs/writing-a-plugin.md` says where it cannot.
//!
//! | a plugin with | gets | tests |
//! | --- | --- | --- |
//! | null functions, no table, an absurd size, another major | an error that names the rule | `each_required_function…`, `tables_that…` |
//! | counts that lie: devices, counters, arguments | an error with the count | `counts_that_lie…` |
//! | impossible limits, absurd sizes | an error with the claim; what is merely extreme is served | `claims_that…`, `extreme_claims…` |
//! | texts without an end, not UTF-8, with control characters | clean text on one line | `texts_of_every_kind…`, `messages_without_an_end…` |
//! | status codes that do not exist | a driver error of that code | `statuses_that_the_interface_lacks…` |
//! | success without a result | an error where a result is needed | `success_without_a_result…` |
//! | imports that have no function or give no handle, half of a link | what is unsupported, or an error | `imports_and_links_that…` |
//! | one handle or one address twice, misaligned or impossible addresses | an error | `handles_that_are_out…`, `addresses_that_cannot_be…` |
//! | writes beyond a structure or the text of an error | an error, and no damage for the next 256 bytes | `structures_written_too_far…`, `errors_written_too_far…` |
//! | completions that never come, contradict themselves or lack a status | an error; the first failure stays | `completions_that…`, `the_first_outcome…` |
//! | clocks that run backwards | an error | `times_that_run_backwards…` |
//! | `get_extension` that returns garbage, unknown feature bits | nobody asks | `extensions_and_features…` |
//! | calls of the log: while starting, from its own thread, after closing, while the process ends | a log line | `the_log_may_be_called…` |
//! | a hang while it is loaded, described or opened | a time-out | `a_plugin_that_hangs_while…` |
//! | a hang in an initialiser of the file | nothing that can be relied on: the system's loader keeps its lock | |
//! | a hang in a wait with a limit | the loss of its devices | `a_wait_that_ignores_its_limit…` |
//! | a hang where it must return at once | nothing: that thread is lost, others go on | `a_hang_in_an_enqueue…` |
//! | C++ exceptions, panics of Rust | an error where a thread can be spared, else the end of the process, with the name of the call | `exceptions…`, `panics…` |

mod common;

use common::{Folder, download, emulator, plugin, upload};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{
    Access, ArgType, DType, Device, Error, ErrorKind, Health, HostMemory, Kernel, KernelSource, MemoryKind,
    Result, Signature,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The hostile plugin under the name that makes it break `rule`; `None`, with a printed message, without a compiler.
fn hostile(folder: &Folder, rule: &str) -> Option<PathBuf> {
    static COMPILED: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        let folder = Folder::new("compiled");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plugins/hostile.c");
        let flags = ["-std=c99", "-Wall", "-Wextra", "-O1"];
        let path = folder.compile_with("cc", &flags, source.as_ref(), "rules.so")?;
        Some(std::fs::read(path).unwrap())
    });
    let name = format!("libhalite_npu_hostile_{rule}.so");
    // A file that is loaded already must not be written again: the code runs from it.
    Some(folder.0.join(&name))
        .filter(|path| path.exists())
        .or_else(|| Some(folder.file(&name, compiled.as_ref()?)))
}

/// What probing a plugin that breaks `rule` ends with; one line.
fn refusal(rule: &str) -> Option<Error> {
    let folder = Folder::new("refusal");
    let error = plugin(hostile(&folder, rule)?).probe().map(drop).expect_err(rule);
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    Some(error)
}

/// A device of a plugin that breaks `rule`.
fn open(folder: &Folder, rule: &str) -> Option<Device> {
    Some(plugin(hostile(folder, rule)?).open(0).unwrap_or_else(|error| panic!("{rule}: {error}")))
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.map(drop).expect_err("an error is due").kind().clone()
}

fn load_builtin(device: &Device) -> Result<Kernel> {
    let op = BuiltinOp::new(BuiltinKind::Copy, vec![OperandDesc::contiguous(DType::F32, &[1]); 2])?;
    device.load(&KernelSource::Builtin(op))
}

fn load_program(device: &Device) -> Result<Kernel> {
    device.load(&KernelSource::Binary {
        format: "npu-program",
        bytes: vec![1].into(),
        entry: "kernel".into(),
        workgroup: [1, 1, 1],
        signature: Signature::new(vec![ArgType::Buffer { dtype: DType::F32, access: Access::Read }]),
        requires: Vec::new(),
    })
}

/// The functions of the table in order.
const FUNCTIONS: [&str; 38] = [
    "device_count",
    "device_info",
    "device_open",
    "device_close",
    "memory_alloc",
    "memory_free",
    "memory_info",
    "stream_create",
    "stream_destroy",
    "stream_write",
    "stream_read",
    "stream_copy",
    "stream_fill",
    "stream_wait_event",
    "stream_synchronize",
    "event_create",
    "event_destroy",
    "event_record",
    "event_wait",
    "event_query",
    "event_elapsed",
    "stream_reset",
    "device_health",
    "device_counters",
    "get_extension",
    "builtin_validate",
    "builtin_prepare",
    "builtin_release",
    "builtin_enqueue",
    "program_load",
    "program_unload",
    "kernel_find",
    "kernel_launch",
    "kernel_info",
    "kernel_argument",
    "memory_import",
    "peer_enable",
    "stream_copy_peer",
];

#[test]
fn each_required_function_that_is_null_is_named_and_each_optional_one_may_be() {
    for (index, name) in FUNCTIONS.into_iter().enumerate() {
        let optional = (20..25).contains(&index) || index >= 33;
        let rule = format!("missing-{index}");
        if optional {
            let folder = Folder::new("optional");
            let Some(path) = hostile(&folder, &rule) else { return };
            assert_eq!(plugin(path).probe().unwrap().len(), 1, "{name}");
            continue;
        }
        let Some(error) = refusal(&rule) else { return };
        assert_eq!(error.kind(), &ErrorKind::BadFormat);
        assert!(error.message().contains(&format!("lacks the required function {name};")), "{error}");
    }
}

#[test]
fn tables_that_are_absent_absurd_or_of_another_major_are_refused() {
    for (rule, expected) in [
        ("size-0", "claims a table of 0 bytes"),
        ("size-1", "claims a table of 1 bytes"),
        ("size-15", "claims a table of 15 bytes"),
        ("size-16", "too short for the required device_count"),
        ("size-279", "too short for the required event_query"),
        ("size-65537", "claims a table of 65537 bytes"),
        ("size-18446744073709551615", "claims a table of 18446744073709551615 bytes"),
        ("null_table", "returns no table"),
        ("misaligned_table", "returns no table"),
        ("major-0", "speaks interface version 0.1"),
        ("major-4294967295", "speaks interface version 4294967295.1"),
    ] {
        let Some(error) = refusal(rule) else { return };
        assert!(error.message().contains(expected), "{error}");
    }
    for (rule, code) in [("entry_status-77", 77), ("entry_status-4294967295", -1)] {
        let Some(error) = refusal(rule) else { return };
        assert!(matches!(error.kind(), ErrorKind::Backend { code: got, .. } if *got == code), "{error:?}");
        assert!(error.message().contains("refuses to start"), "{error}");
    }
}

#[test]
fn imports_and_links_that_are_not_there_are_errors() {
    let Some(error) = refusal("import_alignment-48") else { return };
    assert!(error.message().contains("claims an alignment of 48"), "{error}");
    let folder = Folder::new("imports");
    let memory = HostMemory::zeroed(64).unwrap();
    let error = open(&folder, "import_silent").unwrap().import(&memory).unwrap_err();
    assert!(error.message().contains("returns no handle from memory_import"), "{error}");
    let device = open(&folder, "import_same").unwrap();
    let first = device.import(&memory).unwrap();
    let second = HostMemory::zeroed(64).unwrap();
    let error = device.import(&second).unwrap_err();
    assert!(error.message().contains("a handle from memory_import that it has not got back yet"), "{error}");
    // The plugin frees what it gave; the memory stays the caller's.
    drop(first);
    for memory in [memory, second] {
        assert_eq!(*memory.into_bytes().unwrap(), [0; 64]);
    }
    // Without an alignment, or without the function, there is nothing to call.
    assert_eq!(
        kind(open(&folder, "import_missing").unwrap().import(&HostMemory::zeroed(64).unwrap())),
        ErrorKind::Unsupported
    );
    assert_eq!(
        kind(open(&folder, "none").unwrap().import(&HostMemory::zeroed(64).unwrap())),
        ErrorKind::Unsupported
    );

    let backend = plugin(hostile(&folder, "peer_status-77").unwrap());
    let (device, peer) = (backend.open(0).unwrap(), backend.open(0).unwrap());
    let link = device.create_peer_stream(&peer).unwrap();
    let [to, from] = [&device, &peer].map(|device| device.allocate(8, MemoryKind::Device).unwrap().all());
    let error = link.copy(&to, &from).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Backend { code: 77, .. }), "{error}");
    link.synchronize().unwrap();
    let half = plugin(hostile(&folder, "half_peer").unwrap());
    assert_eq!(
        kind(half.open(0).unwrap().create_peer_stream(&half.open(0).unwrap())),
        ErrorKind::Unsupported
    );
    // Of another plugin, which knows nothing of this one's handles.
    let other = open(&folder, "none").unwrap();
    assert_eq!(kind(device.create_peer_stream(&other)), ErrorKind::Unsupported);
}

#[test]
fn counts_that_lie_are_errors() {
    for (rule, expected) in [
        ("count-1025", "claims 1025 devices"),
        ("count-4294967295", "claims 4294967295 devices"),
        ("count-0", "no device behind the plugin"),
        ("silent_count", "no device behind the plugin"),
    ] {
        let Some(error) = refusal(rule) else { return };
        assert!(error.message().contains(expected), "{error}");
    }
    let folder = Folder::new("counts");
    let Some(device) = open(&folder, "counters-4294967295") else { return };
    let error = halite_npu::counters(&device).unwrap_err();
    assert!(error.message().contains("claims 4294967295 counters"), "{error}");
    // Later, more counters than there was room for.
    let device = open(&folder, "counters-3").unwrap();
    let counters = halite_npu::counters(&device).unwrap();
    assert_eq!((counters.len(), counters[2].key.len()), (3, 64));
    let device = open(&folder, "kernel_arguments-4294967295").unwrap();
    let error = load_program(&device).unwrap_err();
    assert!(error.message().contains("claims a kernel with 4294967295 arguments"), "{error}");
    // An argument of no known kind.
    assert_eq!(kind(load_program(&open(&folder, "none").unwrap())), ErrorKind::BadFormat);
}

#[test]
fn claims_that_cannot_be_true_are_refused() {
    for (rule, expected) in [
        ("memory-0", "0 bytes"),
        ("memory-18446744073709551615", "a memory of 18446744073709551615 bytes"),
        ("allocation-0", "0 bytes"),
        ("alignment-0", "an alignment of 0"),
        ("alignment-3", "an alignment of 3"),
        ("alignment-0x8000000000000000", "an alignment of 9223372036854775808"),
        ("arguments-0", "at most 0 arguments"),
        ("units-4294967295", "4294967295 compute units"),
        ("kinds-0", "a device without device memory"),
        ("silent_info", "an alignment of 0"),
    ] {
        let Some(error) = refusal(rule) else { return };
        assert_eq!(error.kind(), &ErrorKind::BadFormat);
        assert!(error.message().contains(expected), "{error}");
    }
}

#[test]
fn extreme_claims_that_may_be_true_overflow_nothing() {
    let folder = Folder::new("extreme");
    let largest = 1u64 << 56;
    let Some(device) = open(&folder, &format!("memory-{largest}")) else { return };
    assert_eq!(device.info().limits.max_allocation_bytes, largest);
    let buffers: Vec<_> = (0..3).map(|_| device.allocate(largest, MemoryKind::Device).unwrap()).collect();
    assert_eq!(device.memory().unwrap().used_bytes, 3 * largest);
    drop(buffers);
    assert!(matches!(kind(device.allocate(u64::MAX, MemoryKind::Device)), ErrorKind::TooLarge { .. }));

    let device = open(&folder, "allocation-18446744073709551615").unwrap();
    assert_eq!(device.info().limits.max_allocation_bytes, device.info().memory_bytes);
    assert_eq!(open(&folder, "units-0").unwrap().info().compute_units, 1);
    assert_eq!(open(&folder, "arguments-4294967295").unwrap().info().limits.max_args, u32::MAX);
    let device = open(&folder, "kinds-4294967295").unwrap();
    assert!(device.allocate(8, MemoryKind::Pinned).unwrap_err().message().contains("without an address"));
    let memory = open(&folder, "memory_info_free").unwrap().memory().unwrap();
    assert_eq!(memory.free_bytes, memory.total_bytes);
    let Some(path) = hostile(&folder, "count-1024") else { return };
    assert_eq!(plugin(path).probe().unwrap().len(), 1024);
}

#[test]
fn texts_of_every_kind_end_in_their_field_and_obey_no_terminal() {
    let folder = Folder::new("texts-of-devices");
    let Some(device) = open(&folder, "name_endless") else { return };
    let info = device.info();
    let lengths = [&info.name, &info.vendor, &info.driver_version].map(String::len);
    assert_eq!((lengths, info.features[0].len()), ([128, 64, 64], 256));
    assert_eq!(info.kernel_formats[0].len(), 32);
    let name = |rule| open(&folder, rule).unwrap().info().name.clone();
    assert_eq!(name("name_not_utf8"), "\u{FFFD}\u{FFFD} x\u{FFFD}");
    assert_eq!(name("name_control"), "a [2J  b");
    assert_eq!(name("name_empty"), "device of minimal");
    let info = plugin(hostile(&folder, "table_name").unwrap()).plugins().unwrap().remove(0);
    assert_eq!((info.name.as_str(), info.version.chars().count()), ("", 32));
}

#[test]
fn messages_without_an_end_or_with_garbage_become_one_clean_line() {
    let folder = Folder::new("messages");
    let allocate = |rule| {
        let device = open(&folder, rule)?;
        Some(device.allocate(8, MemoryKind::Device).unwrap_err())
    };
    let Some(error) = allocate("text_endless") else { return };
    assert_eq!((error.kind(), error.message()), (&ErrorKind::Fault, "x".repeat(512).as_str()));
    let error = allocate("text_not_utf8").unwrap();
    assert_eq!(error.message(), "\u{FFFD}no [2J way\u{FFFD}");
    // The host's own fields of the error are not believed after the call.
    let error = allocate("error_rewritten").unwrap();
    assert!(matches!(error.kind(), ErrorKind::OutOfMemory { requested: 8, .. }), "{error}");
    assert!(error.message().contains("gave no reason"), "{error}");
    let error = load_program(&open(&folder, "log_endless").unwrap()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Build { log } if log.len() == 64 << 10));
}

#[test]
fn statuses_that_the_interface_lacks_are_driver_errors_of_that_code() {
    let folder = Folder::new("statuses");
    for code in [14, 0x7FFF_FFFF, -1, i64::from(i32::MIN)] {
        let number = code.cast_unsigned();
        let Some(device) = open(&folder, &format!("status-{number}")) else { return };
        let got = kind(device.allocate(8, MemoryKind::Device));
        assert!(matches!(got, ErrorKind::Backend { code: own, .. } if own == code), "{got:?}");

        let device = open(&folder, &format!("completion_status-{number}")).unwrap();
        let stream = device.create_stream().unwrap();
        let got = kind(stream.synchronize());
        assert!(matches!(got, ErrorKind::Backend { code: own, .. } if own == code), "{got:?}");
    }
}

#[test]
fn success_without_a_result_is_an_error() {
    let folder = Folder::new("silent");
    let open = |rule| open(&folder, rule);
    let no_handle = |error: Error, call: &str| {
        assert!(error.message().contains(&format!("returns no handle from {call}")), "{error}");
    };
    let Some(path) = hostile(&folder, "silent_open") else { return };
    no_handle(plugin(path).open(0).map(drop).unwrap_err(), "device_open");
    let device = open("silent_alloc").unwrap();
    no_handle(device.allocate(8, MemoryKind::Device).unwrap_err(), "memory_alloc");
    no_handle(open("silent_stream").unwrap().create_stream().unwrap_err(), "stream_create");
    let stream = open("silent_event").unwrap().create_stream().unwrap();
    no_handle(stream.record().unwrap_err(), "event_create");
    no_handle(load_builtin(&open("silent_prepare").unwrap()).unwrap_err(), "builtin_prepare");
    no_handle(load_program(&open("silent_load").unwrap()).unwrap_err(), "program_load");
    no_handle(load_program(&open("silent_find").unwrap()).unwrap_err(), "kernel_find");
    let error = open("silent_memory_info").unwrap().memory().unwrap_err();
    assert!(error.message().contains("a memory of 0 bytes"), "{error}");
}

#[test]
fn handles_that_are_out_already_are_refused_and_stay_with_their_owner() {
    let folder = Folder::new("twice");
    let twice = |error: Error, call: &str| {
        let expected = format!("returns a handle from {call} that it has not got back yet");
        assert!(error.message().contains(&expected), "{error}");
    };
    let Some(device) = open(&folder, "same_memory") else { return };
    let stream = device.create_stream().unwrap();
    let first = upload(&device, &stream, &[7; 8]);
    twice(device.allocate(8, MemoryKind::Device).unwrap_err(), "memory_alloc");
    assert_eq!(download(&stream, &first), [7; 8]);
    let device = open(&folder, "same_stream").unwrap();
    let stream = device.create_stream().unwrap();
    twice(device.create_stream().unwrap_err(), "stream_create");
    drop(stream);
    let backend = plugin(hostile(&folder, "same_device").unwrap());
    let device = backend.open(0).unwrap();
    twice(backend.open(0).map(drop).unwrap_err(), "device_open");
    assert_eq!(device.health(), Health::Ok);
}

#[test]
fn addresses_that_cannot_be_are_refused_before_anyone_uses_them() {
    let folder = Folder::new("addresses");
    for (rule, expected) in [
        ("host_null", "without an address"),
        ("host_misaligned", "not aligned to 64 bytes"),
        ("host_beyond", "beyond the last address"),
    ] {
        let Some(device) = open(&folder, rule) else { return };
        let error = device.allocate(1 << 10, MemoryKind::HostVisible).unwrap_err();
        assert!(error.message().contains(expected), "{error}");
        assert_eq!(device.memory().unwrap().used_bytes, 0);
    }
    let device = open(&folder, "host_same").unwrap();
    let first = device.allocate(64, MemoryKind::HostVisible).unwrap();
    let error = device.allocate(8, MemoryKind::Pinned).unwrap_err();
    assert!(error.message().contains("overlaps other memory"), "{error}");
    drop(first);
    device.allocate(8, MemoryKind::Pinned).unwrap();
}

#[test]
fn structures_written_too_far_or_resized_are_errors() {
    let Some(error) = refusal("info_too_far") else { return };
    assert!(error.message().contains("writes beyond the 608 bytes of device_info"), "{error}");
    let folder = Folder::new("too-far");
    for (rule, expected) in [
        ("memory_info_too_far", "writes beyond the 24 bytes of memory_info"),
        ("memory_info_cleared_too_far", "writes beyond the 24 bytes of memory_info"),
        ("memory_info_size", "sets struct_size to 8 in the 24 bytes of memory_info"),
    ] {
        let error = open(&folder, rule).unwrap().memory().unwrap_err();
        assert!(error.message().contains(expected), "{error}");
    }
    let stream = open(&folder, "completion_too_far").unwrap().create_stream().unwrap();
    let error = stream.synchronize().unwrap_err();
    assert!(error.message().contains("writes beyond the 16 bytes of stream_synchronize"), "{error}");
    for (rule, expected) in [
        ("counter_too_far", "writes beyond the 96 bytes of device_counters"),
        ("counter_size-1", "sets struct_size to 1 in the 96 bytes of device_counters"),
    ] {
        let error = halite_npu::counters(&open(&folder, rule).unwrap()).unwrap_err();
        assert!(error.message().contains(expected), "{error}");
    }
}

#[test]
fn errors_written_too_far_or_resized_are_errors_whatever_the_status() {
    let Some(error) = refusal("entry_error_too_far") else { return };
    assert!(error.message().contains("48 bytes of the error in halite_plugin_entry"), "{error}");
    let folder = Folder::new("error-too-far");
    for (rule, expected) in [
        ("error_too_far", "writes beyond the 48 bytes of the error in memory_alloc"),
        ("error_too_far-9", "writes beyond the 48 bytes of the error in memory_alloc"),
        ("error_size-40", "sets struct_size to 40 in the 48 bytes of the error in memory_alloc"),
        ("error_size-9", "sets struct_size to 9 in the 48 bytes of the error in memory_alloc"),
        ("text_too_far", "writes beyond the 512 bytes of the error's text in memory_alloc"),
        ("text_too_far-9", "writes beyond the 512 bytes of the error's text in memory_alloc"),
        ("text_too_far_by_one-9", "writes beyond the 512 bytes of the error's text in memory_alloc"),
    ] {
        let device = open(&folder, rule).unwrap();
        let error = device.allocate(8, MemoryKind::Device).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::BadFormat);
        assert!(error.message().contains(expected), "{rule}: {error}");
        assert_eq!(device.memory().unwrap().used_bytes, 0);
    }
}

#[test]
fn what_a_call_uses_that_breaks_a_rule_is_held_as_if_it_were_enqueued() {
    let folder = Folder::new("broken-enqueue");
    let Some(device) = open(&folder, "fill_error_too_far") else { return };
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(8, MemoryKind::Device).unwrap();
    let error = stream.fill(&buffer.all(), &[1]).unwrap_err();
    assert!(error.message().contains("of the error in stream_fill"), "{error}");
    drop(buffer);
    assert_eq!(device.memory().unwrap().buffers, 1);
    stream.synchronize().unwrap();
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn completions_that_never_come_or_make_no_sense_are_errors() {
    let folder = Folder::new("completions");
    for (rule, expected) in [
        ("never", "before the work is over"),
        ("completion_state-3", "unknown completion state 3"),
        ("completion_state-4294967295", "unknown completion state 4294967295"),
        ("completion_status-0", "reports a failure without a status"),
        ("completion_refused", "cannot tell"),
    ] {
        let Some(device) = open(&folder, rule) else { return };
        let stream = device.create_stream().unwrap();
        let buffer = upload(&device, &stream, &[1; 8]);
        for result in [
            stream.synchronize(),
            stream.read_blocking(&buffer, &mut [0; 8]),
            stream.record().and_then(|event| event.wait(None)),
        ] {
            let error = result.unwrap_err();
            assert!(error.message().contains(expected), "{rule}: {error}");
        }
    }
    let stream = open(&folder, "never").unwrap().create_stream().unwrap();
    let event = stream.record().unwrap();
    assert!(!event.is_done().unwrap());
    let limit = Duration::from_millis(5);
    assert_eq!(kind(event.wait(Some(limit))), ErrorKind::Timeout { after: limit });
    assert_eq!(kind(stream.synchronize_timeout(limit)), ErrorKind::Timeout { after: limit });
}

#[test]
fn the_first_outcome_of_work_stays_whatever_the_plugin_says_later() {
    let folder = Folder::new("flip");
    let Some(device) = open(&folder, "flip") else { return };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[1; 8]);
    let before = stream.record().unwrap();
    before.wait(None).unwrap();
    stream.fill(&buffer, &[2]).unwrap();
    let event = stream.record().unwrap();
    for _ in 0..5 {
        assert_eq!(kind(event.wait(None)), ErrorKind::Link);
        assert_eq!(kind(event.is_done()), ErrorKind::Link);
        assert_eq!(kind(stream.fill(&buffer, &[3])), ErrorKind::Link);
        assert!(before.is_done().unwrap());
    }
    assert_eq!(device.health(), Health::Ok);
}

#[test]
fn times_that_run_backwards_are_errors() {
    let folder = Folder::new("backwards");
    let Some(device) = open(&folder, "backwards") else { return };
    let stream = device.create_stream().unwrap();
    let events = [stream.record().unwrap(), stream.record().unwrap()];
    let error = events[1].elapsed_since(&events[0]).unwrap_err();
    assert!(error.message().contains("18446744073709551611 nanoseconds"), "{error}");
}

#[test]
fn extensions_and_features_that_nobody_knows_change_nothing() {
    let folder = Folder::new("unknown");
    // Every hostile plugin claims features that do not exist and offers a garbage extension under every name.
    let Some(device) = open(&folder, "none") else { return };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[5; 8]);
    assert_eq!(download(&stream, &buffer), [5; 8]);
    load_builtin(&device).unwrap();
}

/// A time limit for calls that is long for a healthy plugin and short for a test.
const SHORT: Duration = Duration::from_secs(1);

#[test]
fn a_plugin_that_hangs_while_it_is_loaded_described_or_opened_is_given_up() {
    let folder = Folder::new("hangs");
    for (rule, call) in [
        ("hang_entry", "halite_plugin_entry"),
        ("hang_count", "device_count"),
        ("hang_info", "device_info"),
        ("hang_open", "device_open"),
    ] {
        let Some(path) = hostile(&folder, rule) else { return };
        let backend = plugin(path.clone()).with_call_limit(SHORT);
        let error = backend.open(0).map(drop).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Timeout { after: SHORT });
        assert!(error.message().contains(&format!("did not return from {call} within {SHORT:?}")), "{error}");
        assert!(error.message().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
        // It is not asked again, so the second time costs nothing.
        let begin = Instant::now();
        assert!(plugin(path.clone()).probe().is_err());
        assert!(begin.elapsed() < SHORT);
        // Nor does it hide the others.
        let list = std::env::join_paths([path.parent().unwrap(), emulator().as_path()]).unwrap();
        assert!(
            common::search(list).probe().unwrap().iter().any(|device| device.name.starts_with("Halite NPU"))
        );
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_wait_that_ignores_its_limit_ends_as_the_loss_of_the_plugins_devices() {
    let folder = Folder::new("ignores");
    for rule in ["hang_wait", "hang_synchronize"] {
        let Some(path) = hostile(&folder, rule) else { return };
        let backend = plugin(path).with_call_limit(SHORT);
        let (device, other) = (backend.open(0).unwrap(), backend.open(0).unwrap());
        let stream = device.create_stream().unwrap();
        let buffer = upload(&device, &stream, &[1; 8]);
        let event = stream.record().unwrap();
        let limit = Duration::from_millis(10);
        let result =
            if rule == "hang_wait" { event.wait(Some(limit)) } else { stream.synchronize_timeout(limit) };
        let error = result.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::DeviceLost, "{error}");
        assert!(error.message().contains("did not return from"), "{error}");
        for device in [&device, &other] {
            assert!(matches!(kind(device.allocate(8, MemoryKind::Device)), ErrorKind::DeviceLost));
            assert!(matches!(device.health(), Health::Lost { .. }));
        }
        assert_eq!(kind(stream.fill(&buffer, &[2])), ErrorKind::DeviceLost);
        // What is left is dropped without asking the plugin.
        drop((event, buffer, stream, device, other));
    }
}

#[test]
fn a_hang_in_an_enqueue_costs_its_thread_and_no_other() {
    let folder = Folder::new("enqueue");
    let Some(device) = open(&folder, "hang_fill") else { return };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[1; 8]);
    let (own, slice) = (device.create_stream().unwrap(), buffer.clone());
    let lost = std::thread::spawn(move || own.fill(&slice, &[2]));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!lost.is_finished());
    assert_eq!(download(&stream, &buffer), [1; 8]);
    drop((device, stream, buffer));
}

/// A C++ plugin with this definition; `None`, with a printed message, without a compiler.
fn throwing(folder: &Folder, define: &str) -> Option<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plugins/throwing.cc");
    let name: String = define.chars().filter(char::is_ascii_alphanumeric).collect();
    let flags = ["-std=c++17", "-Wall", "-Wextra", &format!("-D{define}")];
    folder.compile_with("c++", &flags, source.as_ref(), &format!("libhalite_npu_{name}.so"))
}

#[test]
fn exceptions_while_probing_and_opening_are_errors() {
    let folder = Folder::new("exceptions");
    for (define, call) in [
        ("THROWS_ENTRY", "halite_plugin_entry"),
        ("THROWS=device_count", "device_count"),
        ("THROWS=device_info", "device_info"),
        ("THROWS=device_open", "device_open"),
    ] {
        let Some(path) = throwing(&folder, define) else { return };
        let error = plugin(path).open(0).map(drop).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::BadFormat, "{error}");
        assert!(error.message().contains(&format!("lets an exception out of {call}")), "{error}");
    }
}

#[test]
fn an_exception_in_a_wait_with_a_limit_is_the_loss_of_the_device() {
    let folder = Folder::new("throwing-wait");
    let Some(path) = throwing(&folder, "THROWS=event_wait") else { return };
    let device = plugin(path).open(0).unwrap();
    let event = device.create_stream().unwrap().record().unwrap();
    let error = event.wait(Some(Duration::from_millis(1))).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::DeviceLost);
    assert!(error.message().contains("lets an exception out of event_wait"), "{error}");
}

#[test]
fn exceptions_elsewhere_end_the_process_with_the_names_of_plugin_and_call() {
    let folder = Folder::new("throwing-call");
    for call in ["stream_write", "memory_free"] {
        let Some(path) = throwing(&folder, &format!("THROWS={call}")) else { return };
        let output = in_child("work", &path);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(text.contains(&format!("lets an exception out of {call}")), "{text}");
        assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
    }
}

/// A plugin in Rust; `None`, with a printed message, where that does not compile.
fn panicking(folder: &Folder, flags: &[&str], name: &str) -> Option<PathBuf> {
    let output = folder.0.join(name);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plugins/panicking.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .args(["--edition", "2024", "--crate-type", "cdylib"])
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(source);
    match command.output() {
        Ok(result) if result.status.success() => Some(output),
        result => {
            println!("skipped: no plugin in Rust: {result:?}");
            None
        }
    }
}

#[test]
fn panics_that_leave_a_plugin_in_rust_are_as_exceptions() {
    let folder = Folder::new("panics");
    let Some(path) = panicking(&folder, &["--cfg", "unwinds"], "libhalite_npu_unwinds.so") else { return };
    let error = plugin(path).probe().unwrap_err();
    assert!(error.message().contains("lets an exception out of device_count"), "{error}");
}

#[test]
fn panics_in_a_plugin_in_rust_end_the_process_at_its_own_boundary() {
    let folder = Folder::new("panics-inside");
    let Some(path) = panicking(&folder, &[], "libhalite_npu_panics.so") else { return };
    let output = in_child("probe", &path);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("the plugin gives up"), "{text}");
}

#[test]
fn the_log_may_be_called_at_any_time_from_any_thread_and_with_any_text() {
    let folder = Folder::new("logging");
    let Some(path) = hostile(&folder, "logs") else { return };
    let output = in_child("logs", &path);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout);
    assert!(lines.contains("\nthe process ends\n"), "{lines}");
    assert!(lines.contains(&"x".repeat(1024)) && !lines.contains(&"x".repeat(1025)));
    assert!(lines.contains("\u{FFFD} [2J\n"));
}

/// Runs [`child`] with this job in a process of its own, at most for half a minute.
fn in_child(job: &str, path: &Path) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env("HALITE_TEST_JOB", job)
        .env("HALITE_TEST_PLUGIN", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// What a process of [`in_child`] does; nothing in any other.
#[test]
fn child() {
    let Ok(job) = std::env::var("HALITE_TEST_JOB") else { return };
    let backend = plugin(std::env::var_os("HALITE_TEST_PLUGIN").unwrap());
    match job.as_str() {
        "probe" => drop(backend.probe()),
        "work" => {
            let device = backend.open(0).unwrap();
            let stream = device.create_stream().unwrap();
            drop(device.allocate(8, MemoryKind::Device).unwrap());
            upload(&device, &stream, &[1; 8]);
        }
        "logs" => {
            log::set_logger(&PrintingLogger).unwrap();
            log::set_max_level(log::LevelFilter::Trace);
            drop(backend.open(0).unwrap());
            // The plugin goes on logging after its device is closed, and while the process ends.
            std::thread::sleep(Duration::from_millis(30));
        }
        _ => panic!("no job '{job}'"),
    }
}

/// Prints a few lines, and panics now and then, which must not reach the plugin.
struct PrintingLogger;

impl log::Log for PrintingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        use std::io::Write as _;
        use std::sync::atomic::{AtomicU64, Ordering};
        static LINES: AtomicU64 = AtomicU64::new(0);
        if record.level() == log::Level::Error || LINES.fetch_add(1, Ordering::Relaxed) < 8 {
            let _ = writeln!(std::io::stdout(), "\n{}", record.args());
        }
        if LINES.load(Ordering::Relaxed) == 9 {
            std::panic::resume_unwind(Box::new("a logger that fails"));
        }
    }

    fn flush(&self) {}
}

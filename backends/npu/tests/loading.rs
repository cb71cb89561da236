//! Finding and loading plugin files, good and bad: every failure is one line that names the file and the rule.

mod common;

use common::{Folder, emulator, open_emulator, plugin, search};
use halite_hal::driver::Backend as _;
use halite_hal::{DType, Error, ErrorKind, MemoryKind, Registry};
use halite_npu::NpuBackend;
use std::path::Path;
use std::sync::Arc;

/// The error of probing one plugin file.
fn refusal(path: &Path) -> Error {
    plugin(path).probe().unwrap_err()
}

/// Compiles the minimal plugin with a broken rule and returns the error, which is one line and names the file.
fn refusal_of(defines: &[&str]) -> Option<Error> {
    let folder = Folder::new(&defines.concat());
    let path = folder.minimal(defines)?;
    let error = refusal(&path);
    let file = path.file_name().unwrap().to_str().unwrap();
    assert!(error.message().contains(file), "{error}");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    Some(error)
}

#[test]
fn the_emulator_is_found_beside_the_executable_and_describes_itself() {
    let devices = NpuBackend::new().without_environment().probe().unwrap();
    assert_eq!(devices.len(), 1);
    let info = &devices[0];
    assert_eq!(info.id.to_string(), "npu:0");
    assert!(info.name.starts_with("Halite NPU emulator"), "{}", info.name);
    assert_eq!(info.kernel_formats, ["npu-program", "builtin"]);
    assert_eq!(info.memory_bytes, 8 << 30);
    assert!(info.dtypes.contains(&DType::F16) && info.dtypes.contains(&DType::F32));
}

#[test]
fn a_registry_opens_the_emulator_by_name() {
    let mut registry = Registry::new();
    registry.register(Arc::new(plugin(emulator()))).unwrap();
    assert!(registry.probe().absent.is_empty());
    assert_eq!(registry.open("npu").unwrap().id().to_string(), "npu:0");
    let error = registry.open("npu:7").unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
    assert!(error.message().contains("npu:0"), "{error}");
}

#[test]
fn the_emulator_is_opened_from_its_file_and_not_linked_in() {
    // A text of the emulator's code. The pieces have no spaces, so this test does not hold it itself, in whatever order
    // the linker places them.
    let needle = ["the", "device", "stopped", "answering", "in", "command"].join(" ");
    let holds = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
    };
    assert!(holds(&emulator()));
    assert!(!holds(&std::env::current_exe().unwrap()));
}

#[test]
fn one_file_under_two_names_is_one_plugin() {
    let folder = Folder::new("two-names");
    let link = folder.0.join(halite_npu::emulator_file_name());
    #[cfg(unix)]
    std::os::unix::fs::symlink(emulator(), &link).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(emulator(), &link).unwrap();
    if cfg!(unix) {
        let list = std::env::join_paths([emulator(), link]).unwrap();
        assert_eq!(search(list).plugins().unwrap().len(), 1);
    }
}

#[test]
fn devices_are_numbered_over_all_plugins() {
    let folder = Folder::new("numbered");
    let Some(minimal) = folder.minimal(&["LIE_COUNT=2"]) else { return };
    let list = std::env::join_paths([minimal, emulator()]).unwrap();
    let backend = search(list);
    let names: Vec<_> =
        backend.probe().unwrap().into_iter().map(|info| (info.id.to_string(), info.name)).collect();
    assert_eq!(names[0], ("npu:0".into(), "minimal device".into()));
    assert_eq!(names[1], ("npu:1".into(), "minimal device".into()));
    assert_eq!(names[2].0, "npu:2");
    assert!(backend.open(2).unwrap().info().name.starts_with("Halite"));
    assert!(backend.open(3).is_err());
}

#[test]
fn options_reach_the_plugin_and_unknown_ones_are_named() {
    let error = plugin(emulator()).with_option("machin", "x.yaml").probe().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(error.message().contains("'machin'") && error.message().contains("machine"), "{error}");
    assert!(error.message().contains("options 'machin=x.yaml'"), "{error}");
    assert!(error.message().contains(halite_npu::emulator_file_name().as_str()), "{error}");

    let folder = Folder::new("options");
    let text = halite_profiles::Machine::builtin_yaml();
    let small = text.replace("global: 8 GiB", "global: 1 MiB").replace("name: davinci-like", "name: tiny");
    assert_ne!(small, text);
    let file = folder.file("tiny.yaml", small);
    let device = open_emulator(&[("machine", file.to_str().unwrap()), ("threads", "1")]);
    assert_eq!(device.info().memory_bytes, 1 << 20);
    assert_eq!(device.info().name, "Halite NPU emulator (tiny)");

    let broken = folder.file("broken.yaml", "name: x\ncore: 3\n");
    let backend = plugin(emulator()).with_option("machine", broken.to_str().unwrap());
    let error = backend.probe().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::BadFormat);
    assert!(error.message().contains("broken.yaml:"), "{error}");
}

#[test]
fn absent_files_and_files_that_are_no_library_are_told_apart() {
    let folder = Folder::new("no-library");
    let error = refusal(&folder.0.join("gone.so"));
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
    assert!(error.message().contains("gone.so' is not there"), "{error}");
    for (name, contents) in [("empty.so", &b""[..]), ("text.so", b"hello"), ("short.so", b"\x7fE")] {
        let error = refusal(&folder.file(name, contents));
        assert_eq!(error.kind(), &ErrorKind::BadFormat, "{error}");
        assert!(
            error.message().contains(name) && error.message().contains("not a shared library"),
            "{error}"
        );
    }
    assert!(refusal(&folder.0).message().contains("is a folder"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_damaged_library_is_refused_with_the_systems_words() {
    let folder = Folder::new("damaged");
    let mut bytes = b"\x7fELF".to_vec();
    bytes.resize(4096, 0xA5);
    let error = refusal(&folder.file("damaged.so", bytes));
    assert!(error.message().contains("damaged.so' cannot be loaded"), "{error}");
}

#[test]
fn a_library_without_the_entry_point_is_no_plugin() {
    let folder = Folder::new("no-entry");
    let source = folder.file("other.c", "int other_library(void) { return 1; }\n");
    let Some(path) = folder.compile(&source, &["OTHER"]) else { return };
    let error = refusal(&path);
    assert_eq!(error.kind(), &ErrorKind::BadFormat);
    assert!(error.message().contains("exports no function halite_plugin_entry"), "{error}");
}

#[test]
fn another_major_version_is_a_mismatch_that_names_both() {
    for major in ["LIE_MAJOR=2", "LIE_MAJOR=0"] {
        let Some(error) = refusal_of(&[major]) else { return };
        assert_eq!(error.kind(), &ErrorKind::AbiMismatch);
        let theirs = format!("{}.1", &major["LIE_MAJOR=".len()..]);
        assert!(error.message().contains(&theirs) && error.message().contains("1.1"), "{error}");
    }
}

#[test]
fn tables_that_are_short_absurd_or_absent_are_refused() {
    for (define, expected) in [
        ("LIE_TABLE_SIZE=8", "claims a table of 8 bytes"),
        ("LIE_TABLE_SIZE=16", "too short for the required device_count"),
        ("LIE_TABLE_SIZE=offsetof(halite_plugin,event_query)", "too short for the required event_query"),
        ("LIE_TABLE_SIZE=UINT64_MAX", "claims a table of 18446744073709551615 bytes"),
        ("LIE_NO_TABLE", "returns no table"),
    ] {
        let Some(error) = refusal_of(&[define]) else { return };
        assert_eq!(error.kind(), &ErrorKind::BadFormat);
        assert!(error.message().contains(expected), "{error}");
    }
}

#[test]
fn missing_functions_are_named_if_tier_or_feature_requires_them() {
    for (defines, expected) in [
        (&["LIE_MISSING=memory_info"][..], "lacks the required function memory_info"),
        (&["LIE_MISSING=builtin_enqueue"], "lacks the required function builtin_enqueue"),
        (&["LIE_FEATURES=HALITE_FEATURE_PROGRAMS"], "lacks the required function program_load"),
    ] {
        let Some(error) = refusal_of(defines) else { return };
        assert_eq!(error.kind(), &ErrorKind::BadFormat);
        assert!(error.message().contains(expected), "{error}");
    }
    let folder = Folder::new("no-builtins");
    let Some(path) = folder.minimal(&["LIE_MISSING=builtin_enqueue", "LIE_FEATURES=0"]) else { return };
    let devices = plugin(path).probe().unwrap();
    assert!(devices[0].kernel_formats.is_empty());
}

#[test]
fn claims_that_cannot_be_true_are_refused() {
    for (define, expected) in [
        ("LIE_COUNT=1025", "claims 1025 devices"),
        ("LIE_ALIGNMENT=3", "claims an alignment of 3"),
        ("LIE_SIZE", "sets struct_size to 1048576"),
        ("LIE_NO_MEMORY", "whose memory has 0 bytes"),
    ] {
        let Some(error) = refusal_of(&[define]) else { return };
        assert_eq!(error.kind(), &ErrorKind::BadFormat);
        assert!(error.message().contains(expected), "{error}");
    }
}

#[test]
fn a_plugin_that_refuses_to_start_or_has_no_device_is_unavailable() {
    let Some(error) = refusal_of(&["LIE_REFUSES"]) else { return };
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
    assert!(error.message().contains("refuses to start: no driver"), "{error}");
    let Some(error) = refusal_of(&["LIE_COUNT=0"]) else { return };
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
    assert!(error.message().contains("no device"), "{error}");
}

#[test]
fn a_plugin_without_its_hardware_does_not_hide_the_others() {
    let folder = Folder::new("no-hardware");
    let Some(path) = folder.minimal(&["LIE_NO_HARDWARE"]) else { return };
    let list = std::env::join_paths([path.clone(), emulator()]).unwrap();
    let devices = search(list).probe().unwrap();
    assert_eq!(devices.len(), 1);
    assert!(devices[0].name.starts_with("Halite"));
    let error = refusal(&path);
    assert_eq!((error.kind(), error.message()), (&ErrorKind::Unavailable, "no card is plugged in"));
}

#[test]
fn texts_without_an_end_are_cut_and_unknown_dtypes_left_out() {
    let folder = Folder::new("texts");
    let defines = ["LIE_ENDLESS_TEXT", "LIE_DTYPES=~UINT64_C(0)"];
    let Some(path) = folder.minimal(&defines) else { return };
    let info = plugin(path).probe().unwrap().remove(0);
    assert_eq!(info.name, "x".repeat(128));
    assert!(info.features.is_empty());
    assert_eq!(info.dtypes, DType::ALL);
}

#[test]
fn handles_and_statuses_that_the_interface_lacks_are_errors() {
    let folder = Folder::new("handles");
    let Some(path) = folder.minimal(&["LIE_NO_HANDLE"]) else { return };
    let error = plugin(path).open(0).unwrap_err();
    assert!(error.message().contains("returns no handle from device_open"), "{error}");

    let Some(path) = folder.minimal(&["LIE_STATUS=-77"]) else { return };
    let device = plugin(path).open(0).unwrap();
    let error = device.allocate(8, MemoryKind::Device).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Backend { code: -77, .. }), "{error}");
    assert_eq!((error.device(), error.call()), (Some("npu:0"), Some("memory_alloc")));
}

#[test]
fn a_broken_library_in_a_listed_folder_does_not_hide_the_good_ones() {
    let folder = Folder::new("mixed");
    folder.file("libhalite_npu_broken.so", "no library");
    let list = std::env::join_paths([folder.0.clone(), emulator()]).unwrap();
    assert_eq!(search(list).plugins().unwrap().len(), 1);
    let alone = search(folder.0.clone()).plugins();
    if cfg!(target_os = "linux") {
        assert!(alone.unwrap_err().message().contains("libhalite_npu_broken.so"));
    }
}

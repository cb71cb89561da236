//! The command line as a person or a program meets it: output, errors, exit codes.

#![allow(missing_docs)]

mod common;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SUCCESS: i32 = 0;
const FAILURE: i32 = 1;
const USAGE: i32 = 2;

/// The program without the settings of whoever runs the test.
fn halite(arguments: &[&str]) -> Command {
    let mut command = common::program(env!("CARGO_BIN_EXE_halite").as_ref());
    command.args(arguments);
    command
}

fn output(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

/// One line on standard error, nothing on standard output, and the exit code of wrong use.
fn assert_refused(command: Command, parts: &[&str]) {
    let (code, stdout, stderr) = output(command);
    assert_eq!((code, stdout.as_str()), (USAGE, ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "'{part}' is missing: {stderr}");
    }
}

fn file(name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).expect("the test's folder is writable");
    path
}

fn object(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn devices_are_listed_with_everything_that_programs_read() {
    let (code, stdout, _) = output(halite(&["devices", "--json"]));
    assert_eq!(code, SUCCESS);
    let list: Value = serde_json::from_str(&stdout).unwrap();
    assert!(list["unavailable"].is_array());
    let devices = list["devices"].as_array().unwrap();
    let ids: Vec<&str> = devices.iter().map(|device| device["id"].as_str().unwrap()).collect();
    assert_eq!(ids[..2], ["cpu:0", "npu:0"]);
    for device in devices {
        let keys = [
            "id",
            "backend",
            "name",
            "memory_bytes",
            "compute_units",
            "dtypes",
            "kernel_formats",
            "profile",
            "notes",
        ];
        let mut sorted = keys.to_vec();
        sorted.sort_unstable();
        let mut found = object(device);
        found.sort_unstable();
        assert_eq!(found, sorted);
        assert!(
            device["memory_bytes"].as_u64().unwrap() > 0 && device["compute_units"].as_u64().unwrap() > 0
        );
        assert!(device["dtypes"].as_array().unwrap().contains(&Value::from("f32")));
    }
    let (code, stdout, _) = output(halite(&["devices"]));
    assert_eq!(code, SUCCESS);
    assert!(stdout.contains("cpu:0") && stdout.contains("npu:0"), "{stdout}");
}

#[test]
fn an_absent_backend_is_listed_with_its_reason() {
    // A folder without plugins beside a copy of the program: nothing is found.
    let program = common::folder("alone").join("halite");
    std::fs::copy(env!("CARGO_BIN_EXE_halite"), &program).unwrap();
    let mut command = common::program(&program);
    command.args(["devices", "--json"]);
    let (code, stdout, stderr) = output(command);
    assert_eq!(code, SUCCESS, "{stderr}");
    let list: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(list["unavailable"][0]["backend"], "npu");
    let reason = list["unavailable"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("HALITE_PLUGIN_PATH"), "{reason}");
}

#[test]
fn demo_prints_one_json_object_and_progress_elsewhere() {
    let (code, stdout, stderr) =
        output(halite(&["demo", "--json", "--epochs", "2", "--batch", "128", "--seed", "9"]));
    assert_eq!(code, SUCCESS, "{stderr}");
    assert_eq!(stdout.lines().count(), 1);
    assert!(!stderr.is_empty(), "progress goes to standard error");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&report["task"], &report["train_images"], &report["test_images"]),
        (&"digits".into(), &1437.into(), &360.into())
    );
    for device in report["devices"].as_array().unwrap() {
        assert_eq!(device["epochs"], 2);
        assert_eq!(device["loss"].as_array().unwrap().len(), 2);
        assert_eq!(device["fallbacks"].as_array().unwrap().len(), 0);
        assert!(device["test_accuracy"].as_f64().unwrap() > 0.5);
        for key in ["images_per_second", "peak_memory_bytes", "launches"] {
            assert!(device[key].as_f64().unwrap() > 0.0, "{key}");
        }
    }
}

#[test]
fn demo_writes_a_page_that_needs_nothing_else() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.html");
    let arguments = ["demo", "--device", "cpu", "--epochs", "1", "--report", path.to_str().unwrap()];
    let (code, stdout, stderr) = output(halite(&arguments));
    assert_eq!(code, SUCCESS, "{stderr}");
    assert!(stdout.contains("cpu:0"));
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.contains("<svg") && !page.contains("http://") && !page.contains("src=\"http"));
}

#[test]
fn a_device_that_fails_stays_in_the_list_and_the_others_go_on() {
    let mut command = halite(&["demo", "--json", "--epochs", "1", "--batch", "512"]);
    command.env("HALITE_CPU_MEMORY", "256KiB");
    let (code, stdout, stderr) = output(command);
    assert_eq!(code, FAILURE, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let devices = report["devices"].as_array().unwrap();
    let error = devices[0]["error"].as_str().expect("the CPU has too little memory");
    assert!(error.contains("cpu:0") && !error.contains('\n'), "{error}");
    // The profile's share and the variable that it is a share of.
    assert!(error.contains("memory.pool_limit") && error.contains("HALITE_CPU_MEMORY"), "{error}");
    assert!(devices[1].get("error").is_none(), "the NPU has enough: {}", devices[1]);
}

#[test]
fn an_unknown_device_is_named_with_those_that_are_there() {
    assert_refused(halite(&["demo", "--device", "cpu:7"]), &["cpu:7", "cpu:0"]);
    assert_refused(halite(&["demo", "--device", "npux"]), &["npux", "did you mean 'npu:0'"]);
    assert_refused(halite(&["profile", "show", "tpu:0"]), &["tpu:0", "use one of cpu:0, npu:0"]);
}

#[test]
fn wrong_values_are_refused_before_anything_runs() {
    assert_refused(halite(&["demo", "--epochs", "0"]), &["--epochs", "0"]);
    assert_refused(halite(&["demo", "--batch", "1438"]), &["--batch", "1437"]);
    assert_refused(halite(&["demo", "--report", "/no/such/folder/report.html"]), &["/no/such/folder"]);
    assert_refused(halite(&["train"]), &["train"]);
}

#[test]
fn a_plugin_that_is_absent_or_none_is_refused() {
    assert_refused(halite(&["devices", "--plugin", "/no/such/plugin.so"]), &["/no/such/plugin.so"]);
    let mut listed = halite(&["devices"]);
    listed.env("HALITE_PLUGIN_PATH", "/no/such/plugin.so");
    assert_refused(listed, &["/no/such/plugin.so", "HALITE_PLUGIN_PATH"]);
    let text = file("text.so", "this is no library");
    assert_refused(halite(&["demo", "--plugin", text.to_str().unwrap()]), &["text.so"]);
}

#[test]
fn a_library_without_entry_point_or_of_another_major_version_is_refused() {
    let Some(silent) = compiled("silent", "int unrelated(void) { return 0; }") else { return };
    assert_refused(halite(&["devices", "--plugin", silent.to_str().unwrap()]), &["halite_plugin_entry"]);
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/hal/include/halite_plugin.h");
    let plugin = concat!(env!("CARGO_MANIFEST_DIR"), "/backends/npu/tests/plugins/minimal.c");
    let other =
        format!("#include \"{header}\"\n#define LIE_MAJOR (HALITE_ABI_MAJOR + 1)\n#include \"{plugin}\"\n");
    let Some(other) = compiled("other_major", &other) else { return };
    assert_refused(halite(&["devices", "--plugin", other.to_str().unwrap()]), &["other_major", "version"]);
}

/// Compiles C to a shared library; without a compiler the caller's test is skipped with a note.
fn compiled(name: &str, source: &str) -> Option<PathBuf> {
    let source = file(&format!("{name}.c"), source);
    let library = source.with_extension("so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-I", concat!(env!("CARGO_MANIFEST_DIR"), "/hal/include"), "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "{name}.c does not compile");
            Some(library)
        }
        Err(error) => {
            println!("skipped: no C compiler ({error})");
            None
        }
    }
}

#[test]
fn a_wrong_profile_is_refused_with_file_and_line() {
    let refused = |name: &str, yaml: &str, parts: &[&str]| {
        let path = file(name, yaml);
        let mut command = halite(&["profile", "show"]);
        command.env("HALITE_PROFILE_PATH", &path);
        assert_refused(command, &[&[name], parts].concat());
    };
    refused("unknown_key.yaml", "name: mine\nextends: cpu\nkernles: {}\n", &[":3", "kernles", "kernels"]);
    refused("bad_unit.yaml", "name: mine\nextends: cpu\npeak: { memory: 3 GB/h }\n", &[":3", "GB/h"]);
    refused(
        "orphan.yaml",
        "name: orphan\nextends: nobody\n",
        &[":2", "profile 'orphan' extends 'nobody', which is unknown"],
    );
    refused("two_documents.yaml", "name: a\nextends: cpu\n---\nname: b\n", &["a second document begins"]);
    let folder = common::folder("cycle");
    std::fs::write(folder.join("a.yaml"), "name: a\nextends: b\n").unwrap();
    std::fs::write(folder.join("b.yaml"), "name: b\nextends: a\n").unwrap();
    let mut command = halite(&["devices"]);
    command.env("HALITE_PROFILE_PATH", &folder);
    assert_refused(command, &["a.yaml:2", "'extends' goes in a circle", "remove one"]);
}

#[test]
fn a_damaged_data_file_is_refused_with_its_offset() {
    let mut bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/data/digits.bin")).unwrap();
    bytes[5_000] ^= 0x40;
    let path = file("damaged.bin", &bytes);
    assert_refused(halite(&["demo", "--data", path.to_str().unwrap()]), &["damaged.bin"]);
    assert_refused(halite(&["demo", "--data", "/no/such/data.bin"]), &["/no/such/data.bin"]);
}

#[test]
fn the_effective_profile_names_the_file_of_each_value() {
    let path = file(
        "mine.yaml",
        "name: mine\nextends: cpu\nmatch: { backend: cpu }\nkernels:\n  elementwise:\n    - { variant: portable, chunk: 64 }\n",
    );
    let mut command = halite(&["profile", "show", "cpu:0", "--json"]);
    command.env("HALITE_PROFILE_PATH", &path);
    let (code, stdout, stderr) = output(command);
    assert_eq!(code, SUCCESS, "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    let profile = &shown["profiles"][0];
    assert_eq!((&profile["device"], &profile["profile"]), (&"cpu:0".into(), &"mine".into()));
    let values = profile["values"].as_array().unwrap();
    let source = |key: &str| {
        let value =
            values.iter().find(|value| value["key"] == key).unwrap_or_else(|| panic!("{key}: {stdout}"));
        value["source"].as_str().unwrap().to_owned()
    };
    assert!(source("kernels.elementwise[0].chunk").ends_with("mine.yaml:6"));
    assert!(source("kernels.dot_general[0].variant").starts_with("builtin:cpu.yaml"));
}

/// The one binary, without OpenCL and with it.
#[test]
fn the_same_program_says_why_opencl_is_absent_and_uses_it_where_it_is_there() {
    let devices = |command: &mut Command| {
        let done = command.args(["devices", "--json"]).output().expect("the program starts");
        assert_eq!(done.status.code(), Some(SUCCESS), "{}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice::<Value>(&done.stdout).unwrap()
    };
    let mut without = common::program(Path::new(env!("CARGO_BIN_EXE_halite")));
    let list = devices(&mut without);
    let absent = list["unavailable"].as_array().unwrap();
    for backend in ["opencl", "cuda"] {
        let entry = absent
            .iter()
            .find(|entry| entry["backend"] == backend)
            .expect("its library is a path to nothing");
        assert!(entry["reason"].as_str().unwrap().contains("/absent/library.so"), "{entry}");
    }

    let session = common::session();
    let Some(device) = common::opencl(&session) else { return };
    let mut with = Command::new(env!("CARGO_BIN_EXE_halite"));
    common::clear(&mut with);
    let list = devices(&mut with);
    assert!(list["devices"].as_array().unwrap().iter().any(|entry| entry["id"] == device.as_str()), "{list}");
}

/// Nothing of a vendor's is linked, so that the program starts everywhere.
#[cfg(target_os = "linux")]
#[test]
fn the_program_is_linked_with_no_driver() {
    let listed =
        Command::new("ldd").arg(env!("CARGO_BIN_EXE_halite")).output().expect("ldd is part of the C library");
    let libraries = String::from_utf8_lossy(&listed.stdout).to_lowercase();
    assert!(libraries.contains("libc.so"), "{libraries}");
    for vendor in ["opencl", "cuda", "nvrtc", "cublas", "nvidia", "emulator"] {
        assert!(!libraries.contains(vendor), "{libraries}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_standard_error_that_takes_nothing_costs_neither_results_nor_exit_codes() {
    let run = |arguments: &[&str]| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let Output { status, stdout, .. } =
            halite(arguments).stdout(std::process::Stdio::piped()).stderr(full).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap())
    };
    let (code, stdout) = run(&["demo", "--device", "cpu", "--epochs", "1", "--json"]);
    assert_eq!(code, Some(SUCCESS));
    assert!(serde_json::from_str::<Value>(&stdout).unwrap()["devices"].is_array(), "{stdout}");
    let (code, stdout) = run(&["conformance", "--device", "cpu", "--filter", "order/diamond"]);
    assert_eq!(code, Some(SUCCESS), "{stdout}");
    for wrong in [&["frob"][..], &["demo", "--device", "frob:0"]] {
        assert_eq!(run(wrong), (Some(USAGE), String::new()), "{wrong:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn files_without_an_end_are_refused_and_no_file_but_a_profile_is_replaced() {
    let expected = &["conformance", "--device", "cpu", "--expected", "/dev/zero"];
    assert_refused(halite(expected), &["/dev/zero", "larger than 1 MiB"]);
    let mut faults = halite(&["demo", "--device", "cpu"]);
    faults.env("HALITE_LAYERS", "fault:@/dev/zero");
    assert_refused(faults, &["fault:@/dev/zero", "larger than 1 MiB"]);
    let tune = &["tune", "cpu", "--op", "reduce", "--budget", "1ms", "--output", "/dev/zero"];
    let (code, stdout, stderr) = output(halite(tune));
    assert_eq!((code, stdout.as_str()), (USAGE, ""), "{stderr}");
    assert!(stderr.contains("'/dev/zero' was not written by tuning"), "{stderr}");
    assert_refused(halite(&["tune", "cpu", "--budget", "0s"]), &["--budget", "above zero"]);
}

#[test]
fn a_layer_that_lacks_what_it_needs_is_told_before_anything_runs() {
    for (layer, expected) in [("fault", "has no script"), ("trace", "HALITE_TRACE=FILE")] {
        let mut demo = halite(&["demo", "--device", "cpu"]);
        demo.env("HALITE_LAYERS", layer);
        assert_refused(demo, &[&format!("layer '{layer}'"), expected]);
    }
}

//! The layer `trace` around the main job, and `halite trace` on what it wrote.

#![allow(missing_docs)]

mod common;

use common::{folder, program};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

fn halite(arguments: &[&str], trace: Option<&Path>) -> Output {
    let mut command = program(Path::new(env!("CARGO_BIN_EXE_halite")));
    if let Some(file) = trace {
        command.env("HALITE_LAYERS", "trace").env("HALITE_TRACE", file);
    }
    command.args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_traced_demo_counts_every_launch_and_changes_no_number() {
    let folder = folder("trace-demo");
    let file = folder.join("trace.json");
    let arguments = ["demo", "--device", "cpu:0,npu:0", "--epochs", "1", "--json"];
    let traced = json(&halite(&arguments, Some(&file)));
    let plain = json(&halite(&arguments, None));
    let by_device = |report: &Value, key: &str| -> BTreeMap<String, Value> {
        let devices = report["devices"].as_array().unwrap().iter();
        devices.map(|device| (device["id"].as_str().unwrap().to_owned(), device[key].clone())).collect()
    };
    for key in ["loss", "test_accuracy", "launches", "peak_memory_bytes"] {
        assert_eq!(by_device(&traced, key), by_device(&plain, key), "{key}");
    }

    let path = file.to_str().unwrap();
    let summary = json(&halite(&["trace", path, "--json"], None));
    assert_eq!((&summary["ending"], &summary["lost_notes"]), (&"closed".into(), &0.into()));
    // A device opened again, as the CPU is to take what the NPU cannot do, has a number behind its name.
    let mut launches: BTreeMap<String, u64> = BTreeMap::new();
    for device in summary["devices"].as_array().unwrap() {
        let name = device["device"].as_str().unwrap().split(' ').next().unwrap().to_owned();
        *launches.entry(name).or_default() += device["launches"].as_u64().unwrap();
        let (busy, span) = (device["busy_us"].as_f64().unwrap(), device["span_us"].as_f64().unwrap());
        // Sums of tens of thousands of times that are rounded to a nanosecond.
        assert!(busy <= span * 1.001, "{device}");
        assert_eq!((&device["untimed"], &device["failed"]), (&0.into(), &0.into()), "{device}");
    }
    let counted: u64 = by_device(&traced, "launches").values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(launches.values().sum::<u64>(), counted, "{launches:?}");
    let ops = summary["ops"].as_array().unwrap();
    let conv = ops.iter().find(|op| op["device"] == "cpu:0" && op["op"] == "conv_general+bias").unwrap();
    // Two convolutions in each of 45 steps.
    assert_eq!(conv["count"], 90);

    let page = folder.join("page.html");
    let table = halite(&["trace", path, "--report", page.to_str().unwrap()], None);
    let text = String::from_utf8(table.stdout).unwrap();
    for part in ["cpu:0", "npu:0", "conv_general+bias", "evaluate", "write"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));
}

#[test]
fn what_is_no_trace_is_refused_in_one_line() {
    let folder = folder("trace-wrong");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let damaged = "[\n{\"ph\":\"X\",\"ts\":1},\n{\"ph\":oops},\n";
    for (path, part) in [
        (folder.join("absent.json"), "cannot read the trace"),
        (file("empty.json", ""), "is empty"),
        (file("profile.yaml", "name: mine\n"), "begins with 'n' in line 1"),
        (file("other.json", "{\"model\": [1, 2]}"), "no event of the Trace Event Format"),
        (file("damaged.json", damaged), "damaged in line 3"),
    ] {
        let output = halite(&["trace", path.to_str().unwrap()], None);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(part) && message.contains(path.to_str().unwrap()), "{part}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    // A file that is still being written, or was cut off, is one all the same.
    let cut = file(
        "cut.json",
        "[\n{\"ph\":\"X\",\"ts\":1,\"dur\":2,\"cat\":\"launch\",\"name\":\"a\"},\n{\"ph\":\"X\",\"t",
    );
    let summary = json(&halite(&["trace", cut.to_str().unwrap(), "--json"], None));
    assert_eq!((&summary["ending"], &summary["devices"][0]["launches"]), (&"cut".into(), &1.into()));
}

#[test]
fn a_trace_that_cannot_be_written_ends_the_program_before_it_trains() {
    let folder = folder("trace-unwritable");
    let file = folder.join("absent").join("trace.json");
    let output = halite(&["demo", "--device", "cpu:0", "--epochs", "1"], Some(&file));
    let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success());
    // A table breaks lines where it must.
    let words: String = text.split_whitespace().collect();
    assert!(words.contains("HALITE_TRACE") && words.contains("cannotbewritten"), "{text}");
}

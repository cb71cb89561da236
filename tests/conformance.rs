//! The command `halite conformance`: its counts, its exit codes and its list of expected failures.

#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::Output;

fn halite(arguments: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_halite"));
    common::program(program).arg("conformance").args(arguments).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

#[test]
fn the_devices_of_this_repository_keep_every_promise() {
    for device in common::DEVICES {
        let output = halite(&["--device", device, "--json"]);
        let report = json(&output);
        let own = &report["devices"][0];
        assert_eq!(own["device"], device);
        assert_eq!(own["counts"]["failed"], 0, "{own}");
        assert!(own["counts"]["passed"].as_u64().unwrap() >= 400, "{}", own["counts"]);
        assert!(own["tests"].as_array().unwrap().len() > 250);
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn filters_choose_tests_and_the_table_counts_them() {
    let output = halite(&["--device", "cpu", "--filter", "fill/refuses-,fill/zero"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("10 of 10 promises hold"), "{text}");
    let list = halite(&["--list", "--filter", "fill/zero"]);
    let text = String::from_utf8_lossy(&list.stdout);
    assert_eq!((text.lines().count(), text.starts_with("fill/zero-bytes  ")), (1, true), "{text}");
    let none = halite(&["--device", "cpu", "--filter", "no/such"]);
    assert_eq!(none.status.code(), Some(2), "{}", String::from_utf8_lossy(&none.stderr));
}

#[test]
fn an_expected_failure_that_passes_fails_the_run() {
    let folder = common::folder("conformance-expected");
    let list = folder.join("expected.txt");
    std::fs::write(&list, "# known\nfill/zero-bytes: the driver loses empty fills\n").unwrap();
    let run = |list: &Path| {
        halite(&["--device", "cpu", "--filter", "fill/zero", "--expected", list.to_str().unwrap(), "--json"])
    };
    let output = run(&list);
    assert_eq!(json(&output)["devices"][0]["tests"][0]["verdict"], "unexpected_pass");
    assert_eq!(output.status.code(), Some(1));
    for (text, part) in [("fill/zero-bytes\n", "line 1"), ("fill/no-such: reason\n", "no test")] {
        std::fs::write(&list, text).unwrap();
        let output = run(&list);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && message.contains(part), "{message}");
    }
}

#[test]
fn a_program_for_a_device_without_programs_is_wrong_input() {
    let output = halite(&["--device", "cpu", "--program", "/absent/program.bin"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && message.contains("program"), "{message}");
}

//! What the variables `HALITE_*` do, set, empty, wrong, and left aside.

#![allow(missing_docs)]

mod common;

use halite::Session;
use std::path::Path;
use std::process::Command;

/// Every setting.
const VARIABLES: [&str; 6] = [
    "HALITE_CPU_MEMORY",
    "HALITE_CPU_THREADS",
    "HALITE_LAYERS",
    "HALITE_NPU_OPTIONS",
    "HALITE_PLUGIN_PATH",
    "HALITE_PROFILE_PATH",
];

/// A value that none of them takes.
const NONSENSE: &str = "/no/such=1/nonsense";

fn listing(program: &Path) -> Command {
    let mut command = common::program(program);
    command.arg("devices");
    command
}

#[test]
fn empty_variables_count_as_unset() {
    // Beside this copy of the program lies no plugin, which is no mistake either unless the user names one.
    let folder = common::folder("empty-variables");
    let alone = folder.join("halite");
    std::fs::copy(env!("CARGO_BIN_EXE_halite"), &alone).unwrap();
    for program in [Path::new(env!("CARGO_BIN_EXE_halite")), &alone] {
        for variable in VARIABLES {
            let output = listing(program).env(variable, "").output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{variable} for {}: {stderr}", program.display());
        }
    }
}

#[test]
fn a_wrong_value_is_refused_by_the_name_of_its_variable() {
    for variable in VARIABLES {
        let output = listing(env!("CARGO_BIN_EXE_halite").as_ref()).env(variable, NONSENSE).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{variable}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        // Of a path that names nothing, the path itself says enough.
        assert!(
            stderr.contains(variable) || stderr.contains(&format!("'{NONSENSE}'")),
            "{variable}: {stderr}"
        );
    }
}

#[test]
fn a_wrong_npu_option_is_refused_with_variable_plugin_and_known_options() {
    let mut command = listing(env!("CARGO_BIN_EXE_halite").as_ref());
    let output = command.env("HALITE_NPU_OPTIONS", "cores=3").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for part in ["HALITE_NPU_OPTIONS='cores=3'", "halite_npu_emulator", "unknown option 'cores'", "threads"] {
        assert!(stderr.contains(part), "'{part}' is missing: {stderr}");
    }
}

#[test]
fn a_session_without_the_environment_is_the_same_under_any_settings() {
    // The variables are set for a process of its own, which runs this test alone; setting them here would reach the
    // other tests.
    if std::env::var_os(VARIABLES[0]).is_none_or(|value| value != NONSENSE) {
        let mut command = common::program(&std::env::current_exe().unwrap());
        command.args(["a_session_without_the_environment", "--test-threads=1"]);
        let output = command.envs(VARIABLES.map(|variable| (variable, NONSENSE))).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    assert!(Session::new().is_err());
    let session = common::session();
    assert!(session.profile_folder().is_none());
    for device in common::DEVICES {
        let engine = common::open(&session, device);
        assert!(engine.profile().is_builtin());
    }
}

//! Mistakes in a user's profile are wrong input, whenever they come to light.

#![allow(missing_docs)]

use serde_json::Value;
use std::path::Path;
use std::process::Command;

const USAGE: i32 = 2;

/// Exit code, standard output and standard error of the program with this profile.
fn halite(name: &str, profile: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("profile-errors");
    std::fs::create_dir_all(&folder).expect("the test's folder is writable");
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(&file, profile).expect("the test's folder is writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_halite"));
    for variable in ["HALITE_PLUGIN_PATH", "HALITE_NPU_OPTIONS", "HALITE_LAYERS", "HALITE_CPU_MEMORY"] {
        command.env_remove(variable);
    }
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR")).env("HALITE_PROFILE_PATH", file);
    let output = command.args(arguments).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("no signal"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn wishes_without_effect_are_refused_before_anything_runs() {
    for (name, entry, expected) in [
        (
            "variable",
            "{ variant: portable, when: zz >= 3 }",
            "names the unknown variable 'zz'; use one of m, n, k, batch, bits",
        ),
        ("tile", "{ variant: portable, tile: [64] }", "tile has 1 extent, but the kernel 'portable' reads 3"),
        ("threads", "{ variant: portable, threads: 2 }", "threads is not read by the kernel 'portable'"),
    ] {
        // The entry's turn never comes.
        let profile = format!(
            "name: mine\nextends: cpu\nmatch: {{ backend: cpu }}\nkernels:\n  dot_general:\n  - {{ variant: portable }}\n  - {entry}\n"
        );
        for arguments in [["profile", "show", "cpu"], ["demo", "--device", "cpu"]] {
            let (code, stdout, stderr) = halite(name, &profile, &arguments);
            assert_eq!((code, stdout.as_str()), (USAGE, ""), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.contains(&format!("{name}.yaml:7: kernels.dot_general[1].")), "{stderr}");
            assert!(stderr.contains(expected), "{stderr}");
        }
    }
}

#[test]
fn a_condition_that_fails_for_some_sizes_is_wrong_input_when_they_come() {
    let profile = "name: mine\nextends: cpu\nmatch: { backend: cpu }\nkernels:\n  dot_general:\n  \
                   - { variant: portable, when: m / (k - k) > 3 }\n";
    let (code, stdout, stderr) =
        halite("division", profile, &["demo", "--device", "cpu", "--epochs", "1", "--json"]);
    assert_eq!(code, USAGE, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("one object");
    let error = report["devices"][0]["error"].as_str().expect("the device failed");
    assert!(
        error.contains("division.yaml:6: kernels.dot_general[0].when 'm / (k - k) > 3' divides by zero"),
        "{error}"
    );
}

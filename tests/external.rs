//! Runs the tests of `tests/external`, a crate outside the workspace that uses Halite as a library.
//!
//! They are built by the same Cargo into a folder of their own: the emulator's library has the same file name in
//! every build, so two workspaces that share a folder would keep replacing each other's.

#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The crate's folder.
fn external() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("external")
}

#[test]
fn a_crate_outside_the_workspace_adds_an_operation_and_trains_with_it() {
    let mut cargo = Command::new(env!("CARGO"));
    // Everything was downloaded for this test already: the lock file names no other versions than the workspace's.
    cargo.args(["test", "--offline"]).current_dir(external());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("external"));
    // Its tests choose plugins and profiles themselves.
    common::clear(&mut cargo);
    let output = cargo.output().expect("cargo runs this test");
    // Printed rather than inherited, so that the harness shows it for a failure, or with --nocapture.
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the tests in {} failed: {}", external().display(), output.status);
}

#[test]
fn the_crates_lock_file_names_the_versions_of_the_workspace() {
    let packages = |file: PathBuf| -> Vec<String> {
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let of_registry = text.split("[[package]]").skip(1).filter(|package| package.contains("checksum"));
        of_registry.map(|package| package.lines().skip(1).take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    let own = packages(external().join("Cargo.lock"));
    let workspace = packages(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"));
    assert!(!own.is_empty());
    for package in own {
        assert!(
            workspace.contains(&package),
            "{package} is not what the workspace locks; copy its Cargo.lock over and run cargo test in {}",
            external().display()
        );
    }
}

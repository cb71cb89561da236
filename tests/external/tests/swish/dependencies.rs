//! The library comes without the command line.

use std::process::Command;

#[test]
fn nothing_of_the_command_line_is_in_the_dependency_tree() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("names of packages are text");
    let packages: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for present in ["halite", "halite-cpu", "halite-npu", "halite-ops"] {
        assert!(packages.contains(&present), "{present} is missing in\n{tree}");
    }
    for absent in ["clap", "comfy-table", "console", "indicatif", "strsim"] {
        assert!(!packages.contains(&absent), "{absent} is in\n{tree}");
    }
}

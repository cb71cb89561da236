//! Tuning a device: what may win, what is written, and that later runs use it.

#![allow(missing_docs)]

use halite::hal::KernelSource;
use halite::ops::lower::KernelVariant;
use halite::profiles::SearchPath;
use halite::tune::{Options, Outcome, tune};
use halite::{Session, SessionBuilder};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tune-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn builder() -> SessionBuilder {
    Session::builder().without_environment().profiles(SearchPath::builtin_only())
}

/// A reduction that looks at nothing and is therefore fast; `honest` ones leave the work to the portable kernel.
fn variant(session: &Session, name: &str, honest: bool) -> KernelVariant {
    let portable = session.catalog().variants_of("reduce").find(|variant| variant.name == "portable");
    let portable = portable.unwrap().clone();
    KernelVariant::new("reduce", name, "native", &[], move |request| {
        let mut lowered = (portable.lower)(request)?;
        if !honest {
            for launch in &mut lowered.launches {
                let KernelSource::Native(kernel) = &mut launch.source else {
                    unreachable!("a native variant")
                };
                kernel.run = Arc::new(|_| Ok(()));
            }
        }
        Ok(lowered)
    })
}

#[test]
fn a_kernel_with_a_wrong_result_is_never_chosen_however_fast_it_is() {
    let plain = builder().build().unwrap();
    let session = builder().kernel(variant(&plain, "cheat", false)).kernel(variant(&plain, "honest", true));
    let session = session.build().unwrap();
    let options = Options { op: Some("reduce".to_owned()), budget: Duration::from_secs(20) };
    let mut steps = 0;
    let tuning = tune(&session, "cpu:0", &options, &mut |step| {
        assert!(step.done < step.total);
        steps += 1;
    })
    .unwrap();
    assert_eq!(tuning.cases.len(), 2);
    let mut tried = 0;
    for case in &tuning.cases {
        let outcome = |name: &str| {
            let found = case.tried.iter().find(|(candidate, _)| candidate.variant == name);
            &found.unwrap_or_else(|| panic!("{name} is no candidate")).1
        };
        assert!(
            matches!(outcome("cheat"), Outcome::Wrong(reason) if reason.contains("expected")),
            "{case:?}"
        );
        assert!(matches!(outcome("honest"), Outcome::Time(_)), "{case:?}");
        assert_ne!(case.best.0.variant, "cheat");
        assert!(case.best.1 <= case.current.1);
        tried += 1 + case.tried.len();
    }
    assert_eq!(steps, tried);
    assert!(!tuning.profile_text().contains("cheat"));
}

#[test]
fn without_a_budget_the_current_choices_are_measured_and_kept() {
    let session = builder().build().unwrap();
    let options = Options { op: Some("elementwise".to_owned()), budget: Duration::ZERO };
    let tuning = tune(&session, "cpu:0", &options, &mut |_| {}).unwrap();
    for case in &tuning.cases {
        assert_eq!(case.best.0, case.current.0);
        assert!(case.tried.iter().all(|(_, outcome)| *outcome == Outcome::NotTried));
    }
}

fn halite(folder: &PathBuf, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halite"));
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("HALITE_")) {
        command.env_remove(variable);
    }
    // The configuration folder on each platform.
    command.env("XDG_CONFIG_HOME", folder).env("APPDATA", folder).env("HOME", folder);
    let Output { status, stdout, stderr } = command.args(arguments).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

#[test]
fn a_later_run_uses_the_tuned_profile_and_says_so() {
    let folder = folder("later");
    let (code, stdout, stderr) =
        halite(&folder, &["tune", "cpu:0", "--op", "reduce", "--budget", "2s", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["device"], "cpu:0");
    assert_eq!(report["cases"].as_array().unwrap().len(), 2);
    let file = report["profile_file"].as_str().unwrap();
    assert!(stderr.contains(file), "{stderr}");

    let (code, stdout, _) = halite(&folder, &["profile", "show", "cpu:0", "--json"]);
    assert_eq!(code, 0);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let profile = &shown["profiles"][0];
    assert!(profile["profile"].as_str().unwrap().starts_with("tuned-cpu"), "{profile}");
    let values = profile["values"].as_array().unwrap();
    let chosen = values.iter().find(|value| value["key"] == "kernels.reduce[0].variant").unwrap();
    assert!(chosen["source"].as_str().unwrap().starts_with(file), "{chosen}");

    // Tuning another op keeps what was found before, and builds on the same base.
    let (code, _, stderr) =
        halite(&folder, &["tune", "cpu:0", "--op", "elementwise", "--budget", "1s", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains("  reduce:\n") && text.contains("  elementwise:\n"), "{text}");
    assert_eq!(text.matches("extends: cpu").count(), 1);

    // A tuning without time keeps what an earlier one found.
    let found = "{ variant: portable, when: \"k >= 256\", chunk: 384 }";
    let lines = text
        .lines()
        .map(|line| if line.contains("k >= 256") { format!("    - {found}\n") } else { format!("{line}\n") });
    std::fs::write(file, lines.collect::<String>()).unwrap();
    let (code, _, stderr) = halite(&folder, &["tune", "cpu:0", "--op", "reduce", "--budget", "1ms"]);
    assert_eq!(code, 0, "{stderr}");
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(found.trim_end_matches(" }")), "{text}");

    // Another hand's file of that name stays.
    std::fs::write(file, text.replacen("# Written by", "# Mended by", 1)).unwrap();
    let (code, _, stderr) = halite(&folder, &["tune", "cpu:0", "--op", "reduce", "--budget", "1ms"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("was not written by tuning; move it away"), "{stderr}");
}

#[test]
fn wrong_use_is_told_before_anything_is_measured() {
    let folder = folder("wrong");
    for (arguments, part) in [
        (
            ["tune", "cpu:0", "--op", "matmull"].as_slice(),
            "'matmull' is no op that can be tuned; use dot_general",
        ),
        (&["tune", "gpu:0"], "unknown device 'gpu:0'"),
        (&["tune", "cpu:0", "--budget", "fast"], "--budget"),
    ] {
        let (code, stdout, stderr) = halite(&folder, arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(part), "{stderr}");
    }
}

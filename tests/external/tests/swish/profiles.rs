//! A user's profile decides how the operation of another crate is launched.

use crate::devices::{DEVICES, numbers, session};
use halite::Session;
use halite::profiles::SearchPath;
use halite_external_op::swish;
use std::path::{Path, PathBuf};

/// A folder of profiles, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, profiles: &[(&str, &str)]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the build's folder is writable");
        for (file, text) in profiles {
            std::fs::write(folder.join(file), text).expect("the build's folder is writable");
        }
        Self(folder)
    }

    fn session(&self) -> Session {
        session(SearchPath::new(None, [self.0.clone()]))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over lies in the build's folder and does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ELEMENTS: usize = 10_000;

/// Variant, chunk of the profile, kernel and workgroups of the one launch.
fn launch(session: &Session, device: &str) -> (String, Option<u32>, String, u32) {
    let engine = session.open(device).unwrap();
    let x = engine.tensor(&numbers(ELEMENTS, 4), &[ELEMENTS]).unwrap();
    let out = swish(&x, &engine.tensor(&[1.0f32], &[1]).unwrap()).unwrap();
    let launches = engine.explain(&[&out]).unwrap();
    assert_eq!(launches.len(), 1, "{launches:?}");
    let launch = &launches[0];
    assert_eq!((launch.op.as_str(), launch.device.as_str()), ("swish", device));
    // What is explained is also what runs, with the same result.
    let sum: f64 = out.to_f64().unwrap().iter().sum();
    let expected: f64 = numbers(ELEMENTS, 4).into_iter().map(f64::from).map(|x| x / (1.0 + (-x).exp())).sum();
    assert!((sum - expected).abs() < 1e-3, "{device}: {sum}, expected {expected}");
    (launch.variant.clone(), launch.parameters.int("chunk"), launch.kernel.clone(), launch.grid[0])
}

#[test]
fn a_profile_that_names_the_variant_changes_its_launch() {
    let by_default = session(SearchPath::builtin_only());
    let expected = ["swish_f32_chunked", "swish"].map(str::to_owned);
    let [cpu, npu] = DEVICES.map(|device| launch(&by_default, device));
    assert_eq!(cpu, ("chunked".into(), None, expected[0].clone(), 3));
    assert_eq!(npu, ("vector".into(), None, expected[1].clone(), 3));

    let folder = Folder::new(
        "profile",
        &[
            (
                "cpu.yaml",
                "name: my-cpu\nextends: cpu\nmatch: { backend: cpu }\nkernels:\n  swish:\n    \
                 - { variant: chunked, chunk: 1000 }\n",
            ),
            (
                "npu.yaml",
                "name: my-npu\nextends: npu\nmatch: { backend: npu }\nkernels:\n  swish:\n    \
                 - { variant: vector, chunk: 2000 }\n",
            ),
        ],
    );
    let chosen = folder.session();
    let [cpu, npu] = DEVICES.map(|device| launch(&chosen, device));
    assert_eq!(cpu, ("chunked".into(), Some(1000), expected[0].clone(), 10));
    assert_eq!(npu, ("vector".into(), Some(2000), expected[1].clone(), 5));
}

#[test]
fn a_profile_that_asks_for_what_the_operation_has_not_is_refused_with_its_line() {
    for (name, entry, expected) in [
        (
            "no-variant",
            "{ variant: chunk }",
            "variant 'chunk' is not a kernel of swish; did you mean 'chunked'?",
        ),
        (
            "no-size",
            "{ variant: chunked, tile: [64] }",
            "tile is not read by the kernel 'chunked', which reads chunk; leave the key out",
        ),
        (
            "no-variable",
            "{ variant: chunked, when: n > 3 }",
            "when 'n > 3' names the unknown variable 'n'; none is accepted here",
        ),
    ] {
        let text = format!(
            "name: my-cpu\nextends: cpu\nmatch: {{ backend: cpu }}\nkernels:\n  swish:\n    - {entry}\n"
        );
        let folder = Folder::new(name, &[("cpu.yaml", &text)]);
        let message = folder.session().open("cpu").unwrap_err().to_string();
        assert!(message.contains(&format!("cpu.yaml:6: kernels.swish[0].{expected}")), "{message}");
    }
}

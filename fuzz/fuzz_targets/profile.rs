//! Profile files: any text is a profile or an error with its line, and what is read is rendered and hashed.
#![no_main]

use halite_profiles::{Profile, ProfileSet};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};

static BASES: LazyLock<Vec<Arc<Profile>>> = LazyLock::new(|| {
    let set = ProfileSet::builtin();
    ["cpu", "npu", "opencl"].iter().map(|name| set.by_name(name).expect("it is built in")).collect()
});

fuzz_target!(|text: &str| {
    for base in BASES.iter() {
        match base.extended_by(text, "fuzz.yaml") {
            Ok(profile) => {
                assert!(profile.peak_bandwidth().is_none_or(|rate| rate.is_finite() && rate > 0.0));
                for (_, entries) in profile.kernels() {
                    for entry in entries {
                        let _ = format!("{entry:?}");
                    }
                }
                let _ = profile.hash();
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});

//! The profiles that are compiled into the program.

macro_rules! files {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!("../builtin/", $file)))),*]
    };
}

/// Each file's name and text. Of two profiles that are equally specific the later one wins.
pub(crate) const BUILTIN: &[(&str, &str)] =
    files!("cpu.yaml", "cpu-avx2.yaml", "cpu-avx512.yaml", "npu.yaml", "npu-halite-emulator.yaml",);

#[cfg(test)]
mod tests {
    use halite_hal::DType;

    use crate::{DeviceFacts, Machine, ProfileSet};

    fn facts(backend: &str, device_name: &str, features: &[&str]) -> DeviceFacts {
        DeviceFacts {
            backend: backend.to_owned(),
            device_name: device_name.to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            ..DeviceFacts::default()
        }
    }

    fn selected(set: &ProfileSet, facts: &DeviceFacts) -> String {
        set.select(facts).map_or_else(|error| error.to_string(), |profile| profile.name().to_owned())
    }

    #[test]
    fn cpus_and_npus_find_their_profiles() {
        let set = ProfileSet::builtin();
        let avx512 = ["sse2", "avx2", "fma", "avx512f", "avx512bw"];
        for (backend, device, features, expected) in [
            ("cpu", "", [].as_slice(), "cpu"),
            ("cpu", "x", &["avx2"], "cpu"),
            ("cpu", "x", &["avx2", "fma"], "cpu-avx2"),
            ("cpu", "x", &["avx512f"], "cpu"),
            ("cpu", "x", &avx512, "cpu-avx512"),
            ("npu", "Ascend910B", &[], "npu"),
            ("npu", "Halite NPU emulator (davinci-like)", &[], "npu-halite-emulator"),
        ] {
            assert_eq!(selected(&set, &facts(backend, device, features)), expected, "{backend} {features:?}");
        }
        assert_eq!(
            selected(&set, &facts("tpu", "T1", &[])),
            "no profile matches the device 'T1' of backend 'tpu'; write one with 'match: { backend: tpu }' and \
             name its folder in HALITE_PROFILE_PATH"
        );
    }

    #[test]
    fn every_op_ends_with_an_entry_that_always_fits_and_the_contractions_have_sizes() {
        for profile in ProfileSet::builtin().iter() {
            assert!(profile.is_builtin(), "{}", profile.name());
            for (op, entries) in profile.kernels() {
                let last = entries.last().expect("a list of entries is never empty");
                assert!(last.when().is_none(), "{} {op}: the last entry must always fit", profile.name());
            }
            let of_cpu_or_npu = ["cpu", "npu"].into_iter().any(|family| profile.name().starts_with(family));
            for op in ["dot_general", "conv_general", "elementwise"] {
                let entries = profile.kernel_entries(op);
                assert!(!of_cpu_or_npu || !entries.is_empty(), "{} has no {op}", profile.name());
                for entry in entries.iter().filter(|_| of_cpu_or_npu) {
                    let parameters = entry.parameters();
                    let sized = parameters.tile().is_some_and(|tile| tile.len() == 3);
                    assert!(sized || parameters.int("chunk").is_some(), "{} {op}", profile.name());
                }
            }
        }
    }

    #[test]
    fn peaks_have_a_source_and_are_plausible() {
        for profile in ProfileSet::builtin().iter() {
            let rates = DType::ALL.into_iter().filter_map(|dtype| profile.peak_rate(dtype));
            let rates: Vec<f64> = rates.chain(profile.peak_tf32_rate()).collect();
            let bandwidth = profile.peak_bandwidth();
            assert_eq!(
                !rates.is_empty() || bandwidth.is_some(),
                profile.source().is_some(),
                "{}: peaks need a source, and a source peaks",
                profile.name()
            );
            // A slip of a prefix would leave these ranges.
            assert!(rates.iter().all(|rate| (1e11..1e16).contains(rate)), "{}: {rates:?}", profile.name());
            assert!(
                bandwidth.is_none_or(|rate| (1e10..1e13).contains(&rate)),
                "{}: {bandwidth:?}",
                profile.name()
            );
        }
    }

    #[test]
    fn the_emulators_peaks_are_those_of_its_machine() {
        let machine = Machine::builtin();
        let profile = ProfileSet::builtin().by_name("npu-halite-emulator").expect("built in");
        let steps = f64::from(machine.cores.cube) * f64::from(machine.cube.m) * f64::from(machine.cube.n);
        for (dtype, k) in [
            (DType::F16, machine.cube.k_f16),
            (DType::BF16, machine.cube.k_bf16),
            (DType::F32, machine.cube.k_f32),
            (DType::I8, machine.cube.k_i8),
        ] {
            // A multiply-add is two operations.
            let expected = 2.0 * steps * f64::from(k) * machine.clock_hz;
            let got = profile.peak_rate(dtype).expect("the profile gives the rate");
            assert!((got / expected - 1.0).abs() < 1e-12, "{dtype}: {got} {expected}");
        }
        let expected = f64::from(machine.cores.cube) * machine.rates.global * machine.clock_hz;
        let got = profile.peak_bandwidth().expect("the profile gives the bandwidth");
        assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
    }
}

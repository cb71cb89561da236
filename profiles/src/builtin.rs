//! The profiles that are compiled into the program.

macro_rules! files {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!("../builtin/", $file)))),*]
    };
}

/// Each file's name and text. Of two profiles that are equally specific the later one wins: a CUDA device has the
/// features of every capability up to its own, so those stand in ascending order.
pub(crate) const BUILTIN: &[(&str, &str)] = files![
    "cpu.yaml",
    "cpu-avx2.yaml",
    "cpu-avx512.yaml",
    "npu.yaml",
    "npu-halite-emulator.yaml",
    "cuda.yaml",
    "cuda-sm75.yaml",
    "cuda-sm80.yaml",
    "cuda-sm87.yaml",
    "cuda-sm89.yaml",
    "cuda-sm90.yaml",
    "cuda-sm100.yaml",
    "nvidia-a100.yaml",
    "nvidia-a100-80gb.yaml",
    "nvidia-a100-80gb-pcie.yaml",
    "nvidia-h100.yaml",
    "nvidia-h100-pcie.yaml",
    "nvidia-h200.yaml",
    "nvidia-rtx-4090.yaml",
    "nvidia-agx-orin.yaml",
    "opencl.yaml",
    "opencl-pocl.yaml",
    "opencl-desktop.yaml",
    "intel-integrated.yaml",
    "intel-iris-xe-96eu.yaml",
    "intel-arc-140v.yaml",
    "amd-integrated.yaml",
    "amd-radeon-680m.yaml",
    "amd-radeon-780m.yaml",
    "opencl-mobile.yaml",
    "adreno.yaml",
    "adreno-740.yaml",
    "adreno-750.yaml",
    "adreno-830.yaml",
    "mali.yaml",
    "mali-g78.yaml",
    "mali-g78-tensor.yaml",
    "mali-g715.yaml",
    "mali-g715-dimensity.yaml",
    "mali-g720.yaml",
    "mali-g720-dimensity.yaml",
];

#[cfg(test)]
mod tests {
    use halite_hal::DType;

    use crate::{DeviceFacts, Machine, Parameters, ProfileSet};

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

    /// Names as `cuDeviceGetName` reports them, with multiprocessors where the name leaves the size open.
    #[test]
    fn nvidia_gpus_find_their_profiles_by_name_and_others_by_compute_capability() {
        let set = ProfileSet::builtin();
        // The backend names each instruction set that the device's own contains.
        let capabilities =
            ["sm_61", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120"];
        for (device, units, capability, expected) in [
            ("NVIDIA H200", 132, "sm_90", "nvidia-h200"),
            ("NVIDIA H200 NVL", 132, "sm_90", "cuda-sm90"),
            ("NVIDIA H200 MIG 1g.18gb", 16, "sm_90", "cuda-sm90"),
            ("NVIDIA H100 80GB HBM3", 132, "sm_90", "nvidia-h100"),
            ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 60, "sm_90", "cuda-sm90"),
            ("NVIDIA H100 PCIe", 114, "sm_90", "nvidia-h100-pcie"),
            ("NVIDIA H100 NVL", 132, "sm_90", "cuda-sm90"),
            ("NVIDIA GH200 480GB", 132, "sm_90", "cuda-sm90"),
            ("NVIDIA A100-SXM4-40GB", 108, "sm_80", "nvidia-a100"),
            ("A100-SXM4-40GB", 108, "sm_80", "nvidia-a100"),
            ("NVIDIA A100-PCIE-40GB", 108, "sm_80", "nvidia-a100"),
            ("NVIDIA A100-SXM4-80GB", 108, "sm_80", "nvidia-a100-80gb"),
            ("NVIDIA A100 80GB PCIe", 108, "sm_80", "nvidia-a100-80gb-pcie"),
            ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 14, "sm_80", "cuda-sm80"),
            ("NVIDIA A30", 56, "sm_80", "cuda-sm80"),
            ("NVIDIA GeForce RTX 4090", 128, "sm_89", "nvidia-rtx-4090"),
            ("NVIDIA GeForce RTX 4090 D", 114, "sm_89", "cuda-sm89"),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, "sm_89", "cuda-sm89"),
            ("NVIDIA L4", 58, "sm_89", "cuda-sm89"),
            ("Orin", 16, "sm_87", "nvidia-agx-orin"),
            ("Orin", 8, "sm_87", "cuda-sm87"),
            ("Tesla T4", 40, "sm_75", "cuda-sm75"),
            ("NVIDIA B200", 148, "sm_100", "cuda-sm100"),
            ("NVIDIA GeForce RTX 5090", 170, "sm_120", "cuda-sm100"),
            ("NVIDIA GeForce RTX 3090", 82, "sm_86", "cuda-sm80"),
            ("NVIDIA GeForce GTX 1080", 20, "sm_61", "cuda"),
        ] {
            let own = capabilities.iter().position(|name| *name == capability).expect("a known capability");
            let facts = DeviceFacts {
                vendor: "NVIDIA".to_owned(),
                compute_units: units,
                ..facts("cuda", device, &capabilities[..=own])
            };
            assert_eq!(selected(&set, &facts), expected, "{device} with {units}");
        }
    }

    /// Names and vendors as `CL_DEVICE_NAME` and `CL_DEVICE_VENDOR` report them.
    #[test]
    fn opencl_devices_find_their_profiles() {
        const AMD: &str = "Advanced Micro Devices, Inc.";
        const INTEL: &str = "Intel(R) Corporation";
        let set = ProfileSet::builtin();
        for (vendor, device, units, expected) in [
            ("QUALCOMM", "QUALCOMM Adreno(TM) 740", 6, "adreno-740"),
            ("QUALCOMM", "QUALCOMM Adreno(TM) (OpenCL 3.0 Adreno(TM) 740)", 6, "adreno-740"),
            ("QUALCOMM", "QUALCOMM Adreno(TM) 750", 6, "adreno-750"),
            ("QUALCOMM", "QUALCOMM Adreno(TM) 830", 6, "adreno-830"),
            ("QUALCOMM", "QUALCOMM Adreno(TM) 730", 4, "adreno"),
            ("QUALCOMM", "QUALCOMM Adreno(TM)", 6, "adreno"),
            ("QUALCOMM", "Qualcomm(R) Adreno(TM) X1-45 GPU", 3, "adreno"),
            ("ARM", "Mali-G78 r0p1", 20, "mali-g78-tensor"),
            ("ARM", "Mali-G78 r0p1", 14, "mali-g78"),
            ("ARM", "Mali-G78AE r0p0", 20, "mali"),
            ("ARM", "Mali-G710 r0p0", 7, "mali"),
            ("Imagination Technologies", "PowerVR D-Series DXT-48-1536", 1, "opencl-mobile"),
            ("ARM", "Mali-G715 r1p2", 7, "mali-g715"),
            ("ARM", "Mali-G715-Immortalis r1p0", 11, "mali-g715-dimensity"),
            ("ARM", "Mali-G720-Immortalis r0p0", 10, "mali-g720"),
            ("ARM", "Mali-G720-Immortalis r0p0", 12, "mali-g720-dimensity"),
            ("ARM", "Immortalis-G720 r0p0", 10, "mali-g720"),
            (INTEL, "Intel(R) Iris(R) Xe Graphics", 96, "intel-iris-xe-96eu"),
            (INTEL, "Intel(R) Iris(R) Xe Graphics", 80, "intel-integrated"),
            (INTEL, "Intel(R) UHD Graphics 770", 32, "intel-integrated"),
            (INTEL, "Intel(R) Arc(TM) Graphics", 128, "intel-integrated"),
            (INTEL, "Intel(R) Arc(TM) 140V GPU (16GB)", 64, "intel-arc-140v"),
            (INTEL, "Intel(R) Arc(TM) 140T GPU", 128, "intel-integrated"),
            (INTEL, "Intel(R) Iris(R) Xe MAX Graphics", 96, "opencl-desktop"),
            (INTEL, "Intel(R) Arc(TM) A770 Graphics", 512, "opencl-desktop"),
            (AMD, "gfx1035", 6, "amd-integrated"),
            (AMD, "gfx1103", 6, "amd-integrated"),
            (AMD, "gfx1151", 20, "amd-integrated"),
            (AMD, "gfx1100", 48, "opencl-desktop"),
            (AMD, "AMD Radeon 780M Graphics", 6, "amd-radeon-780m"),
            ("AMD", "AMD Radeon 680M (radeonsi, rembrandt, LLVM 15.0.7, DRM 3.54)", 12, "amd-radeon-680m"),
            (AMD, "AMD Radeon 760M Graphics", 4, "amd-integrated"),
            (AMD, "AMD Radeon RX 9070 XT", 64, "opencl-desktop"),
            ("NVIDIA Corporation", "NVIDIA H200", 132, "opencl-desktop"),
            ("GenuineIntel", "pthread-Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 2, "opencl-pocl"),
            ("GenuineIntel", "cpu-sapphirerapids-Intel(R) Xeon(R) Platinum 8481C", 2, "opencl-pocl"),
            ("AuthenticAMD", "pthread-AMD EPYC 7B13", 2, "opencl-pocl"),
            ("Mesa/X.org", "llvmpipe (LLVM 15.0.7, 256 bits)", 2, "opencl"),
        ] {
            let facts = DeviceFacts {
                vendor: vendor.to_owned(),
                compute_units: units,
                ..facts("opencl", device, &[])
            };
            assert_eq!(selected(&set, &facts), expected, "{device} with {units}");
        }
    }

    #[test]
    fn a_device_inherits_what_its_family_chooses() {
        let set = ProfileSet::builtin();
        for (name, staging, host_visible) in [
            ("mali-g78-tensor", Some(false), Some(true)),
            ("mali-g720-dimensity", Some(false), Some(true)),
            ("adreno-750", Some(true), Some(true)),
            ("intel-arc-140v", Some(true), Some(true)),
            ("amd-radeon-780m", Some(true), Some(true)),
            ("nvidia-agx-orin", Some(true), Some(false)),
        ] {
            let memory = set.by_name(name).map(|profile| profile.memory());
            let memory = memory.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((memory.local_staging, memory.host_visible), (staging, host_visible), "{name}");
        }
        // The 80 GB module differs from the 40 GB one in its memory alone.
        let [small, large] = ["nvidia-a100", "nvidia-a100-80gb"]
            .map(|name| set.by_name(name).unwrap_or_else(|error| panic!("{error}")));
        assert_eq!((small.peak_bandwidth(), large.peak_bandwidth()), (Some(1555e9), Some(2039e9)));
        assert_eq!((small.peak_tf32_rate(), large.peak_tf32_rate()), (Some(156e12), Some(156e12)));
        assert_eq!(large.peak_rate(DType::BF16), Some(312e12));
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

    /// The limits of `ops/src/kernels/gpu/tensor_cores.rs`, beside shared memory, which devices have more or less of.
    fn is_for_warps(parameters: &Parameters) -> bool {
        let (Some(&[m, n, k]), Some(&[x, y])) = (parameters.tile(), parameters.threads()) else {
            return false;
        };
        let is_line = |elements: u32| [16, 32].contains(&elements) || elements.is_multiple_of(64);
        x.is_multiple_of(32)
            && m.is_multiple_of(16 * y)
            && n.is_multiple_of(16 * (x / 32))
            && m * n <= 128 * x * y
            && [m, n, k].into_iter().all(is_line)
            && parameters.int("stages").is_some_and(|stages| stages >= 2)
            && parameters.int("stages").is_some_and(|stages| stages * (m + n) * k * 2 <= 227 << 10)
    }

    /// The limits of `ops/src/kernels/gpu/contraction.rs`, and 256 threads, which every GPU that we name takes.
    #[test]
    fn tiles_of_gpus_divide_among_their_threads_and_stage_only_where_local_memory_is_real() {
        for profile in ProfileSet::builtin().iter() {
            let is_gpu =
                profile.kernels().any(|(_, entries)| entries.iter().any(|e| e.variant() == "generated"));
            let staging = profile.memory().local_staging;
            for (op, entries) in profile.kernels().filter(|_| is_gpu) {
                // A vendor's library has sizes of its own.
                for entry in entries.iter().filter(|entry| entry.variant() != "builtin") {
                    let parameters = entry.parameters();
                    let threads: u32 = parameters.threads().expect("GPUs have workgroups").iter().product();
                    assert!((1..=256).contains(&threads), "{} {op}: {entry}", profile.name());
                    assert!(
                        parameters.int("stages").is_none() || staging == Some(true),
                        "{} {op}: {entry} stages through local memory",
                        profile.name()
                    );
                    let ("tiled", Some(&[m, n, k]), Some(&[x, y])) =
                        (entry.variant(), parameters.tile(), parameters.threads())
                    else {
                        assert_ne!(entry.variant(), "tiled", "{} {op}: {entry}", profile.name());
                        let tensor_cores = entry.variant() == "tensor_cores";
                        assert!(
                            !tensor_cores || is_for_warps(parameters),
                            "{} {op}: {entry}",
                            profile.name()
                        );
                        continue;
                    };
                    assert!(m % y == 0 && n % x == 0, "{} {op}: {entry}", profile.name());
                    assert!((m / y) * (n / x) <= 128, "{} {op}: {entry}", profile.name());
                    assert!(k * (m + 1 + n) * 4 <= 32 << 10, "{} {op}: {entry}", profile.name());
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

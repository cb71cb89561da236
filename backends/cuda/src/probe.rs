//! What devices there are, and what each of them is and can do.

use crate::api::{Driver, Version};
use crate::buffer::IMPORT_ALIGN_BYTES;
use crate::sys::{CUdevice, CUdevice_attribute};
use halite_hal::{DType, DeviceId, DeviceInfo, Error, Result};

/// What the driver tells of a device, without a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
    pub(crate) capability: Capability,
    pub(crate) multiprocessors: u32,
    pub(crate) clock_khz: u32,
    pub(crate) max_grid: [u32; 3],
    pub(crate) max_block: [u32; 3],
    pub(crate) max_block_threads: u32,
    /// Shared memory of a block without asking, and with asking.
    pub(crate) shared_bytes: u32,
    pub(crate) shared_optin_bytes: u32,
    /// Whether the device's memory is the host's.
    pub(crate) is_integrated: bool,
    /// Whether memory can be allocated and freed in the order of a stream.
    pub(crate) has_ordered_memory: bool,
}

/// The version of a device's instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Capability {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Capability {
    /// As NVIDIA's tools number it: 90 for 9.0.
    pub(crate) fn number(self) -> u32 {
        10 * self.major + self.minor
    }
}

/// Every device, in the order of the driver's numbers.
///
/// # Errors
/// `Unavailable` when there is none; the driver's failure when it does not tell what one is.
pub(crate) fn devices(driver: &Driver) -> Result<Vec<Properties>> {
    let count = device_count(driver)?;
    (0..count).map(|index| properties(driver, index)).collect()
}

/// How many devices there are, at least one.
///
/// # Errors
/// `Unavailable` when there is none.
pub(crate) fn device_count(driver: &Driver) -> Result<u32> {
    match driver.device_count()? {
        0 => Err(Error::unavailable(format!(
            "{} (CUDA {}) lists no device; see whether nvidia-smi does, and CUDA_VISIBLE_DEVICES",
            driver.path.display(),
            driver.version
        ))),
        count => Ok(count),
    }
}

/// What device `index` is.
pub(crate) fn properties(driver: &Driver, index: u32) -> Result<Properties> {
    use CUdevice_attribute::*;
    let device: CUdevice = driver.device(index)?;
    let number = |attribute| driver.attribute(device, attribute);
    // What a driver may stop telling, and can be done without.
    let minor = |attribute| number(attribute).unwrap_or(0);
    let axes = |attributes: [CUdevice_attribute; 3]| -> Result<[u32; 3]> {
        let [x, y, z] = attributes;
        Ok([number(x)?, number(y)?, number(z)?])
    };
    Ok(Properties {
        name: driver.device_name(device)?,
        memory_bytes: driver.device_memory(device)?,
        capability: Capability {
            major: number(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: number(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        },
        multiprocessors: number(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        clock_khz: minor(CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
        max_grid: axes([
            CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X,
            CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y,
            CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z,
        ])?,
        max_block: axes([
            CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X,
            CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y,
            CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z,
        ])?,
        max_block_threads: number(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        shared_bytes: number(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
        shared_optin_bytes: minor(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        is_integrated: minor(CU_DEVICE_ATTRIBUTE_INTEGRATED) != 0,
        has_ordered_memory: minor(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED) != 0,
    })
}

/// Parameters of a kernel may take 4096 bytes on every architecture (CUDA C++ Programming Guide, "Technical
/// Specifications per Compute Capability"), and none is larger than an address.
const MAX_ARGS: u32 = 4096 / 8;

/// Kernels may load and store 16 bytes at once from the start of a range: the widest access of a thread (CUDA C++
/// Programming Guide, "Device Memory Accesses").
pub(crate) const OFFSET_ALIGNMENT_BYTES: u64 = 16;

/// Which libraries were found beside the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Toolkit {
    pub(crate) has_nvrtc: bool,
    pub(crate) has_cublaslt: bool,
}

/// The device in the layer's words.
pub(crate) fn describe(
    id: DeviceId,
    properties: &Properties,
    driver_version: &str,
    toolkit: Toolkit,
) -> DeviceInfo {
    let mut info = DeviceInfo::new(id, properties.name.clone());
    info.vendor = "NVIDIA".into();
    info.driver_version = driver_version.to_owned();
    info.memory_bytes = properties.memory_bytes;
    info.compute_units = properties.multiprocessors.max(1);
    info.clock_mhz = properties.clock_khz / 1000;
    info.dtypes = DType::ALL.to_vec();
    let formats = ["cubin", "ptx", "builtin"].into_iter();
    info.kernel_formats =
        toolkit.has_nvrtc.then_some("cuda-c").into_iter().chain(formats).map(str::to_owned).collect();
    info.features = features(properties, toolkit);
    info.limits.max_allocation_bytes = properties.memory_bytes;
    info.limits.offset_alignment_bytes = OFFSET_ALIGNMENT_BYTES;
    info.limits.max_grid = properties.max_grid;
    info.limits.max_args = MAX_ARGS;
    info.limits.max_workgroup = properties.max_block;
    info.limits.max_workgroup_threads = properties.max_block_threads;
    info.limits.import_alignment_bytes = IMPORT_ALIGN_BYTES;
    info.limits.local_memory_bytes = properties.shared_optin_bytes.max(properties.shared_bytes).into();
    info
}

/// Instruction sets since Maxwell, in the order in which each contains the ones before it (PTX ISA, `.target`).
const INSTRUCTION_SETS: &[u32] =
    &[50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121];

/// From here on there are features that only the very architecture has, under its number with an `a`.
const FIRST_SPECIFIC: u32 = 90;

/// Features by name, and the capability that they come with (CUDA C++ Programming Guide, "Feature Support per Compute
/// Capability", and "Tensor Cores").
const FEATURES: &[(&str, u32)] = &[
    ("fp64", 0),
    ("subgroups", 0),
    ("local_memory", 0),
    ("int64_atomics", 0),
    ("fp16", 53),
    ("tensor-cores", 70),
    ("tf32", 80),
    ("bf16", 80),
    ("fp8", 89),
];

fn features(properties: &Properties, toolkit: Toolkit) -> Vec<String> {
    let own = properties.capability.number();
    let named = FEATURES.iter().filter(|(_, since)| *since <= own).map(|(name, _)| (*name).to_owned());
    let mut features: Vec<String> = named.collect();
    features.extend(INSTRUCTION_SETS.iter().filter(|set| **set < own).map(|set| format!("sm_{set}")));
    features.push(format!("sm_{own}"));
    if own >= FIRST_SPECIFIC {
        features.push(format!("sm_{own}a"));
    }
    for (name, has) in [
        ("unified_memory", properties.is_integrated),
        ("nvrtc", toolkit.has_nvrtc),
        ("cublaslt", toolkit.has_cublaslt),
        ("builtin:fused_matmul", toolkit.has_cublaslt),
        (DeviceInfo::PEER_COPY, true),
    ] {
        if has {
            features.push(name.to_owned());
        }
    }
    features
}

/// The driver's version: that of the kernel module where the system tells it, and that of CUDA.
pub(crate) fn driver_version(cuda: Version) -> String {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    match module_version(&text) {
        Some(module) => format!("{module} (CUDA {cuda})"),
        None => format!("CUDA {cuda}"),
    }
}

/// The version in a line such as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 ...`.
fn module_version(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace().find(|word| {
        let parts: Vec<_> = word.split('.').collect();
        parts.len() >= 2
            && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Toolkit = Toolkit { has_nvrtc: true, has_cublaslt: true };
    const NONE: Toolkit = Toolkit { has_nvrtc: false, has_cublaslt: false };

    fn of_capability(major: u32, minor: u32) -> Properties {
        Properties {
            name: "A GPU".into(),
            memory_bytes: 8 << 30,
            capability: Capability { major, minor },
            multiprocessors: 40,
            clock_khz: 1_980_000,
            max_grid: [i32::MAX as u32, 65535, 65535],
            max_block: [1024, 1024, 64],
            max_block_threads: 1024,
            shared_bytes: 48 << 10,
            shared_optin_bytes: 99 << 10,
            is_integrated: false,
            has_ordered_memory: true,
        }
    }

    fn info(major: u32, minor: u32, toolkit: Toolkit) -> DeviceInfo {
        describe(DeviceId::new("cuda", 1), &of_capability(major, minor), "CUDA 12.8", toolkit)
    }

    #[test]
    fn the_capability_decides_on_the_features() {
        for ((major, minor), has, lacks) in [
            ((5, 2), "fp64 subgroups sm_50 sm_52", "fp16 sm_53 tensor-cores sm_52a"),
            ((6, 1), "fp16 sm_61", "tensor-cores sm_70"),
            ((7, 5), "tensor-cores sm_75 sm_70", "bf16 tf32 sm_80"),
            ((8, 0), "bf16 tf32 sm_80", "fp8 sm_86 sm_80a"),
            ((8, 9), "fp8 sm_89 sm_86", "sm_90 sm_90a"),
            ((9, 0), "sm_90 sm_90a sm_80 fp8", "sm_100"),
            ((12, 0), "sm_120 sm_120a sm_90 sm_100", "sm_90a sm_100a sm_121"),
            ((13, 7), "sm_137 sm_137a sm_121", "sm_121a"),
        ] {
            let info = info(major, minor, ALL);
            for feature in has.split(' ') {
                assert!(info.has_feature(feature), "{major}.{minor} lacks {feature}");
            }
            for feature in lacks.split(' ') {
                assert!(!info.has_feature(feature), "{major}.{minor} has {feature}");
            }
        }
    }

    #[test]
    fn formats_and_features_follow_the_libraries_that_are_there() {
        let (all, none) = (info(9, 0, ALL), info(9, 0, NONE));
        assert!(all.accepts("cuda-c") && all.has_feature("nvrtc") && all.has_feature("cublaslt"));
        assert!(all.has_feature("builtin:fused_matmul") && !none.has_feature("builtin:fused_matmul"));
        assert!(!none.accepts("cuda-c") && !none.has_feature("nvrtc") && !none.has_feature("cublaslt"));
        for format in ["cubin", "ptx", "builtin"] {
            assert!(all.accepts(format) && none.accepts(format));
        }
    }

    #[test]
    fn limits_are_those_of_the_device() {
        let info = info(9, 0, ALL);
        assert_eq!((info.id.to_string().as_str(), info.compute_units, info.clock_mhz), ("cuda:1", 40, 1980));
        assert_eq!(info.limits.max_grid, [i32::MAX as u32, 65535, 65535]);
        assert_eq!((info.limits.max_workgroup, info.limits.max_workgroup_threads), ([1024, 1024, 64], 1024));
        assert_eq!((info.limits.local_memory_bytes, info.limits.max_args), (99 << 10, 512));
        assert_eq!(info.limits.max_allocation_bytes, 8 << 30);
    }

    #[test]
    fn the_kernel_modules_version_is_found_in_either_wording() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc version 12.2.0\n";
        assert_eq!(module_version(closed), Some("550.54.15"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build";
        assert_eq!(module_version(open), Some("570.86.15"));
        assert_eq!(module_version("GCC version: 12.2.0"), None);
        assert_eq!(module_version(""), None);
    }
}

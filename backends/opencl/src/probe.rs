//! What devices there are and what they can do, as asked of the driver.

use crate::api::{DeviceHandle, PlatformHandle};
use crate::device::lock;
use crate::error::one_line;
use crate::library::Library;
use halite_hal::{DType, DeviceId, DeviceInfo, Error, Result};
use ocl::ffi;
use std::sync::Mutex;

/// Largest alignment that is believed: beyond it, every small buffer would take as much.
const MAX_ALIGNMENT_BYTES: u64 = 1 << 20;
/// Most compute units that are believed: kernels divide their work by this number.
const MAX_COMPUTE_UNITS: u32 = 1 << 20;
/// Bytes that each argument is counted with: a pointer or a 64-bit number.
const ARGUMENT_BYTES: usize = 8;
/// `CL_DEVICE_BOARD_NAME_AMD` of the extension `cl_amd_device_attribute_query`.
const BOARD_NAME_AMD: u32 = 0x4038;

/// A device that the layer can use.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) handle: DeviceHandle,
    pub(crate) info: DeviceInfo,
    /// The platform's name and version and the device's version: with the driver's version, what a binary is for.
    pub(crate) identity: String,
    /// Whether queues tell the times of their commands.
    pub(crate) has_profiling: bool,
    /// Whether the host and kernels may share memory that needs no mapping.
    pub(crate) has_shared_memory: bool,
    pub(crate) max_global_size: u64,
    /// Whether it is the host's own processor.
    pub(crate) is_processor: bool,
    /// Whether the driver keeps compiled kernels itself and is slow to give them away.
    pub(crate) keeps_kernels: bool,
}

/// Every device of every platform that the layer can use, in the order of their numbers.
///
/// # Errors
/// `Unavailable` that says what is there instead.
pub(crate) fn devices(library: &'static Library, backend: &str) -> Result<Vec<Found>> {
    // NOTE: some drivers (PoCL 3.1) list no device to a thread that asks while another one's first question starts them.
    static ASKING: Mutex<()> = Mutex::new(());
    let _one = lock(&ASKING);
    let platforms = PlatformHandle::all(library)?;
    if platforms.is_empty() {
        return Err(Error::unavailable(
            "the OpenCL library lists no platform; install a driver for the device (on Linux its .icd file lies in \
             /etc/OpenCL/vendors)",
        ));
    }
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for platform in &platforms {
        let name = platform.text(ffi::CL_PLATFORM_NAME).unwrap_or_else(|_| "a platform".into());
        let devices = match platform.devices() {
            Ok(devices) => devices,
            Err(error) => {
                refused.push(format!("{}: {}", one_line(&name), error.message()));
                continue;
            }
        };
        if devices.is_empty() {
            refused.push(format!("{} has no device", one_line(&name)));
        }
        for device in devices {
            match describe(device, backend) {
                Ok(device) => found.push(device),
                Err(reason) => {
                    log::info!("an OpenCL device is left out: {reason}");
                    refused.push(reason);
                }
            }
        }
    }
    if found.is_empty() {
        return Err(Error::unavailable(format!("no OpenCL device can be used: {}", refused.join("; "))));
    }
    // Stable: devices of one rank stay in the driver's order.
    found.sort_by_key(|(rank, _)| *rank);
    let number = |(index, (_, mut device)): (usize, (u32, Found))| {
        device.info.id.index = index as u32;
        device
    };
    Ok(found.into_iter().enumerate().map(number).collect())
}

/// The device with its rank among all, or why it cannot be used.
fn describe(device: DeviceHandle, backend: &str) -> Result<(u32, Found), String> {
    let name = device.text(ffi::CL_DEVICE_NAME).map_err(|error| error.to_string())?;
    let name = if name.trim().is_empty() { "a device without a name".into() } else { one_line(&name) };
    ask(device, &name, backend).map_err(|reason| format!("{name}: {reason}"))
}

fn ask(device: DeviceHandle, name: &str, backend: &str) -> Result<(u32, Found), String> {
    let text = |query| device.text(query).map(|text| one_line(&text)).map_err(|error| error.to_string());
    let number = |query| device.number::<u32>(query).map_err(|error| error.to_string());
    let long = |query| device.number::<u64>(query).map_err(|error| error.to_string());
    let size = |query| device.number::<usize>(query).map_err(|error| error.to_string());
    // Absent in some versions and drivers, and then no such thing.
    let flag = |query| device.number::<u32>(query).is_ok_and(|value| value != 0);
    let bits = |query| device.number::<u64>(query).unwrap_or(0);

    let version_text = text(ffi::CL_DEVICE_VERSION)?;
    let version = parse_version(&version_text)
        .ok_or_else(|| format!("its version '{version_text}' is none of OpenCL"))?;
    if version < (1, 2) {
        return Err(format!("it has OpenCL {}.{}, at least 1.2 is needed", version.0, version.1));
    }
    for (query, what) in [
        (ffi::CL_DEVICE_AVAILABLE, "it is not available"),
        (ffi::CL_DEVICE_COMPILER_AVAILABLE, "it has no compiler"),
        (ffi::CL_DEVICE_ENDIAN_LITTLE, "its bytes are in another order than the host's"),
    ] {
        if !flag(query) && (query != ffi::CL_DEVICE_ENDIAN_LITTLE || cfg!(target_endian = "little")) {
            return Err(what.into());
        }
    }
    let types = long(ffi::CL_DEVICE_TYPE)?;
    let extensions = text(ffi::CL_DEVICE_EXTENSIONS).unwrap_or_default();
    let has = |extension: &str| extensions.split_whitespace().any(|own| own == extension);
    let is_full = text(ffi::CL_DEVICE_PROFILE).map_or(true, |profile| profile == "FULL_PROFILE");
    let fp64 = bits(ffi::CL_DEVICE_DOUBLE_FP_CONFIG) != 0 || has("cl_khr_fp64");
    let int64 = is_full || has("cles_khr_int64");
    let subgroups = has("cl_khr_subgroups")
        || has("cl_intel_subgroups")
        || (version >= (2, 1) && flag(ffi::CL_DEVICE_MAX_NUM_SUB_GROUPS));

    let board = if has("cl_amd_device_attribute_query") { text(BOARD_NAME_AMD).ok() } else { None };
    let mut info = DeviceInfo::new(DeviceId::new(backend, 0), product(name, &version_text, board));
    info.vendor = text(ffi::CL_DEVICE_VENDOR).unwrap_or_default();
    info.driver_version = text(ffi::CL_DRIVER_VERSION)?;
    info.memory_bytes = long(ffi::CL_DEVICE_GLOBAL_MEM_SIZE)?;
    info.compute_units = number(ffi::CL_DEVICE_MAX_COMPUTE_UNITS)?.clamp(1, MAX_COMPUTE_UNITS);
    // NOTE: some drivers report 1 MHz (Adreno, Mali) for a clock that they do not tell.
    info.clock_mhz = number(ffi::CL_DEVICE_MAX_CLOCK_FREQUENCY).ok().filter(|clock| *clock > 1).unwrap_or(0);
    info.dtypes = DType::ALL
        .into_iter()
        .filter(|dtype| match dtype {
            DType::F64 => fp64,
            DType::I64 | DType::U64 => int64,
            _ => true,
        })
        .collect();
    info.kernel_formats = vec!["opencl-c".into(), "builtin".into()];
    // NOTE: some GPUs (Mali) keep local memory in the global one, so staging through it only costs.
    let local_type = number(ffi::CL_DEVICE_LOCAL_MEM_TYPE).unwrap_or(0);
    info.features = [
        ("fp16", has("cl_khr_fp16")),
        ("fp64", fp64),
        ("subgroups", subgroups),
        ("local_memory", local_type == ffi::CL_LOCAL),
        ("int64_atomics", has("cl_khr_int64_base_atomics")),
        (
            "correctly_rounded_divide_sqrt",
            bits(ffi::CL_DEVICE_SINGLE_FP_CONFIG) & ffi::CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT != 0,
        ),
        ("images", flag(ffi::CL_DEVICE_IMAGE_SUPPORT)),
        ("unified_memory", flag(ffi::CL_DEVICE_HOST_UNIFIED_MEMORY)),
    ]
    .into_iter()
    .filter(|(_, present)| *present)
    .map(|(feature, _)| feature.to_owned())
    .collect();

    let limits = &mut info.limits;
    // What Rust allows for one object, which host memory of the same length must be.
    let largest = long(ffi::CL_DEVICE_MAX_MEM_ALLOC_SIZE)?.min(isize::MAX as u64);
    limits.max_allocation_bytes = largest.min(info.memory_bytes);
    if limits.max_allocation_bytes == 0 {
        return Err("it claims a memory of 0 bytes".into());
    }
    // The driver tells bits.
    let alignment = u64::from(number(ffi::CL_DEVICE_MEM_BASE_ADDR_ALIGN)?).div_ceil(8).next_power_of_two();
    if alignment > MAX_ALIGNMENT_BYTES {
        return Err(format!("it claims an alignment of {alignment} bytes"));
    }
    limits.offset_alignment_bytes = alignment;
    let is_processor = types & ffi::CL_DEVICE_TYPE_CPU != 0;
    limits.import_alignment_bytes = if is_processor { alignment } else { 0 };
    let parameter_bytes = size(ffi::CL_DEVICE_MAX_PARAMETER_SIZE)?;
    limits.max_args = (parameter_bytes / ARGUMENT_BYTES).clamp(1, 1024) as u32;
    let clamped = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).max(1);
    limits.max_workgroup_threads = clamped(size(ffi::CL_DEVICE_MAX_WORK_GROUP_SIZE)?);
    let per_axis = device.sizes(ffi::CL_DEVICE_MAX_WORK_ITEM_SIZES).map_err(|error| error.to_string())?;
    for (axis, limit) in limits.max_workgroup.iter_mut().enumerate() {
        *limit = per_axis.get(axis).map_or(1, |size| clamped(*size)).min(limits.max_workgroup_threads);
    }
    limits.local_memory_bytes = long(ffi::CL_DEVICE_LOCAL_MEM_SIZE).unwrap_or(0);

    let platform = device.platform();
    let platform_text = |query| platform.text(query).map_err(|error| error.to_string());
    let identity =
        [platform_text(ffi::CL_PLATFORM_NAME)?, platform_text(ffi::CL_PLATFORM_VERSION)?, version_text];
    let is_64_bit = number(ffi::CL_DEVICE_ADDRESS_BITS).unwrap_or(32) >= 64;
    let found = Found {
        handle: device,
        identity: identity.join("\n"),
        has_profiling: bits(ffi::CL_DEVICE_QUEUE_PROPERTIES) & ffi::CL_QUEUE_PROFILING_ENABLE != 0,
        has_shared_memory: version >= (2, 0)
            && bits(ffi::CL_DEVICE_SVM_CAPABILITIES) & ffi::CL_DEVICE_SVM_FINE_GRAIN_BUFFER != 0,
        is_processor,
        // NOTE: PoCL has a cache of its own, and compiles all kernels of a program once more when asked for its binary.
        keeps_kernels: identity[0] == "Portable Computing Language",
        max_global_size: if is_64_bit { usize::MAX as u64 } else { u32::MAX.into() },
        info,
    };
    Ok((rank(types), found))
}

/// GPUs before accelerators before processors: what a user without a choice of their own would want.
fn rank(types: u64) -> u32 {
    let order = [ffi::CL_DEVICE_TYPE_GPU, ffi::CL_DEVICE_TYPE_ACCELERATOR, ffi::CL_DEVICE_TYPE_CPU];
    order.iter().position(|own| types & own != 0).unwrap_or(order.len()) as u32
}

/// The product's name, which two vendors do not tell where OpenCL wants it.
fn product(name: &str, version: &str, board: Option<String>) -> String {
    // NOTE: AMD's names are those of chips, such as gfx1103; the product's is told by an extension.
    if let Some(board) = board.filter(|board| !board.is_empty() && board != name) {
        return format!("{board} ({name})");
    }
    // NOTE: Qualcomm's names end before the number, which stands in the version: OpenCL 3.0 Adreno(TM) 740.
    match version.find("Adreno") {
        Some(start) if !name.contains(|c: char| c.is_ascii_digit()) => version[start..].to_owned(),
        _ => name.to_owned(),
    }
}

/// Reads `OpenCL <major>.<minor> <vendor's text>`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.strip_prefix("OpenCL ")?.split_whitespace().next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_the_vendors_text() {
        for (text, expected) in [
            ("OpenCL 1.2 ", Some((1, 2))),
            ("OpenCL 3.0 PoCL HSTR: pthread", Some((3, 0))),
            ("OpenCL 2.0 Adreno(TM) 740", Some((2, 0))),
            ("OpenCL 1.10", Some((1, 10))),
            ("OpenCL 1", None),
            ("OpenGL 4.6", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
        assert!((1, 10) > (1, 2));
    }

    #[test]
    fn products_are_named_where_the_driver_names_a_chip_or_a_family() {
        let board = |text: &str| Some(text.to_owned());
        for (name, version, board, expected) in [
            ("gfx1103", "OpenCL 2.0", board("AMD Radeon 780M"), "AMD Radeon 780M (gfx1103)"),
            ("gfx1103", "OpenCL 2.0", board(""), "gfx1103"),
            ("QUALCOMM Adreno(TM)", "OpenCL 3.0 Adreno(TM) 740", None, "Adreno(TM) 740"),
            ("QUALCOMM Adreno(TM) 740", "OpenCL 3.0 Adreno(TM) 740", None, "QUALCOMM Adreno(TM) 740"),
            ("Mali-G78 r0p1", "OpenCL 3.0 v1.r38p1", None, "Mali-G78 r0p1"),
        ] {
            assert_eq!(product(name, version, board), expected);
        }
    }

    #[test]
    fn gpus_come_first_and_unknown_types_last() {
        let types = [
            ffi::CL_DEVICE_TYPE_GPU | ffi::CL_DEVICE_TYPE_DEFAULT,
            ffi::CL_DEVICE_TYPE_ACCELERATOR,
            ffi::CL_DEVICE_TYPE_CPU,
            1 << 20,
        ];
        assert_eq!(types.map(rank), [0, 1, 2, 3]);
    }
}

//! Finding the library, its platforms and devices: absent, old, lying, or none at all.

mod common;

use common::*;
use halite_hal::driver::Backend as _;
use halite_hal::{DeviceInfo, ErrorKind};
use halite_opencl::{LIBRARY_VARIABLE, OpenClBackend};

/// What the backend says where it finds nothing.
fn absence() -> String {
    let backend = OpenClBackend::new();
    let error = backend.probe().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable, "{error}");
    assert_eq!(backend.open(0).unwrap_err().kind(), &ErrorKind::Unavailable);
    error.message().to_owned()
}

/// Runs the test alone in a process with this library.
fn with_library(test: &str, library: &str) -> Option<()> {
    const CHILD: &str = "HALITE_OPENCL_LOADING_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return Some(());
    }
    child(test, [(CHILD, "1"), (LIBRARY_VARIABLE, library)]);
    None
}

#[test]
fn an_absent_library_is_told_by_the_variable_that_names_it() {
    const NAME: &str = "an_absent_library_is_told_by_the_variable_that_names_it";
    let Some(()) = with_library(NAME, "/nowhere/libOpenCL.so.1") else { return };
    let reason = absence();
    assert!(reason.contains(LIBRARY_VARIABLE) && reason.contains("/nowhere/libOpenCL.so.1"), "{reason}");
}

#[test]
fn a_variable_that_is_left_aside_hides_no_device() {
    const NAME: &str = "a_variable_that_is_left_aside_hides_no_device";
    let Some(()) = with_library(NAME, "/nowhere/libOpenCL.so.1") else { return };
    absence();
    found(OpenClBackend::new().ignoring_environment().probe());
}

#[test]
fn a_library_of_something_else_is_no_driver() {
    const NAME: &str = "a_library_of_something_else_is_no_driver";
    if !cfg!(target_os = "linux") {
        println!("skipped: the C library has another name here");
        return;
    }
    let Some(()) = with_library(NAME, "libc.so.6") else { return };
    assert!(absence().contains("clGetPlatformIDs"));
}

#[test]
fn a_loader_without_platforms_is_told_from_an_absent_one() {
    const NAME: &str = "a_loader_without_platforms_is_told_from_an_absent_one";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clGetPlatformIDs:0:-1001")]) else { return };
    let reason = absence();
    assert!(reason.contains("lists no platform") && !reason.contains(LIBRARY_VARIABLE), "{reason}");
}

#[test]
fn a_platform_without_devices_is_told_by_name() {
    const NAME: &str = "a_platform_without_devices_is_told_by_name";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clGetDeviceIDs:0:-1")]) else { return };
    let reason = absence();
    assert!(reason.contains("has no device"), "{reason}");
}

#[test]
fn a_platform_that_fails_is_told_with_its_code() {
    const NAME: &str = "a_platform_that_fails_is_told_with_its_code";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clGetDeviceIDs:0:-6")]) else { return };
    assert!(absence().contains("CL_OUT_OF_HOST_MEMORY (-6)"));
}

#[test]
fn a_driver_without_a_function_is_an_error_and_no_crash() {
    const NAME: &str = "a_driver_without_a_function_is_an_error_and_no_crash";
    // What the forwarders answer for a function that is not there.
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clCreateCommandQueue:0:-59")]) else { return };
    let Some(device) = device() else { return };
    assert_eq!(device.create_stream().unwrap_err().kind(), &ErrorKind::Unsupported);
}

#[test]
fn a_device_of_an_old_version_is_left_out() {
    const NAME: &str = "a_device_of_an_old_version_is_left_out";
    // CL_DEVICE_VERSION
    let Some(()) = with_shim(NAME, &[("SHIM_TEXT", "102f:OpenCL 1.1 old")]) else { return };
    let reason = absence();
    assert!(reason.contains("OpenCL 1.1") && reason.contains("1.2 is needed"), "{reason}");
}

#[test]
fn a_device_that_is_away_or_cannot_compile_is_left_out() {
    const NAME: &str = "a_device_that_is_away_or_cannot_compile_is_left_out";
    // CL_DEVICE_COMPILER_AVAILABLE
    let Some(()) = with_shim(NAME, &[("SHIM_INFO", "1028:0")]) else { return };
    assert!(absence().contains("no compiler"));
}

#[test]
fn a_device_with_claims_that_cannot_be_true_is_left_out() {
    const NAME: &str = "a_device_with_claims_that_cannot_be_true_is_left_out";
    // CL_DEVICE_MEM_BASE_ADDR_ALIGN
    let Some(()) = with_shim(NAME, &[("SHIM_INFO", "1019:0x80000000")]) else { return };
    assert!(absence().contains("alignment of 268435456 bytes"));
}

fn only_device() -> Option<DeviceInfo> {
    Some(found(OpenClBackend::new().probe())?.remove(0))
}

#[test]
fn a_phone_is_described_as_it_says() {
    const NAME: &str = "a_phone_is_described_as_it_says";
    // CL_DEVICE_NAME, _EXTENSIONS, _VERSION, _DRIVER_VERSION, _VENDOR
    let texts = "102b:QUALCOMM Adreno(TM)|1030:cl_khr_fp16 cl_khr_subgroups|102f:OpenCL 2.0 Adreno(TM) 740\
                 |102d:V@0676.32|102c:QUALCOMM";
    // _MAX_CLOCK_FREQUENCY, _LOCAL_MEM_TYPE, _LOCAL_MEM_SIZE, _DOUBLE_FP_CONFIG, _MAX_WORK_GROUP_SIZE, _IMAGE_SUPPORT,
    // _MAX_COMPUTE_UNITS, _MEM_BASE_ADDR_ALIGN, _MAX_PARAMETER_SIZE
    let numbers = "100c:1,1022:1,1023:32768,1032:0,1004:1024,1016:1,1002:6,1019:4096,1017:1024";
    let Some(()) = with_shim(NAME, &[("SHIM_TEXT", texts), ("SHIM_INFO", numbers)]) else { return };
    let Some(info) = only_device() else { return };
    assert_eq!((info.name.as_str(), info.vendor.as_str()), ("Adreno(TM) 740", "QUALCOMM"));
    assert_eq!((info.driver_version.as_str(), info.clock_mhz, info.compute_units), ("V@0676.32", 0, 6));
    for (feature, expected) in [
        ("fp16", true),
        ("fp64", false),
        ("subgroups", true),
        ("local_memory", true),
        ("int64_atomics", false),
        ("images", true),
    ] {
        assert_eq!(info.has_feature(feature), expected, "{feature}");
    }
    assert!(!info.dtypes.contains(&halite_hal::DType::F64));
    assert_eq!((info.limits.offset_alignment_bytes, info.limits.max_args), (512, 128));
    assert_eq!((info.limits.local_memory_bytes, info.limits.max_workgroup_threads), (32768, 1024));
}

#[test]
fn local_memory_that_is_global_is_no_feature() {
    const NAME: &str = "local_memory_that_is_global_is_no_feature";
    // CL_DEVICE_LOCAL_MEM_TYPE is CL_GLOBAL, as on Mali; CL_DEVICE_PROFILE is the embedded one without long.
    let variables = [("SHIM_INFO", "1022:2"), ("SHIM_TEXT", "102e:EMBEDDED_PROFILE|1030:cl_khr_icd")];
    let Some(()) = with_shim(NAME, &variables) else { return };
    let Some(info) = only_device() else { return };
    assert!(!info.has_feature("local_memory") && info.limits.local_memory_bytes > 0);
    assert!(!info.dtypes.contains(&halite_hal::DType::I64));
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_is_linked_to_an_opencl_library() {
    let executable = std::env::current_exe().unwrap();
    let listed = match std::process::Command::new("ldd").arg(&executable).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            println!("skipped: no ldd: {error}");
            return;
        }
    };
    // What every program needs shows that the list is one.
    assert!(listed.contains("libc.so"), "{listed}");
    assert!(!listed.contains("OpenCL"), "{listed}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_forwarders_are_not_seen_by_drivers() {
    // A driver that looks up clFlush among what is loaded must find its own.
    let own = libloading::os::unix::Library::this();
    // SAFETY: the address is not used.
    assert!(unsafe { own.get::<extern "C" fn()>(b"clFlush\0") }.is_err());
}

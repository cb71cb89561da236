//! OpenCL's codes as errors of the layer.

use halite_hal::{Error, ErrorKind, Result};
use ocl::ffi::cl_int;

pub(crate) const SUCCESS: cl_int = 0;
pub(crate) const DEVICE_NOT_FOUND: cl_int = -1;
pub(crate) const DEVICE_NOT_AVAILABLE: cl_int = -2;
pub(crate) const OUT_OF_RESOURCES: cl_int = -5;
pub(crate) const PROFILING_INFO_NOT_AVAILABLE: cl_int = -7;
pub(crate) const BUILD_PROGRAM_FAILURE: cl_int = -11;
/// Work did not run because work that it waited for had failed.
pub(crate) const WAITED_FOR_FAILURE: cl_int = -14;
pub(crate) const INVALID_KERNEL_NAME: cl_int = -46;
pub(crate) const PLATFORM_NOT_FOUND: cl_int = -1001;

/// What a code means to a caller. Numbers and logs are added by who knows them.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    Unavailable,
    Unsupported,
    Invalid,
    OutOfMemory,
    TooLarge,
    Build,
    BadFormat,
    Fault,
    Lost,
    Driver,
}
use Meaning::*;

/// The codes of the OpenCL 3.0 API specification (section "Error codes") and its loader, and those of NVIDIA's driver.
const CODES: &[(cl_int, &str, Meaning)] = &[
    (DEVICE_NOT_FOUND, "CL_DEVICE_NOT_FOUND", Unavailable),
    (DEVICE_NOT_AVAILABLE, "CL_DEVICE_NOT_AVAILABLE", Lost),
    (-3, "CL_COMPILER_NOT_AVAILABLE", Unsupported),
    (-4, "CL_MEM_OBJECT_ALLOCATION_FAILURE", OutOfMemory),
    (OUT_OF_RESOURCES, "CL_OUT_OF_RESOURCES", Driver),
    (-6, "CL_OUT_OF_HOST_MEMORY", OutOfMemory),
    (PROFILING_INFO_NOT_AVAILABLE, "CL_PROFILING_INFO_NOT_AVAILABLE", Unsupported),
    (-8, "CL_MEM_COPY_OVERLAP", Invalid),
    (-9, "CL_IMAGE_FORMAT_MISMATCH", Invalid),
    (-10, "CL_IMAGE_FORMAT_NOT_SUPPORTED", Unsupported),
    (BUILD_PROGRAM_FAILURE, "CL_BUILD_PROGRAM_FAILURE", Build),
    (-12, "CL_MAP_FAILURE", Driver),
    (-13, "CL_MISALIGNED_SUB_BUFFER_OFFSET", Invalid),
    (WAITED_FOR_FAILURE, "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST", Fault),
    (-15, "CL_COMPILE_PROGRAM_FAILURE", Build),
    (-16, "CL_LINKER_NOT_AVAILABLE", Unsupported),
    (-17, "CL_LINK_PROGRAM_FAILURE", Build),
    (-18, "CL_DEVICE_PARTITION_FAILED", Driver),
    (-19, "CL_KERNEL_ARG_INFO_NOT_AVAILABLE", Unsupported),
    (-30, "CL_INVALID_VALUE", Invalid),
    (-31, "CL_INVALID_DEVICE_TYPE", Invalid),
    (-32, "CL_INVALID_PLATFORM", Driver),
    // These objects are ours and alive, so a driver that does not know them any more has lost the device.
    (-33, "CL_INVALID_DEVICE", Lost),
    (-34, "CL_INVALID_CONTEXT", Lost),
    (-36, "CL_INVALID_COMMAND_QUEUE", Lost),
    (-35, "CL_INVALID_QUEUE_PROPERTIES", Unsupported),
    (-37, "CL_INVALID_HOST_PTR", Driver),
    (-38, "CL_INVALID_MEM_OBJECT", Driver),
    (-39, "CL_INVALID_IMAGE_FORMAT_DESCRIPTOR", Invalid),
    (-40, "CL_INVALID_IMAGE_SIZE", TooLarge),
    (-41, "CL_INVALID_SAMPLER", Driver),
    (-42, "CL_INVALID_BINARY", BadFormat),
    (-43, "CL_INVALID_BUILD_OPTIONS", Invalid),
    (-44, "CL_INVALID_PROGRAM", Driver),
    (-45, "CL_INVALID_PROGRAM_EXECUTABLE", Driver),
    (INVALID_KERNEL_NAME, "CL_INVALID_KERNEL_NAME", Invalid),
    (-47, "CL_INVALID_KERNEL_DEFINITION", Invalid),
    (-48, "CL_INVALID_KERNEL", Driver),
    (-49, "CL_INVALID_ARG_INDEX", Invalid),
    (-50, "CL_INVALID_ARG_VALUE", Invalid),
    (-51, "CL_INVALID_ARG_SIZE", Invalid),
    (-52, "CL_INVALID_KERNEL_ARGS", Invalid),
    (-53, "CL_INVALID_WORK_DIMENSION", Invalid),
    (-54, "CL_INVALID_WORK_GROUP_SIZE", Invalid),
    (-55, "CL_INVALID_WORK_ITEM_SIZE", Invalid),
    (-56, "CL_INVALID_GLOBAL_OFFSET", Invalid),
    (-57, "CL_INVALID_EVENT_WAIT_LIST", Driver),
    (-58, "CL_INVALID_EVENT", Driver),
    (-59, "CL_INVALID_OPERATION", Unsupported),
    (-60, "CL_INVALID_GL_OBJECT", Driver),
    (-61, "CL_INVALID_BUFFER_SIZE", TooLarge),
    (-62, "CL_INVALID_MIP_LEVEL", Invalid),
    (-63, "CL_INVALID_GLOBAL_WORK_SIZE", Invalid),
    (-64, "CL_INVALID_PROPERTY", Unsupported),
    (-65, "CL_INVALID_IMAGE_DESCRIPTOR", Invalid),
    (-66, "CL_INVALID_COMPILER_OPTIONS", Invalid),
    (-67, "CL_INVALID_LINKER_OPTIONS", Invalid),
    (-68, "CL_INVALID_DEVICE_PARTITION_COUNT", Invalid),
    (-69, "CL_INVALID_PIPE_SIZE", Invalid),
    (-70, "CL_INVALID_DEVICE_QUEUE", Driver),
    (-71, "CL_INVALID_SPEC_ID", Invalid),
    (-72, "CL_MAX_SIZE_RESTRICTION_EXCEEDED", TooLarge),
    (PLATFORM_NOT_FOUND, "CL_PLATFORM_NOT_FOUND_KHR", Unavailable),
    (-9999, "NVIDIA: illegal read or write to a buffer", Fault),
];

/// The result of a call that returned `code`.
pub(crate) fn check(code: cl_int, call: &'static str) -> Result<()> {
    if code == SUCCESS { Ok(()) } else { Err(error(code, call)) }
}

/// The error for a call that returned `code`, which is not success.
pub(crate) fn error(code: cl_int, call: &'static str) -> Error {
    let (name, kind) = describe(code);
    Error::new(kind, format!("the driver answers {name} ({code})")).in_call(call)
}

/// The error for enqueued work (`what`: a kernel, a copy) that ended with `code`, a negative one.
pub(crate) fn execution(code: cl_int, what: &str) -> Error {
    let (name, kind) = describe(code);
    let kind = match kind {
        lost @ (ErrorKind::DeviceLost | ErrorKind::OutOfMemory { .. }) => lost,
        _ => ErrorKind::Fault,
    };
    Error::new(kind, format!("{what} ended with {name} ({code})"))
}

fn describe(code: cl_int) -> (&'static str, ErrorKind) {
    let row = CODES.iter().find(|(own, ..)| *own == code);
    let (_, name, meaning) = row.copied().unwrap_or((code, "a code that OpenCL does not define", Driver));
    let kind = match meaning {
        Unavailable => ErrorKind::Unavailable,
        Unsupported => ErrorKind::Unsupported,
        Invalid => ErrorKind::InvalidArgument,
        OutOfMemory => ErrorKind::OutOfMemory { requested: 0, free: 0 },
        TooLarge => ErrorKind::TooLarge { requested: 0, limit: 0 },
        Build => ErrorKind::Build { log: String::new() },
        BadFormat => ErrorKind::BadFormat,
        Fault => ErrorKind::Fault,
        Lost => ErrorKind::DeviceLost,
        Driver => ErrorKind::Backend { code: code.into(), message: name.into() },
    };
    (name, kind)
}

/// The code's error with another kind.
pub(crate) fn with_kind(error: &Error, kind: ErrorKind, message: String) -> Error {
    Error::new(kind, message).in_call(error.call().unwrap_or("opencl"))
}

/// Text of a driver on one line, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    printable.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_the_code_its_name_and_the_call() {
        let error = error(-38, "clEnqueueCopyBuffer");
        assert_eq!(error.call(), Some("clEnqueueCopyBuffer"));
        let expected = ErrorKind::Backend { code: -38, message: "CL_INVALID_MEM_OBJECT".into() };
        assert_eq!(error.kind(), &expected);
        assert!(error.message().contains("CL_INVALID_MEM_OBJECT (-38)"));
    }

    #[test]
    fn each_code_has_one_row_and_the_kind_that_callers_match_on() {
        for (index, (code, ..)) in CODES.iter().enumerate() {
            assert!(CODES[..index].iter().all(|(other, ..)| other != code), "{code} is there twice");
        }
        let kind = |code| error(code, "call").kind().name();
        for (code, expected) in [
            (-2, "device lost"),
            (-36, "device lost"),
            (-4, "out of memory"),
            (-61, "too large"),
            (-11, "build failed"),
            (-42, "bad format"),
            (-43, "invalid argument"),
            (-59, "unsupported"),
            (-1001, "unavailable"),
            (-9999, "fault"),
            (-5, "driver error"),
            (-12345, "driver error"),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }

    #[test]
    fn work_that_fails_is_a_fault_unless_the_device_or_its_memory_is_gone() {
        for (code, expected) in
            [(-5, "fault"), (-14, "fault"), (-777, "fault"), (-36, "device lost"), (-4, "out of memory")]
        {
            let error = execution(code, "kernel 'k'");
            assert_eq!(error.kind().name(), expected);
            assert!(error.message().starts_with("kernel 'k' ended with"), "{error}");
        }
    }
}

//! What the libraries report, as errors of the layer: the one place where their codes are translated.

use halite_hal::{Error, ErrorKind};

/// What a code of the driver means for the caller.
///
/// Source: CUDA Driver API, `CUresult`, which says of each code whether the context survives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The device has no room now.
    Full,
    /// It is not there, or not for this process.
    Absent,
    /// It is there and cannot do this.
    Unsupported,
    /// The image of a module is damaged, or of another architecture.
    BadImage,
    /// The context is unusable from now on: every further call reports the same.
    Lost,
    /// Anything else.
    Other,
}

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const INVALID_VALUE: u32 = 1;
pub(crate) const OUT_OF_MEMORY: u32 = 2;
pub(crate) const NOT_FOUND: u32 = 500;
pub(crate) const NOT_READY: u32 = 600;
pub(crate) const PEER_ACCESS_ALREADY_ENABLED: u32 = 704;
pub(crate) const HOST_MEMORY_ALREADY_REGISTERED: u32 = 712;

/// The codes whose meaning is known; the driver names the others, also those that are newer than this table.
const CODES: &[(u32, &str, Meaning)] = {
    use Meaning::*;
    &[
        (INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", Other),
        (OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", Full),
        (3, "CUDA_ERROR_NOT_INITIALIZED", Absent),
        (4, "CUDA_ERROR_DEINITIALIZED", Lost),
        (34, "CUDA_ERROR_STUB_LIBRARY", Absent),
        (46, "CUDA_ERROR_DEVICE_UNAVAILABLE", Absent),
        (100, "CUDA_ERROR_NO_DEVICE", Absent),
        (101, "CUDA_ERROR_INVALID_DEVICE", Absent),
        (102, "CUDA_ERROR_DEVICE_NOT_LICENSED", Absent),
        (200, "CUDA_ERROR_INVALID_IMAGE", BadImage),
        (201, "CUDA_ERROR_INVALID_CONTEXT", Other),
        (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", BadImage),
        (214, "CUDA_ERROR_ECC_UNCORRECTABLE", Lost),
        (215, "CUDA_ERROR_UNSUPPORTED_LIMIT", Unsupported),
        (217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", Unsupported),
        (218, "CUDA_ERROR_INVALID_PTX", BadImage),
        (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", Lost),
        (221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", Absent),
        (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", BadImage),
        (223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", Unsupported),
        (226, "CUDA_ERROR_CONTAINED", Lost),
        (300, "CUDA_ERROR_INVALID_SOURCE", BadImage),
        (304, "CUDA_ERROR_OPERATING_SYSTEM", Other),
        (400, "CUDA_ERROR_INVALID_HANDLE", Other),
        (NOT_FOUND, "CUDA_ERROR_NOT_FOUND", Absent),
        (NOT_READY, "CUDA_ERROR_NOT_READY", Other),
        (700, "CUDA_ERROR_ILLEGAL_ADDRESS", Lost),
        (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", Unsupported),
        (702, "CUDA_ERROR_LAUNCH_TIMEOUT", Lost),
        (PEER_ACCESS_ALREADY_ENABLED, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", Other),
        (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", Lost),
        (710, "CUDA_ERROR_ASSERT", Lost),
        (HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", Other),
        (714, "CUDA_ERROR_HARDWARE_STACK_ERROR", Lost),
        (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", Lost),
        (716, "CUDA_ERROR_MISALIGNED_ADDRESS", Lost),
        (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", Lost),
        (718, "CUDA_ERROR_INVALID_PC", Lost),
        (719, "CUDA_ERROR_LAUNCH_FAILED", Lost),
        (721, "CUDA_ERROR_TENSOR_MEMORY_LEAK", Lost),
        (800, "CUDA_ERROR_NOT_PERMITTED", Other),
        (801, "CUDA_ERROR_NOT_SUPPORTED", Unsupported),
        (802, "CUDA_ERROR_SYSTEM_NOT_READY", Absent),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", Absent),
        (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", Absent),
        (805, "CUDA_ERROR_MPS_CONNECTION_FAILED", Absent),
        (806, "CUDA_ERROR_MPS_RPC_FAILURE", Lost),
        (807, "CUDA_ERROR_MPS_SERVER_NOT_READY", Absent),
        (808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", Absent),
        (809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", Absent),
        (810, "CUDA_ERROR_MPS_CLIENT_TERMINATED", Lost),
        (999, "CUDA_ERROR_UNKNOWN", Other),
    ]
};

/// The failure of a driver's call. `name` and `text` are what the driver calls it, where it could be asked.
pub(crate) fn driver_error(code: u32, call: &str, name: Option<&str>, text: Option<&str>) -> Error {
    let known = CODES.iter().find(|(own, ..)| *own == code);
    let name = name.or(known.map(|(_, name, _)| *name)).unwrap_or("an unknown code");
    let described = format!("{} ({name}, code {code})", text.unwrap_or("the driver refuses"));
    let (kind, message) = match known.map_or(Meaning::Other, |(.., meaning)| *meaning) {
        Meaning::Full => (
            ErrorKind::OutOfMemory { requested: 0, free: 0 },
            format!("{described}; drop buffers or use smaller batches"),
        ),
        Meaning::Absent => (ErrorKind::Unavailable, described),
        Meaning::Unsupported => (ErrorKind::Unsupported, described),
        Meaning::BadImage => (ErrorKind::BadFormat, described),
        Meaning::Lost => (
            ErrorKind::DeviceLost,
            format!("{described}; the driver gives the device back to a new process only"),
        ),
        Meaning::Other => (
            ErrorKind::Backend { code: code.into(), message: name.to_owned() },
            text.unwrap_or("the driver refuses").to_owned(),
        ),
    };
    Error::new(kind, message).in_call(call)
}

/// The failure of a call of cuBLASLt (`cublasStatus_t`).
pub(crate) fn cublas_error(status: u32, call: &str, name: Option<&str>) -> Error {
    let (own, kind) = match status {
        1 => ("CUBLAS_STATUS_NOT_INITIALIZED", ErrorKind::Unavailable),
        3 => ("CUBLAS_STATUS_ALLOC_FAILED", ErrorKind::OutOfMemory { requested: 0, free: 0 }),
        7 => ("CUBLAS_STATUS_INVALID_VALUE", ErrorKind::Unsupported),
        8 => ("CUBLAS_STATUS_ARCH_MISMATCH", ErrorKind::Unsupported),
        15 => ("CUBLAS_STATUS_NOT_SUPPORTED", ErrorKind::Unsupported),
        16 => ("CUBLAS_STATUS_LICENSE_ERROR", ErrorKind::Unavailable),
        code => {
            let own = match code {
                11 => "CUBLAS_STATUS_MAPPING_ERROR",
                13 => "CUBLAS_STATUS_EXECUTION_FAILED",
                14 => "CUBLAS_STATUS_INTERNAL_ERROR",
                _ => "an unknown status",
            };
            let message = name.unwrap_or(own).to_owned();
            (own, ErrorKind::Backend { code: code.into(), message })
        }
    };
    let name = name.unwrap_or(own);
    let message = match kind {
        ErrorKind::Backend { .. } => "cuBLASLt failed".to_owned(),
        _ => format!("cuBLASLt refuses ({name}, code {status})"),
    };
    Error::new(kind, message).in_call(call)
}

/// The failure of a call of NVRTC (`nvrtcResult`) other than a compilation's, which has a log.
pub(crate) fn nvrtc_error(result: u32, call: &str, name: Option<&str>) -> Error {
    let own = match result {
        1 => "NVRTC_ERROR_OUT_OF_MEMORY",
        3 => "NVRTC_ERROR_INVALID_INPUT",
        5 => "NVRTC_ERROR_INVALID_OPTION",
        6 => "NVRTC_ERROR_COMPILATION",
        7 => "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
        11 => "NVRTC_ERROR_INTERNAL_ERROR",
        _ => "an unknown result",
    };
    let message = name.unwrap_or(own).to_owned();
    Error::new(ErrorKind::Backend { code: result.into(), message }, "NVRTC failed").in_call(call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::driver::sys::CUresult;

    #[test]
    fn names_and_codes_are_those_of_the_header() {
        // Codes beyond the header's version are checked against its successors by eye.
        let newer = ["CUDA_ERROR_CONTAINED", "CUDA_ERROR_TENSOR_MEMORY_LEAK"];
        let header = [
            CUresult::CUDA_ERROR_INVALID_VALUE,
            CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            CUresult::CUDA_ERROR_NOT_INITIALIZED,
            CUresult::CUDA_ERROR_DEINITIALIZED,
            CUresult::CUDA_ERROR_STUB_LIBRARY,
            CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
            CUresult::CUDA_ERROR_NO_DEVICE,
            CUresult::CUDA_ERROR_INVALID_DEVICE,
            CUresult::CUDA_ERROR_DEVICE_NOT_LICENSED,
            CUresult::CUDA_ERROR_INVALID_IMAGE,
            CUresult::CUDA_ERROR_INVALID_CONTEXT,
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT,
            CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED,
            CUresult::CUDA_ERROR_INVALID_PTX,
            CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE,
            CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
            CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED,
            CUresult::CUDA_ERROR_INVALID_SOURCE,
            CUresult::CUDA_ERROR_OPERATING_SYSTEM,
            CUresult::CUDA_ERROR_INVALID_HANDLE,
            CUresult::CUDA_ERROR_NOT_FOUND,
            CUresult::CUDA_ERROR_NOT_READY,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED,
            CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
            CUresult::CUDA_ERROR_ASSERT,
            CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
            CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
            CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
            CUresult::CUDA_ERROR_INVALID_PC,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_NOT_PERMITTED,
            CUresult::CUDA_ERROR_NOT_SUPPORTED,
            CUresult::CUDA_ERROR_SYSTEM_NOT_READY,
            CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE,
            CUresult::CUDA_ERROR_MPS_CONNECTION_FAILED,
            CUresult::CUDA_ERROR_MPS_RPC_FAILURE,
            CUresult::CUDA_ERROR_MPS_SERVER_NOT_READY,
            CUresult::CUDA_ERROR_MPS_MAX_CLIENTS_REACHED,
            CUresult::CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED,
            CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED,
            CUresult::CUDA_ERROR_UNKNOWN,
        ];
        let own: Vec<_> = CODES.iter().filter(|(_, name, _)| !newer.contains(name)).collect();
        assert_eq!(own.len(), header.len());
        for ((code, name, _), declared) in own.into_iter().zip(header) {
            assert_eq!((*code, (*name).to_owned()), (declared as u32, format!("{declared:?}")));
        }
    }

    #[test]
    fn faults_that_end_a_context_are_losses_and_nothing_else_is() {
        let lost = |code| driver_error(code, "cuLaunchKernel", None, None).kind() == &ErrorKind::DeviceLost;
        for code in [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 806, 810] {
            assert!(lost(code), "{code}");
        }
        for code in [1, 2, 3, 100, 200, 201, 209, 400, 500, 600, 701, 800, 801, 999, 12345] {
            assert!(!lost(code), "{code}");
        }
    }

    #[test]
    fn an_error_names_its_call_its_code_and_its_symbol() {
        let error = driver_error(
            700,
            "cuStreamSynchronize",
            Some("CUDA_ERROR_ILLEGAL_ADDRESS"),
            Some("an illegal memory access was encountered"),
        );
        assert_eq!(error.call(), Some("cuStreamSynchronize"));
        let text = error.to_string();
        assert!(
            text.contains("illegal memory access") && text.contains("CUDA_ERROR_ILLEGAL_ADDRESS, code 700"),
            "{text}"
        );
        let error = driver_error(1, "cuLaunchKernel", None, Some("invalid argument"));
        let message = "CUDA_ERROR_INVALID_VALUE".to_owned();
        assert_eq!(error.kind(), &ErrorKind::Backend { code: 1, message });
    }

    #[test]
    fn codes_of_later_drivers_keep_the_number_and_the_name_that_the_driver_gives() {
        let error = driver_error(998, "cuMemAlloc_v2", Some("CUDA_ERROR_OF_THE_FUTURE"), None);
        let message = "CUDA_ERROR_OF_THE_FUTURE".to_owned();
        assert_eq!(error.kind(), &ErrorKind::Backend { code: 998, message });
        let error = cublas_error(77, "cublasLtMatmul", None);
        assert!(matches!(error.kind(), ErrorKind::Backend { code: 77, .. }), "{error}");
        let error = nvrtc_error(99, "nvrtcGetCUBIN", Some("NVRTC_ERROR_NEW"));
        assert!(error.to_string().contains("NVRTC_ERROR_NEW, code 99"), "{error}");
    }

    #[test]
    fn what_cublas_cannot_do_is_unsupported_and_where_it_fails_it_is_an_error() {
        assert_eq!(cublas_error(15, "x", None).kind(), &ErrorKind::Unsupported);
        assert_eq!(cublas_error(1, "x", None).kind(), &ErrorKind::Unavailable);
        assert!(matches!(cublas_error(13, "x", None).kind(), ErrorKind::Backend { code: 13, .. }));
    }
}

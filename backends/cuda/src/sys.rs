//! Raw bindings: the functions that are called of each library, found by name when it is loaded.
//!
//! The types come from `cudarc`, generated from NVIDIA's headers. Its functions are not called: they panic where a
//! library or symbol is missing, and they return Rust enums, in which a code that a later driver adds would be
//! undefined behaviour. Here a status is a plain number. That the arguments are the header's is checked at compile time
//! against cudarc's declarations.

#![allow(non_snake_case, reason = "names are those of the libraries")]

use cudarc::cublaslt::sys as cublaslt;
use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;
use libloading::Library;
use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};

pub(crate) use cublaslt::{
    cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t, cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
    cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, cublasLtReductionScheme_t, cudaDataType_t,
};
pub(crate) use driver::{
    CUDA_KERNEL_NODE_PARAMS, CUDA_MEMCPY3D, CUDA_MEMSET_NODE_PARAMS, CUcontext, CUdevice, CUdevice_attribute,
    CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph, CUgraphExec, CUgraphNode, CUhostFn,
    CUjit_option, CUmemAccess_flags, CUmemAccessDesc, CUmemLocation, CUmemLocationType, CUmemoryPool,
    CUmemorytype, CUmodule, CUstream, CUstreamCaptureMode,
};
pub(crate) use nvrtc::nvrtcProgram;

/// Declares a table of functions. Those under `checked` have the arguments that cudarc declares; those under `own` are
/// newer than its headers, or have enums where any number may come; those under `optional` may be missing.
macro_rules! table {
    (
        $(#[$doc:meta])* $table:ident of $raw:ident -> $status:ident;
        checked { $($name:ident($($arg:ty),* $(,)?);)* }
        own { $($own:ident($($own_arg:ty),* $(,)?) -> $own_result:ty;)* }
        optional { $($optional:ident($($optional_arg:ty),* $(,)?) -> $optional_result:ty;)* }
    ) => {
        $(#[$doc])*
        pub(crate) struct $table {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) -> u32,)*
            $(pub(crate) $own: unsafe extern "C" fn($($own_arg),*) -> $own_result,)*
            $(pub(crate) $optional: Option<unsafe extern "C" fn($($optional_arg),*) -> $optional_result>,)*
        }

        const _: () = {
            use $raw::$status;
            $(const _: unsafe fn($($arg),*) -> $status = $raw::$name;)*
        };

        impl $table {
            /// Finds every function.
            ///
            /// # Errors
            /// The name of the first one that is missing.
            ///
            /// # Safety
            /// The library is the one whose functions the table names.
            pub(crate) unsafe fn resolve(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the names are of functions with these arguments (checked above, or the library's headers),
                // in the library that they belong to, by this function's contract.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(stringify!($name)).map_err(|_| stringify!($name))?,)*
                        $($own: *library.get(stringify!($own)).map_err(|_| stringify!($own))?,)*
                        $($optional: library.get(stringify!($optional)).ok().map(|symbol| *symbol),)*
                    })
                }
            }
        }
    };
}

table! {
    /// The driver: `libcuda.so.1`, `nvcuda.dll`. All but the optional functions are in drivers of CUDA 11.4 and later.
    DriverTable of driver -> CUresult;
    checked {
        cuInit(c_uint);
        cuDriverGetVersion(*mut c_int);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGet(*mut CUdevice, c_int);
        cuDeviceGetName(*mut c_char, c_int, CUdevice);
        cuDeviceTotalMem_v2(*mut usize, CUdevice);
        cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
        cuDeviceCanAccessPeer(*mut c_int, CUdevice, CUdevice);
        cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
        cuDevicePrimaryCtxRelease_v2(CUdevice);
        cuCtxGetCurrent(*mut CUcontext);
        cuCtxSetCurrent(CUcontext);
        cuCtxEnablePeerAccess(CUcontext, c_uint);
        cuMemGetInfo_v2(*mut usize, *mut usize);
        cuMemAlloc_v2(*mut CUdeviceptr, usize);
        cuMemFree_v2(CUdeviceptr);
        cuMemAllocAsync(*mut CUdeviceptr, usize, CUstream);
        cuMemFreeAsync(CUdeviceptr, CUstream);
        cuDeviceGetMemPool(*mut CUmemoryPool, CUdevice);
        cuMemPoolSetAccess(CUmemoryPool, *const CUmemAccessDesc, usize);
        cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
        cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);
        cuMemFreeHost(*mut c_void);
        cuMemHostRegister_v2(*mut c_void, usize, c_uint);
        cuMemHostUnregister(*mut c_void);
        cuMemcpyAsync(CUdeviceptr, CUdeviceptr, usize, CUstream);
        cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
        cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
        cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
        cuMemcpyPeerAsync(CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, usize, CUstream);
        cuMemsetD8Async(CUdeviceptr, c_uchar, usize, CUstream);
        cuMemsetD16Async(CUdeviceptr, c_ushort, usize, CUstream);
        cuMemsetD32Async(CUdeviceptr, c_uint, usize, CUstream);
        cuStreamCreate(*mut CUstream, c_uint);
        cuStreamDestroy_v2(CUstream);
        cuStreamSynchronize(CUstream);
        cuStreamWaitEvent(CUstream, CUevent, c_uint);
        cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
        cuStreamEndCapture(CUstream, *mut CUgraph);
        cuLaunchHostFunc(CUstream, CUhostFn, *mut c_void);
        cuEventCreate(*mut CUevent, c_uint);
        cuEventDestroy_v2(CUevent);
        cuEventRecord(CUevent, CUstream);
        cuEventQuery(CUevent);
        cuEventSynchronize(CUevent);
        cuEventElapsedTime(*mut f32, CUevent, CUevent);
        cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut CUjit_option, *mut *mut c_void);
        cuModuleUnload(CUmodule);
        cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
        cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
        cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
        cuLaunchKernel(
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void,
            *mut *mut c_void,
        );
        cuGraphCreate(*mut CUgraph, c_uint);
        cuGraphDestroy(CUgraph);
        cuGraphAddKernelNode(
            *mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const CUDA_KERNEL_NODE_PARAMS,
        );
        cuGraphAddMemcpyNode(
            *mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const CUDA_MEMCPY3D, CUcontext,
        );
        cuGraphAddMemsetNode(
            *mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const CUDA_MEMSET_NODE_PARAMS, CUcontext,
        );
        cuGraphAddChildGraphNode(*mut CUgraphNode, CUgraph, *const CUgraphNode, usize, CUgraph);
        cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong);
        cuGraphExecKernelNodeSetParams(CUgraphExec, CUgraphNode, *const CUDA_KERNEL_NODE_PARAMS);
        cuGraphExecMemcpyNodeSetParams(CUgraphExec, CUgraphNode, *const CUDA_MEMCPY3D, CUcontext);
        cuGraphExecMemsetNodeSetParams(CUgraphExec, CUgraphNode, *const CUDA_MEMSET_NODE_PARAMS, CUcontext);
        cuGraphExecChildGraphNodeSetParams(CUgraphExec, CUgraphNode, CUgraph);
        cuGraphLaunch(CUgraphExec, CUstream);
        cuGraphExecDestroy(CUgraphExec);
    }
    own {
        cuGetErrorName(u32, *mut *const c_char) -> u32;
        cuGetErrorString(u32, *mut *const c_char) -> u32;
    }
    optional {
        // Since CUDA 12.4: function, index, offset, size.
        cuFuncGetParamInfo(CUfunction, usize, *mut usize, *mut usize) -> u32;
        // Since CUDA 12.4.
        cuFuncLoad(CUfunction) -> u32;
    }
}

table! {
    /// The compiler of CUDA C: `libnvrtc.so.*`, `nvrtc64_*.dll`. All of it is in versions of CUDA 11.2 and later.
    NvrtcTable of nvrtc -> nvrtcResult;
    checked {
        nvrtcVersion(*mut c_int, *mut c_int);
        nvrtcGetNumSupportedArchs(*mut c_int);
        nvrtcGetSupportedArchs(*mut c_int);
        nvrtcCreateProgram(
            *mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        );
        nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char);
        nvrtcDestroyProgram(*mut nvrtcProgram);
        nvrtcGetProgramLogSize(nvrtcProgram, *mut usize);
        nvrtcGetProgramLog(nvrtcProgram, *mut c_char);
        nvrtcGetCUBINSize(nvrtcProgram, *mut usize);
        nvrtcGetCUBIN(nvrtcProgram, *mut c_char);
        nvrtcGetPTXSize(nvrtcProgram, *mut usize);
        nvrtcGetPTX(nvrtcProgram, *mut c_char);
    }
    own {
        nvrtcGetErrorString(u32) -> *const c_char;
    }
    optional {}
}

table! {
    /// Matrix products: `libcublasLt.so.*`, `cublasLt64_*.dll`.
    CublasLtTable of cublaslt -> cublasStatus_t;
    checked {
        cublasLtCreate(*mut cublasLtHandle_t);
        cublasLtDestroy(cublasLtHandle_t);
        cublasLtMatmulDescCreate(*mut cublasLtMatmulDesc_t, cublasComputeType_t, cudaDataType_t);
        cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t);
        cublasLtMatmulDescSetAttribute(
            cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, *const c_void, usize,
        );
        cublasLtMatrixLayoutCreate(*mut cublasLtMatrixLayout_t, cudaDataType_t, u64, u64, i64);
        cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t);
        cublasLtMatrixLayoutSetAttribute(
            cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, *const c_void, usize,
        );
        cublasLtMatmulPreferenceCreate(*mut cublasLtMatmulPreference_t);
        cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t);
        cublasLtMatmulPreferenceSetAttribute(
            cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, *const c_void, usize,
        );
        cublasLtMatmul(
            cublasLtHandle_t, cublasLtMatmulDesc_t, *const c_void, *const c_void, cublasLtMatrixLayout_t,
            *const c_void, cublasLtMatrixLayout_t, *const c_void, *const c_void, cublasLtMatrixLayout_t,
            *mut c_void, cublasLtMatrixLayout_t, *const cublasLtMatmulAlgo_t, *mut c_void, usize,
            cublaslt::cudaStream_t,
        );
    }
    own {
        cublasLtGetVersion() -> usize;
        cublasLtMatmulAlgoGetHeuristic(
            cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
            cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, c_int,
            *mut HeuristicResult, *mut c_int,
        ) -> u32;
    }
    optional {
        // Since CUDA 11.4 or so.
        cublasLtGetStatusName(u32) -> *const c_char;
    }
}

/// `cublasLtMatmulHeuristicResult_t` with a plain number for its status, which the library writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HeuristicResult {
    pub(crate) algo: cublasLtMatmulAlgo_t,
    pub(crate) workspace_bytes: usize,
    pub(crate) state: u32,
    pub(crate) waves: f32,
    pub(crate) reserved: [c_int; 4],
}

const _: () = {
    use cublaslt::cublasLtMatmulHeuristicResult_t as Declared;
    use std::mem::{offset_of, size_of};
    assert!(size_of::<HeuristicResult>() == size_of::<Declared>());
    assert!(offset_of!(HeuristicResult, workspace_bytes) == offset_of!(Declared, workspaceSize));
    assert!(offset_of!(HeuristicResult, state) == offset_of!(Declared, state));
    assert!(offset_of!(HeuristicResult, waves) == offset_of!(Declared, wavesCount));
};

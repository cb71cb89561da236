//! CUDA's own calls, without anything of Halite: the driver's side of comparisons.
//!
//! Works in the device's primary context, which is current on the one thread that measures. Declarations follow the CUDA
//! Driver API reference.

use crate::library::library;
use crate::{Outcome, failure};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::rc::Rc;

type Handle = *mut c_void;

library! {
    /// The driver's functions.
    Functions {
        cuInit: fn(u32) -> i32;
        cuDeviceGet: fn(*mut i32, i32) -> i32;
        cuDevicePrimaryCtxRetain: fn(*mut Handle, i32) -> i32;
        cuCtxSetCurrent: fn(Handle) -> i32;
        cuStreamCreate: fn(*mut Handle, u32) -> i32;
        cuStreamSynchronize: fn(Handle) -> i32;
        cuStreamDestroy_v2: fn(Handle) -> i32;
        cuMemAlloc_v2: fn(*mut u64, usize) -> i32;
        cuMemFree_v2: fn(u64) -> i32;
        cuMemcpyDtoDAsync_v2: fn(u64, u64, usize, Handle) -> i32;
        cuModuleLoadDataEx: fn(*mut Handle, *const c_void, u32, *mut i32, *mut *mut c_void) -> i32;
        cuModuleUnload: fn(Handle) -> i32;
        cuModuleGetFunction: fn(*mut Handle, Handle, *const c_char) -> i32;
        cuLaunchKernel: fn(
            Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut *mut c_void, *mut *mut c_void,
        ) -> i32;
    }
}

const NAMES: &[&str] = &["libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "nvcuda.dll"];
const CU_STREAM_NON_BLOCKING: u32 = 1;

/// A kernel of one thread that writes a number, for every GPU since Maxwell.
pub(crate) const PTX: &str = ".version 6.0
.target sm_50
.address_size 64
.visible .entry nothing(.param .u64 x)
{
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [x];
    cvta.to.global.u64 %rd2, %rd1;
    st.global.f32 [%rd2], 0f3F800000;
    ret;
}
";

struct Shared {
    functions: Functions,
    stream: Handle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the stream is this value's. The primary context stays: it is the process's.
        unsafe { (self.functions.cuStreamDestroy_v2)(self.stream) };
    }
}

/// A stream on one device.
pub(crate) struct Driver(Rc<Shared>);

/// Device memory, freed when dropped.
pub(crate) struct Memory {
    driver: Rc<Shared>,
    address: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address is this value's. The call waits for the work that uses it.
        unsafe { (self.driver.functions.cuMemFree_v2)(self.address) };
    }
}

/// A kernel with its module.
pub(crate) struct Function {
    driver: Rc<Shared>,
    module: Handle,
    function: Handle,
}

impl Drop for Function {
    fn drop(&mut self) {
        // SAFETY: the module is this value's, and whoever launched its kernel has waited.
        unsafe { (self.driver.functions.cuModuleUnload)(self.module) };
    }
}

impl Driver {
    /// A stream on the device of this number, whose primary context becomes the thread's current one.
    pub(crate) fn open(index: u32) -> Outcome<Self> {
        let functions = Functions::open(NAMES)?;
        let (mut device, mut context, mut stream) = (0, null_mut(), null_mut());
        // SAFETY: results are written to variables of this function; each call takes what the one before made.
        unsafe {
            check((functions.cuInit)(0), "cuInit")?;
            check((functions.cuDeviceGet)(&mut device, index as i32), "cuDeviceGet")?;
            check((functions.cuDevicePrimaryCtxRetain)(&mut context, device), "cuDevicePrimaryCtxRetain")?;
            check((functions.cuCtxSetCurrent)(context), "cuCtxSetCurrent")?;
            check((functions.cuStreamCreate)(&mut stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate")?;
        }
        Ok(Self(Rc::new(Shared { functions, stream })))
    }

    pub(crate) fn buffer(&self, len_bytes: usize) -> Outcome<Memory> {
        let mut address = 0;
        // SAFETY: the address is written to a variable of this function.
        check(unsafe { (self.0.functions.cuMemAlloc_v2)(&mut address, len_bytes) }, "cuMemAlloc")?;
        Ok(Memory { driver: self.0.clone(), address })
    }

    /// The kernel of [`PTX`] with this name.
    pub(crate) fn function(&self, name: &CStr) -> Outcome<Function> {
        let functions = &self.0.functions;
        let text = std::ffi::CString::new(PTX)?;
        let (mut module, mut function) = (null_mut(), null_mut());
        // SAFETY: the text is terminated; results are written to variables of this function.
        unsafe {
            let image = text.as_ptr().cast();
            let code = (functions.cuModuleLoadDataEx)(&mut module, image, 0, null_mut(), null_mut());
            check(code, "cuModuleLoadDataEx")?;
            let code = (functions.cuModuleGetFunction)(&mut function, module, name.as_ptr());
            check(code, "cuModuleGetFunction")?;
        }
        Ok(Function { driver: self.0.clone(), module, function })
    }

    /// Copies the first `len_bytes`, which both have.
    pub(crate) fn copy(&self, dst: &Memory, src: &Memory, len_bytes: usize) -> Outcome {
        let Shared { functions, stream } = &*self.0;
        // SAFETY: both buffers are alive until the stream is done, because freeing waits.
        let code = unsafe { (functions.cuMemcpyDtoDAsync_v2)(dst.address, src.address, len_bytes, *stream) };
        check(code, "cuMemcpyDtoDAsync")
    }

    /// One thread of a kernel whose one parameter is a buffer.
    pub(crate) fn launch(&self, function: &Function, buffer: &Memory) -> Outcome {
        let Shared { functions, stream } = &*self.0;
        let mut address = buffer.address;
        let mut parameters = [(&raw mut address).cast::<c_void>()];
        // SAFETY: one pointer for the one parameter, whose value the call copies.
        let code = unsafe {
            (functions.cuLaunchKernel)(
                function.function,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                *stream,
                parameters.as_mut_ptr(),
                null_mut(),
            )
        };
        check(code, "cuLaunchKernel")
    }

    /// Waits for everything enqueued.
    pub(crate) fn synchronize(&self) -> Outcome {
        // SAFETY: the stream is alive.
        check(unsafe { (self.0.functions.cuStreamSynchronize)(self.0.stream) }, "cuStreamSynchronize")
    }
}

fn check(code: i32, call: &str) -> Outcome {
    if code == 0 { Ok(()) } else { Err(failure(format!("{call} failed with code {code}"))) }
}

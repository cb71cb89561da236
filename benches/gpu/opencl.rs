//! OpenCL's own calls, without anything of Halite: the driver's side of comparisons.
//!
//! Codes are checked, objects are released when dropped, and a queue is one thread's. Declarations follow the OpenCL 1.2
//! specification.

use crate::library::library;
use crate::{Outcome, failure};
use std::ffi::{CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Platforms, devices and all objects.
pub(crate) type Handle = *mut c_void;

library! {
    /// OpenCL's functions.
    Functions {
        clGetPlatformIDs: fn(u32, *mut Handle, *mut u32) -> i32;
        clGetDeviceIDs: fn(Handle, u64, u32, *mut Handle, *mut u32) -> i32;
        clGetDeviceInfo: fn(Handle, u32, usize, *mut c_void, *mut usize) -> i32;
        clCreateContext: fn(*const isize, u32, *const Handle, *const c_void, *mut c_void, *mut i32) -> Handle;
        clCreateCommandQueue: fn(Handle, Handle, u64, *mut i32) -> Handle;
        clCreateBuffer: fn(Handle, u64, usize, *mut c_void, *mut i32) -> Handle;
        clCreateProgramWithSource: fn(Handle, u32, *const *const c_char, *const usize, *mut i32) -> Handle;
        clBuildProgram: fn(Handle, u32, *const Handle, *const c_char, *const c_void, *mut c_void) -> i32;
        clCreateKernel: fn(Handle, *const c_char, *mut i32) -> Handle;
        clSetKernelArg: fn(Handle, u32, usize, *const c_void) -> i32;
        clEnqueueWriteBuffer:
            fn(Handle, Handle, u32, usize, usize, *const c_void, u32, *const Handle, *mut Handle) -> i32;
        clEnqueueReadBuffer:
            fn(Handle, Handle, u32, usize, usize, *mut c_void, u32, *const Handle, *mut Handle) -> i32;
        clEnqueueCopyBuffer:
            fn(Handle, Handle, Handle, usize, usize, usize, u32, *const Handle, *mut Handle) -> i32;
        clEnqueueNDRangeKernel: fn(
            Handle, Handle, u32, *const usize, *const usize, *const usize, u32, *const Handle, *mut Handle,
        ) -> i32;
        clFinish: fn(Handle) -> i32;
        clReleaseContext: fn(Handle) -> i32;
        clReleaseCommandQueue: fn(Handle) -> i32;
        clReleaseMemObject: fn(Handle) -> i32;
        clReleaseProgram: fn(Handle) -> i32;
        clReleaseKernel: fn(Handle) -> i32;
    }
}

const NAMES: &[&str] = &["libOpenCL.so.1", "libOpenCL.so", "OpenCL.dll"];
const CL_DEVICE_TYPE_ALL: u64 = 0xffff_ffff;
const CL_DEVICE_NAME: u32 = 0x102b;
/// Of the extension `cl_amd_device_attribute_query`.
const CL_DEVICE_BOARD_NAME_AMD: u32 = 0x4038;
const CL_MEM_READ_WRITE: u64 = 1;
const CL_TRUE: u32 = 1;
/// More platforms or devices than any machine has.
const MOST_LISTED: u32 = 64;

/// An object that is released when dropped. Holds the functions.
pub(crate) struct Object {
    handle: Handle,
    release: unsafe extern "system" fn(Handle) -> i32,
    _functions: Arc<Functions>,
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: this value owns one reference to the object, and the library is still open.
        unsafe { (self.release)(self.handle) };
    }
}

/// An in-order queue on a context of one device.
pub(crate) struct Queue {
    functions: Arc<Functions>,
    queue: Object,
    context: Object,
    device: Handle,
}

/// A kernel with its program.
pub(crate) struct Kernel {
    kernel: Object,
    _program: Object,
}

impl Queue {
    /// A queue on the device that calls itself `name`.
    pub(crate) fn open(name: &str) -> Outcome<Self> {
        let functions = Arc::new(Functions::open(NAMES)?);
        let device = devices(&functions)?
            .into_iter()
            .find(|&device| {
                [CL_DEVICE_NAME, CL_DEVICE_BOARD_NAME_AMD]
                    .iter()
                    .any(|&query| text(&functions, device, query).as_deref() == Some(name))
            })
            .ok_or_else(|| failure(format!("no OpenCL device is named '{name}'")))?;
        let mut code = 0;
        // SAFETY: the device is one that the driver listed; the code is written to a variable of this function.
        let context =
            unsafe { (functions.clCreateContext)(null(), 1, &device, null(), null_mut(), &mut code) };
        let context = object(&functions, context, code, functions.clReleaseContext, "clCreateContext")?;
        // SAFETY: as above; the context is of this device.
        let queue = unsafe { (functions.clCreateCommandQueue)(context.handle, device, 0, &mut code) };
        let queue = object(&functions, queue, code, functions.clReleaseCommandQueue, "clCreateCommandQueue")?;
        Ok(Self { functions, queue, context, device })
    }

    /// The driver's handle, which lives as long as this queue.
    pub(crate) fn handle(&self) -> Handle {
        self.queue.handle
    }

    pub(crate) fn buffer(&self, len_bytes: usize) -> Outcome<Object> {
        let mut code = 0;
        // SAFETY: the context is alive; no host memory is passed.
        let buffer = unsafe {
            (self.functions.clCreateBuffer)(
                self.context.handle,
                CL_MEM_READ_WRITE,
                len_bytes,
                null_mut(),
                &mut code,
            )
        };
        object(&self.functions, buffer, code, self.functions.clReleaseMemObject, "clCreateBuffer")
    }

    /// Copies numbers to a buffer of that size, and waits.
    pub(crate) fn write(&self, buffer: &Object, values: &[f32]) -> Outcome {
        let len = size_of_val(values);
        // SAFETY: a blocking call reads `len` bytes of the slice; the driver checks the buffer's length.
        let code = unsafe {
            (self.functions.clEnqueueWriteBuffer)(
                self.queue.handle,
                buffer.handle,
                CL_TRUE,
                0,
                len,
                values.as_ptr().cast(),
                0,
                null(),
                null_mut(),
            )
        };
        check(code, "clEnqueueWriteBuffer")
    }

    /// Copies a buffer of that size to the host, and waits.
    pub(crate) fn read(&self, buffer: &Object, values: &mut [f32]) -> Outcome {
        let len = size_of_val(values);
        // SAFETY: a blocking call writes `len` bytes of the slice, any of which are numbers.
        let code = unsafe {
            (self.functions.clEnqueueReadBuffer)(
                self.queue.handle,
                buffer.handle,
                CL_TRUE,
                0,
                len,
                values.as_mut_ptr().cast(),
                0,
                null(),
                null_mut(),
            )
        };
        check(code, "clEnqueueReadBuffer")
    }

    pub(crate) fn copy(&self, dst: &Object, src: &Object, len_bytes: usize) -> Outcome {
        // SAFETY: both buffers are alive; the driver checks their lengths.
        let code = unsafe {
            (self.functions.clEnqueueCopyBuffer)(
                self.queue.handle,
                src.handle,
                dst.handle,
                0,
                0,
                len_bytes,
                0,
                null(),
                null_mut(),
            )
        };
        check(code, "clEnqueueCopyBuffer")
    }

    /// Compiles `entry` of a source text.
    pub(crate) fn kernel(&self, source: &str, entry: &str) -> Outcome<Kernel> {
        let functions = &self.functions;
        let (text, len) = (source.as_ptr().cast::<c_char>(), source.len());
        let mut code = 0;
        // SAFETY: one text with its length; both outlive the call, which copies them.
        let program =
            unsafe { (functions.clCreateProgramWithSource)(self.context.handle, 1, &text, &len, &mut code) };
        let program =
            object(functions, program, code, functions.clReleaseProgram, "clCreateProgramWithSource")?;
        // SAFETY: the program and the device belong to one context; an empty text is terminated.
        let code = unsafe {
            (functions.clBuildProgram)(program.handle, 1, &self.device, c"".as_ptr(), null(), null_mut())
        };
        check(code, "clBuildProgram")?;
        let name = CString::new(entry)?;
        let mut code = 0;
        // SAFETY: the name is terminated, the program built.
        let kernel = unsafe { (functions.clCreateKernel)(program.handle, name.as_ptr(), &mut code) };
        let kernel = object(functions, kernel, code, functions.clReleaseKernel, "clCreateKernel")?;
        Ok(Kernel { kernel, _program: program })
    }

    /// Passes one buffer and launches `threads` threads in workgroups of `workgroup`.
    pub(crate) fn launch(
        &self,
        kernel: &Kernel,
        buffer: &Object,
        threads: usize,
        workgroup: usize,
    ) -> Outcome {
        let handle = kernel.kernel.handle;
        // SAFETY: the argument is a buffer's handle, which the driver copies.
        let code = unsafe {
            (self.functions.clSetKernelArg)(handle, 0, size_of::<Handle>(), (&raw const buffer.handle).cast())
        };
        check(code, "clSetKernelArg")?;
        // SAFETY: one dimension, and a size for it each; the kernel and its buffer are alive until the queue is done,
        // because the caller waits before dropping them.
        let code = unsafe {
            (self.functions.clEnqueueNDRangeKernel)(
                self.queue.handle,
                handle,
                1,
                null(),
                &threads,
                &workgroup,
                0,
                null(),
                null_mut(),
            )
        };
        check(code, "clEnqueueNDRangeKernel")
    }

    /// Waits for everything enqueued.
    pub(crate) fn finish(&self) -> Outcome {
        // SAFETY: the queue is alive.
        check(unsafe { (self.functions.clFinish)(self.queue.handle) }, "clFinish")
    }
}

impl Object {
    /// The driver's handle, which lives as long as this value.
    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }
}

fn devices(functions: &Functions) -> Outcome<Vec<Handle>> {
    let mut platforms = [null_mut(); MOST_LISTED as usize];
    let mut count = 0;
    // SAFETY: at most as many handles are written as the array holds.
    let code = unsafe { (functions.clGetPlatformIDs)(MOST_LISTED, platforms.as_mut_ptr(), &mut count) };
    check(code, "clGetPlatformIDs")?;
    let mut found = Vec::new();
    for &platform in &platforms[..count.min(MOST_LISTED) as usize] {
        let mut devices = [null_mut(); MOST_LISTED as usize];
        let mut count = 0;
        // SAFETY: as above; the platform is one that the driver listed.
        let code = unsafe {
            (functions.clGetDeviceIDs)(
                platform,
                CL_DEVICE_TYPE_ALL,
                MOST_LISTED,
                devices.as_mut_ptr(),
                &mut count,
            )
        };
        // A platform without devices answers with an error.
        if code == 0 {
            found.extend_from_slice(&devices[..count.min(MOST_LISTED) as usize]);
        }
    }
    Ok(found)
}

/// What a device says of itself, in single spaces as the HAL shows it.
fn text(functions: &Functions, device: Handle, query: u32) -> Option<String> {
    let mut bytes = [0u8; 512];
    let mut len = 0;
    // SAFETY: at most as many bytes are written as the array holds; the device is one that the driver listed.
    let code = unsafe {
        (functions.clGetDeviceInfo)(device, query, bytes.len(), bytes.as_mut_ptr().cast(), &mut len)
    };
    let text = String::from_utf8_lossy(&bytes[..len.min(bytes.len())]);
    let text = text.trim_end_matches('\0').split_whitespace().collect::<Vec<_>>().join(" ");
    (code == 0 && !text.is_empty()).then_some(text)
}

fn object(
    functions: &Arc<Functions>,
    handle: Handle,
    code: i32,
    release: unsafe extern "system" fn(Handle) -> i32,
    call: &str,
) -> Outcome<Object> {
    check(code, call)?;
    if handle.is_null() {
        return Err(failure(format!("{call} made no object and no error")));
    }
    Ok(Object { handle, release, _functions: functions.clone() })
}

fn check(code: i32, call: &str) -> Outcome {
    if code == 0 { Ok(()) } else { Err(failure(format!("{call} failed with code {code}"))) }
}

//! OpenCL's functions with checked results, and its objects with owners.
//!
//! Every object here is made by the driver, owned by one Rust value, and released once, when that is dropped. So a
//! handle that a function gets is alive. Functions that OpenCL promises to be callable from any thread at any time are
//! all but `clSetKernelArg` (OpenCL 1.2 specification, appendix A.2); `kernel.rs` holds a lock for that one.

use crate::error::{self, check};
use crate::library::Library;
use halite_hal::{Error, Result};
use ocl::ffi::{self, c_void, cl_device_id, cl_event, cl_int, cl_mem, cl_platform_id, cl_uint};
use std::ffi::{CStr, CString};
use std::ptr;

/// More platforms or devices than any machine has; a larger count is a lie.
const MAX_LISTED: cl_uint = 1024;
/// More bytes than any answer has; a larger count is a lie.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// More bytes than any program has.
const MAX_BINARY_BYTES: usize = 1 << 30;

macro_rules! owned {
    ($(#[$doc:meta])* $name:ident($raw:ident), $release:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name(ffi::$raw);

        // SAFETY: OpenCL's objects may be used from any thread (see the module's doc).
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            /// Takes over an object that a call made, unless it failed.
            fn made(raw: ffi::$raw, code: cl_int, call: &'static str) -> Result<Self> {
                check(code, call)?;
                if raw.is_null() {
                    return Err(Error::bad_format("the driver made no object and no error").in_call(call));
                }
                Ok(Self(raw))
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: this value owns one reference to the object, and gives it back here once.
                let code = unsafe { ffi::$release(self.0) };
                if let Err(error) = check(code, stringify!($release)) {
                    log::debug!("{error}");
                }
            }
        }
    };
}

owned!(
    /// A context of one device.
    Context(cl_context), clReleaseContext);
owned!(
    /// An in-order command queue.
    Queue(cl_command_queue), clReleaseCommandQueue);
owned!(
    /// A buffer or a part of one.
    Mem(cl_mem), clReleaseMemObject);
owned!(
    /// A built program.
    Program(cl_program), clReleaseProgram);
owned!(
    /// A kernel with its arguments.
    RawKernel(cl_kernel), clReleaseKernel);
owned!(
    /// A command's progress.
    RawEvent(cl_event), clReleaseEvent);

/// A device as the driver names it. Root devices are not counted: they are there while the library is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceHandle {
    platform: cl_platform_id,
    device: cl_device_id,
}
// SAFETY: as for the objects above.
unsafe impl Send for DeviceHandle {}
// SAFETY: as above.
unsafe impl Sync for DeviceHandle {}

/// A platform as the driver names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlatformHandle(cl_platform_id);

/// Asks twice, as OpenCL's queries want it: for the size, and for the bytes.
fn answer(
    call: &'static str,
    most: usize,
    ask: impl Fn(usize, *mut c_void, *mut usize) -> cl_int,
) -> Result<Vec<u8>> {
    let mut len = 0;
    check(ask(0, ptr::null_mut(), &mut len), call)?;
    if len > most {
        return Err(Error::bad_format(format!("the driver answers with {len} bytes")).in_call(call));
    }
    let mut bytes = vec![0u8; len];
    if len > 0 {
        check(ask(len, bytes.as_mut_ptr().cast(), &mut len), call)?;
    }
    Ok(bytes)
}

fn text(bytes: Vec<u8>) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A number that a query may answer with: plain bits, all of which are valid.
pub(crate) trait Plain: Copy + Default {}
impl Plain for cl_int {}
impl Plain for cl_uint {}
impl Plain for u64 {}
#[cfg(target_pointer_width = "64")]
impl Plain for usize {}
#[cfg(target_pointer_width = "32")]
impl Plain for usize {}
impl<const N: usize> Plain for [usize; N] where [usize; N]: Default {}

fn number<T: Plain>(call: &'static str, ask: impl Fn(usize, *mut c_void, *mut usize) -> cl_int) -> Result<T> {
    let mut value = T::default();
    check(ask(size_of::<T>(), (&raw mut value).cast(), ptr::null_mut()), call)?;
    Ok(value)
}

impl PlatformHandle {
    /// The platforms of the library; none is an empty list.
    pub(crate) fn all(_library: &'static Library) -> Result<Vec<Self>> {
        const CALL: &str = "clGetPlatformIDs";
        let mut count = 0;
        // SAFETY: asks for the count alone.
        let code = unsafe { ffi::clGetPlatformIDs(0, ptr::null_mut(), &mut count) };
        if code == error::PLATFORM_NOT_FOUND {
            return Ok(Vec::new());
        }
        check(code, CALL)?;
        let count = count.min(MAX_LISTED);
        let mut raw = vec![ptr::null_mut(); count as usize];
        if count > 0 {
            // SAFETY: the list has room for `count` entries.
            check(unsafe { ffi::clGetPlatformIDs(count, raw.as_mut_ptr(), ptr::null_mut()) }, CALL)?;
        }
        Ok(raw.into_iter().filter(|raw| !raw.is_null()).map(Self).collect())
    }

    pub(crate) fn text(self, name: cl_uint) -> Result<String> {
        let bytes = answer("clGetPlatformInfo", MAX_ANSWER_BYTES, |size, value, len| {
            // SAFETY: `value` has room for `size` bytes.
            unsafe { ffi::clGetPlatformInfo(self.0, name, size, value, len) }
        })?;
        Ok(text(bytes))
    }

    /// Its devices of all types; none is an empty list.
    pub(crate) fn devices(self) -> Result<Vec<DeviceHandle>> {
        const CALL: &str = "clGetDeviceIDs";
        let mut count = 0;
        // SAFETY: asks for the count alone.
        let code =
            unsafe { ffi::clGetDeviceIDs(self.0, ffi::CL_DEVICE_TYPE_ALL, 0, ptr::null_mut(), &mut count) };
        if code == error::DEVICE_NOT_FOUND {
            return Ok(Vec::new());
        }
        check(code, CALL)?;
        let count = count.min(MAX_LISTED);
        let mut raw = vec![ptr::null_mut(); count as usize];
        if count > 0 {
            // SAFETY: the list has room for `count` entries.
            let code = unsafe {
                ffi::clGetDeviceIDs(self.0, ffi::CL_DEVICE_TYPE_ALL, count, raw.as_mut_ptr(), ptr::null_mut())
            };
            check(code, CALL)?;
        }
        let device = |device: cl_device_id| DeviceHandle { platform: self.0, device };
        Ok(raw.into_iter().filter(|raw| !raw.is_null()).map(device).collect())
    }
}

impl DeviceHandle {
    pub(crate) fn platform(self) -> PlatformHandle {
        PlatformHandle(self.platform)
    }

    pub(crate) fn text(self, name: cl_uint) -> Result<String> {
        Ok(text(self.bytes(name)?))
    }

    pub(crate) fn number<T: Plain>(self, name: cl_uint) -> Result<T> {
        number("clGetDeviceInfo", |size, value, len| self.ask(name, size, value, len))
    }

    /// A list of numbers, as many as there are.
    pub(crate) fn sizes(self, name: cl_uint) -> Result<Vec<usize>> {
        let bytes = self.bytes(name)?;
        let entries = bytes.chunks_exact(size_of::<usize>());
        Ok(entries
            .map(|entry| usize::from_ne_bytes(entry.try_into().expect("chunks are of this length")))
            .collect())
    }

    fn bytes(self, name: cl_uint) -> Result<Vec<u8>> {
        answer("clGetDeviceInfo", MAX_ANSWER_BYTES, |size, value, len| self.ask(name, size, value, len))
    }

    fn ask(self, name: cl_uint, size: usize, value: *mut c_void, len: *mut usize) -> cl_int {
        // SAFETY: `value` has room for `size` bytes (`answer`, `number`).
        unsafe { ffi::clGetDeviceInfo(self.device, name, size, value, len) }
    }
}

impl Context {
    pub(crate) fn create(device: DeviceHandle) -> Result<Self> {
        let properties = [ffi::CL_CONTEXT_PLATFORM as isize, device.platform as isize, 0];
        let mut code = 0;
        // SAFETY: the list of properties ends with a zero, the list of devices has one entry.
        let raw = unsafe {
            ffi::clCreateContext(properties.as_ptr(), 1, &device.device, None, ptr::null_mut(), &mut code)
        };
        Self::made(raw, code, "clCreateContext")
    }

    /// A queue, with the times of its commands where `profiling`.
    pub(crate) fn create_queue(&self, device: DeviceHandle, profiling: bool) -> Result<Queue> {
        let properties = if profiling { ffi::CL_QUEUE_PROFILING_ENABLE } else { 0 };
        let mut code = 0;
        // SAFETY: the device is the context's.
        let raw = unsafe { ffi::clCreateCommandQueue(self.0, device.device, properties, &mut code) };
        Queue::made(raw, code, "clCreateCommandQueue")
    }

    /// A buffer of `len` bytes.
    pub(crate) fn create_buffer(&self, flags: u64, len: usize) -> Result<Mem> {
        let mut code = 0;
        // SAFETY: no host memory is named.
        let raw = unsafe { ffi::clCreateBuffer(self.0, flags, len, ptr::null_mut(), &mut code) };
        Mem::made(raw, code, "clCreateBuffer")
    }

    /// A buffer with a copy of these bytes, at least one.
    pub(crate) fn create_buffer_of(&self, bytes: &[u8]) -> Result<Mem> {
        let mut code = 0;
        let flags = ffi::CL_MEM_READ_WRITE | ffi::CL_MEM_COPY_HOST_PTR;
        let start = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the bytes are as many as told, only read from, and only by this call.
        let raw = unsafe { ffi::clCreateBuffer(self.0, flags, bytes.len(), start, &mut code) };
        Mem::made(raw, code, "clCreateBuffer")
    }

    /// A buffer over host memory.
    ///
    /// # Safety
    /// `host` is valid for `len` bytes as long as the buffer lives.
    pub(crate) unsafe fn create_buffer_over(&self, host: *mut c_void, len: usize) -> Result<Mem> {
        let mut code = 0;
        let flags = ffi::CL_MEM_READ_WRITE | ffi::CL_MEM_USE_HOST_PTR;
        // SAFETY: as the caller promises.
        let raw = unsafe { ffi::clCreateBuffer(self.0, flags, len, host, &mut code) };
        Mem::made(raw, code, "clCreateBuffer")
    }

    pub(crate) fn raw(&self) -> ffi::cl_context {
        self.0
    }

    pub(crate) fn create_program(&self, source: &str) -> Result<Program> {
        let mut code = 0;
        let (start, len) = (source.as_ptr().cast(), source.len());
        // SAFETY: one text, whose length is told, so it needs no end.
        let raw = unsafe { ffi::clCreateProgramWithSource(self.0, 1, &start, &len, &mut code) };
        Program::made(raw, code, "clCreateProgramWithSource")
    }

    pub(crate) fn create_program_of(&self, device: DeviceHandle, binary: &[u8]) -> Result<Program> {
        const CALL: &str = "clCreateProgramWithBinary";
        let (mut code, mut status) = (0, 0);
        let (start, len) = (binary.as_ptr(), binary.len());
        // SAFETY: one device with one binary of the told length.
        let raw = unsafe {
            ffi::clCreateProgramWithBinary(self.0, 1, &device.device, &len, &start, &mut status, &mut code)
        };
        let program = Program::made(raw, code, CALL)?;
        check(status, CALL)?;
        Ok(program)
    }
}

impl Program {
    pub(crate) fn build(&self, device: DeviceHandle, options: &CStr) -> Result<()> {
        // SAFETY: one device, the context's; the options end with a zero.
        let code = unsafe {
            ffi::clBuildProgram(self.0, 1, &device.device, options.as_ptr(), None, ptr::null_mut())
        };
        check(code, "clBuildProgram")
    }

    pub(crate) fn log(&self, device: DeviceHandle) -> Result<String> {
        let bytes = answer("clGetProgramBuildInfo", MAX_ANSWER_BYTES, |size, value, len| {
            // SAFETY: `value` has room for `size` bytes.
            unsafe {
                ffi::clGetProgramBuildInfo(self.0, device.device, ffi::CL_PROGRAM_BUILD_LOG, size, value, len)
            }
        })?;
        Ok(text(bytes))
    }

    /// What the program was built to, for its one device.
    pub(crate) fn binary(&self) -> Result<Vec<u8>> {
        const CALL: &str = "clGetProgramInfo";
        let len: usize = number(CALL, |size, value, len| {
            // SAFETY: `value` has room for `size` bytes.
            unsafe { ffi::clGetProgramInfo(self.0, ffi::CL_PROGRAM_BINARY_SIZES, size, value, len) }
        })?;
        if len == 0 || len > MAX_BINARY_BYTES {
            return Err(Error::bad_format(format!("the driver gives a binary of {len} bytes")).in_call(CALL));
        }
        let mut bytes = vec![0u8; len];
        let mut start = bytes.as_mut_ptr();
        // SAFETY: a list of one pointer to memory of the length that the driver told.
        let code = unsafe {
            ffi::clGetProgramInfo(
                self.0,
                ffi::CL_PROGRAM_BINARIES,
                size_of::<*mut u8>(),
                (&raw mut start).cast(),
                ptr::null_mut(),
            )
        };
        check(code, CALL)?;
        Ok(bytes)
    }

    pub(crate) fn create_kernel(&self, name: &CStr) -> Result<RawKernel> {
        let mut code = 0;
        // SAFETY: the name ends with a zero.
        let raw = unsafe { ffi::clCreateKernel(self.0, name.as_ptr(), &mut code) };
        RawKernel::made(raw, code, "clCreateKernel")
    }
}

impl RawKernel {
    pub(crate) fn argument_count(&self) -> Result<u32> {
        number("clGetKernelInfo", |size, value, len| {
            // SAFETY: `value` has room for `size` bytes.
            unsafe { ffi::clGetKernelInfo(self.0, ffi::CL_KERNEL_NUM_ARGS, size, value, len) }
        })
    }

    /// Whether argument `index` is passed by value; an error where the driver does not tell.
    pub(crate) fn is_by_value(&self, index: u32) -> Result<bool> {
        let qualifier: cl_uint = number("clGetKernelArgInfo", |size, value, len| {
            let query = ffi::CL_KERNEL_ARG_ADDRESS_QUALIFIER;
            // SAFETY: `value` has room for `size` bytes.
            unsafe { ffi::clGetKernelArgInfo(self.0, index, query, size, value, len) }
        })?;
        Ok(qualifier == ffi::CL_KERNEL_ARG_ADDRESS_PRIVATE)
    }

    pub(crate) fn workgroup_number<T: Plain>(&self, device: DeviceHandle, name: cl_uint) -> Result<T> {
        number("clGetKernelWorkGroupInfo", |size, value, len| {
            // SAFETY: `value` has room for `size` bytes.
            unsafe { ffi::clGetKernelWorkGroupInfo(self.0, device.device, name, size, value, len) }
        })
    }

    /// Sets a memory argument. Callers hold the kernel's lock until it is enqueued.
    pub(crate) fn set_memory(&self, index: u32, mem: &Mem) -> Result<()> {
        let value: *const cl_mem = &mem.0;
        // SAFETY: the value is a handle, as long as told.
        check(
            unsafe { ffi::clSetKernelArg(self.0, index, size_of::<cl_mem>(), value.cast()) },
            "clSetKernelArg",
        )
    }

    /// Sets an argument that is passed by value. Callers hold the kernel's lock until it is enqueued.
    pub(crate) fn set_value(&self, index: u32, bytes: &[u8]) -> Result<()> {
        // SAFETY: the value is as long as told, which the driver compares with the argument's type.
        let code = unsafe { ffi::clSetKernelArg(self.0, index, bytes.len(), bytes.as_ptr().cast()) };
        check(code, "clSetKernelArg")
    }
}

impl Mem {
    /// The part of `len` bytes from `offset`, a multiple of the device's alignment.
    pub(crate) fn create_part(&self, offset: usize, len: usize) -> Result<Mem> {
        let region = ffi::cl_buffer_region { origin: offset, size: len };
        let mut code = 0;
        // SAFETY: the region is of the type that this creation type wants; without flags those of the buffer hold.
        let raw = unsafe {
            ffi::clCreateSubBuffer(
                self.0,
                0,
                ffi::CL_BUFFER_CREATE_TYPE_REGION,
                (&raw const region).cast(),
                &mut code,
            )
        };
        Mem::made(raw, code, "clCreateSubBuffer")
    }
}

/// What a command waits for, and where its event goes. Only [`Queue`]'s functions read it.
pub(crate) struct Waits<'a> {
    events: &'a [&'a RawEvent],
}

impl<'a> Waits<'a> {
    pub(crate) fn new(events: &'a [&'a RawEvent]) -> Self {
        Self { events }
    }

    /// Passes the list in OpenCL's form to `enqueue`, and takes over the event that it makes.
    fn run(
        &self,
        call: &'static str,
        enqueue: impl FnOnce(cl_uint, *const cl_event, *mut cl_event) -> cl_int,
    ) -> Result<RawEvent> {
        let raw: Vec<cl_event> = self.events.iter().map(|event| event.0).collect();
        // An empty list must be null.
        let list = if raw.is_empty() { ptr::null() } else { raw.as_ptr() };
        let mut event = ptr::null_mut();
        let code = enqueue(raw.len() as cl_uint, list, &mut event);
        RawEvent::made(event, code, call)
    }
}

impl Queue {
    /// Copies from host memory without waiting.
    ///
    /// # Safety
    /// `src` is valid for `len` bytes until the event is over.
    pub(crate) unsafe fn write(
        &self,
        (dst, offset): (&Mem, usize),
        src: *const u8,
        len: usize,
        waits: &Waits<'_>,
    ) -> Result<RawEvent> {
        waits.run("clEnqueueWriteBuffer", |count, list, event| {
            // SAFETY: the range lies inside of the buffer; the rest is the caller's promise.
            unsafe {
                ffi::clEnqueueWriteBuffer(
                    self.0,
                    dst.0,
                    ffi::CL_FALSE,
                    offset,
                    len,
                    src.cast(),
                    count,
                    list,
                    event,
                )
            }
        })
    }

    /// Copies to host memory without waiting.
    ///
    /// # Safety
    /// `dst` is valid for writes of `len` bytes, which nobody else uses, until the event is over.
    pub(crate) unsafe fn read(
        &self,
        dst: *mut u8,
        (src, offset): (&Mem, usize),
        len: usize,
        waits: &Waits<'_>,
    ) -> Result<RawEvent> {
        waits.run("clEnqueueReadBuffer", |count, list, event| {
            // SAFETY: the range lies inside of the buffer; the rest is the caller's promise.
            unsafe {
                ffi::clEnqueueReadBuffer(
                    self.0,
                    src.0,
                    ffi::CL_FALSE,
                    offset,
                    len,
                    dst.cast(),
                    count,
                    list,
                    event,
                )
            }
        })
    }

    pub(crate) fn copy(
        &self,
        (dst, dst_offset): (&Mem, usize),
        (src, src_offset): (&Mem, usize),
        len: usize,
        waits: &Waits<'_>,
    ) -> Result<RawEvent> {
        waits.run("clEnqueueCopyBuffer", |count, list, event| {
            // SAFETY: the objects are alive, and held by the caller until the event is over.
            unsafe {
                ffi::clEnqueueCopyBuffer(
                    self.0, src.0, dst.0, src_offset, dst_offset, len, count, list, event,
                )
            }
        })
    }

    pub(crate) fn fill(
        &self,
        (dst, offset): (&Mem, usize),
        len: usize,
        pattern: &[u8],
        waits: &Waits<'_>,
    ) -> Result<RawEvent> {
        waits.run("clEnqueueFillBuffer", |count, list, event| {
            // SAFETY: the pattern is as long as told and copied by the call; the buffer is held by the caller.
            unsafe {
                ffi::clEnqueueFillBuffer(
                    self.0,
                    dst.0,
                    pattern.as_ptr().cast(),
                    pattern.len(),
                    offset,
                    len,
                    count,
                    list,
                    event,
                )
            }
        })
    }

    pub(crate) fn launch(
        &self,
        kernel: &RawKernel,
        global: [usize; 3],
        local: [usize; 3],
        waits: &Waits<'_>,
    ) -> Result<RawEvent> {
        waits.run("clEnqueueNDRangeKernel", |count, list, event| {
            // SAFETY: sizes of three axes; the arguments' objects are held by the caller until the event is over.
            unsafe {
                ffi::clEnqueueNDRangeKernel(
                    self.0,
                    kernel.0,
                    3,
                    ptr::null(),
                    global.as_ptr(),
                    local.as_ptr(),
                    count,
                    list,
                    event,
                )
            }
        })
    }

    /// A command that does nothing once everything before it, and everything in `waits`, is over.
    pub(crate) fn barrier(&self, waits: &Waits<'_>) -> Result<RawEvent> {
        waits.run("clEnqueueBarrierWithWaitList", |count, list, event| {
            // SAFETY: the list is one of live events.
            unsafe { ffi::clEnqueueBarrierWithWaitList(self.0, count, list, event) }
        })
    }

    /// Maps a whole buffer for reading and writing, and waits for that.
    pub(crate) fn map(&self, mem: &Mem, len: usize) -> Result<*mut c_void> {
        let mut code = 0;
        // SAFETY: the range is the buffer's own; no event is wanted.
        let address = unsafe {
            ffi::clEnqueueMapBuffer(
                self.0,
                mem.0,
                ffi::CL_TRUE,
                ffi::CL_MAP_READ | ffi::CL_MAP_WRITE,
                0,
                len,
                0,
                ptr::null(),
                ptr::null_mut(),
                &mut code,
            )
        };
        check(code, "clEnqueueMapBuffer")?;
        Ok(address)
    }

    /// Gives a mapped range back.
    pub(crate) fn unmap(&self, mem: &Mem, address: *mut c_void) -> Result<()> {
        // SAFETY: the address is what `map` gave; no event is wanted.
        let code =
            unsafe { ffi::clEnqueueUnmapMemObject(self.0, mem.0, address, 0, ptr::null(), ptr::null_mut()) };
        check(code, "clEnqueueUnmapMemObject")
    }

    /// Lets everything enqueued begin.
    pub(crate) fn flush(&self) -> Result<()> {
        // SAFETY: the queue is alive.
        check(unsafe { ffi::clFlush(self.0) }, "clFlush")
    }

    /// Waits for everything enqueued.
    pub(crate) fn finish(&self) -> Result<()> {
        // SAFETY: the queue is alive.
        check(unsafe { ffi::clFinish(self.0) }, "clFinish")
    }
}

impl RawEvent {
    /// Positive while the command is under way, 0 when it is done, its negative code when it has failed.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub(crate) fn status(&self) -> Result<cl_int> {
        number("clGetEventInfo", |size, value, len| {
            let query = ffi::CL_EVENT_COMMAND_EXECUTION_STATUS;
            // SAFETY: `value` has room for `size` bytes.
            unsafe { ffi::clGetEventInfo(self.0, query, size, value, len) }
        })
    }

    /// Blocks until the command is over; whether it failed is its status.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: a list of one live event.
        match unsafe { ffi::clWaitForEvents(1, &self.0) } {
            error::WAITED_FOR_FAILURE => Ok(()),
            code => check(code, "clWaitForEvents"),
        }
    }

    /// When the command ended, in nanoseconds of the device's clock.
    pub(crate) fn ended_at(&self) -> Result<u64> {
        number("clGetEventProfilingInfo", |size, value, len| {
            let query = ffi::CL_PROFILING_COMMAND_END;
            // SAFETY: `value` has room for `size` bytes.
            unsafe { ffi::clGetEventProfilingInfo(self.0, query, size, value, len) }
        })
    }
}

/// A name or options for the driver.
pub(crate) fn c_string(text: &str, what: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{what} {text:?} holds a zero byte; remove it")))
}

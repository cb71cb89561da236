//! Contexts, and the functions of the driver that act in the current one, with checked results.
//!
//! A [`Current`] stands for a context that is current on this thread for as long as it lives. Handles and addresses that
//! its methods take come from the types that own them (`DeviceMemory`, `RawStream`, `EventShared`, `Module`, `Graph`), so
//! they are alive and of this context.

use crate::api::{Address, Driver, call};
use crate::buffer::Place;
use crate::error::{self, NOT_READY, PEER_ACCESS_ALREADY_ENABLED};
use crate::sys::{
    CUcontext, CUdevice, CUevent, CUfunction, CUfunction_attribute, CUjit_option, CUmemAccess_flags,
    CUmemAccessDesc, CUmemLocation, CUmemLocationType, CUmodule, CUstream,
};
use halite_hal::{Error, ErrorKind, HostMemory, Result};
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// Declares names for the driver's objects.
macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident($raw:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) $raw);
        // SAFETY: it only names an object of the driver, whose functions may be called from any thread (CUDA C++
        // Programming Guide, "Driver API").
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}
    )*};
}

handles! {
    /// A context.
    ContextHandle(CUcontext);
    /// A stream.
    StreamHandle(CUstream);
    /// An event.
    EventHandle(CUevent);
    /// Loaded code.
    ModuleHandle(CUmodule);
    /// A kernel of loaded code.
    FunctionHandle(CUfunction);
}

/// A device's primary context: the one that NVIDIA's own libraries use too.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) driver: &'static Driver,
    pub(crate) device: CUdevice,
    pub(crate) handle: ContextHandle,
}

impl Context {
    /// Takes a share in the primary context.
    pub(crate) fn retain(driver: &'static Driver, device: CUdevice) -> Result<Self> {
        let mut handle = ptr::null_mut();
        call!(driver, cuDevicePrimaryCtxRetain(&mut handle, device))?;
        Ok(Self { driver, device, handle: ContextHandle(handle) })
    }

    /// Makes the context this thread's, until the result is dropped. A context that was another's comes back then; where
    /// there was none, this one stays, so that it need not be set again.
    pub(crate) fn enter(&self) -> Result<Current<'_>> {
        let mut previous = ptr::null_mut();
        call!(self.driver, cuCtxGetCurrent(&mut previous))?;
        if previous == self.handle.0 {
            return Ok(Current { context: self, previous: None, not_send: PhantomData });
        }
        call!(self.driver, cuCtxSetCurrent(self.handle.0))?;
        let previous = (!previous.is_null()).then_some(ContextHandle(previous));
        Ok(Current { context: self, previous, not_send: PhantomData })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A failure leaves nothing to do: the context is lost, or the process ends.
        let _ = call!(self.driver, cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

/// A context that is current on this thread.
#[derive(Debug)]
pub(crate) struct Current<'a> {
    context: &'a Context,
    previous: Option<ContextHandle>,
    /// Being current is a property of the thread.
    not_send: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            let _ = call!(self.context.driver, cuCtxSetCurrent(previous.0));
        }
    }
}

/// Flags of pinned memory: for every context, and with an address on the device.
const HOST_ALLOC_FLAGS: u32 = 0x01 | 0x02;
/// The same of memory that the caller has: `CU_MEMHOSTREGISTER_PORTABLE` and `_DEVICEMAP`.
const HOST_REGISTER_FLAGS: u32 = 0x01 | 0x02;
/// Streams take no notice of the legacy default stream, which other code of the process may use.
const STREAM_NON_BLOCKING: u32 = 0x01;
/// Events take the time, and are waited for without giving up the processor.
const EVENT_DEFAULT: u32 = 0x00;
/// The call that loads code.
pub(crate) const MODULE_LOAD: &str = "cuModuleLoadDataEx";
/// Room for the log of the driver's own compiler.
const JIT_LOG_BYTES: usize = 16 << 10;

/// Memory.
impl Current<'_> {
    pub(crate) fn driver(&self) -> &'static Driver {
        self.context.driver
    }

    pub(crate) fn context(&self) -> ContextHandle {
        self.context.handle
    }

    /// Bytes that are free on the device, and bytes in all.
    pub(crate) fn memory_info(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        call!(self.driver(), cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free as u64, total as u64))
    }

    pub(crate) fn memory_alloc(&self, len_bytes: usize) -> Result<Address> {
        let mut address = 0;
        call!(self.driver(), cuMemAlloc_v2(&mut address, len_bytes))?;
        Ok(address)
    }

    /// Frees memory; may wait for whatever the device is doing.
    pub(crate) fn memory_free(&self, address: Address) {
        self.dispose(call!(self.driver(), cuMemFree_v2(address)));
    }

    /// Allocates in the order of a stream, where the device has such memory: without waiting for others.
    pub(crate) fn memory_alloc_ordered(&self, stream: StreamHandle, len_bytes: usize) -> Result<Address> {
        let mut address = 0;
        call!(self.driver(), cuMemAllocAsync(&mut address, len_bytes, stream.0))?;
        Ok(address)
    }

    /// Frees memory of [`memory_alloc_ordered`](Self::memory_alloc_ordered) in the order of a stream.
    pub(crate) fn memory_free_ordered(&self, stream: StreamHandle, address: Address) {
        self.dispose(call!(self.driver(), cuMemFreeAsync(address, stream.0)));
    }

    /// Pinned host memory: its address here, and on the device.
    pub(crate) fn host_alloc(&self, len_bytes: usize) -> Result<(NonNull<u8>, Address)> {
        let mut pointer = ptr::null_mut();
        call!(self.driver(), cuMemHostAlloc(&mut pointer, len_bytes, HOST_ALLOC_FLAGS))?;
        let Some(host) = NonNull::new(pointer.cast()) else {
            let message = "the driver gives host memory without an address";
            let kind = ErrorKind::Backend { code: 0, message: "CUDA_SUCCESS".into() };
            return Err(Error::new(kind, message).in_call("cuMemHostAlloc"));
        };
        let address = self.device_address(host);
        if address.is_err() {
            self.host_free(host);
        }
        Ok((host, address?))
    }

    /// Pins memory of the caller's: its address on the device.
    pub(crate) fn host_register(&self, memory: &HostMemory) -> Result<Address> {
        let (host, len_bytes) = (memory.as_ptr(), memory.len_bytes());
        let pointer = host.as_ptr().cast();
        call!(self.driver(), cuMemHostRegister_v2(pointer, len_bytes, HOST_REGISTER_FLAGS))?;
        let address = self.device_address(host);
        if address.is_err() && self.host_unregister(host).is_err() {
            // It is pinned still, and must not go.
            std::mem::forget(memory.clone());
        }
        address
    }

    /// Lets pinned memory of the caller's go; may wait for whatever the device is doing.
    pub(crate) fn host_unregister(&self, host: NonNull<u8>) -> Result<()> {
        call!(self.driver(), cuMemHostUnregister(host.as_ptr().cast()))
    }

    fn device_address(&self, host: NonNull<u8>) -> Result<Address> {
        let mut address = 0;
        call!(self.driver(), cuMemHostGetDevicePointer_v2(&mut address, host.as_ptr().cast(), 0))?;
        Ok(address)
    }

    /// Frees pinned memory; may wait for whatever the device is doing.
    pub(crate) fn host_free(&self, host: NonNull<u8>) {
        self.dispose(call!(self.driver(), cuMemFreeHost(host.as_ptr().cast())));
    }

    /// Lets this context reach memory of another one's device without a detour through the host: what was allocated
    /// there, and what is allocated in the order of a stream, which has rules of its own (CUDA Driver API,
    /// `cuMemPoolSetAccess`).
    pub(crate) fn enable_peer(&self, peer: &Context, has_ordered_memory: bool) -> Result<()> {
        // SAFETY: both contexts are retained, by their `Context`.
        let code = unsafe { (self.driver().table.cuCtxEnablePeerAccess)(peer.handle.0, 0) };
        if code != PEER_ACCESS_ALREADY_ENABLED {
            self.driver().check(code, "cuCtxEnablePeerAccess")?;
        }
        if !has_ordered_memory {
            return Ok(());
        }
        let mut pool = ptr::null_mut();
        call!(self.driver(), cuDeviceGetMemPool(&mut pool, peer.device))?;
        let location =
            CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: self.context.device };
        let access =
            CUmemAccessDesc { location, flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        call!(self.driver(), cuMemPoolSetAccess(pool, &access, 1))
    }

    /// Notes a failure to give something back. There is nothing to do about it: the context is lost, or the process ends.
    pub(crate) fn dispose(&self, result: Result<()>) {
        if let Err(error) = result {
            log::debug!("{error}");
        }
    }
}

/// Streams and events.
impl Current<'_> {
    pub(crate) fn stream_create(&self) -> Result<StreamHandle> {
        let mut stream = ptr::null_mut();
        call!(self.driver(), cuStreamCreate(&mut stream, STREAM_NON_BLOCKING))?;
        Ok(StreamHandle(stream))
    }

    /// Gives a stream back; what is enqueued still runs.
    pub(crate) fn stream_destroy(&self, stream: StreamHandle) {
        self.dispose(call!(self.driver(), cuStreamDestroy_v2(stream.0)));
    }

    pub(crate) fn stream_synchronize(&self, stream: StreamHandle) -> Result<()> {
        call!(self.driver(), cuStreamSynchronize(stream.0))
    }

    pub(crate) fn stream_wait(&self, stream: StreamHandle, event: EventHandle) -> Result<()> {
        call!(self.driver(), cuStreamWaitEvent(stream.0, event.0, 0))
    }

    /// Calls `function` with `data` in the stream's order, on a thread of the driver.
    ///
    /// # Safety
    /// `data` is valid until the call is over; the function does not unwind, and calls nothing of the driver.
    pub(crate) unsafe fn launch_host(
        &self,
        stream: StreamHandle,
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Result<()> {
        call!(self.driver(), cuLaunchHostFunc(stream.0, Some(function), data))
    }

    pub(crate) fn event_create(&self) -> Result<EventHandle> {
        let mut event = ptr::null_mut();
        call!(self.driver(), cuEventCreate(&mut event, EVENT_DEFAULT))?;
        Ok(EventHandle(event))
    }

    pub(crate) fn event_destroy(&self, event: EventHandle) {
        self.dispose(call!(self.driver(), cuEventDestroy_v2(event.0)));
    }

    pub(crate) fn event_record(&self, event: EventHandle, stream: StreamHandle) -> Result<()> {
        call!(self.driver(), cuEventRecord(event.0, stream.0))
    }

    /// Whether the work before the event is over.
    pub(crate) fn event_query(&self, event: EventHandle) -> Result<bool> {
        // SAFETY: the event is alive (see the module's doc).
        let code = unsafe { (self.driver().table.cuEventQuery)(event.0) };
        match code {
            error::SUCCESS => Ok(true),
            NOT_READY => Ok(false),
            code => Err(self.driver().error(code, "cuEventQuery")),
        }
    }

    pub(crate) fn event_synchronize(&self, event: EventHandle) -> Result<()> {
        call!(self.driver(), cuEventSynchronize(event.0))
    }

    /// Milliseconds between two events that are over; negative if they are in the other order.
    pub(crate) fn event_elapsed_ms(&self, from: EventHandle, to: EventHandle) -> Result<f32> {
        let mut milliseconds = 0.0;
        call!(self.driver(), cuEventElapsedTime(&mut milliseconds, from.0, to.0))?;
        Ok(milliseconds)
    }
}

/// Copies and fills.
impl Current<'_> {
    /// Copies from pinned host memory.
    ///
    /// # Safety
    /// `src` is valid for `len_bytes` bytes until the copy is over.
    pub(crate) unsafe fn copy_in(
        &self,
        stream: StreamHandle,
        dst: Place,
        src: *const u8,
        len_bytes: usize,
    ) -> Result<()> {
        if !dst.is_of_device {
            let src = src.expose_provenance() as Address;
            return call!(self.driver(), cuMemcpyAsync(dst.address, src, len_bytes, stream.0));
        }
        call!(self.driver(), cuMemcpyHtoDAsync_v2(dst.address, src.cast(), len_bytes, stream.0))
    }

    /// Copies to pinned host memory.
    ///
    /// # Safety
    /// `dst` is valid for `len_bytes` bytes, and nothing else uses them, until the copy is over.
    pub(crate) unsafe fn copy_out(
        &self,
        stream: StreamHandle,
        dst: *mut u8,
        src: Place,
        len_bytes: usize,
    ) -> Result<()> {
        if !src.is_of_device {
            let dst = dst.expose_provenance() as Address;
            return call!(self.driver(), cuMemcpyAsync(dst, src.address, len_bytes, stream.0));
        }
        call!(self.driver(), cuMemcpyDtoHAsync_v2(dst.cast(), src.address, len_bytes, stream.0))
    }

    /// Copies between places of this context. With pinned memory on a side, the driver finds out by the address, of which
    /// there is one for both sides.
    pub(crate) fn copy(&self, stream: StreamHandle, dst: Place, src: Place, len_bytes: usize) -> Result<()> {
        let (to, from) = (dst.address, src.address);
        if dst.is_of_device && src.is_of_device {
            call!(self.driver(), cuMemcpyDtoDAsync_v2(to, from, len_bytes, stream.0))
        } else {
            call!(self.driver(), cuMemcpyAsync(to, from, len_bytes, stream.0))
        }
    }

    /// Copies from another device to this one.
    pub(crate) fn copy_peer(
        &self,
        stream: StreamHandle,
        dst: Address,
        (src, src_context): (Address, ContextHandle),
        len_bytes: usize,
    ) -> Result<()> {
        let own = self.context().0;
        call!(self.driver(), cuMemcpyPeerAsync(dst, own, src, src_context.0, len_bytes, stream.0))
    }

    /// Sets `count` elements of 1, 2 or 4 bytes.
    pub(crate) fn set(
        &self,
        stream: StreamHandle,
        dst: Address,
        value: u32,
        element_bytes: u32,
        count: usize,
    ) -> Result<()> {
        let driver = self.driver();
        match element_bytes {
            1 => call!(driver, cuMemsetD8Async(dst, value as u8, count, stream.0)),
            2 => call!(driver, cuMemsetD16Async(dst, value as u16, count, stream.0)),
            _ => call!(driver, cuMemsetD32Async(dst, value, count, stream.0)),
        }
    }
}

/// Code.
impl Current<'_> {
    /// Loads an image: a cubin, or PTX text that ends with a zero byte.
    ///
    /// # Errors
    /// `Build` with the log of the driver's compiler, if that had something to say; `BadFormat` for an image that is
    /// damaged or of another architecture.
    ///
    /// # Safety
    /// The driver reads as far as the image says that it goes, which must be inside `image`.
    pub(crate) unsafe fn module_load(&self, image: &[u8]) -> Result<ModuleHandle> {
        let mut log = vec![0u8; JIT_LOG_BYTES];
        let mut options =
            [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // Values are passed in place of pointers where they fit one (CUDA Driver API, `cuModuleLoadDataEx`). One byte
        // less than there is room for, so that the text ends whatever the driver does.
        let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len() - 1)];
        let mut module = ptr::null_mut();
        let (count, options, values) = (2, options.as_mut_ptr(), values.as_mut_ptr());
        let image = image.as_ptr().cast();
        let result = call!(self.driver(), cuModuleLoadDataEx(&mut module, image, count, options, values));
        let Err(error) = result else { return Ok(ModuleHandle(module)) };
        let text: Vec<u8> = log.into_iter().take_while(|byte| *byte != 0).collect();
        let log = String::from_utf8_lossy(&text).trim().to_owned();
        if log.is_empty() || matches!(error.kind(), ErrorKind::DeviceLost | ErrorKind::OutOfMemory { .. }) {
            return Err(error);
        }
        Err(Error::new(ErrorKind::Build { log }, error.message()).in_call(MODULE_LOAD))
    }

    /// Unloads code; may wait for whatever the device is doing.
    pub(crate) fn module_unload(&self, module: ModuleHandle) {
        self.dispose(call!(self.driver(), cuModuleUnload(module.0)));
    }

    /// A kernel of a module, loaded: later drivers put that off until the first launch, which would then wait for
    /// whatever the device is doing (CUDA Programming Guide, "Lazy Loading").
    pub(crate) fn function(&self, module: ModuleHandle, name: &CStr) -> Result<FunctionHandle> {
        let mut function = ptr::null_mut();
        call!(self.driver(), cuModuleGetFunction(&mut function, module.0, name.as_ptr()))?;
        if let Some(load) = self.driver().table.cuFuncLoad {
            // SAFETY: the function is one of the module, which is alive.
            self.driver().check(unsafe { load(function) }, "cuFuncLoad")?;
        }
        Ok(FunctionHandle(function))
    }

    /// An attribute of a kernel, as a number that is at least 0.
    pub(crate) fn function_attribute(
        &self,
        function: FunctionHandle,
        attribute: CUfunction_attribute,
    ) -> Result<u32> {
        let mut value = 0;
        call!(self.driver(), cuFuncGetAttribute(&mut value, attribute, function.0))?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Lets a kernel have more dynamic shared memory than every device grants.
    pub(crate) fn allow_shared_bytes(&self, function: FunctionHandle, len_bytes: u32) -> Result<()> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let len = i32::try_from(len_bytes).unwrap_or(i32::MAX);
        call!(self.driver(), cuFuncSetAttribute(function.0, attribute, len))
    }

    /// Bytes of each parameter of a kernel; `None` if this driver does not tell.
    pub(crate) fn parameter_sizes(&self, function: FunctionHandle) -> Option<Vec<usize>> {
        /// More than fit 32 KiB, the most that any architecture takes.
        const MOST: usize = 32 << 10;
        let ask = self.driver().table.cuFuncGetParamInfo?;
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function is alive (see the module's doc), and the pointers lead to locals.
            let code = unsafe { ask(function.0, sizes.len(), &mut offset, &mut size) };
            match code {
                error::SUCCESS if sizes.len() < MOST => sizes.push(size),
                // An index behind the last parameter.
                error::INVALID_VALUE => return Some(sizes),
                _ => return None,
            }
        }
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// `parameters` has a pointer to the value of each of the kernel's parameters.
    pub(crate) unsafe fn launch(
        &self,
        stream: StreamHandle,
        function: FunctionHandle,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let [gx, gy, gz] = grid;
        let [bx, by, bz] = block;
        let parameters = parameters.as_mut_ptr();
        call!(
            self.driver(),
            cuLaunchKernel(
                function.0,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                shared_bytes,
                stream.0,
                parameters,
                ptr::null_mut()
            )
        )
    }
}

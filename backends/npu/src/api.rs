//! The plugin's functions with checked results. Handles come from the types that own them (`DeviceShared`,
//! `DeviceMemory`, `RawStream`, `EventShared`, the kernels), so they are alive and of this plugin.

use crate::boundary::{Boundary, Out, Unwinding};
use crate::error::Report;
use crate::library::Library;
use crate::options::Options;
use halite_hal::plugin::{
    self, Argument, ArgumentInfo, BuiltinDesc, BuiltinHandle, Completion, Counter, DeviceHandle, DeviceInfo,
    EventHandle, KernelHandle, KernelInfo, MemoryHandle, MemoryInfo, ProgramHandle, Range, StreamHandle,
};
use halite_hal::{Error, Result};
use std::ffi::{CStr, c_void};
use std::ptr;
use std::time::Duration;

/// More devices than any machine has; a larger count is a lie.
const MAX_DEVICES: u32 = 1024;
/// More counters than anyone reads; a larger count is a lie.
const MAX_COUNTERS: u32 = 1 << 16;

/// Where work stands.
#[derive(Debug)]
pub(crate) enum Progress {
    Pending,
    Done,
    Failed(Error),
}

/// Calls a function of the table, and turns its status into a result.
macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),*)) => {
        call!($library, $function($($argument),*), Report::line())
    };
    ($library:expr, $function:ident($($argument:expr),*), $report:expr) => {{
        let library: &Library = $library;
        library.check_usable()?;
        let function = library.table.$function.ok_or_else(|| lacks(library, stringify!($function)))?.unwinding();
        let mut report = $report;
        let boundary = Boundary::enter(&library.path, stringify!($function));
        // SAFETY: the function has the header's type (see `Library::read_table`); pointers lead to locals of the caller
        // that outlive the call, or are what its own safety comment says; handles are alive (see the module's doc).
        let status = unsafe { function($($argument,)* report.as_mut_ptr()) };
        boundary.leave();
        report.check(&library.path, status, stringify!($function))
    }};
}

/// Gives a handle back; such functions cannot fail. A plugin that is not to be called any more keeps its own.
macro_rules! give_back {
    ($library:expr, $function:ident($($argument:expr),*)) => {{
        let library: &Library = $library;
        if let (Some(function), Ok(())) = (library.table.$function, library.check_usable()) {
            let function = function.unwinding();
            let boundary = Boundary::enter(&library.path, stringify!($function));
            // SAFETY: the owner of the handle calls this once, when it is dropped.
            unsafe { function($($argument),*) };
            boundary.leave();
        }
    }};
}

impl Library {
    pub(crate) fn device_count(&'static self, limit: Duration) -> Result<u32> {
        let count = self.watch("device_count", limit, move || {
            let mut count = 0;
            call!(self, device_count(&mut count))?;
            Ok(count)
        })?;
        if count > MAX_DEVICES {
            return Err(self.breach(format_args!("claims {count} devices")));
        }
        Ok(count)
    }

    pub(crate) fn device_info(
        &'static self,
        index: u32,
        options: &Options,
        limit: Duration,
    ) -> Result<DeviceInfo> {
        let own = options.clone();
        let answer = self.watch("device_info", limit, move || {
            let mut info = Out::new(DeviceInfo::sized());
            let pointer = info.as_mut_ptr();
            let answer = own.pass(|count, options| call!(self, device_info(index, count, options, pointer)));
            Ok(answer.map(|()| info))
        })?;
        let info = answer.map_err(|error| options.refused_by(&self.path, error))?;
        self.written(&info, "device_info")
    }

    pub(crate) fn device_open(
        &'static self,
        index: u32,
        options: &Options,
        limit: Duration,
    ) -> Result<DeviceHandle> {
        let own = options.clone();
        let answer = self.watch("device_open", limit, move || {
            let mut handle = 0;
            let answer =
                own.pass(|count, options| call!(self, device_open(index, count, options, &mut handle)));
            Ok(answer.map(|()| handle))
        })?;
        let handle = answer.map_err(|error| options.refused_by(&self.path, error))?;
        self.fresh(self.opened.add(self.not_zero(handle, "device_open")?), handle, "device_open")
    }

    pub(crate) fn device_close(&self, device: DeviceHandle) {
        self.opened.remove(device);
        give_back!(self, device_close(device));
    }

    pub(crate) fn device_health(&self, device: DeviceHandle) -> Result<()> {
        if self.table.device_health.is_none() {
            return Ok(());
        }
        call!(self, device_health(device))
    }

    pub(crate) fn memory_alloc(
        &self,
        device: DeviceHandle,
        kind: u32,
        len: u64,
    ) -> Result<(MemoryHandle, *mut c_void)> {
        let (mut handle, mut host) = (0, ptr::null_mut());
        call!(self, memory_alloc(device, kind, len, &mut handle, &mut host))?;
        Ok((self.not_zero(handle, "memory_alloc")?, host))
    }

    /// # Safety
    /// `len` bytes from `pointer` are valid until the handle has been given back and nothing of the device runs that
    /// uses it.
    pub(crate) unsafe fn memory_import(
        &self,
        device: DeviceHandle,
        pointer: *mut u8,
        len: u64,
    ) -> Result<MemoryHandle> {
        let mut handle = 0;
        call!(self, memory_import(device, pointer.cast(), len, &mut handle))?;
        self.not_zero(handle, "memory_import")
    }

    pub(crate) fn peer_enable(&self, device: DeviceHandle, peer: DeviceHandle) -> Result<()> {
        call!(self, peer_enable(device, peer))
    }

    pub(crate) fn memory_free(&self, device: DeviceHandle, memory: MemoryHandle) {
        give_back!(self, memory_free(device, memory));
    }

    pub(crate) fn memory_info(&self, device: DeviceHandle) -> Result<MemoryInfo> {
        let mut info = Out::new(MemoryInfo::sized());
        call!(self, memory_info(device, info.as_mut_ptr()))?;
        let info = self.written(&info, "memory_info")?;
        if info.total_bytes == 0 {
            return Err(self.breach("reports a memory of 0 bytes in memory_info"));
        }
        Ok(info)
    }

    pub(crate) fn counters(&self, device: DeviceHandle) -> Result<Vec<Counter>> {
        let mut count = 0;
        call!(self, device_counters(device, 0, ptr::null(), &mut count))?;
        if count > MAX_COUNTERS {
            return Err(self.breach(format_args!("claims {count} counters")));
        }
        let mut counters = vec![Out::new(Counter::sized()); count as usize];
        let pointers: Vec<*mut Counter> = counters.iter_mut().map(Out::as_mut_ptr).collect();
        let capacity = count;
        call!(self, device_counters(device, capacity, pointers.as_ptr(), &mut count))?;
        // Also those that it does not count among the written ones.
        let mut written: Vec<_> =
            counters.iter().map(|counter| self.written(counter, "device_counters")).collect::<Result<_>>()?;
        written.truncate(count as usize);
        Ok(written)
    }

    pub(crate) fn stream_create(&self, device: DeviceHandle) -> Result<StreamHandle> {
        let mut handle = 0;
        call!(self, stream_create(device, &mut handle))?;
        self.not_zero(handle, "stream_create")
    }

    pub(crate) fn stream_destroy(&self, stream: StreamHandle) {
        give_back!(self, stream_destroy(stream));
    }

    pub(crate) fn stream_reset(&self, stream: StreamHandle) -> Result<()> {
        call!(self, stream_reset(stream))
    }

    /// # Safety
    /// `src` is valid for `len` bytes until the work is over.
    pub(crate) unsafe fn stream_write(
        &self,
        stream: StreamHandle,
        (dst, offset): (MemoryHandle, u64),
        src: *const u8,
        len: u64,
    ) -> Result<()> {
        call!(self, stream_write(stream, dst, offset, src.cast(), len))
    }

    /// # Safety
    /// `dst` is valid for writes of `len` bytes, which nobody else uses, until the work is over.
    pub(crate) unsafe fn stream_read(
        &self,
        stream: StreamHandle,
        dst: *mut u8,
        (src, offset): (MemoryHandle, u64),
        len: u64,
    ) -> Result<()> {
        call!(self, stream_read(stream, dst.cast(), src, offset, len))
    }

    pub(crate) fn stream_copy(
        &self,
        stream: StreamHandle,
        (dst, dst_offset): (MemoryHandle, u64),
        (src, src_offset): (MemoryHandle, u64),
        len: u64,
    ) -> Result<()> {
        call!(self, stream_copy(stream, dst, dst_offset, src, src_offset, len))
    }

    pub(crate) fn stream_copy_peer(
        &self,
        stream: StreamHandle,
        (dst, dst_offset): (MemoryHandle, u64),
        peer: DeviceHandle,
        (src, src_offset): (MemoryHandle, u64),
        len: u64,
    ) -> Result<()> {
        call!(self, stream_copy_peer(stream, dst, dst_offset, peer, src, src_offset, len))
    }

    pub(crate) fn stream_fill(
        &self,
        stream: StreamHandle,
        (dst, offset): (MemoryHandle, u64),
        len: u64,
        pattern: &[u8],
    ) -> Result<()> {
        let pattern_len = pattern.len() as u32;
        call!(self, stream_fill(stream, dst, offset, len, pattern.as_ptr(), pattern_len))
    }

    pub(crate) fn stream_wait_event(&self, stream: StreamHandle, event: EventHandle) -> Result<()> {
        call!(self, stream_wait_event(stream, event))
    }

    pub(crate) fn stream_synchronize(&self, stream: StreamHandle, timeout_ns: u64) -> Result<Progress> {
        self.completion("stream_synchronize", self.table.stream_synchronize, |function, out, error| {
            // SAFETY: as in `call!`.
            unsafe { function(stream, timeout_ns, out, error) }
        })
    }

    pub(crate) fn event_create(&self, device: DeviceHandle) -> Result<EventHandle> {
        let mut handle = 0;
        call!(self, event_create(device, &mut handle))?;
        self.not_zero(handle, "event_create")
    }

    pub(crate) fn event_destroy(&self, event: EventHandle) {
        give_back!(self, event_destroy(event));
    }

    pub(crate) fn event_record(&self, stream: StreamHandle, event: EventHandle) -> Result<()> {
        call!(self, event_record(stream, event))
    }

    pub(crate) fn event_wait(&self, event: EventHandle, timeout_ns: u64) -> Result<Progress> {
        self.completion("event_wait", self.table.event_wait, |function, out, error| {
            // SAFETY: as in `call!`.
            unsafe { function(event, timeout_ns, out, error) }
        })
    }

    pub(crate) fn event_query(&self, event: EventHandle) -> Result<Progress> {
        self.completion("event_query", self.table.event_query, |function, out, error| {
            // SAFETY: as in `call!`.
            unsafe { function(event, out, error) }
        })
    }

    pub(crate) fn event_elapsed(&self, earlier: EventHandle, later: EventHandle) -> Result<u64> {
        let mut nanoseconds = 0;
        call!(self, event_elapsed(earlier, later, &mut nanoseconds))?;
        // A clock that runs backwards gives a negative difference, which is a huge number here.
        if nanoseconds > i64::MAX as u64 {
            return Err(self.breach(format_args!("reports {nanoseconds} nanoseconds between two events")));
        }
        Ok(nanoseconds)
    }

    pub(crate) fn builtin_validate(&self, device: DeviceHandle, desc: &BuiltinDesc) -> Result<()> {
        call!(self, builtin_validate(device, desc))
    }

    pub(crate) fn builtin_prepare(
        &self,
        device: DeviceHandle,
        desc: &BuiltinDesc,
    ) -> Result<(BuiltinHandle, u64)> {
        let (mut handle, mut workspace_bytes) = (0, 0);
        call!(self, builtin_prepare(device, desc, &mut handle, &mut workspace_bytes))?;
        Ok((self.not_zero(handle, "builtin_prepare")?, workspace_bytes))
    }

    pub(crate) fn builtin_release(&self, device: DeviceHandle, builtin: BuiltinHandle) {
        give_back!(self, builtin_release(device, builtin));
    }

    pub(crate) fn builtin_enqueue(
        &self,
        stream: StreamHandle,
        builtin: BuiltinHandle,
        ranges: &[Range],
    ) -> Result<()> {
        let pointers: Vec<_> = ranges.iter().map(ptr::from_ref).collect();
        let count = pointers.len() as u32;
        call!(self, builtin_enqueue(stream, builtin, count, pointers.as_ptr()))
    }

    pub(crate) fn program_load(&self, device: DeviceHandle, bytes: &[u8]) -> Result<ProgramHandle> {
        let mut handle = 0;
        let len = bytes.len() as u64;
        call!(self, program_load(device, bytes.as_ptr().cast(), len, &mut handle), Report::log())?;
        self.not_zero(handle, "program_load")
    }

    pub(crate) fn program_unload(&self, device: DeviceHandle, program: ProgramHandle) {
        give_back!(self, program_unload(device, program));
    }

    pub(crate) fn kernel_find(&self, program: ProgramHandle, name: &CStr) -> Result<KernelHandle> {
        let mut handle = 0;
        call!(self, kernel_find(program, name.as_ptr(), &mut handle))?;
        self.not_zero(handle, "kernel_find")
    }

    /// What the kernel takes; `None` when the plugin does not tell.
    pub(crate) fn kernel_arguments(
        &self,
        kernel: KernelHandle,
    ) -> Result<Option<(KernelInfo, Vec<ArgumentInfo>)>> {
        if self.table.kernel_info.is_none() || self.table.kernel_argument.is_none() {
            return Ok(None);
        }
        let mut info = Out::new(KernelInfo::sized());
        call!(self, kernel_info(kernel, info.as_mut_ptr()))?;
        let info = self.written(&info, "kernel_info")?;
        if info.argument_count > u32::from(u16::MAX) {
            return Err(self.breach(format_args!("claims a kernel with {} arguments", info.argument_count)));
        }
        let argument = |index| {
            let mut argument = Out::new(ArgumentInfo::sized());
            call!(self, kernel_argument(kernel, index, argument.as_mut_ptr()))?;
            self.written(&argument, "kernel_argument")
        };
        let arguments: Result<_> = (0..info.argument_count).map(argument).collect();
        Ok(Some((info, arguments?)))
    }

    pub(crate) fn kernel_launch(
        &self,
        stream: StreamHandle,
        kernel: KernelHandle,
        blocks: u32,
        arguments: &[Argument],
    ) -> Result<()> {
        let pointers: Vec<_> = arguments.iter().map(ptr::from_ref).collect();
        let count = pointers.len() as u32;
        call!(self, kernel_launch(stream, kernel, blocks, count, pointers.as_ptr()))
    }

    /// Runs a call that reports a completion beside its own status.
    fn completion<F: Unwinding>(
        &self,
        name: &'static str,
        function: Option<F>,
        run: impl FnOnce(F::Pointer, *mut Completion, *mut plugin::Error) -> plugin::Status,
    ) -> Result<Progress> {
        self.check_usable()?;
        let function = function.ok_or_else(|| lacks(self, name))?.unwinding();
        let mut completion = Out::new(Completion::sized());
        let mut report = Report::line();
        let boundary = Boundary::enter(&self.path, name);
        let status = run(function, completion.as_mut_ptr(), report.as_mut_ptr());
        boundary.leave();
        report.check(&self.path, status, name)?;
        let completion = self.written(&completion, name)?;
        match completion.state {
            plugin::COMPLETION_PENDING => Ok(Progress::Pending),
            plugin::COMPLETION_DONE => Ok(Progress::Done),
            plugin::COMPLETION_FAILED if completion.status == plugin::STATUS_OK => {
                Err(self.breach(format_args!("reports a failure without a status from {name}")))
            }
            plugin::COMPLETION_FAILED => Ok(Progress::Failed(report.error(completion.status, name))),
            state => {
                Err(self.breach(format_args!("reports the unknown completion state {state} from {name}")))
            }
        }
    }

    fn not_zero(&self, handle: u64, call: &str) -> Result<u64> {
        if handle == 0 { Err(self.breach(format_args!("returns no handle from {call}"))) } else { Ok(handle) }
    }

    /// A structure that the plugin has filled in.
    fn written<T: Copy>(&self, out: &Out<T>, call: &str) -> Result<T> {
        out.checked().map_err(|what| self.breach(format_args!("{what} of {call}")))
    }

    /// Passes a handle on that is not out already; one that is belongs to its first owner.
    pub(crate) fn fresh(&self, is_new: bool, handle: u64, call: &str) -> Result<u64> {
        if is_new {
            return Ok(handle);
        }
        Err(self.breach(format_args!("returns a handle from {call} that it has not got back yet")))
    }
}

fn lacks(library: &Library, function: &str) -> Error {
    Error::unsupported(format!("the plugin '{}' has no function {function}", library.name))
}

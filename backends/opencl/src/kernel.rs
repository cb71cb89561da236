//! Loaded code: kernels of OpenCL C, and built-in operations.

use crate::api::{Program, RawKernel, c_string};
use crate::buffer::Argument;
use crate::builtin::{self, BuiltinKernel};
use crate::device::{DeviceShared, lock};
use crate::error;
use crate::stream::{Command, Held, StreamShared, What};
use halite_hal::{Arg, ArgType, Error, ErrorKind, Kernel, KernelSource, Limits, Result, Scalar, Signature};
use ocl::ffi;
use std::sync::{Arc, Mutex};

/// The language of [`KernelSource::Text`] that this backend takes.
const LANGUAGE: &str = "opencl-c";

/// A kernel of a program.
pub(crate) struct OpenClKernel {
    /// Setting arguments and enqueueing must not be torn apart by another launch of the same object.
    raw: Mutex<RawKernel>,
    workgroup: [u32; 3],
    // After the kernel that was made of it.
    _program: Arc<Program>,
}

pub(crate) fn load(device: &Arc<DeviceShared>, source: &KernelSource) -> Result<Kernel> {
    match source {
        KernelSource::Text { language: LANGUAGE, source, entry, options, workgroup, signature, .. } => {
            let object = compile(device, source, entry, options, *workgroup, signature)?;
            Ok(Kernel::new(device.info().id.clone(), entry, signature.clone(), 0, Box::new(object)))
        }
        KernelSource::Builtin(op) => builtin::load(device, op),
        _ => {
            let format = source.format();
            Err(Error::unsupported(format!("kernels of format {format} are none of this device's")))
        }
    }
}

/// Compiles `entry` of `source`, and checks that it fits its signature and the device.
pub(crate) fn compile(
    device: &Arc<DeviceShared>,
    source: &str,
    entry: &str,
    options: &str,
    workgroup: [u32; 3],
    signature: &Signature,
) -> Result<OpenClKernel> {
    let threads = check_workgroup(entry, workgroup, &device.info().limits)?;
    let name = c_string(entry, "the kernel's name")?;
    let program = device.program(source, options)?;
    let raw = program.create_kernel(&name).map_err(|error| match error.kind() {
        ErrorKind::InvalidArgument => {
            let message = format!("the source has no kernel '{entry}': {}", error.message());
            error::with_kind(&error, ErrorKind::InvalidArgument, message)
        }
        _ => error,
    })?;
    check_arguments(entry, &raw, signature)?;
    let handle = device.found.handle;
    let most: usize = raw.workgroup_number(handle, ffi::CL_KERNEL_WORK_GROUP_SIZE)?;
    if threads > most as u64 {
        return Err(too_large(entry, "threads in a workgroup", threads, most as u64));
    }
    let required: [usize; 3] = raw.workgroup_number(handle, ffi::CL_KERNEL_COMPILE_WORK_GROUP_SIZE)?;
    if required != [0; 3] && required != workgroup.map(|size| size as usize) {
        return Err(Error::invalid(format!(
            "kernel '{entry}' is compiled for workgroups of {required:?} threads, its source says {workgroup:?}"
        )));
    }
    let local: u64 = raw.workgroup_number(handle, ffi::CL_KERNEL_LOCAL_MEM_SIZE)?;
    let limit = device.info().limits.local_memory_bytes;
    if local > limit {
        return Err(too_large(entry, "bytes of local memory", local, limit));
    }
    Ok(OpenClKernel { raw: Mutex::new(raw), workgroup, _program: program })
}

/// The threads of a workgroup, if the device can run so many.
fn check_workgroup(entry: &str, workgroup: [u32; 3], limits: &Limits) -> Result<u64> {
    for (axis, (size, most)) in workgroup.into_iter().zip(limits.max_workgroup).enumerate() {
        if size == 0 {
            return Err(Error::invalid(format!(
                "kernel '{entry}' has workgroups of 0 threads on axis {axis}"
            )));
        }
        if size > most {
            let what = format!("threads on axis {axis} of a workgroup");
            return Err(too_large(entry, &what, size.into(), most.into()));
        }
    }
    let threads: u128 = workgroup.into_iter().map(u128::from).product();
    let most = limits.max_workgroup_threads;
    match u64::try_from(threads) {
        Ok(threads) if threads <= most.into() => Ok(threads),
        _ => Err(too_large(
            entry,
            "threads in a workgroup",
            threads.try_into().unwrap_or(u64::MAX),
            most.into(),
        )),
    }
}

fn too_large(entry: &str, what: &str, requested: u64, limit: u64) -> Error {
    let message = format!(
        "kernel '{entry}' wants {requested} {what}, the device allows {limit}; choose another variant"
    );
    Error::new(ErrorKind::TooLarge { requested, limit }, message)
}

/// Compares what the caller will pass with what the kernel takes, as far as the driver tells.
fn check_arguments(entry: &str, raw: &RawKernel, signature: &Signature) -> Result<()> {
    let own = raw.argument_count()? as usize;
    if own != signature.args.len() {
        let given = signature.args.len();
        return Err(Error::invalid(format!(
            "kernel '{entry}' takes {own} arguments in the source, {given} in its signature"
        )));
    }
    for (index, arg) in signature.args.iter().enumerate() {
        let by_value = matches!(arg, ArgType::Scalar(_));
        // Without an answer the driver checks the sizes at the launch.
        if let Ok(own) = raw.is_by_value(index as u32)
            && own != by_value
        {
            let (own, given) = if own { ("value", "buffer") } else { ("buffer", "value") };
            return Err(Error::invalid(format!(
                "kernel '{entry}' takes a {own} as argument {index}, its signature says {given}"
            )));
        }
    }
    Ok(())
}

/// Enqueues a launch. Its arguments fit the kernel's signature (`driver::Stream`).
pub(crate) fn launch(
    stream: &Arc<StreamShared>,
    kernel: &Kernel,
    grid: [u32; 3],
    args: &[Arg],
) -> Result<()> {
    if grid.contains(&0) {
        return stream.enqueue_nothing();
    }
    if let Some(object) = kernel.object::<OpenClKernel>() {
        object.launch(stream, kernel, grid, args)
    } else if let Some(object) = kernel.object::<BuiltinKernel>() {
        object.launch(stream, kernel, args)
    } else {
        let name = kernel.name();
        Err(Error::invalid(format!("kernel '{name}' was not loaded by this backend; load it on the device")))
    }
}

impl OpenClKernel {
    pub(crate) fn launch(
        &self,
        stream: &Arc<StreamShared>,
        kernel: &Kernel,
        grid: [u32; 3],
        args: &[Arg],
    ) -> Result<()> {
        let most = stream.device().found.max_global_size;
        let mut global = [0; 3];
        for (axis, size) in global.iter_mut().enumerate() {
            let threads = u64::from(grid[axis]) * u64::from(self.workgroup[axis]);
            if threads > most {
                return Err(Error::invalid(format!(
                    "kernel '{}' got {threads} threads on axis {axis}, but at most {most} fit; split the launch",
                    kernel.name()
                )));
            }
            *size = threads as usize;
        }
        let mut arguments = Vec::with_capacity(args.len());
        for arg in args {
            arguments.push(match arg {
                Arg::Buffer(slice) => Prepared::Memory(Argument::of(slice)?),
                Arg::Scalar(scalar) => Prepared::Value(*scalar),
            });
        }
        let raw = lock(&self.raw);
        for (index, argument) in (0u32..).zip(&arguments) {
            match argument {
                Prepared::Memory(memory) => raw.set_memory(index, memory.mem()?)?,
                Prepared::Value(scalar) => set_scalar(&raw, index, *scalar)?,
            }
        }
        let memory = arguments.into_iter().filter_map(|argument| match argument {
            Prepared::Memory(memory) => Some(Held::Argument(memory)),
            Prepared::Value(_) => None,
        });
        // A part keeps its driver's object alive, but not the memory's place in the account.
        let buffers = args.iter().filter_map(|arg| match arg {
            Arg::Buffer(slice) => Some(Held::Buffer(slice.buffer().clone())),
            Arg::Scalar(_) => None,
        });
        let command = Command { what: What::Kernel(kernel.clone()), held: memory.chain(buffers).collect() };
        let local = self.workgroup.map(|size| size as usize);
        stream.enqueue(command, |queue, waits| queue.launch(&raw, global, local, waits))?;
        Ok(())
    }
}

enum Prepared {
    Memory(Argument),
    Value(Scalar),
}

fn set_scalar(raw: &RawKernel, index: u32, scalar: Scalar) -> Result<()> {
    match scalar {
        Scalar::I32(value) => raw.set_value(index, &value.to_ne_bytes()),
        Scalar::U32(value) => raw.set_value(index, &value.to_ne_bytes()),
        Scalar::I64(value) => raw.set_value(index, &value.to_ne_bytes()),
        Scalar::U64(value) => raw.set_value(index, &value.to_ne_bytes()),
        Scalar::F32(value) => raw.set_value(index, &value.to_ne_bytes()),
        Scalar::F64(value) => raw.set_value(index, &value.to_ne_bytes()),
        other => Err(Error::unsupported(format!("scalars of {} cannot be passed", other.dtype()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::{DeviceId, DeviceInfo};

    #[test]
    fn workgroups_beyond_a_limit_are_refused_with_the_numbers() {
        let mut limits = DeviceInfo::new(DeviceId::new("opencl", 0), "x").limits;
        limits.max_workgroup = [256, 256, 64];
        limits.max_workgroup_threads = 256;
        assert_eq!(check_workgroup("k", [16, 16, 1], &limits).unwrap(), 256);
        for (workgroup, requested, limit) in
            [([257, 1, 1], 257, 256), ([1, 1, 65], 65, 64), ([32, 16, 1], 512, 256)]
        {
            let error = check_workgroup("k", workgroup, &limits).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::TooLarge { requested, limit }, "{error}");
        }
        limits.max_workgroup = [u32::MAX; 3];
        assert!(check_workgroup("k", [u32::MAX; 3], &limits).is_err());
        let error = check_workgroup("k", [1, 0, 1], &limits).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    }
}

//! Loaded code: programs of the device's own format, and built-in operations.

use crate::buffer::place;
use crate::device::DeviceShared;
use halite_hal::builtin::{BuiltinKind, BuiltinOp};
use halite_hal::plugin::{
    self, Argument, Attribute, BuiltinDesc, BuiltinHandle, KernelHandle, Operand, ProgramHandle, Range,
    StreamHandle,
};
use halite_hal::{Access, Arg, ArgType, Error, ErrorKind, Kernel, KernelSource, Result, Signature};
use std::ffi::CString;
use std::ptr;
use std::sync::Arc;

/// A kernel of a program, which is unloaded with it.
struct ProgramKernel {
    device: Arc<DeviceShared>,
    program: ProgramHandle,
    kernel: KernelHandle,
}

impl Drop for ProgramKernel {
    fn drop(&mut self) {
        self.device.library.program_unload(self.device.handle, self.program);
    }
}

/// A built-in, prepared for its operands.
struct BuiltinKernel {
    device: Arc<DeviceShared>,
    builtin: BuiltinHandle,
}

impl Drop for BuiltinKernel {
    fn drop(&mut self) {
        self.device.library.builtin_release(self.device.handle, self.builtin);
    }
}

pub(crate) fn load(device: &Arc<DeviceShared>, source: &KernelSource) -> Result<Kernel> {
    match source {
        KernelSource::Binary { format, bytes, entry, signature, .. } if *format == device.program_format => {
            load_program(device, bytes, entry, signature)
        }
        KernelSource::Builtin(op) => load_builtin(device, op),
        _ => Err(Error::unsupported(format!(
            "kernels of format {} are none of this device's",
            source.format()
        ))),
    }
}

fn load_program(
    device: &Arc<DeviceShared>,
    bytes: &[u8],
    entry: &str,
    signature: &Signature,
) -> Result<Kernel> {
    let name = CString::new(entry)
        .map_err(|_| Error::invalid(format!("the kernel's name {entry:?} holds a zero byte")))?;
    let program = device.library.program_load(device.handle, bytes)?;
    let mut object = ProgramKernel { device: device.clone(), program, kernel: 0 };
    object.kernel = device.library.kernel_find(program, &name)?;
    let mut signature = signature.clone();
    if let Some((info, arguments)) = device.library.kernel_arguments(object.kernel)? {
        check_signature(entry, &signature, &arguments)?;
        if info.max_blocks > 0 {
            let own = signature.max_grid.unwrap_or(device.info.limits.max_grid);
            signature.max_grid = Some([own[0].min(info.max_blocks), own[1], own[2]]);
        }
    }
    Ok(Kernel::new(device.info.id.clone(), entry, signature, 0, Box::new(object)))
}

/// Compares what the caller will pass with what the program says that it takes.
fn check_signature(entry: &str, signature: &Signature, arguments: &[plugin::ArgumentInfo]) -> Result<()> {
    let mismatch = |what: String| Err(Error::new(ErrorKind::BadFormat, format!("kernel '{entry}' {what}")));
    if signature.args.len() != arguments.len() {
        let (given, own) = (signature.args.len(), arguments.len());
        return mismatch(format!("takes {own} arguments in the program, {given} in its signature"));
    }
    for (index, (given, own)) in signature.args.iter().zip(arguments).enumerate() {
        let (kind, dtype, access) = match given {
            ArgType::Buffer { dtype, access } => (plugin::ARGUMENT_BUFFER, *dtype, access_code(*access)),
            ArgType::Scalar(dtype) => (plugin::ARGUMENT_SCALAR, *dtype, 0),
        };
        if kind != own.kind {
            return mismatch(format!("disagrees with its signature on whether argument {index} is a buffer"));
        }
        let any = kind == plugin::ARGUMENT_BUFFER && own.dtype == plugin::DTYPE_ANY;
        if !any && plugin::dtype_code(dtype) != own.dtype {
            let expected =
                plugin::dtype_from_code(own.dtype).map_or("an unknown type".into(), |d| d.to_string());
            return mismatch(format!("takes {expected} as argument {index}, its signature says {dtype}"));
        }
        if own.access & plugin::ACCESS_WRITE & !access != 0 {
            return mismatch(format!("writes argument {index}, which its signature gives to read"));
        }
    }
    Ok(())
}

fn access_code(access: Access) -> u32 {
    let read = if access.reads() { plugin::ACCESS_READ } else { 0 };
    let write = if access.writes() { plugin::ACCESS_WRITE } else { 0 };
    read | write
}

fn load_builtin(device: &Arc<DeviceShared>, op: &BuiltinOp) -> Result<Kernel> {
    let (builtin, workspace_bytes) = describe(op, |desc| {
        device.library.builtin_validate(device.handle, desc)?;
        device.library.builtin_prepare(device.handle, desc)
    })?;
    let object = BuiltinKernel { device: device.clone(), builtin };
    let limit = device.info.limits.max_allocation_bytes;
    if workspace_bytes > limit {
        return Err(device.library.breach(format_args!(
            "asks for a workspace of {workspace_bytes} bytes, where {limit} can be allocated"
        )));
    }
    let signature = op.signature(workspace_bytes);
    Ok(Kernel::new(device.info.id.clone(), op.name(), signature, workspace_bytes, Box::new(object)))
}

/// Passes a description of `op` in the interface's form to `call`; its pointers are valid meanwhile.
fn describe<T>(op: &BuiltinOp, call: impl FnOnce(&BuiltinDesc) -> T) -> T {
    let operands = op.operands.iter().map(|operand| {
        let mut raw = Operand::sized();
        raw.dtype = plugin::dtype_code(operand.dtype);
        raw.rank = operand.shape.len() as u32;
        raw.shape = operand.shape.as_ptr();
        raw.strides = operand.strides.as_ptr();
        raw
    });
    let operands: Vec<_> = operands.collect();
    let operand_pointers: Vec<_> = operands.iter().map(ptr::from_ref).collect();
    let mut attributes = Vec::new();
    if let BuiltinKind::Fill { value_bits } = op.kind {
        let mut raw = Attribute::sized();
        raw.key = c"value_bits".as_ptr();
        raw.bits = value_bits;
        attributes.push(raw);
    }
    let attribute_pointers: Vec<_> = attributes.iter().map(ptr::from_ref).collect();
    let name = match op.kind {
        BuiltinKind::Copy => c"copy".to_owned(),
        BuiltinKind::Fill { .. } => c"fill".to_owned(),
        BuiltinKind::Add => c"add".to_owned(),
        kind => CString::new(kind.name()).unwrap_or_default(),
    };
    let mut desc = BuiltinDesc::sized();
    desc.name = name.as_ptr();
    desc.operand_count = operand_pointers.len() as u32;
    desc.attribute_count = attribute_pointers.len() as u32;
    desc.operands = operand_pointers.as_ptr();
    desc.attributes = attribute_pointers.as_ptr();
    call(&desc)
}

/// The call that enqueues a launch. Its arguments fit the kernel's signature (`driver::Stream`).
pub(crate) fn prepare_launch(
    device: &Arc<DeviceShared>,
    kernel: &Kernel,
    grid: [u32; 3],
    args: &[Arg],
) -> Result<impl FnOnce(StreamHandle) -> Result<()>> {
    enum Launch {
        Program(KernelHandle, Vec<Argument>),
        Builtin(BuiltinHandle, Vec<Range>),
    }
    let launch = if let Some(object) = kernel.object::<ProgramKernel>() {
        Launch::Program(object.kernel, args.iter().map(argument).collect::<Result<_>>()?)
    } else if let Some(object) = kernel.object::<BuiltinKernel>() {
        Launch::Builtin(object.builtin, args.iter().map(range).collect::<Result<_>>()?)
    } else {
        let name = kernel.name();
        return Err(Error::invalid(format!(
            "kernel '{name}' was not loaded by this backend; load it on the device"
        )));
    };
    // Axes beyond the first are 1 by the device's limits.
    let blocks = grid[0];
    let library = device.library;
    Ok(move |stream| match launch {
        Launch::Program(kernel, arguments) => library.kernel_launch(stream, kernel, blocks, &arguments),
        Launch::Builtin(builtin, ranges) => library.builtin_enqueue(stream, builtin, &ranges),
    })
}

fn argument(arg: &Arg) -> Result<Argument> {
    let mut raw = Argument::sized();
    match arg {
        Arg::Buffer(slice) => {
            (raw.memory, raw.offset) = place(slice)?;
            raw.kind = plugin::ARGUMENT_BUFFER;
            raw.length = slice.len_bytes();
        }
        Arg::Scalar(scalar) => {
            raw.kind = plugin::ARGUMENT_SCALAR;
            raw.dtype = plugin::dtype_code(scalar.dtype());
            raw.bits = scalar.to_bits();
        }
    }
    Ok(raw)
}

fn range(arg: &Arg) -> Result<Range> {
    let Arg::Buffer(slice) = arg else {
        return Err(Error::invalid("a built-in takes buffers only"));
    };
    let mut raw = Range::sized();
    (raw.memory, raw.offset) = place(slice)?;
    raw.length = slice.len_bytes();
    Ok(raw)
}

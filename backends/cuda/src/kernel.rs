//! Loaded code: compiled CUDA C, cubins and PTX. Built-ins are in `builtin.rs` and `blas.rs`.

use crate::blas;
use crate::builtin;
use crate::context::{Current, FunctionHandle, MODULE_LOAD, ModuleHandle};
use crate::device::{DeviceShared, Remains};
use crate::image;
use crate::nvrtc::{Nvrtc, Options};
use crate::sys::CUfunction_attribute;
use halite_hal::builtin::BuiltinKind;
use halite_hal::{ArgType, Error, ErrorKind, Kernel, KernelSource, Limits, Result, Signature};
use std::ffi::CString;
use std::sync::Arc;

/// Code in the device's memory; unloaded when the last kernel of it is dropped, which enqueued launches hold.
pub(crate) struct Module {
    device: Arc<DeviceShared>,
    handle: ModuleHandle,
}

impl Drop for Module {
    fn drop(&mut self) {
        self.device.bury(Remains::Module(self.handle));
    }
}

/// One kernel of a module.
pub(crate) struct CudaKernel {
    pub(crate) function: FunctionHandle,
    pub(crate) block: [u32; 3],
    /// Shared memory beside what the code declares.
    pub(crate) shared_bytes: u32,
    /// Whether the driver did not tell how many parameters there are.
    pub(crate) is_padded: bool,
    _module: Module,
}

pub(crate) fn load(device: &Arc<DeviceShared>, source: &KernelSource) -> Result<Kernel> {
    match source {
        KernelSource::Text { language: "cuda-c", source, entry, options, workgroup, signature, requires } => {
            let wanted = Wanted { entry, workgroup: *workgroup, signature };
            wanted.check(&device.info.limits)?;
            compile(device, &wanted, source, options, requires)
        }
        KernelSource::Binary { format, bytes, entry, workgroup, signature, .. } => {
            let wanted = Wanted { entry, workgroup: *workgroup, signature };
            wanted.check(&device.info.limits)?;
            let (bytes, format) = (bytes.as_ref(), Format::named(format)?);
            let object = wanted.load(device, bytes, format, 0)?;
            Ok(wanted.finish(device, object))
        }
        KernelSource::Builtin(op) => match op.kind {
            BuiltinKind::MatMul | BuiltinKind::FusedMatMul { .. } => blas::load(device, op),
            _ => builtin::load(device, op),
        },
        _ => {
            let format = source.format();
            Err(Error::unsupported(format!("kernels of format {format} are none of this device's")))
        }
    }
}

/// Compiles CUDA C, or takes the result of an earlier time from the disk.
fn compile(
    device: &Arc<DeviceShared>,
    wanted: &Wanted<'_>,
    source: &str,
    options: &str,
    requires: &[String],
) -> Result<Kernel> {
    let nvrtc: &'static Nvrtc = device.nvrtc.clone()?;
    let options = Options::parse(options)?;
    let architecture = nvrtc.architecture(device.properties.capability, requires)?;
    let format = if architecture.is_virtual() { Format::Ptx } else { Format::Cubin };
    let load = |bytes: &[u8]| wanted.load(device, bytes, format, options.dynamic_shared_bytes);
    let key = nvrtc.key(source, &options, &architecture);
    if let Some(bytes) = device.cache.read(&key) {
        match load(&bytes) {
            // What the driver refuses may have been compiled for another one's sake.
            Err(error) if error.call() == Some(MODULE_LOAD) && !is_full_or_lost(&error) => {
                log::debug!("{}: a compiled kernel is refused, and compiled again: {error}", device.info.id);
                device.cache.remove(&key);
            }
            loaded => return Ok(wanted.finish(device, loaded?)),
        }
    }
    let bytes = nvrtc.compile(wanted.entry, source, &options, &architecture)?;
    let object = load(&bytes)?;
    device.cache.write(&key, &bytes);
    Ok(wanted.finish(device, object))
}

/// Whether an image is not to blame for a failure.
fn is_full_or_lost(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DeviceLost | ErrorKind::OutOfMemory { .. })
}

/// What an image's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Cubin,
    Ptx,
}

impl Format {
    fn named(name: &str) -> Result<Self> {
        match name {
            "cubin" => Ok(Self::Cubin),
            "ptx" => Ok(Self::Ptx),
            other => Err(Error::unsupported(format!(
                "binaries of format {other}; this device takes cubin and ptx"
            ))),
        }
    }
}

/// Loads an image.
pub(crate) fn load_ptx(gpu: &Current<'_>, text: &str) -> Result<ModuleHandle> {
    let image = image::terminated_ptx(text.as_bytes())?;
    // SAFETY: the text ends with a zero byte.
    unsafe { gpu.module_load(&image) }
}

/// What a kernel is loaded for.
struct Wanted<'a> {
    entry: &'a str,
    workgroup: [u32; 3],
    signature: &'a Signature,
}

impl Wanted<'_> {
    /// Checks the size of the workgroup against the device.
    fn check(&self, limits: &Limits) -> Result<()> {
        let entry = self.entry;
        for (axis, (size, most)) in self.workgroup.into_iter().zip(limits.max_workgroup).enumerate() {
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
        self.check_threads(limits.max_workgroup_threads)
    }

    fn check_threads(&self, most: u32) -> Result<()> {
        let threads: u128 = self.workgroup.into_iter().map(u128::from).product();
        if threads <= most.into() {
            return Ok(());
        }
        let threads = u64::try_from(threads).unwrap_or(u64::MAX);
        Err(too_large(self.entry, "threads in a workgroup", threads, most.into()))
    }

    fn load(
        &self,
        device: &Arc<DeviceShared>,
        bytes: &[u8],
        format: Format,
        shared_bytes: u32,
    ) -> Result<CudaKernel> {
        let entry = self.entry;
        let name = CString::new(entry)
            .map_err(|_| Error::invalid(format!("the kernel's name {entry:?} holds a zero byte")))?;
        let terminated;
        let image = match format {
            Format::Cubin => {
                image::check_cubin(bytes)?;
                bytes
            }
            Format::Ptx => {
                terminated = image::terminated_ptx(bytes)?;
                &terminated
            }
        };
        device.call(|gpu| {
            // SAFETY: everything that a cubin's tables name lies inside, and PTX ends with a zero byte, as checked above.
            let handle = unsafe { gpu.module_load(image) }?;
            let module = Module { device: device.clone(), handle };
            let function = gpu.function(handle, &name).map_err(|error| match error.kind() {
                ErrorKind::Unavailable => {
                    let message = format!(
                        "the code has no kernel '{entry}'; give it that name, with extern \"C\" in CUDA C ({})",
                        error.message()
                    );
                    Error::invalid(message).in_call("cuModuleGetFunction")
                }
                _ => error,
            })?;
            self.check_resources(gpu, function, device, shared_bytes)?;
            let sizes = gpu.parameter_sizes(function);
            if let Some(sizes) = &sizes {
                check_parameters(entry, self.signature, sizes)?;
            }
            let is_padded = sizes.is_none();
            Ok(CudaKernel { function, block: self.workgroup, shared_bytes, is_padded, _module: module })
        })
    }

    /// Checks what the compiled code needs against what the device has.
    fn check_resources(
        &self,
        gpu: &Current<'_>,
        function: FunctionHandle,
        device: &DeviceShared,
        shared_bytes: u32,
    ) -> Result<()> {
        use CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        };
        self.check_threads(gpu.function_attribute(function, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?)?;
        if shared_bytes == 0 {
            return Ok(());
        }
        let own = gpu.function_attribute(function, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let all = u64::from(own) + u64::from(shared_bytes);
        let properties = &device.properties;
        let most = properties.shared_optin_bytes.max(properties.shared_bytes);
        if all > most.into() {
            return Err(too_large(self.entry, "bytes of shared memory", all, most.into()));
        }
        if all > properties.shared_bytes.into() {
            gpu.allow_shared_bytes(function, shared_bytes)?;
        }
        Ok(())
    }

    fn finish(&self, device: &DeviceShared, object: CudaKernel) -> Kernel {
        Kernel::new(device.info.id.clone(), self.entry, self.signature.clone(), 0, Box::new(object))
    }
}

/// Compares what the caller will pass with what the kernel takes.
fn check_parameters(entry: &str, signature: &Signature, sizes: &[usize]) -> Result<()> {
    let (given, own) = (signature.args.len(), sizes.len());
    if given != own {
        return Err(Error::bad_format(format!(
            "kernel '{entry}' takes {own} arguments in its code, {given} in its signature"
        )));
    }
    for (index, (arg, own)) in signature.args.iter().zip(sizes).enumerate() {
        let given = match arg {
            ArgType::Buffer { .. } => size_of::<u64>(),
            ArgType::Scalar(dtype) => dtype.size(),
        };
        if given != *own {
            return Err(Error::bad_format(format!(
                "argument {index} of kernel '{entry}' has {own} bytes in its code, {given} in its signature"
            )));
        }
    }
    Ok(())
}

fn too_large(entry: &str, what: &str, requested: u64, limit: u64) -> Error {
    let message = format!(
        "kernel '{entry}' wants {requested} {what}, the device allows {limit}; choose another variant"
    );
    Error::new(ErrorKind::TooLarge { requested, limit }, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::{Access, DType, DeviceId, DeviceInfo};

    #[test]
    fn workgroups_beyond_a_limit_are_refused_with_the_numbers() {
        let mut limits = DeviceInfo::new(DeviceId::new("cuda", 0), "x").limits;
        limits.max_workgroup = [1024, 1024, 64];
        limits.max_workgroup_threads = 1024;
        let signature = Signature::default();
        let check = |workgroup| Wanted { entry: "k", workgroup, signature: &signature }.check(&limits);
        check([32, 32, 1]).unwrap();
        for (workgroup, requested, limit) in
            [([1025, 1, 1], 1025, 1024), ([1, 1, 65], 65, 64), ([64, 32, 1], 2048, 1024)]
        {
            let error = check(workgroup).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::TooLarge { requested, limit }, "{error}");
        }
        assert_eq!(check([1, 0, 1]).unwrap_err().kind(), &ErrorKind::InvalidArgument);
        limits.max_workgroup = [u32::MAX; 3];
        let check = Wanted { entry: "k", workgroup: [u32::MAX; 3], signature: &signature }.check(&limits);
        assert!(matches!(check.unwrap_err().kind(), ErrorKind::TooLarge { .. }));
    }

    #[test]
    fn signatures_are_compared_with_the_codes_parameters() {
        let buffer = ArgType::Buffer { dtype: DType::F32, access: Access::Read };
        let signature =
            Signature::new(vec![buffer, ArgType::Scalar(DType::U32), ArgType::Scalar(DType::F64)]);
        check_parameters("k", &signature, &[8, 4, 8]).unwrap();
        for (sizes, part) in [
            (&[8, 4][..], "takes 2 arguments in its code, 3"),
            (&[8, 4, 8, 4], "takes 4"),
            (&[8, 8, 8], "argument 1"),
            (&[4, 4, 8], "argument 0"),
        ] {
            let error = check_parameters("k", &signature, sizes).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::BadFormat);
            assert!(error.message().contains(part), "{error}");
        }
    }
}

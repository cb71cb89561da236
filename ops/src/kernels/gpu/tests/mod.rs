//! Launches on the first OpenCL device of this machine, compared with plain interpreters.
//!
//! Skipped, with a printed reason, where there is none, unless `HALITE_REQUIRE_OPENCL` is 1. The tests are few and their
//! tensors small, so that they run under Oclgrind as well: that is where races and reads out of bounds are found.

mod contraction;
mod elementwise;
mod precompiled;
mod reduce;
mod rounding;
mod shape;
mod simulator;
mod tensor_cores;

use super::{Language, precompiled as shipped, variants};
use crate::kernels::cpu::harness::Memory;
use crate::lower::{KernelOp, LaunchArg, LowerRequest, Lowered, TensorType, Unservable};
use halite_hal::{Arg, Buffer, Device, DeviceInfo, KernelSource, MemoryKind, Registry, Scalar};
use halite_opencl::OpenClBackend;
use halite_profiles::Parameters;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock};

/// Set to 1 where a missing device is a failure and no reason to skip.
const REQUIRED: &str = "HALITE_REQUIRE_OPENCL";

/// Names a folder for the text of every kernel that is launched, for `tools/kernel_families.py`.
const LAUNCHED: &str = "HALITE_LAUNCHED_TEXTS";

/// An opened device that runs what a variant answers. A thread of its own uses it, since not every driver lets several
/// threads take turns (Oclgrind's check for uninitialised memory does not).
pub(super) struct Runner {
    info: DeviceInfo,
    jobs: Mutex<Sender<Job>>,
}

type Job = Box<dyn FnOnce(&Device) + Send>;

/// The device that all tests share; `None`, with a printed reason, where there is none.
pub(super) fn runner() -> Option<&'static Runner> {
    static RUNNER: OnceLock<Result<Runner, String>> = OnceLock::new();
    match RUNNER.get_or_init(Runner::new) {
        Ok(runner) => Some(runner),
        Err(reason) if std::env::var_os(REQUIRED).is_some_and(|value| value == "1") => {
            panic!("{REQUIRED} is set, but there is no OpenCL device: {reason}")
        }
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

impl Runner {
    fn new() -> Result<Self, String> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (opened, info) = mpsc::channel();
        std::thread::spawn(move || {
            let mut registry = Registry::new();
            let backend = Arc::new(OpenClBackend::new().without_thread());
            match registry.register(backend).and_then(|()| registry.open("opencl")) {
                Err(error) => drop(opened.send(Err(error.to_string()))),
                Ok(device) => {
                    drop(opened.send(Ok(device.info().clone())));
                    todo.into_iter().for_each(|job| job(&device));
                }
            }
        });
        let info = info.recv().map_err(|_| "the thread of the device ended".to_owned())??;
        Ok(Self { info, jobs: Mutex::new(jobs) })
    }

    /// What `work` gives on the thread of the device.
    fn on_device<T: Send + 'static>(&self, work: impl FnOnce(&Device) -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move |device| drop(answer.send(work(device))));
        self.jobs.lock().expect("no test panics while it sends").send(job).expect("the thread goes on");
        result.recv().expect("the work does not panic")
    }

    /// A share of `cases` that takes a simulator as long as a device takes for all of them.
    pub(super) fn cases(&self, cases: u64) -> u64 {
        if self.is_simulated() { cases.div_ceil(4) } else { cases }
    }

    /// Whether instructions are simulated one by one.
    pub(super) fn is_simulated(&self) -> bool {
        self.info.name.contains("Oclgrind")
    }

    /// Whether the device has f64.
    pub(super) fn has_f64(&self) -> bool {
        self.info.has_feature("fp64")
    }

    /// Lowers `op` with `variant` of OpenCL C and runs it.
    pub(super) fn run(
        &self,
        variant: &str,
        parameters: &Parameters,
        op: &KernelOp,
        inputs: &[(TensorType, Memory)],
        outputs: &[TensorType],
    ) -> Result<Vec<Memory>, Unservable> {
        let lowered = self.lower(variant, parameters, op, inputs, outputs)?;
        Ok(self.launch(&lowered, inputs, outputs, &[], &[]))
    }

    /// What `variant` of OpenCL C answers.
    pub(super) fn lower(
        &self,
        variant: &str,
        parameters: &Parameters,
        op: &KernelOp,
        inputs: &[(TensorType, Memory)],
        outputs: &[TensorType],
    ) -> Result<Lowered, Unservable> {
        let inputs: Vec<TensorType> = inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
        let of_opencl = |v: &crate::lower::KernelVariant| {
            v.op == op.name() && v.name == variant && v.format == Language::OpenClC.format()
        };
        let general = shipped::variants_in(Language::GeneralOpenClC);
        let variant =
            variants().into_iter().chain(general).find(of_opencl).expect("the test names a variant");
        let device = &self.info;
        let request = LowerRequest { op, inputs: &inputs, outputs, parameters, local_staging: None, device };
        (variant.lower)(&request)
    }

    /// Runs launches; outputs start as NaN. `aliases` names the input whose memory each output is.
    pub(super) fn launch(
        &self,
        lowered: &Lowered,
        inputs: &[(TensorType, Memory)],
        outputs: &[TensorType],
        aliases: &[Option<usize>],
        scalars: &[Scalar],
    ) -> Vec<Memory> {
        let (lowered, scalars) = (lowered.clone(), scalars.to_vec());
        let inputs: Vec<Memory> = inputs.iter().map(|(_, memory)| memory.clone()).collect();
        let outputs: Vec<(usize, Option<usize>)> = outputs
            .iter()
            .enumerate()
            .map(|(n, tensor)| (tensor.len_bytes(), aliases.get(n).copied().flatten()))
            .collect();
        let results = self.on_device(move |device| execute(device, &lowered, &inputs, &outputs, &scalars));
        results.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Runs launches on `inputs`; an output has so many bytes, or is the memory of an input.
fn execute(
    device: &Device,
    lowered: &Lowered,
    inputs: &[Memory],
    outputs: &[(usize, Option<usize>)],
    scalars: &[Scalar],
) -> halite_hal::Result<Vec<Memory>> {
    let stream = device.create_stream()?;
    let buffer = |memory: &Memory| -> halite_hal::Result<Buffer> {
        let buffer = device.allocate(memory.bytes().len() as u64, MemoryKind::Device)?;
        stream.write_blocking(&buffer.all(), memory.bytes())?;
        Ok(buffer)
    };
    let ins = inputs.iter().map(buffer).collect::<halite_hal::Result<Vec<_>>>()?;
    let mut outs = Vec::new();
    for &(len_bytes, alias) in outputs {
        outs.push(match alias {
            Some(input) => ins[input].clone(),
            None => buffer(&Memory::poisoned(len_bytes))?,
        });
    }
    let workspace = device.allocate(lowered.workspace_bytes, MemoryKind::Device)?;
    for launch in &lowered.launches {
        keep(&launch.source);
        let kernel = device.load(&launch.source)?;
        let mut args: Vec<Arg> = Vec::new();
        for arg in &launch.args {
            args.push(match *arg {
                LaunchArg::Input(n) => ins[n].all().into(),
                LaunchArg::Output(n) => outs[n].all().into(),
                LaunchArg::Workspace { offset, len } => workspace.slice(offset, len)?.into(),
                LaunchArg::Scalar(n) => scalars[n].into(),
                LaunchArg::Literal(scalar) => scalar.into(),
            });
        }
        stream.launch(&kernel, launch.grid, &args)?;
    }
    let mut results = Vec::new();
    for out in outs {
        let mut memory = Memory::poisoned(out.len_bytes() as usize);
        stream.read_blocking(&out.all(), memory.bytes_mut())?;
        results.push(memory);
    }
    Ok(results)
}

/// Writes a kernel's text where it is asked for.
fn keep(source: &KernelSource) {
    if let (KernelSource::Text { source, entry, .. }, Some(folder)) = (source, std::env::var_os(LAUNCHED)) {
        let mut hasher = DefaultHasher::new();
        source.hash(&mut hasher);
        let file = PathBuf::from(folder).join(format!("{entry}.{:016x}.cl", hasher.finish()));
        std::fs::write(&file, source.as_bytes())
            .unwrap_or_else(|error| panic!("{LAUNCHED}: cannot write '{}': {error}", file.display()));
    }
}

//! The conformance suite on the devices of a session: how each is opened in the ways that tests ask for.
//!
//! ```no_run
//! use halite::{Session, conformance};
//!
//! let target = conformance::target(&Session::new()?, "npu:0", None)?;
//! let report = conformance::run(&target, &conformance::Options::default(), &mut |_| {})?;
//! println!("{}", report.to_json());
//! # Ok::<(), halite::Error>(())
//! ```

pub use halite_conformance::{
    Counts, Entry, ExpectedFailure, ExpectedFailures, Options, Program, Progress, Report, Target, TestResult,
    Verdict, catalogue, run,
};

use crate::{Error, Session};
use halite_conformance::PluginAccess;
use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::plugin::{Plugin, TableChange};
use halite_hal::{Device, DeviceId, DeviceInfo, driver::Backend as _};
use halite_npu::{NpuBackend, PluginDevice};
use halite_profiles::Machine;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The name that the emulator gives itself as a plugin.
const EMULATOR: &str = "Halite NPU emulator";

/// How the built-in machine states its memory.
const MACHINE_MEMORY: &str = "global: 8 GiB";

/// A device of a session as a target of the suite: `cpu:0`, `npu:0`. `program` is a file with test programs in the
/// device's own format.
///
/// # Errors
/// A name that is none, a device that is not there, or a file that cannot be read.
pub fn target(session: &Session, device: &str, program: Option<&Path>) -> Result<Target, Error> {
    let id: DeviceId = device.parse()?;
    let mut target = Target::new(session.registry().clone(), id.clone());
    if let Some(path) = program {
        target = target.with_program(read_program(session, &id, path)?);
    }
    match id.backend.as_str() {
        "cpu" => {
            let registry = session.registry().clone();
            let config = CpuConfig::from_env()?;
            let small = move |bytes| {
                let config = CpuConfig { memory_limit_bytes: Some(bytes), ..config.clone() };
                registry.wrap(CpuBackend::new(config).open(0)?)
            };
            Ok(target.with_small(Arc::new(small)))
        }
        "npu" => {
            let plugin = session.npu().plugin_of(id.index)?;
            let is_emulator = plugin.plugin == EMULATOR;
            if is_emulator {
                target = emulated(target, &plugin);
            }
            let access = Access { backend: session.npu().clone(), device: id.index, plugin };
            Ok(target.with_plugin(Arc::new(access)))
        }
        _ => Ok(target),
    }
}

/// The emulator takes a machine's memory and a loss as options.
fn emulated(target: Target, plugin: &PluginDevice) -> Target {
    let open = |target: &Target, plugin: &PluginDevice| {
        let (registry, plugin) = (target.registry().clone(), plugin.clone());
        move |options: &[(&str, &str)]| -> halite_hal::Result<Device> {
            let own = plugin.options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let backend = own.chain(options.iter().copied()).fold(
                NpuBackend::with_plugin(&plugin.path).without_environment(),
                |backend, (key, value)| backend.with_option(key, value),
            );
            registry.wrap(backend.open(plugin.index)?)
        }
    };
    let (with_memory, with_loss) = (open(&target, plugin), open(&target, plugin));
    let small = move |bytes: u64| {
        let file = machine_file(bytes)?;
        let device = with_memory(&[("machine", &file.0.to_string_lossy())]);
        drop(file);
        device
    };
    target
        .with_small(Arc::new(small))
        .with_losing(Arc::new(move |command| with_loss(&[("lose_after", &command.to_string())])))
}

/// A file that is removed when dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // A file that stays in the folder for temporary ones harms nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The built-in machine with so much memory.
fn machine_file(bytes: u64) -> halite_hal::Result<Temporary> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let builtin = Machine::builtin_yaml();
    let text = builtin.replace(MACHINE_MEMORY, &format!("global: {} KiB", bytes.div_ceil(1024)));
    if text == builtin {
        return Err(halite_hal::Error::unavailable(format!(
            "the built-in machine has no '{MACHINE_MEMORY}'"
        )));
    }
    let path = std::env::temp_dir().join(format!("halite-machine-{}-{number}.yaml", std::process::id()));
    std::fs::write(&path, text).map_err(|error| {
        halite_hal::Error::unavailable(format!("cannot write '{}': {error}", path.display()))
    })?;
    Ok(Temporary(path))
}

fn read_program(session: &Session, id: &DeviceId, path: &Path) -> Result<Program, Error> {
    let found = session.discover();
    let info = found.devices.iter().find(|info| info.id == *id);
    let format = |info: &DeviceInfo| info.kernel_formats.iter().find(|format| *format != "builtin").cloned();
    let format = info.and_then(format).ok_or_else(|| {
        halite_hal::Error::unsupported(format!(
            "{id} takes no programs, so --program has nothing to be loaded as"
        ))
    })?;
    let program = Program::from_file(format, path);
    Ok(program.map_err(|error| {
        halite_hal::Error::invalid(format!("cannot read the test program '{}': {error}", path.display()))
    })?)
}

/// The plugin behind a device of the backend `npu`.
struct Access {
    backend: Arc<NpuBackend>,
    device: u32,
    plugin: PluginDevice,
}

impl PluginAccess for Access {
    fn table(&self) -> &'static Plugin {
        self.plugin.table
    }

    fn index(&self) -> u32 {
        self.plugin.index
    }

    fn options(&self) -> Vec<(String, String)> {
        self.plugin.options.clone()
    }

    fn open_changed(&self, changes: &[TableChange]) -> halite_hal::Result<Device> {
        self.backend.open_changed(self.device, changes)
    }
}

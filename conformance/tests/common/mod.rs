//! The devices that the suite runs on here.
#![allow(dead_code, reason = "each test file uses a part")]

use halite_conformance::{Options, PluginAccess, Report, Target, TestResult, Verdict};
use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::plugin::{Plugin, TableChange};
use halite_hal::{Device, DeviceId, Layer, Registry, driver};
use halite_npu::{NpuBackend, PluginDevice, emulator_file_name};
use halite_opencl::OpenClBackend;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

/// Layers around the devices of a target.
pub(crate) type Layers = Vec<Arc<dyn Layer>>;

/// A registry with one backend and layers around its devices.
pub(crate) fn registry(backend: Arc<dyn driver::Backend>, layers: Layers) -> Arc<Registry> {
    let mut registry = Registry::new();
    registry.register(backend).expect("it is the only one");
    layers.into_iter().for_each(|layer| registry.add_layer(layer));
    Arc::new(registry)
}

/// The processor of this machine.
pub(crate) fn cpu(layers: Layers) -> Target {
    let registry = registry(Arc::new(CpuBackend::new(CpuConfig::default())), layers);
    let own = registry.clone();
    let small = move |bytes| {
        let config = CpuConfig { threads: None, memory_limit_bytes: Some(bytes) };
        own.wrap(driver::Backend::open(&CpuBackend::new(config), 0)?)
    };
    Target::new(registry, DeviceId::new("cpu", 0)).with_small(Arc::new(small))
}

/// The first OpenCL device, or nothing on a machine without one, which is a failure where `HALITE_REQUIRE_OPENCL` is 1.
pub(crate) fn opencl(layers: Layers) -> Option<Target> {
    let registry = registry(Arc::new(OpenClBackend::new().ignoring_environment()), layers);
    if let Some(absence) = registry.probe().absent.first() {
        let required = std::env::var_os("HALITE_REQUIRE_OPENCL").is_some_and(|value| value == "1");
        assert!(!required, "no OpenCL device: {}", absence.reason);
        println!("skipped: no OpenCL device: {}", absence.reason);
        return None;
    }
    Some(Target::new(registry, DeviceId::new("opencl", 0)))
}

/// The emulator's library: Cargo builds it beside the tests.
pub(crate) fn emulator() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its own file");
    executable.with_file_name(emulator_file_name())
}

/// The first device of a plugin.
pub(crate) fn plugin(path: &Path, layers: Layers) -> Target {
    let backend = Arc::new(NpuBackend::with_plugin(path).without_environment());
    let plugin = backend.plugin_of(0).expect("the plugin loads and has a device");
    let access = Access { backend: backend.clone(), plugin };
    Target::new(registry(backend, layers), DeviceId::new("npu", 0)).with_plugin(Arc::new(access))
}

/// The emulator, which can also be opened small, and be lost.
pub(crate) fn npu(layers: Layers) -> Target {
    let target = plugin(&emulator(), layers);
    let registry = target.registry().clone();
    let open = move |key: &str, value: &str| {
        let backend = NpuBackend::with_plugin(emulator()).without_environment().with_option(key, value);
        registry.wrap(driver::Backend::open(&backend, 0)?)
    };
    let losing = open.clone();
    let small = move |bytes: u64| {
        let text = halite_profiles::Machine::builtin_yaml()
            .replace("global: 8 GiB", &format!("global: {} KiB", bytes.div_ceil(1024)));
        let path = folder().join(format!("machine-{bytes}-{}.yaml", std::process::id()));
        std::fs::write(&path, text).expect("the folder of tests is writable");
        open("machine", &path.to_string_lossy())
    };
    target
        .with_small(Arc::new(small))
        .with_losing(Arc::new(move |command| losing("lose_after", &command.to_string())))
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The example plugin, compiled on the spot; nothing, with a printed message, where there is no compiler for it.
pub(crate) fn example(layers: Layers) -> Option<Target> {
    static LIBRARY: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        if cfg!(windows) {
            println!("skipped: the plugin is compiled with the options of a Unix compiler");
            return None;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let output = folder().join("libhalite_npu_example.so");
        let mut command = Command::new("cc");
        command.args(["-std=c99", "-O2", "-shared", "-fPIC", "-I"]).arg(root.join("hal/include"));
        command.arg("-o").arg(&output).arg(root.join("backends/npu/example-plugin/example.c"));
        match command.output() {
            Ok(result) => {
                assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
                Some(output)
            }
            Err(error) => {
                println!("skipped: no C compiler: {error}");
                None
            }
        }
    });
    LIBRARY.as_ref().map(|path| plugin(path, layers))
}

struct Access {
    backend: Arc<NpuBackend>,
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
        self.backend.open_changed(0, changes)
    }
}

/// Runs the suite, or the part of it whose names contain one of `filters`.
pub(crate) fn run(target: &Target, filters: &[&str]) -> Report {
    let options =
        Options { filters: filters.iter().map(|&part| part.into()).collect(), ..Options::default() };
    halite_conformance::run(target, &options, &mut |_| {}).expect("the device opens")
}

/// What went wrong, for messages.
pub(crate) fn failures(report: &Report) -> String {
    let line = |test: &TestResult| format!("\n{}: {}", test.name, test.reason);
    format!("{}:{}", report.device, report.failures().map(line).collect::<String>())
}

/// Prints the tests that took longest, and why tests did not run.
pub(crate) fn describe(report: &Report) {
    let mut tests: Vec<&TestResult> = report.tests.iter().collect();
    tests.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    println!("{}: {:?}", report.device, report.counts());
    for test in tests.iter().take(12) {
        println!("  {:6.2} s  {}", test.seconds, test.name);
    }
    for test in
        report.tests.iter().filter(|test| matches!(test.verdict, Verdict::Unsupported | Verdict::Skipped))
    {
        println!("  {:?} {}: {}", test.verdict, test.name, test.reason);
    }
}

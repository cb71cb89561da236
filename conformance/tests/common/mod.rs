//! The devices that the suite runs on here.
#![allow(dead_code, reason = "each test file uses a part")]

use halite_conformance::{Options, PluginAccess, Report, Target, TestResult, Verdict};
use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::plugin::{Plugin, TableChange};
use halite_hal::{Device, DeviceId, Registry, driver};
use halite_npu::{NpuBackend, PluginDevice, emulator_file_name};
use std::path::PathBuf;
use std::sync::Arc;

/// A registry with one backend.
pub(crate) fn registry(backend: Arc<dyn driver::Backend>) -> Arc<Registry> {
    let mut registry = Registry::new();
    registry.register(backend).expect("it is the only one");
    Arc::new(registry)
}

/// The processor of this machine.
pub(crate) fn cpu() -> Target {
    let open = |bytes| {
        let config = CpuConfig { threads: None, memory_limit_bytes: Some(bytes) };
        driver::Backend::open(&CpuBackend::new(config), 0)
    };
    let backend = Arc::new(CpuBackend::new(CpuConfig::default()));
    Target::new(registry(backend), DeviceId::new("cpu", 0)).with_small(Arc::new(open))
}

/// The emulator's library: Cargo builds it beside the tests.
pub(crate) fn emulator() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its own file");
    executable.with_file_name(emulator_file_name())
}

/// The first device of a plugin.
pub(crate) fn plugin(path: PathBuf) -> Target {
    let backend = Arc::new(NpuBackend::with_plugin(path).without_environment());
    let plugin = backend.plugin_of(0).expect("the plugin loads and has a device");
    let access = Access { backend: backend.clone(), plugin };
    Target::new(registry(backend), DeviceId::new("npu", 0)).with_plugin(Arc::new(access))
}

/// The emulator, which can also be opened small, and be lost.
pub(crate) fn npu() -> Target {
    let open = |key: &str, value: &str| {
        let backend = NpuBackend::with_plugin(emulator()).without_environment().with_option(key, value);
        driver::Backend::open(&backend, 0)
    };
    let small = move |bytes: u64| {
        let text = halite_profiles::Machine::builtin_yaml()
            .replace("global: 8 GiB", &format!("global: {} KiB", bytes.div_ceil(1024)));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("machine-{bytes}.yaml"));
        std::fs::write(&path, text).expect("the folder of tests is writable");
        open("machine", &path.to_string_lossy())
    };
    plugin(emulator())
        .with_small(Arc::new(small))
        .with_losing(Arc::new(move |command| open("lose_after", &command.to_string())))
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

//! `halite devices`: every device, and every backend that has none.

use super::output;
use crate::demo::report::{UnavailableBackend, unavailable_lines};
use clap::Args;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// Options of `halite devices`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DevicesArgs {
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,

    /// Load this NPU plugin; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

/// What `halite devices` found. Its JSON is a stable interface: fields may be added, none renamed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DeviceList {
    /// Every device, in order of backend and index.
    pub devices: Vec<DeviceEntry>,
    /// Every backend without a device.
    pub unavailable: Vec<UnavailableBackend>,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceEntry {
    /// Name within this process, such as `cpu:0`.
    pub id: String,
    /// Its backend, such as `cpu`.
    pub backend: String,
    /// The product's name.
    pub name: String,
    /// Memory that kernels can use.
    pub memory_bytes: u64,
    /// Cores, multiprocessors or the like.
    pub compute_units: u32,
    /// Element types that kernels can load and store.
    pub dtypes: Vec<String>,
    /// Formats of code that it loads, such as `native`.
    pub kernel_formats: Vec<String>,
    /// The profile that chooses its kernels.
    pub profile: String,
    /// What it could do with software that was not found.
    pub notes: Vec<String>,
}

impl DeviceList {
    /// One JSON object in one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and lists of them always serialise")
    }

    /// A table for a terminal of `columns`.
    pub fn to_table(&self, columns: u16) -> String {
        let mut text = String::new();
        if self.devices.is_empty() {
            text.push_str("No device was found.\n");
        } else {
            let names = ["device", "name", "memory", "units", "dtypes", "kernel formats", "profile"];
            let mut table = output::table(&names, &[2, 3], columns);
            for device in &self.devices {
                table.add_row([
                    device.id.clone(),
                    device.name.clone(),
                    output::bytes(device.memory_bytes),
                    device.compute_units.to_string(),
                    device.dtypes.join(" "),
                    device.kernel_formats.join(" "),
                    device.profile.clone(),
                ]);
            }
            let _ = writeln!(text, "{table}");
            for device in &self.devices {
                for note in &device.notes {
                    let _ = writeln!(text, "{}: {note}", device.id);
                }
            }
        }
        text.push_str(&unavailable_lines(&self.unavailable));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> DeviceList {
        DeviceList {
            devices: vec![DeviceEntry {
                id: "cpu:0".into(),
                backend: "cpu".into(),
                name: "Example CPU".into(),
                memory_bytes: 24 << 30,
                compute_units: 2,
                dtypes: vec!["f32".into(), "f16".into()],
                kernel_formats: vec!["native".into()],
                profile: "cpu-avx2".into(),
                notes: vec!["slow without a compiler".into()],
            }],
            unavailable: vec![UnavailableBackend { backend: "cuda".into(), reason: "no driver".into() }],
        }
    }

    #[test]
    fn json_has_the_documented_fields_in_order() {
        assert_eq!(
            list().to_json(),
            r#"{"devices":[{"id":"cpu:0","backend":"cpu","name":"Example CPU","memory_bytes":25769803776,"compute_units":2,"dtypes":["f32","f16"],"kernel_formats":["native"],"profile":"cpu-avx2","notes":["slow without a compiler"]}],"unavailable":[{"backend":"cuda","reason":"no driver"}]}"#
        );
        assert_eq!(DeviceList::default().to_json(), r#"{"devices":[],"unavailable":[]}"#);
    }

    #[test]
    fn the_table_shows_every_device_and_every_absence() {
        let table = list().to_table(110);
        for part in [
            "cpu:0",
            "Example CPU",
            "24.0 GiB",
            "f32 f16",
            "native",
            "cpu-avx2",
            "cpu:0: slow without",
            "cuda",
            "no driver",
        ] {
            assert!(table.contains(part), "{part} is missing:\n{table}");
        }
        assert!(DeviceList::default().to_table(80).contains("No device was found."));
    }
}

//! The backends of this process, and the devices that they find at run time.

use crate::{Device, DeviceId, DeviceInfo, Error, Layer, Result, driver};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A backend that found no device, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// The backend's name.
    pub backend: String,
    /// What was looked for, what was found, and what to do.
    pub reason: String,
}

/// What [`Registry::probe`] found.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// Every device, in order of registration and index.
    pub devices: Vec<DeviceInfo>,
    /// Every backend without a device.
    pub absent: Vec<Absence>,
}

/// The backends of this process.
///
/// 1. Register backends; nothing is probed yet.
/// 2. [`probe`](Self::probe) lists devices and absences.
/// 3. [`open`](Self::open) gives a device by name, inside the chosen layers.
/// 4. Dropping it closes no device: each is owned by its handles.
///
/// It may be shared by threads once it is set up. Nothing is cached here, so devices that come or go are seen.
#[derive(Default)]
pub struct Registry {
    backends: Vec<Arc<dyn driver::Backend>>,
    layers: Vec<Arc<dyn Layer>>,
}

impl Registry {
    /// A registry without backends.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a backend, without asking it for devices.
    ///
    /// # Errors
    /// `InvalidArgument` when one of that name is there already.
    pub fn register(&mut self, backend: Arc<dyn driver::Backend>) -> Result<()> {
        let name = backend.name().to_owned();
        if self.backends.iter().any(|own| own.name() == name) {
            return Err(Error::invalid(format!(
                "a backend named '{name}' is registered already; choose another name"
            )));
        }
        self.backends.push(backend);
        Ok(())
    }

    /// Puts a layer around every device that is opened from now on, outside of the layers before it.
    pub fn add_layer(&mut self, layer: Arc<dyn Layer>) {
        self.layers.push(layer);
    }

    /// Names of the registered backends, in order.
    pub fn backends(&self) -> impl Iterator<Item = &str> {
        self.backends.iter().map(|backend| backend.name())
    }

    /// Asks every backend for its devices, in order of registration.
    ///
    /// May load driver libraries, and so block. A backend's error is an entry in [`Discovery::absent`].
    pub fn probe(&self) -> Discovery {
        let mut discovery = Discovery::default();
        for backend in &self.backends {
            let name = backend.name().to_owned();
            match backend.probe() {
                Ok(devices) if devices.is_empty() => {
                    discovery
                        .absent
                        .push(Absence { backend: name, reason: "the driver lists no device".into() });
                }
                Ok(devices) => discovery.devices.extend(devices),
                Err(error) => {
                    discovery.absent.push(Absence { backend: name, reason: error.message().to_owned() });
                }
            }
        }
        discovery
    }

    /// Opens the device named `name`: `cpu`, `npu:0`. May load driver libraries, and so block.
    ///
    /// Every call opens: whether two openings share memory and threads is the backend's choice. Keep and clone the
    /// handle.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is none, `Unavailable` when no such device is there (says which are, or
    /// why its backend is absent), or the failure of the driver or of a layer.
    pub fn open(&self, name: &str) -> Result<Device> {
        self.open_id(&name.parse()?)
    }

    /// Opens the device `id`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_id(&self, id: &DeviceId) -> Result<Device> {
        const CALL: &str = "registry.open";
        let Some(backend) = self.backends.iter().find(|backend| backend.name() == id.backend) else {
            return Err(
                Error::unavailable(format!("no backend '{}'; {}", id.backend, self.known())).in_call(CALL)
            );
        };
        let devices = backend.probe().map_err(|e| e.on_device(id).in_call(CALL))?;
        if !devices.iter().any(|device| device.id == *id) {
            return Err(Error::unavailable(format!("no device '{id}'; {}", self.known())).in_call(CALL));
        }
        let device = backend.open(id.index).map_err(|e| e.on_device(id).in_call(CALL))?;
        self.wrap(device)
    }

    /// Puts this registry's layers around a device that was opened in another way.
    ///
    /// # Errors
    /// The failure of a layer.
    pub fn wrap(&self, device: Device) -> Result<Device> {
        self.layers.iter().try_fold(device, |device, layer| layer.wrap(device))
    }

    /// Opens the device that `rank` values most; the first of equals.
    ///
    /// Blocks as [`probe`](Self::probe) and [`open`](Self::open) do; `rank` is called on this thread, once for each
    /// device.
    ///
    /// # Errors
    /// `Unavailable` when no backend has a device, or the failure of the driver or of a layer.
    pub fn open_best(&self, rank: impl Fn(&DeviceInfo) -> u64) -> Result<Device> {
        let discovery = self.probe();
        let best = discovery.devices.iter().rev().max_by_key(|info| rank(info)).ok_or_else(|| {
            let reasons: Vec<_> =
                discovery.absent.iter().map(|a| format!("{}: {}", a.backend, a.reason)).collect();
            Error::unavailable(format!("no device at all ({})", reasons.join("; ")))
                .in_call("registry.open_best")
        })?;
        self.open_id(&best.id)
    }

    fn known(&self) -> String {
        let mut by_backend: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let discovery = self.probe();
        for device in &discovery.devices {
            by_backend.entry(&device.id.backend).or_default().push(device.id.to_string());
        }
        let names: Vec<_> = by_backend.into_values().flatten().collect();
        if names.is_empty() {
            "no device was found".into()
        } else {
            format!("use one of {}", names.join(", "))
        }
    }
}

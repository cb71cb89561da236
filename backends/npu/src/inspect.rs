//! A plugin's table, as it is and with changes, for those who test plugins.

use crate::backend::NpuBackend;
use crate::device;
use crate::library::Library;
use halite_hal::plugin::{Plugin, TableChange};
use halite_hal::{Device, DeviceInfo, Error, Result};
use std::path::PathBuf;

/// Where a device of the backend comes from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PluginDevice {
    /// The plugin's file.
    pub path: PathBuf,
    /// The name that the plugin gives itself.
    pub plugin: String,
    /// Its functions, as the loader took them from its table. Calling them is `unsafe`: the header says what holds.
    pub table: &'static Plugin,
    /// The device's number within the plugin.
    pub index: u32,
    /// The options that it is opened with.
    pub options: Vec<(String, String)>,
}

impl NpuBackend {
    /// Where device `index` comes from. Searches and loads as [`plugins`](Self::plugins) does.
    ///
    /// # Errors
    /// `Unavailable` when there is no such device, and those of [`plugins`](Self::plugins).
    pub fn plugin_of(&self, index: u32) -> Result<PluginDevice> {
        let (library, local, _) = self.find(index)?;
        Ok(PluginDevice {
            path: library.path.clone(),
            plugin: library.name.clone(),
            table: &library.table,
            index: local,
            options: self.options()?.pairs(),
        })
    }

    /// Opens device `index` through a copy of its plugin's table with these changes. The copy stays for the life of the
    /// process, as a table does.
    ///
    /// # Errors
    /// What the loader says of a plugin with such a table; those of opening.
    pub fn open_changed(&self, index: u32, changes: &[TableChange]) -> Result<Device> {
        let (library, local, info) = self.find(index)?;
        device::open(library.changed(changes)?, local, info.id, &self.options()?, self.call_limit)
    }

    /// Device `index` of all plugins: its library, its number there, and what it is.
    pub(crate) fn find(&self, index: u32) -> Result<(&'static Library, u32, DeviceInfo)> {
        let mut devices = self.devices()?;
        if index as usize >= devices.len() {
            let count = devices.len();
            return Err(Error::unavailable(format!(
                "no device {index}; plugins offer {count}, counted from 0"
            )));
        }
        Ok(devices.swap_remove(index as usize))
    }
}

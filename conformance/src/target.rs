//! The device under test.

use crate::expected::ExpectedFailures;
use crate::program::Program;
use halite_hal::plugin::{Plugin, TableChange};
use halite_hal::{Device, DeviceId, Registry, Result};
use std::fmt;
use std::sync::Arc;

/// Opens a device in some way; may be called from any thread, and more than once.
pub type Opener = Arc<dyn Fn(u64) -> Result<Device> + Send + Sync>;

/// What can be done with the plugin behind a device, beside using the device.
pub trait PluginAccess: Send + Sync {
    /// The plugin's functions, as the loader took them from its table.
    fn table(&self) -> &'static Plugin;

    /// The device's number within the plugin.
    fn index(&self) -> u32;

    /// The options that the device is opened with, as keys and values.
    fn options(&self) -> Vec<(String, String)>;

    /// Opens the device through a copy of the plugin's table with these changes.
    ///
    /// # Errors
    /// What the loader says of such a table, or what opening says.
    fn open_changed(&self, changes: &[TableChange]) -> Result<Device>;
}

/// A device, and how to get at it.
///
/// 1. [`new`](Self::new) names a device of a registry, whose layers it is opened inside of.
/// 2. The methods `with_…` add what only some devices can do. Tests that need more than is there are left out, and the
///    report says so.
#[derive(Clone)]
pub struct Target {
    registry: Arc<Registry>,
    id: DeviceId,
    pub(crate) small: Option<Opener>,
    pub(crate) losing: Option<Opener>,
    pub(crate) plugin: Option<Arc<dyn PluginAccess>>,
    pub(crate) programs: Vec<Program>,
    pub(crate) expected: ExpectedFailures,
}

impl Target {
    /// The device `id` of `registry`.
    pub fn new(registry: Arc<Registry>, id: DeviceId) -> Self {
        let expected = ExpectedFailures::default();
        Self { registry, id, small: None, losing: None, plugin: None, programs: Vec::new(), expected }
    }

    /// Opens the device with about so many bytes of memory, so that filling it takes no time.
    #[must_use]
    pub fn with_small(mut self, open: Opener) -> Self {
        self.small = Some(open);
        self
    }

    /// Opens the device so that it is lost in the middle of the command of that number, counted from 1.
    #[must_use]
    pub fn with_losing(mut self, open: Opener) -> Self {
        self.losing = Some(open);
        self
    }

    /// Gives access to the plugin that the device comes from.
    #[must_use]
    pub fn with_plugin(mut self, plugin: Arc<dyn PluginAccess>) -> Self {
        self.plugin = Some(plugin);
        self
    }

    /// Adds a test program in a format that the suite has none in.
    #[must_use]
    pub fn with_program(mut self, program: Program) -> Self {
        self.programs.push(program);
        self
    }

    /// Lists tests that this device is known to fail, beside those of a run's options.
    #[must_use]
    pub fn with_expected_failures(mut self, expected: ExpectedFailures) -> Self {
        self.expected = expected;
        self
    }

    /// The device's name.
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// The registry that the device is found in.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Opens the device, inside of the registry's layers.
    ///
    /// # Errors
    /// As [`Registry::open_id`].
    pub fn open(&self) -> Result<Device> {
        self.registry.open_id(&self.id)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.id)
    }
}

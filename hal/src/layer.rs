//! Layers: devices around devices, chosen at run time.

use crate::{Device, Error, Result};
use std::sync::Arc;

/// Makes a device that passes calls on to `inner` and does something of its own beside it: checks, a timeline,
/// injected failures.
///
/// 1. A program knows a set of layers, of which [`select_layers`] picks those that the user names.
/// 2. [`Registry::add_layer`](crate::Registry::add_layer) takes them, innermost first.
/// 3. Every device that is opened from then on is wrapped once by each.
/// 4. What a layer keeps for a device lives as long as the wrapped device.
///
/// Streams are wrapped, and events may be ([`driver::Event::inner`](crate::driver::Event::inner)). Buffers and kernels
/// of the inner device are passed through, as they are or with something attached ([`Buffer::attach`],
/// [`Kernel::attach`]); they carry an id, under which a layer may keep side tables. No backend knows of layers.
///
/// [`Buffer::attach`]: crate::Buffer::attach
/// [`Kernel::attach`]: crate::Kernel::attach
pub trait Layer: Send + Sync {
    /// The name in `HALITE_LAYERS`; always the same.
    fn name(&self) -> &str;

    /// Wraps an opened device, whose handle it takes.
    ///
    /// Called on the thread that opens, several at once if several open; may block for files, not for work of the
    /// device.
    ///
    /// # Errors
    /// Whatever the layer needs and does not find. The device is then closed again.
    fn wrap(&self, inner: Device) -> Result<Device>;

    /// Whether the layer has what it needs, asked when it is chosen by name: before any device is opened.
    ///
    /// # Errors
    /// `InvalidArgument` that says what is missing; the default needs nothing.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The same layer with settings: what stands behind the colon in `HALITE_LAYERS=name:settings`.
    ///
    /// # Errors
    /// `InvalidArgument` for settings that it does not understand; the default takes none.
    fn configure(&self, settings: &str) -> Result<Arc<dyn Layer>> {
        Err(Error::invalid(format!(
            "the layer '{}' takes no settings, got '{settings}'; name it without a colon",
            self.name()
        )))
    }
}

/// Picks layers by a comma-separated list of `name` or `name:settings`, the value of `HALITE_LAYERS`; the first is
/// innermost.
///
/// # Errors
/// `InvalidArgument` for a name that is not among `known`, settings that the layer refuses, or a layer that lacks something.
pub fn select_layers(list: &str, known: &[Arc<dyn Layer>]) -> Result<Vec<Arc<dyn Layer>>> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (name, settings) = match entry.split_once(':') {
                Some((name, settings)) => (name.trim_end(), Some(settings.trim_start())),
                None => (entry, None),
            };
            let layer = known.iter().find(|layer| layer.name() == name).ok_or_else(|| {
                let names: Vec<_> = known.iter().map(|layer| layer.name()).collect();
                let known =
                    if names.is_empty() { "there are none in this build".into() } else { names.join(", ") };
                Error::invalid(format!(
                    "HALITE_LAYERS names the unknown layer '{name}'; known layers: {known}"
                ))
            })?;
            let layer = match settings {
                Some(settings) => layer.configure(settings)?,
                None => layer.clone(),
            };
            layer.check()?;
            Ok(layer)
        })
        .collect()
}

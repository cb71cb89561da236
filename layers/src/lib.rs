//! Layers that come along with Halite: devices around devices, chosen at run time by `HALITE_LAYERS`.
//!
//! A layer knows the contracts of the HAL and no backend. What is not chosen is not there: a device without layers is
//! the backend's own.

use halite_hal::Layer;
use std::sync::Arc;

/// Every layer of this crate, for [`halite_hal::select_layers`].
pub fn all() -> Vec<Arc<dyn Layer>> {
    Vec::new()
}

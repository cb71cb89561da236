//! Layers that come along with Halite: devices around devices, chosen at run time by `HALITE_LAYERS`.
//!
//! A layer knows the contracts of the HAL and no backend. What is not chosen is not there: a device without layers is
//! the backend's own.

pub mod fault;
pub mod trace;
pub mod validate;
pub mod verify;

use halite_hal::Layer;
use std::sync::Arc;

/// Every layer of this crate, for [`halite_hal::select_layers`].
pub fn all() -> Vec<Arc<dyn Layer>> {
    vec![
        Arc::new(fault::Fault::new()),
        Arc::new(trace::TraceLayer::from_env()),
        Arc::new(validate::Validate::new()),
        Arc::new(verify::Verify),
    ]
}

//! What the integration tests of the root package share.

// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub)]

use halite::demo::digits::{Batch, Digits};
use halite::demo::network::{Cnn, CnnConfig};
use halite::{Engine, Session, Tensor};

/// The devices that this repository brings along, and that must therefore be there.
pub const DEVICES: [&str; 2] = ["cpu:0", "npu:0"];

pub fn session() -> Session {
    Session::new().expect("backends and profiles are in order")
}

pub fn open(session: &Session, device: &str) -> Engine {
    session.open(device).unwrap_or_else(|error| panic!("{device}: {error}"))
}

pub fn network(session: &Session, device: &str, config: CnnConfig, seed: u64) -> Cnn {
    Cnn::new(&open(session, device), config, seed).unwrap_or_else(|error| panic!("{device}: {error}"))
}

/// The first `steps` training batches of 32 digits.
pub fn batches(steps: usize) -> Vec<Batch> {
    let digits = Digits::builtin().expect("the data are not damaged");
    let epochs = (0..).flat_map(|epoch| digits.train().epoch(32, 7, epoch).collect::<Vec<_>>());
    epochs.take(steps).collect()
}

/// `|a - b| / |b|`, in the Euclidean or in the maximum norm, whichever is larger; 0 for two zeros.
///
/// A single number decides by itself. Within a tensor, elements near zero are sums that cancelled, whose own relative
/// error has no bound.
pub fn relative_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let euclidean = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let maximum = |values: &[f64]| values.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    if difference.iter().all(|&v| v == 0.0) {
        return 0.0;
    }
    (euclidean(&difference) / euclidean(b)).max(maximum(&difference) / maximum(b))
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f64().unwrap_or_else(|error| panic!("{tensor:?}: {error}"))
}

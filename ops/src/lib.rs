//! Tensors, op registry, graph, automatic differentiation, planning and kernels.

pub mod cluster;
pub mod kernels;
pub mod lower;

/// An operation of another crate.
pub trait CustomOp: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
}
/// Ops and kernel variants.
pub struct Catalog;
/// Planning.
pub mod plan {}

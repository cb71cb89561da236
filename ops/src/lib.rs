//! Tensors, op registry, graph, automatic differentiation, planning and kernels.
//!
//! One call, in processing order:
//!
//! | step | file |
//! | --- | --- |
//! | a method checks and adds a node | `tensor.rs`, `tensor/`, `op.rs`, `node.rs` |
//! | `grad` adds the backward graph | `grad.rs`, `derivative.rs` |
//! | `eval` finds the structure's plan, or makes it: | `engine.rs` |
//! | ... views, common subexpressions, fusion | `access.rs`, `fuse.rs` |
//! | ... programs and canonical contractions | `build.rs`, `cluster.rs`, `random.rs` |
//! | ... kernels chosen and loaded, memory placed, commands recorded | `plan.rs`, `lower.rs`, `kernels/` |
//! | the plan is replayed on the engine's stream | `engine.rs` |
//!
//! `label.rs` names the work for layers that watch. `reference.rs` is the plain definition of every op, `registry.rs` the record of each, from which tests of every
//! kind are generated.

mod access;
mod build;
pub mod cluster;
mod custom;
mod derivative;
mod engine;
mod error;
mod fuse;
mod grad;
mod hash;
pub mod kernels;
mod label;
pub mod lower;
mod memory;
mod node;
mod op;
pub mod optim;
mod plan;
mod random;
pub mod reference;
pub mod registry;
mod tensor;

pub use custom::{Catalog, CustomOp};
pub use engine::{Engine, EngineStats, FallbackCount, eval};
pub use error::{Error, Result};
pub use grad::{grad, vector_jacobian_product};
pub use halite_hal::{DType, Element, Scalar};
pub use op::{DotAxes, WindowAttributes};
pub use plan::LaunchInfo;
pub use tensor::contract::ConvOptions;
pub use tensor::{Operand, Tensor};

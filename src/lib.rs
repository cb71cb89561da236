//! Halite lets one program use every accelerator on the machine it lands on.
//!
//! ```
//! use halite::{Session, grad};
//!
//! let session = Session::new()?;
//! let engine = session.open("cpu")?;
//! let x = engine.tensor(&[1.0f32, 2.0, 3.0], &[3])?;
//! let loss = x.mul(&x)?.sum_all()?;
//! let gradient = grad(&loss, &[&x])?.remove(0);
//! assert_eq!(gradient.to_vec::<f32>()?, [2.0, 4.0, 6.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A [`Session`] finds devices at run time and opens them as [`Engine`]s; an engine makes [`Tensor`]s, which are
//! lazy; [`grad`] adds gradients to the graph; [`eval`] and reads compute. The layers below are there as [`hal`],
//! [`ops`], [`profiles`] and [`isa`].

#![forbid(unsafe_code)]

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod conformance;
#[cfg(feature = "cli")]
pub mod demo;
#[cfg(feature = "cli")]
pub mod selftest;
mod session;
pub mod tune;

pub use halite_hal as hal;
pub use halite_layers as layers;
pub use halite_npu_isa as isa;
pub use halite_ops as ops;
pub use halite_ops::optim;
pub use halite_ops::{Catalog, CustomOp, DType, Engine, Tensor, eval, grad};
pub use halite_profiles as profiles;
pub use session::{Error, LAYERS_VARIABLE, Session, SessionBuilder};

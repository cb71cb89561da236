//! The promises of the hardware abstraction layer as tests, for any device: one of this repository, one behind a
//! stranger's plugin, one inside of layers.
//!
//! ```no_run
//! use halite_conformance::{Options, Target, run};
//! use halite_hal::{DeviceId, Registry, null::NullBackend};
//! use std::sync::Arc;
//!
//! let mut registry = Registry::new();
//! registry.register(Arc::new(NullBackend::default()))?;
//! let target = Target::new(Arc::new(registry), DeviceId::new("null", 0));
//! let report = run(&target, &Options::default(), &mut |_| {})?;
//! // The null device loses what is written to it, and so it fails.
//! assert!(!report.succeeded());
//! # Ok::<(), halite_hal::Error>(())
//! ```
//!
//! 1. A [`Target`] says how the device is opened, and what else can be done with it.
//! 2. [`run`] goes through the groups of [`catalogue`], each test on a thread of its own with a time limit.
//! 3. The [`Report`] tells each test's [`Verdict`]. *Unsupported* is what the device does not claim: the suite decides
//!    that from the claims and checks that the device says so. *Expected failures* are listed by the user, with a
//!    reason; one that passes fails the run, so that the list shrinks.
//!
//! | file | holds |
//! | --- | --- |
//! | `target.rs` | the device under test |
//! | `run.rs`, `context.rs` | running tests, and what a test is given |
//! | `outcome.rs`, `report.rs`, `expected.rs` | how a test ends, what is reported, what is expected to fail |
//! | `program.rs` | test programs in the formats that devices take |
//! | `model.rs` | programs of random commands, beside a model on the host |
//! | `groups/` | the tests, one group a file |

#[macro_use]
mod outcome;
mod context;
mod expected;
mod groups;
mod model;
mod program;
mod random;
mod report;
mod run;
mod target;

pub use context::Context;
pub use expected::{ExpectedError, ExpectedFailure, ExpectedFailures};
pub use outcome::{Outcome, Stop};
pub use program::Program;
pub use random::Random;
pub use report::{Counts, GroupResult, Report, TestResult, Verdict};
pub use run::{Entry, Options, Progress, catalogue, run};
pub use target::{Opener, PluginAccess, Target};

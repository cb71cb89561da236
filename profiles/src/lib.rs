//! YAML device profiles: schema, matching, inheritance.
//!
//! A profile *chooses* among what a device was probed to have; it never asserts a capability. A
//! [`ProfileSet`] holds the built-in profiles and, if asked, the user's; [`ProfileSet::select`] finds the
//! one for a device, and [`Profile::choose`] names the kernel variant and its sizes for an op.
//!
//! ```
//! use halite_profiles::{Candidate, DeviceFacts, ProfileSet};
//!
//! let facts = DeviceFacts { backend: "cpu".into(), device_name: "any".into(), ..DeviceFacts::default() };
//! let profile = ProfileSet::builtin().select(&facts)?;
//! let candidates = [
//!     Candidate { variant: "avx2", requires: &["avx2", "fma"] },
//!     Candidate { variant: "portable", requires: &[] },
//! ];
//! let choice = profile.choose("dot_general", &candidates, &facts.features, &[("m", 64)])?;
//! assert_eq!(choice.variant, "portable");
//! assert_eq!(choice.parameters.tile().map(<[u32]>::len), Some(3));
//! # Ok::<(), halite_profiles::Error>(())
//! ```
//!
//! Every value knows the file and line it came from, through inheritance, and every error is one line:
//! `FILE:LINE: what was wrong; what to do`.
//!
//! The [`machine`] module holds a second schema, the description of the NPU that the emulator models.

#![forbid(unsafe_code)]

mod choose;
mod condition;
mod error;
mod hash;
mod location;
pub mod machine;
mod profile;
mod render;
mod schema;
mod search;
mod suggest;
pub mod units;
mod yaml;

pub use choose::{Candidate, Choice, Skip};
pub use condition::{Condition, ConditionError, EvaluateError};
pub use error::{Error, Result};
pub use location::Location;
pub use machine::Machine;
pub use profile::{DeviceFacts, Profile};
pub use render::LeafValue;
pub use schema::{Fallback, KernelEntry, MemoryPolicy, Parameters, PoolLimit};
pub use search::{PROFILE_PATH_VARIABLE, ProfileSet, SearchPath};

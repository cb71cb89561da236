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
//! # The schema
//!
//! Only `name` is required. Unknown keys and wrong units are errors.
//!
//! ```yaml
//! name: adreno-750
//! extends: opencl-mobile         # its values are inherited key by key; an op's list is replaced whole
//! match:                         # all that is given must hold; without `match`, the profile is chosen by name
//!   backend: opencl
//!   device: "Adreno.*750"        # a regular expression, found anywhere in the name; so is `vendor`
//!   driver: "535.104"            # the driver's version, whole
//!   compute_units: 6             # as the driver counts them
//!   features: [fp16]             # each must be present
//!   priority: 1                  # before the number of criteria; 0 if not given
//! peak: { f32: 2.77 TFLOP/s, i8: 11 TOP/s, memory: 77 GB/s }  # dense; tf32: f32 that may round to TF32
//! source: "where the figures come from"
//! kernels:
//!   dot_general:                 # the first entry that fits wins
//!     - { variant: tiled_vec4, when: "m >= 64 and n % 4 == 0", tile: [64, 64, 16], threads: [8, 16] }
//!     - { variant: tiled, tile: [32, 32, 8] }  # further keys: chunk, stages, split_k, unroll; those that it reads
//! memory: { local_staging: false, host_visible: true, pool_limit: 60% }  # or bytes: 2 GiB
//! accumulate: { f16: f32 }
//! fallback: { unsupported: cpu } # or: error
//! ```
//!
//! Every value knows the file and line it came from, through inheritance, and every error is one line:
//! `FILE:LINE: what was wrong; what to do`.
//!
//! The [`machine`] module holds a second schema, the description of the NPU that the emulator models.

#![forbid(unsafe_code)]

mod builtin;
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
mod set;
mod size;
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
pub use search::{PROFILE_PATH_VARIABLE, SearchPath};
pub use set::ProfileSet;
pub use size::Size;

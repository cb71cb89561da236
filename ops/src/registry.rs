//! The record of every op: what it accepts, how it is called, how it fails, and how far a device may be off.
//!
//! Tests, support tables and the check of a device of your own are generated from it:
//!
//! ```no_run
//! # fn check(engine: halite_ops::Engine) {
//! use halite_ops::registry;
//! for record in registry::ops() {
//!     for sample in &record.samples {
//!         for dtype in record.dtypes.iter().copied().filter(|&dtype| sample.accepts(dtype)) {
//!             if let Err(mismatch) = registry::check_on(&engine, &record, sample, dtype) {
//!                 println!("{} {dtype}, {}: {mismatch}", record.name, sample.name);
//!             }
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! The definition of each op is [`reference`](crate::reference), its derivative `derivative.rs`; a record adds what
//! is needed to try both. Values are drawn from fixed seeds, so a failure repeats.

mod check;
mod contraction;
mod creation;
mod elementwise;
mod movement;
mod reduce;
mod sample;
mod window;

pub use check::{Mismatch, check_on, compare};
pub use sample::{Call, Input, InputDType, Sample, Values};

use crate::{DType, Engine, Result, Tensor};
use std::fmt;
use std::sync::Arc;

/// Every dtype that holds floats.
const FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

/// What the layer knows about an op.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpRecord {
    /// The op's name: that of the primitive, or of the composed method.
    pub name: &'static str,
    /// Whether devices have kernels for it, rather than for what it is composed of.
    pub is_primitive: bool,
    /// Dtypes that the samples may be called with.
    pub dtypes: Vec<DType>,
    /// Whether gradients flow through it (floats alone have any).
    pub is_differentiable: bool,
    /// Calls that work.
    pub samples: Vec<Sample>,
    /// Calls that must be refused.
    pub errors: Vec<ErrorCase>,
    tolerance: fn(DType) -> Tolerance,
}

impl OpRecord {
    fn new(name: &'static str, dtypes: impl IntoIterator<Item = DType>) -> Self {
        Self {
            name,
            is_primitive: true,
            dtypes: dtypes.into_iter().collect(),
            is_differentiable: true,
            samples: Vec::new(),
            errors: Vec::new(),
            tolerance: rounded,
        }
    }

    fn composed(mut self) -> Self {
        self.is_primitive = false;
        self
    }

    fn not_differentiable(mut self) -> Self {
        self.is_differentiable = false;
        self
    }

    fn tolerance_of(mut self, tolerance: fn(DType) -> Tolerance) -> Self {
        self.tolerance = tolerance;
        self
    }

    fn samples(mut self, samples: impl IntoIterator<Item = Sample>) -> Self {
        self.samples.extend(samples);
        self
    }

    fn errors(mut self, errors: impl IntoIterator<Item = ErrorCase>) -> Self {
        self.errors.extend(errors);
        self
    }

    /// How far a device's result of `dtype` may be from the reference.
    pub fn tolerance(&self, dtype: DType) -> Tolerance {
        (self.tolerance)(dtype)
    }
}

/// How far a result may be from its reference: `atol + rtol * |reference|`. Integers and `bool` are exact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub atol: f64,
    /// Part relative to the reference.
    pub rtol: f64,
    /// Why these numbers.
    pub reason: &'static str,
}

impl Tolerance {
    const EXACT: Self = Self { atol: 0.0, rtol: 0.0, reason: "integers and bool are exact" };
}

/// A call that must be refused when it is made.
#[derive(Clone)]
#[non_exhaustive]
pub struct ErrorCase {
    /// What is wrong with the call.
    pub name: &'static str,
    /// Each stands in the message.
    pub message_contains: Vec<&'static str>,
    /// The source file that the message names as the caller's.
    pub source_file: &'static str,
    build: Arc<Refused>,
}

type Refused = dyn Fn(&Engine) -> Result<Tensor> + Send + Sync;

impl ErrorCase {
    fn new(
        name: &'static str,
        source_file: &'static str,
        message_contains: &[&'static str],
        build: impl Fn(&Engine) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        Self { name, message_contains: message_contains.to_vec(), source_file, build: Arc::new(build) }
    }

    /// Makes the call.
    ///
    /// # Errors
    /// Always, unless the layer has a bug.
    pub fn call(&self, engine: &Engine) -> Result<Tensor> {
        (self.build)(engine)
    }
}

impl fmt::Debug for ErrorCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrorCase({}: {})", self.name, self.message_contains.join(", "))
    }
}

/// The record of every op, primitives by family first.
pub fn ops() -> Vec<OpRecord> {
    [
        elementwise::records(),
        movement::records(),
        reduce::records(),
        contraction::records(),
        window::records(),
        creation::records(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Half a unit in the last place of `dtype`, relative: the error of one correctly rounded operation.
fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::F32 => 2f64.powi(-24),
        _ => 2f64.powi(-53),
    }
}

/// Half the smallest positive number of `dtype`, subnormals included.
fn underflow(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-25),
        DType::BF16 => 2f64.powi(-134),
        DType::F32 => 2f64.powi(-150),
        _ => 0.0,
    }
}

/// One correctly rounded operation: movement, arithmetic, comparisons and the like.
fn rounded(dtype: DType) -> Tolerance {
    if !dtype.is_float() {
        return Tolerance::EXACT;
    }
    let reason = "one operation, correctly rounded: half a unit in the last place";
    // The reference itself is rounded to f64.
    let slack = if dtype == DType::F64 { 2.0 } else { 1.0 + 1e-6 };
    Tolerance { atol: underflow(dtype), rtol: slack * unit_roundoff(dtype), reason }
}

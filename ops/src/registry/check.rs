//! Compares a device's result with the reference.

use super::{OpRecord, Sample, Tolerance};
use crate::cluster::Literal;
use crate::reference::{HostTensor, evaluate};
use crate::{DType, Engine, Error};

/// How a device fails a sample.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// The device has no kernel for it, and its engine no fallback.
    #[error("{0}")]
    NoKernel(Error),
    /// The call or its evaluation failed.
    #[error("{0}")]
    Failed(Error),
    /// The result has another shape or dtype.
    #[error("is {got}, expected {expected}")]
    Type {
        /// Dtype and shape of the result.
        got: String,
        /// Dtype and shape of the reference.
        expected: String,
    },
    /// An element is too far off.
    #[error(
        "element {index} of {shape:?} is {got}, expected {expected} within {} + {} * |expected| ({})",
        .tolerance.atol, .tolerance.rtol, .tolerance.reason
    )]
    Value {
        /// The element, row-major.
        index: usize,
        /// Shape of the result.
        shape: Vec<usize>,
        /// The device's value.
        got: f64,
        /// The reference's value.
        expected: f64,
        /// What was allowed.
        tolerance: Tolerance,
    },
}

impl From<Error> for Mismatch {
    fn from(error: Error) -> Self {
        match error {
            Error::NoKernel { .. } => Self::NoKernel(error),
            error => Self::Failed(error),
        }
    }
}

/// Runs one sample on a device and compares every element with the reference.
///
/// To learn whether the device's own kernels did it, look at [`Engine::stats`]: its fallbacks are counted.
///
/// # Errors
/// The first difference, or what kept the sample from being computed.
pub fn check_on(
    engine: &Engine,
    record: &OpRecord,
    sample: &Sample,
    dtype: DType,
) -> std::result::Result<(), Mismatch> {
    let inputs = sample.inputs_on(engine, dtype)?;
    let output = sample.call(engine, dtype, &inputs)?;
    let given: Vec<_> = inputs.iter().zip(sample.host_inputs(dtype)).collect();
    let expected = evaluate(&[&output], &given)?.swap_remove(0);
    let got = HostTensor::new(output.dtype(), output.shape(), output.to_f64()?);
    compare(&got, &expected, record.tolerance(output.dtype()))
}

/// Whether every element of `got` is within `tolerance` of `expected`. NaN equals NaN, infinities equal themselves,
/// and a reference beyond the dtype's range equals the infinity that it rounds to.
///
/// # Errors
/// The first difference.
pub fn compare(
    got: &HostTensor,
    expected: &HostTensor,
    tolerance: Tolerance,
) -> std::result::Result<(), Mismatch> {
    let kind = |tensor: &HostTensor| format!("{} {:?}", tensor.dtype, tensor.shape);
    if (got.dtype, &got.shape, got.data.len()) != (expected.dtype, &expected.shape, expected.data.len()) {
        return Err(Mismatch::Type { got: kind(got), expected: kind(expected) });
    }
    for (index, (&got_value, &value)) in got.data.iter().zip(&expected.data).enumerate() {
        if !is_close(got.dtype, got_value, value, tolerance) {
            return Err(Mismatch::Value {
                index,
                shape: got.shape.clone(),
                got: got_value,
                expected: value,
                tolerance,
            });
        }
    }
    Ok(())
}

fn is_close(dtype: DType, got: f64, expected: f64, tolerance: Tolerance) -> bool {
    if expected.is_nan() || got.is_nan() {
        return expected.is_nan() && got.is_nan();
    }
    if got.is_infinite() || expected.is_infinite() {
        // The tolerance may carry a finite reference over the border of the range.
        let outward = expected + (tolerance.atol + tolerance.rtol * expected.abs()).copysign(expected);
        return got == expected || (got.is_infinite() && got == Literal::new(dtype, outward).to_f64());
    }
    (got - expected).abs() <= tolerance.atol + tolerance.rtol * expected.abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOSE: Tolerance = Tolerance { atol: 0.1, rtol: 0.0, reason: "of the test" };

    fn vector(dtype: DType, data: &[f64]) -> HostTensor {
        HostTensor::new(dtype, &[data.len()], data.to_vec())
    }

    #[test]
    fn nan_and_infinities_equal_themselves_alone() {
        let special = vector(DType::F32, &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        assert!(compare(&special, &special, LOOSE).is_ok());
        let zeros = vector(DType::F32, &[0.0; 3]);
        assert!(matches!(compare(&zeros, &special, LOOSE), Err(Mismatch::Value { index: 0, .. })));
        assert!(compare(&special, &zeros, LOOSE).is_err());
    }

    #[test]
    fn a_reference_beyond_the_range_equals_infinity() {
        let infinite = vector(DType::F16, &[f64::INFINITY]);
        assert!(compare(&infinite, &vector(DType::F16, &[1e6]), LOOSE).is_ok());
        assert!(compare(&infinite, &vector(DType::F16, &[1e3]), LOOSE).is_err());
        assert!(compare(&infinite, &vector(DType::F16, &[-1e6]), LOOSE).is_err());
    }

    #[test]
    fn the_first_element_out_of_tolerance_is_named() {
        let result = compare(&vector(DType::F32, &[1.0, 2.2]), &vector(DType::F32, &[1.05, 2.0]), LOOSE);
        assert!(matches!(result, Err(Mismatch::Value { index: 1, .. })));
    }
}

//! Steps of the digits' network, each from the CPU's weights: loss and every gradient.

use super::{Notes, fallbacks};
use crate::demo::digits::Digits;
use crate::demo::network::{Cnn, CnnConfig};
use crate::{DType, Engine, Error, Session, Tensor};

const STEPS: usize = 50;
const BATCH: usize = 32;
/// Type of storage, and the relative difference that it explains: sums of up to 2,048 products in another order, and
/// rounding of what lies between layers.
const STORAGE: [(DType, f64); 2] = [(DType::F32, 1e-4), (DType::F16, 1e-2)];

pub(super) fn run(session: &Session, engine: &Engine, notes: &mut Notes<'_>) {
    let before = fallbacks(engine);
    for (storage, rtol) in STORAGE {
        if let Err(error) = compare(session, engine, storage, rtol, notes) {
            notes.fail(&format!("training in {storage}"), error);
        }
    }
    let on_fallback = fallbacks(engine) - before;
    notes.result.on_fallback += on_fallback as usize;
    if on_fallback > 0 {
        let message =
            format!("{on_fallback} operations ran on another device, so the steps say little of this one");
        notes.fail("training without a fallback", message);
    }
}

fn compare(
    session: &Session,
    engine: &Engine,
    storage: DType,
    rtol: f64,
    notes: &mut Notes<'_>,
) -> Result<(), Error> {
    let config = CnnConfig { storage, ..CnnConfig::DIGITS };
    let mut cpu = Cnn::new(&session.open("cpu")?, config, 11)?;
    let mut other = Cnn::new(engine, config, 11)?;
    let digits = Digits::builtin()
        .map_err(|error| halite_hal::Error::invalid(format!("the built-in digits are damaged: {error}")))?;
    let batches = (0..).flat_map(|epoch| digits.train().epoch(BATCH, 7, epoch).collect::<Vec<_>>());
    for (step, batch) in batches.take(STEPS).enumerate() {
        notes.begin(&format!("{storage}, step {step}"));
        let (images, labels) = cpu.upload(&batch)?;
        let (loss, gradients) = cpu.loss_and_gradients(&images, &labels)?;
        let expected = values(&loss, &gradients)?;
        let weights = cpu.parameters().iter().map(|weight| weight.to(other.engine()));
        let weights: Vec<Tensor> = weights.collect::<Result<_, _>>()?;
        other.set_parameters(weights);
        let (own_images, own_labels) = other.upload(&batch)?;
        let (loss, gradients) = other.loss_and_gradients(&own_images, &own_labels)?;
        for (number, (got, expected)) in values(&loss, &gradients)?.iter().zip(&expected).enumerate() {
            let what = if number == 0 { "loss".to_owned() } else { format!("gradient {}", number - 1) };
            let difference = relative_difference(got, expected);
            let outcome = if difference <= rtol {
                Ok(())
            } else {
                Err(format!("differs from the CPU's by {difference:e}, expected at most {rtol:e}"))
            };
            notes.judge(&format!("{storage}, step {step}, {what}"), outcome);
        }
        cpu.train(&images, &labels, 5e-3)?;
    }
    Ok(())
}

fn values(loss: &Tensor, gradients: &[Tensor]) -> Result<Vec<Vec<f64>>, Error> {
    Ok(std::iter::once(loss).chain(gradients).map(Tensor::to_f64).collect::<Result<_, _>>()?)
}

/// `|got - expected| / |expected|` in the Euclidean norm; NaN where either has one, 0 for two zeros.
fn relative_difference(got: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    if difference == 0.0 { 0.0 } else { difference / norm(&mut expected.iter().copied()) }
}

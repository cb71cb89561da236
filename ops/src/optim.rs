//! Optimisers: lazy update rules, evaluated together with whatever else is wanted.

use crate::{DType, Error, Result, Tensor};
use halite_hal::Scalar;

/// Stochastic gradient descent with optional momentum: `v = momentum * v + g`, `w = w - learning_rate * v`.
#[derive(Debug, Clone)]
pub struct Sgd {
    /// Step length; may be changed between steps without planning anew.
    pub learning_rate: f64,
    /// Share of the last velocity that is kept.
    pub momentum: f64,
    velocity: Vec<Tensor>,
}

impl Sgd {
    /// Plain descent without momentum.
    pub fn new(learning_rate: f64) -> Self {
        Self { learning_rate, momentum: 0.0, velocity: Vec::new() }
    }

    /// Replaces `parameters` by their (lazy) successors. Evaluate them together with the loss: their old memory is
    /// then reused for the new values.
    ///
    /// # Errors
    /// `Shape` when the gradients are not as many as the parameters, or of other shapes.
    #[track_caller]
    pub fn step(&mut self, parameters: &mut [Tensor], gradients: &[Tensor]) -> Result<()> {
        check(parameters, gradients)?;
        let Some(first) = parameters.first() else { return Ok(()) };
        let rate = first.engine().runtime_scalar(Scalar::F32(self.learning_rate as f32))?;
        if self.momentum != 0.0 && self.velocity.len() != parameters.len() {
            self.velocity = settled_zeros(parameters)?;
        }
        for (i, (parameter, gradient)) in parameters.iter_mut().zip(gradients).enumerate() {
            let gradient = gradient.cast(DType::F32)?;
            let direction = match self.velocity.get_mut(i) {
                Some(velocity) if self.momentum != 0.0 => {
                    *velocity = velocity.mul(self.momentum)?.add(&gradient)?;
                    velocity.clone()
                }
                _ => gradient,
            };
            let updated = parameter.cast(DType::F32)?.sub(&direction.mul(&rate)?)?;
            *parameter = updated.cast(parameter.dtype())?;
        }
        Ok(())
    }

    /// State tensors that should be evaluated together with the parameters.
    pub fn state(&self) -> impl Iterator<Item = &Tensor> {
        self.velocity.iter()
    }
}

/// Adam. Moments and updates are kept in f32 whatever the parameters' dtype.
///
/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `w = w - learning_rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)`.
///
/// Source: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
#[derive(Debug, Clone)]
pub struct Adam {
    /// Step length; may be changed between steps without planning anew.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the divisor away from 0.
    pub epsilon: f64,
    steps: u32,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
}

impl Adam {
    /// With the paper's defaults: 0.9, 0.999, 1e-8.
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            steps: 0,
            first: Vec::new(),
            second: Vec::new(),
        }
    }

    /// Replaces `parameters` by their (lazy) successors. Evaluate them together with the loss and [`state`](Self::state):
    /// their old memory is then reused for the new values.
    ///
    /// # Errors
    /// `Shape` when the gradients are not as many as the parameters, or of other shapes.
    #[track_caller]
    pub fn step(&mut self, parameters: &mut [Tensor], gradients: &[Tensor]) -> Result<()> {
        check(parameters, gradients)?;
        let Some(first) = parameters.first() else { return Ok(()) };
        let engine = first.engine().clone();
        if self.first.len() != parameters.len() {
            (self.first, self.second) = (settled_zeros(parameters)?, settled_zeros(parameters)?);
            self.steps = 0;
        }
        self.steps = self.steps.saturating_add(1);
        let correction = |beta: f64| 1.0 - beta.powf(f64::from(self.steps));
        // w - rate * (m / c1) / (sqrt(v / c2) + eps), with the corrections as run-time scalars.
        let rate = self.learning_rate / correction(self.beta1);
        let rate = engine.runtime_scalar(Scalar::F32(rate as f32))?;
        let scale = engine.runtime_scalar(Scalar::F32((1.0 / correction(self.beta2)) as f32))?;
        for (i, (parameter, gradient)) in parameters.iter_mut().zip(gradients).enumerate() {
            let gradient = gradient.cast(DType::F32)?;
            let m = self.first[i].mul(self.beta1)?.add(&gradient.mul(1.0 - self.beta1)?)?;
            let v = self.second[i].mul(self.beta2)?.add(&gradient.mul(&gradient)?.mul(1.0 - self.beta2)?)?;
            let divisor = v.mul(&scale)?.sqrt()?.add(self.epsilon)?;
            let updated = parameter.cast(DType::F32)?.sub(&m.mul(&rate)?.div(&divisor)?)?;
            *parameter = updated.cast(parameter.dtype())?;
            (self.first[i], self.second[i]) = (m, v);
        }
        Ok(())
    }

    /// State tensors that should be evaluated together with the parameters.
    pub fn state(&self) -> impl Iterator<Item = &Tensor> {
        self.first.iter().chain(&self.second)
    }
}

fn settled_zeros(parameters: &[Tensor]) -> Result<Vec<Tensor>> {
    let zeros = |parameter: &Tensor| {
        let data = vec![0f32; parameter.elements()];
        parameter.engine().tensor(&data, parameter.shape())
    };
    parameters.iter().map(zeros).collect()
}

#[track_caller]
fn check(parameters: &[Tensor], gradients: &[Tensor]) -> Result<()> {
    if parameters.len() != gradients.len() {
        let message =
            format!("{} parameters need as many gradients, got {}", parameters.len(), gradients.len());
        return Err(Error::shape("optimiser step", message));
    }
    for (i, (parameter, gradient)) in parameters.iter().zip(gradients).enumerate() {
        if parameter.shape() != gradient.shape() {
            let message = format!(
                "parameter {i} has shape {:?}, its gradient {:?}",
                parameter.shape(),
                gradient.shape()
            );
            return Err(Error::shape("optimiser step", message));
        }
    }
    Ok(())
}

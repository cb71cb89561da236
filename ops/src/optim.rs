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
    /// then reused for the new values, so an evaluation that fails halfway through the update loses old and
    /// new ones (see [`Tensor`]). Parameters of other shapes than at the last step, or on another device, start with
    /// no velocity.
    ///
    /// # Errors
    /// `Shape` when the gradients are not as many as the parameters, or of other shapes; `Placement` when they are on
    /// another device; the device's failure to hold the velocity. Nothing is replaced then.
    #[track_caller]
    pub fn step(&mut self, parameters: &mut [Tensor], gradients: &[Tensor]) -> Result<()> {
        check(parameters, gradients)?;
        let Some(first) = parameters.first() else { return Ok(()) };
        let rate = first.engine().runtime_scalar(Scalar::F32(self.learning_rate as f32))?;
        let has_velocity = self.momentum != 0.0;
        let velocity = if has_velocity { state_for(&self.velocity, parameters)? } else { Vec::new() };
        let (mut updated, mut moved) = (Vec::new(), Vec::new());
        for (i, (parameter, gradient)) in parameters.iter().zip(gradients).enumerate() {
            let mut direction = gradient.cast(DType::F32)?;
            if has_velocity {
                direction = velocity[i].mul(self.momentum)?.add(&direction)?;
                moved.push(direction.clone());
            }
            let next = parameter.cast(DType::F32)?.sub(&direction.mul(&rate)?)?;
            updated.push(next.cast(parameter.dtype())?);
        }
        if has_velocity {
            self.velocity = moved;
        }
        replace(parameters, updated);
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
    /// their old memory is then reused for the new values, so an evaluation that fails halfway through the update loses
    /// old and new ones (see [`Tensor`]). Parameters of other shapes than at the last step, or on another device,
    /// start anew, with the first step.
    ///
    /// # Errors
    /// `Shape` when the gradients are not as many as the parameters, or of other shapes; `Placement` when they are on
    /// another device; the device's failure to hold the moments. Nothing is replaced then, and no step counted.
    #[track_caller]
    pub fn step(&mut self, parameters: &mut [Tensor], gradients: &[Tensor]) -> Result<()> {
        check(parameters, gradients)?;
        let Some(engine) = parameters.first().map(|first| first.engine().clone()) else { return Ok(()) };
        let steps = if fits(&self.first, parameters) { self.steps.saturating_add(1) } else { 1 };
        let first = state_for(&self.first, parameters)?;
        let second = state_for(&self.second, parameters)?;
        let correction = |beta: f64| 1.0 - beta.powf(f64::from(steps));
        // w - rate * (m / c1) / (sqrt(v / c2) + eps), with the corrections as run-time scalars.
        let rate = self.learning_rate / correction(self.beta1);
        let rate = engine.runtime_scalar(Scalar::F32(rate as f32))?;
        let scale = engine.runtime_scalar(Scalar::F32((1.0 / correction(self.beta2)) as f32))?;
        let (mut updated, mut moved) = (Vec::new(), (Vec::new(), Vec::new()));
        for (i, (parameter, gradient)) in parameters.iter().zip(gradients).enumerate() {
            let gradient = gradient.cast(DType::F32)?;
            let m = first[i].mul(self.beta1)?.add(&gradient.mul(1.0 - self.beta1)?)?;
            let v = second[i].mul(self.beta2)?.add(&gradient.mul(&gradient)?.mul(1.0 - self.beta2)?)?;
            let divisor = v.mul(&scale)?.sqrt()?.add(self.epsilon)?;
            let next = parameter.cast(DType::F32)?.sub(&m.mul(&rate)?.div(&divisor)?)?;
            updated.push(next.cast(parameter.dtype())?);
            moved.0.push(m);
            moved.1.push(v);
        }
        (self.first, self.second) = moved;
        self.steps = steps;
        replace(parameters, updated);
        Ok(())
    }

    /// State tensors that should be evaluated together with the parameters.
    pub fn state(&self) -> impl Iterator<Item = &Tensor> {
        self.first.iter().chain(&self.second)
    }
}

/// Whether the state belongs to parameters like these; of another shape it could broadcast.
fn fits(state: &[Tensor], parameters: &[Tensor]) -> bool {
    let of_same_place = |(state, parameter): (&Tensor, &Tensor)| {
        state.shape() == parameter.shape() && state.engine().is_same(parameter.engine())
    };
    state.len() == parameters.len() && state.iter().zip(parameters).all(of_same_place)
}

/// The state, or zeros where it does not fit. Holds handles, which must be gone before the parameters are evaluated.
fn state_for(state: &[Tensor], parameters: &[Tensor]) -> Result<Vec<Tensor>> {
    if fits(state, parameters) {
        return Ok(state.to_vec());
    }
    let zeros = |parameter: &Tensor| parameter.engine().settled_zeros(DType::F32, parameter.shape().to_vec());
    parameters.iter().map(zeros).collect()
}

/// Puts the successors in their places: last of all, so that a failure leaves the old ones.
fn replace(parameters: &mut [Tensor], updated: Vec<Tensor>) {
    for (parameter, updated) in parameters.iter_mut().zip(updated) {
        *parameter = updated;
    }
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

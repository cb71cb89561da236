//! A small regression with the operation in its middle, on every device from the same weights.

use crate::devices::{engines, numbers};
use halite::ops::Result;
use halite::optim::Adam;
use halite::{Engine, Tensor, eval, grad};
use halite_external_op::swish;

const POINTS: usize = 64;
const UNITS: usize = 8;
const STEPS: usize = 120;
/// Sums run in different orders on the devices; the loss falls by orders of magnitude, and with it the absolute size
/// of what is compared.
const RTOL: f64 = 1e-4;

/// `out = sum over units of swish(x * w + c, beta) * v, + d`
struct Network {
    /// w, c, v: [1, UNITS]; beta and d: \[1\].
    parameters: Vec<Tensor>,
}

impl Network {
    fn new(engine: &Engine) -> Result<Self> {
        let row = |seed| engine.tensor(&numbers(UNITS, seed), &[1, UNITS]);
        let single = |value: f32| engine.tensor(&[value], &[1]);
        Ok(Self { parameters: vec![row(11)?, row(12)?, row(13)?, single(1.0)?, single(0.0)?] })
    }

    fn loss(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let [w, c, v, beta, d] = &self.parameters[..] else { unreachable!("there are five parameters") };
        let hidden = swish(&x.mul(w)?.add(c)?, beta)?;
        let out = hidden.mul(v)?.sum(&[1])?.add(d)?;
        let error = out.sub(y)?;
        error.mul(&error)?.mean(&[0])
    }
}

/// The loss before each step, and beta at the end.
fn train(engine: &Engine) -> Result<(Vec<f64>, f64)> {
    // No straight line fits this.
    let points = numbers(POINTS, 10);
    let x = engine.tensor(&points, &[POINTS, 1])?;
    let y = engine.tensor(&points.iter().map(|x| (2.0 * x).sin() + x * x).collect::<Vec<_>>(), &[POINTS])?;
    let mut network = Network::new(engine)?;
    let mut adam = Adam::new(0.03);
    let mut losses = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let loss = network.loss(&x, &y)?;
        let gradients = grad(&loss, &network.parameters.iter().collect::<Vec<_>>())?;
        adam.step(&mut network.parameters, &gradients)?;
        drop(gradients);
        let mut wanted: Vec<&Tensor> = network.parameters.iter().chain(adam.state()).collect();
        wanted.push(&loss);
        eval(&wanted)?;
        losses.push(loss.item()?);
    }
    Ok((losses, network.parameters[3].item()?))
}

#[test]
fn training_falls_alike_on_every_device_without_a_fallback() {
    let mut runs = Vec::new();
    for engine in engines() {
        let id = engine.device().id().clone();
        let (losses, beta) = train(&engine).unwrap();
        let (first, last) = (losses[0], losses[STEPS - 1]);
        println!("{id}: loss {first:.6} to {last:.6}, beta {beta:.4}");
        assert!(last < 0.1 * first, "{id}: the loss went from {first} to {last}");
        assert!((beta - 1.0).abs() > 0.01, "{id}: beta {beta} was not learned");
        let stats = engine.stats();
        assert!(stats.fallbacks.is_empty(), "{id}: {:?}", stats.fallbacks);
        assert_eq!(stats.evaluations, STEPS as u64, "{id}");
        assert_eq!(stats.plans_built, 1, "{id}: every step has the same structure");
        runs.push((id, losses));
    }
    let [(_, expected), (id, got)] = &runs[..] else { unreachable!("there are two devices") };
    for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs() / expected;
        assert!(error <= RTOL, "{id}: the loss of step {step} is {got}, the CPU's {expected}");
    }
}

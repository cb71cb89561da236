//! Several engines in one process, and what the fallback of an engine computes.

mod common;

use halite_hal::Scalar;
use halite_ops::optim::Adam;
use halite_ops::reference::evaluate;
use halite_ops::{DType, Engine, Tensor, eval, grad};

#[test]
fn one_evaluation_serves_tensors_of_several_engines() {
    let (one, other) = (common::cpu(), common::cpu());
    let a = one.tensor(&[1f32, 2.0], &[2]).unwrap().mul(2.0).unwrap();
    let b = other.tensor(&[3f32, 4.0], &[2]).unwrap().add(1.0).unwrap();
    eval(&[&a, &b, &a]).unwrap();
    assert!(a.is_settled() && b.is_settled());
    assert_eq!((one.stats().evaluations, other.stats().evaluations), (1, 1));
    let moved = a.to(&other).unwrap();
    assert!(moved.engine().is_same(&other));
    assert_eq!(moved.add(&b).unwrap().to_vec::<f32>().unwrap(), [6.0, 9.0]);
    assert!(a.to(&one).unwrap().is_same(&a));
}

#[test]
fn a_detached_tensor_has_the_value_and_no_history() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    let y = x.mul(3.0).unwrap();
    let detached = y.detach().unwrap();
    assert!(!detached.is_same(&y));
    // Both handles share one memory, which an update of either must leave alone.
    let next = detached.mul(2.0).unwrap();
    drop(detached);
    eval(&[&next]).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 6.0]);
    assert_eq!(next.to_vec::<f32>().unwrap(), [6.0, 12.0]);
}

#[test]
fn an_engine_lives_as_long_as_its_tensors() {
    let x = {
        let engine = common::cpu();
        engine.tensor(&[1f32, 2.0], &[2]).unwrap().exp().unwrap()
    };
    assert_eq!(x.to_f64().unwrap().len(), 2);
}

#[test]
fn a_graph_of_foreign_dtypes_runs_in_part_on_the_fallback_device() {
    let engine = common::npu();
    // f64 is no dtype of the NPU; what comes before and after is.
    let build = |x: &Tensor, rate: &Tensor| {
        let own = x.mul(rate)?.add(1.0)?;
        let foreign = own.cast(DType::F64)?.mul(0.5)?.exp()?;
        let sum = foreign.sum(&[1])?;
        sum.cast(DType::F32)?.mul(rate)
    };
    for step in 1..4 {
        let x = engine.tensor(&[0.5f32, 1.0, -1.0, 2.0, 0.0, 0.25], &[2, 3]).unwrap();
        let rate = engine.runtime_scalar(Scalar::F32(step as f32 * 0.5)).unwrap();
        let y = build(&x, &rate).unwrap();
        let expected = evaluate(&[&y], &[]).unwrap().swap_remove(0);
        for (got, expected) in y.to_f64().unwrap().iter().zip(expected.data) {
            assert!((got - expected).abs() < 1e-5 * expected.abs(), "{got} {expected}");
        }
    }
    let stats = engine.stats();
    assert_eq!(stats.plans_built, 1);
    assert!(!stats.fallbacks.is_empty());
    for fallback in &stats.fallbacks {
        assert!(fallback.reason.contains("f64") && fallback.count % 3 == 0, "{fallback:?}");
    }
}

/// A step of training a small network on both devices, from the same start.
fn losses(engine: &Engine, steps: usize) -> Vec<f64> {
    let image: Vec<f32> = (0..4 * 36).map(|i| ((i * 7 % 13) as f32 - 6.0) / 6.0).collect();
    let images = engine.tensor(&image, &[4, 1, 6, 6]).unwrap();
    let labels = engine.tensor(&[0i32, 1, 2, 1], &[4]).unwrap();
    let weights = |elements: usize, shape: &[usize]| {
        let data: Vec<f32> = (0..elements).map(|i| ((i * 5 % 11) as f32 - 5.0) / 12.0).collect();
        engine.tensor(&data, shape).unwrap()
    };
    let mut parameters =
        [weights(18, &[2, 1, 3, 3]), weights(2, &[2]), weights(24, &[8, 3]), weights(3, &[3])];
    let mut adam = Adam::new(0.02);
    let mut losses = Vec::new();
    for _ in 0..steps {
        let [filter, bias, dense, offset] = &parameters;
        let bias = bias.reshape(&[1, 2, 1, 1]).unwrap();
        let features = images.conv2d(filter, 0).unwrap().add(&bias).unwrap().relu().unwrap();
        let pooled = features.max_pool2d(2).unwrap().reshape(&[4, 8]).unwrap();
        let logits = pooled.matmul(dense).unwrap().add(offset).unwrap();
        let loss = logits.cross_entropy(&labels).unwrap();
        let gradients = grad(&loss, &parameters.iter().collect::<Vec<_>>()).unwrap();
        adam.step(&mut parameters, &gradients).unwrap();
        let mut wanted = vec![&loss];
        wanted.extend(&parameters);
        wanted.extend(adam.state());
        eval(&wanted).unwrap();
        losses.push(loss.item().unwrap());
    }
    losses
}

#[test]
fn training_gives_the_same_losses_on_the_cpu_and_the_npu() {
    const STEPS: usize = 12;
    let cpu = common::cpu();
    let expected = losses(&cpu, STEPS);
    assert!(expected[STEPS - 1] < 0.8 * expected[0], "{expected:?}");
    assert_eq!(cpu.stats().plans_built, 1);
    let npu = common::npu();
    let got = losses(&npu, STEPS);
    for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
        // Both accumulate in f32, in other orders; Adam divides by the root of small squares.
        assert!((got - expected).abs() < 1e-3 * expected.abs(), "step {step}: {got}, expected {expected}");
    }
    let stats = npu.stats();
    assert_eq!((stats.plans_built, stats.fallbacks), (1, vec![]));
}

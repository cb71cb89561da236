//! Derivatives against central differences in f64, and on devices against the reference.

use crate::devices::{engines, numbers};
use halite::ops::reference::{self, HostTensor};
use halite::{DType, Engine, Tensor, grad};
use halite_external_op::{Swish, swish};
use std::sync::Arc;

/// Step of central differences: their truncation error (about STEP^2) and their rounding error (about 2^-52 / STEP)
/// are both below 1e-9 here, where all numbers are near 1.
const STEP: f64 = 1e-5;
const RTOL: f64 = 1e-7;
/// A handful of operations in f32, each with an error of half a unit in the last place, and sums over 11 elements.
const DEVICE_RTOL: f64 = 1e-5;

/// A loss with different weights for each element, so that no gradient is a plain sum.
fn loss(op: &Arc<Swish>, x: &Tensor, beta: &Tensor) -> Tensor {
    let weights = x.engine().tensor(&numbers(x.elements(), 5), x.shape()).unwrap();
    op.call(x, beta).unwrap().mul(&weights).unwrap().sum_all().unwrap()
}

/// Sum of the gradient's squares: a loss whose gradient needs the second derivative.
fn steepness(op: &Arc<Swish>, x: &Tensor, beta: &Tensor) -> Tensor {
    let parts = grad(&loss(op, x, beta), &[x, beta]).unwrap();
    let squares = parts.iter().map(|part| part.mul(part).unwrap().sum_all().unwrap());
    squares.reduce(|sum, part| sum.add(&part).unwrap()).unwrap()
}

fn close(got: f64, expected: f64, rtol: f64) -> bool {
    (got - expected).abs() <= rtol * expected.abs().max(1.0)
}

/// Compares the gradient of `function`, as a graph, with central differences of its value.
fn check(engine: &Engine, len: usize, function: fn(&Arc<Swish>, &Tensor, &Tensor) -> Tensor) {
    for gain in [1.0, -0.75] {
        check_op(engine, len, &|x, beta| function(&Swish::new(gain), x, beta));
    }
}

fn check_op(engine: &Engine, len: usize, function: &dyn Fn(&Tensor, &Tensor) -> Tensor) {
    let host = |data: &[f32], shape: &[usize]| {
        HostTensor::new(DType::F32, shape, data.iter().copied().map(f64::from).collect())
    };
    let points = [(numbers(len, 3), vec![len]), (vec![1.25], vec![1])];
    let leaves: Vec<Tensor> =
        points.iter().map(|(data, shape)| engine.tensor(data, shape).unwrap()).collect();
    let value = function(&leaves[0], &leaves[1]);
    let gradients = grad(&value, &[&leaves[0], &leaves[1]]).unwrap();
    let exact = reference::evaluate(&gradients.iter().collect::<Vec<_>>(), &[]).unwrap();
    // What a device has computed is a constant from then on, so it comes last.
    let mut differences = vec![Vec::new(); points.len()];
    for (which, (data, shape)) in points.iter().enumerate() {
        for i in 0..data.len() {
            let at = |step: f64| {
                let mut moved = host(data, shape);
                moved.data[i] += step;
                reference::evaluate(&[&value], &[(&leaves[which], moved)]).unwrap()[0].data[0]
            };
            differences[which].push((at(STEP) - at(-STEP)) / (2.0 * STEP));
        }
    }
    let id = engine.device().id();
    for (which, gradient) in gradients.iter().enumerate() {
        for (i, got) in gradient.to_f64().unwrap().into_iter().enumerate() {
            let (exact, difference) = (exact[which].data[i], differences[which][i]);
            assert!(close(exact, difference, RTOL), "input {which}[{i}]: {exact}, expected {difference}");
            assert!(close(got, exact, DEVICE_RTOL), "{id}: input {which}[{i}]: {got}, expected {exact}");
        }
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for engine in engines() {
        for len in [1, 2, 11] {
            check(&engine, len, loss);
        }
    }
}

#[test]
fn gradients_of_gradients_agree_with_central_differences() {
    for engine in engines() {
        for len in [1, 11] {
            check(&engine, len, steepness);
        }
    }
}

#[test]
fn gradients_stay_finite_where_exp_overflows() {
    for engine in engines() {
        let x = engine.tensor(&[-1000.0f32, 1000.0], &[2]).unwrap();
        let beta = engine.tensor(&[1.0f32], &[1]).unwrap();
        let parts = grad(&swish(&x, &beta).unwrap().sum_all().unwrap(), &[&x, &beta]).unwrap();
        assert_eq!(parts[0].to_vec::<f32>().unwrap(), [0.0, 1.0]);
        assert_eq!(parts[1].to_vec::<f32>().unwrap(), [0.0]);
    }
}

//! Results against the reference, and calls that do not fit.

use crate::devices::{engines, numbers};
use halite::ops::reference;
use halite::{DType, Engine, Tensor};
use halite_external_op::{Swish, swish};
use std::sync::Arc;

/// The argument of exp has a relative error of 2^-24 or two, which |beta * x| <= 24 multiplies; exp, the sum and the
/// quotient add some units in the last place.
const RTOL: f64 = 60.0 * f32::EPSILON as f64 / 2.0;
/// Where exp overflows f32 the result is 0; the true one is at most 89 / f32::MAX.
const ATOL: f64 = 3e-37;

fn assert_close(engine: &Engine, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let close = got == expected
            || got.is_nan() && expected.is_nan()
            || (got - expected).abs() <= ATOL + RTOL * expected.abs();
        assert!(close, "{}: element {i} is {got}, expected {expected}", engine.device().id());
    }
}

fn check(engine: &Engine, x: &Tensor, beta: f32) {
    check_op(engine, x, beta, &Swish::new(1.0));
}

fn check_op(engine: &Engine, x: &Tensor, beta: f32, op: &Arc<Swish>) {
    let beta = engine.tensor(&[beta], &[]).unwrap();
    let out = op.call(x, &beta).unwrap();
    let expected = reference::evaluate(&[&out], &[]).unwrap().remove(0);
    assert_eq!(out.shape(), x.shape());
    assert_close(engine, &out.to_f64().unwrap(), &expected.data);
}

#[test]
fn values_agree_with_the_reference_at_every_size() {
    for engine in engines() {
        // Nothing, one, primes, a whole tile, several tiles, and more tiles than the NPU has cores in two rounds.
        for len in [0, 1, 7, 1009, 4096, 3 * 4096 + 5, 120 * 4096 + 3] {
            let x: Vec<f32> = numbers(len, 1).iter().map(|x| 8.0 * x).collect();
            check(&engine, &engine.tensor(&x, &[len]).unwrap(), 1.5);
        }
        assert!(engine.stats().fallbacks.is_empty(), "{:?}", engine.stats().fallbacks);
    }
}

#[test]
fn every_beta_and_special_numbers_agree_with_the_reference() {
    let x = [0.0, -0.0, 1.0, -1.0, 88.7, -88.7, -89.0, 1e30, -1e30, 1e-40, f32::MAX, f32::MIN];
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for engine in engines() {
        for beta in [1.0, 0.0, -1.0, 0.1] {
            check(&engine, &engine.tensor(&x, &[3, 4]).unwrap(), beta);
            check(&engine, &engine.tensor(&special, &[3]).unwrap(), beta);
        }
    }
}

#[test]
fn every_operation_has_its_own_gain() {
    // The gain is at most 1, so that nothing overflows f32 which the reference in f64 does not.
    let x = [0.0, 1.0, -1.0, 88.7, -88.7, 1e30, 1e-40, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for engine in engines() {
        let x = engine.tensor(&x, &[11]).unwrap();
        let ops = [0.5, -0.75, 0.0].map(Swish::new);
        for op in &ops {
            check_op(&engine, &x, 1.0, op);
            check_op(&engine, &engine.tensor(&numbers(3 * 4096 + 5, 6), &[3 * 4096 + 5]).unwrap(), 1.5, op);
        }
        // Two gains in one evaluation, and the default one beside them.
        let (one, beta) = (engine.tensor(&[3.0f32], &[1]).unwrap(), engine.tensor(&[0.0f32], &[1]).unwrap());
        let mut sum = swish(&one, &beta).unwrap();
        for op in &ops {
            sum = sum.add(&op.call(&one, &beta).unwrap()).unwrap();
        }
        assert_eq!(sum.to_vec::<f32>().unwrap(), [1.5 * (1.0 + 0.5 - 0.75)]);
        assert!(engine.stats().fallbacks.is_empty(), "{:?}", engine.stats().fallbacks);
    }
}

#[test]
fn views_are_read_through() {
    for engine in engines() {
        let x = engine.tensor(&numbers(13 * 17, 2), &[13, 17]).unwrap();
        check(&engine, &x.transpose().unwrap(), 1.0);
        check(&engine, &x.slice(&[12, 1], &[13, 17], &[1, 3]).unwrap(), 1.0);
        check(&engine, &x.narrow(0, 0, 1).unwrap().broadcast_to(&[5, 17]).unwrap(), 1.0);
    }
}

#[test]
fn calls_that_do_not_fit_fail_with_the_operations_own_message_at_the_callers_line() {
    for engine in engines() {
        let x = engine.tensor(&[1.0f32; 4], &[4]).unwrap();
        let pair = engine.tensor(&[1.0f32; 2], &[2]).unwrap();
        let beta = engine.tensor(&[1.0f32], &[1]).unwrap();
        let half = x.cast(DType::F16).unwrap();
        for (x, beta, expected) in [
            (&x, &pair, "swish: beta must have one element, got shape [2]; reduce it first"),
            (&half, &beta, "swish: x and beta must be f32, got f16; cast first"),
        ] {
            let line = line!() + 1;
            let message = swish(x, beta).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.contains(&format!("values.rs:{line}:")), "{message}");
        }
    }
    let [cpu, npu] = engines();
    let (x, beta) = (cpu.tensor(&[1.0f32], &[1]).unwrap(), npu.tensor(&[1.0f32], &[1]).unwrap());
    let message = swish(&x, &beta).unwrap_err().to_string();
    assert!(message.contains("swish: operands are on cpu:0 and npu:0"), "{message}");
}

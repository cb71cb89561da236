//! What a step of an optimiser leaves behind: all of it, or nothing.

mod common;

use halite_hal::ErrorKind;
use halite_ops::optim::{Adam, Sgd};
use halite_ops::{DType, Engine, Error, Result, Tensor, eval};

const VALUES: [f32; 4] = [1.0, -2.0, 0.5, 3.0];

fn vector(engine: &Engine, elements: usize) -> Tensor {
    engine.tensor(&VALUES[..elements], &[elements]).unwrap()
}

/// Takes a step of an optimiser that is wrapped in a function.
type Step<'a> = &'a mut dyn FnMut(&mut [Tensor], &[Tensor]) -> Result<()>;

/// Each optimiser, with the state that it shows.
fn each(mut test: impl FnMut(&str, Step<'_>)) {
    let (mut adam, mut plain) = (Adam::new(0.1), Sgd::new(0.1));
    let mut momentum = Sgd::new(0.1);
    momentum.momentum = 0.9;
    test("adam", &mut |parameters, gradients| adam.step(parameters, gradients));
    test("sgd", &mut |parameters, gradients| plain.step(parameters, gradients));
    test("sgd with momentum", &mut |parameters, gradients| momentum.step(parameters, gradients));
}

fn steps(step: Step<'_>, engine: &Engine, elements: usize, count: usize) -> Vec<f32> {
    let mut parameters = [vector(engine, elements)];
    for _ in 0..count {
        let gradients = [vector(engine, elements)];
        step(&mut parameters, &gradients).unwrap();
    }
    parameters[0].to_vec().unwrap()
}

/// The same optimisers, new.
fn expected(name: &str, engine: &Engine, elements: usize, count: usize) -> Vec<f32> {
    let mut found = Vec::new();
    each(|own, step| {
        if own == name {
            found = steps(step, engine, elements, count);
        }
    });
    found
}

#[test]
fn a_step_that_fails_at_a_later_parameter_changes_nothing() {
    let (engine, other) = (common::cpu(), common::cpu());
    each(|name, step| {
        let own = [vector(&engine, 2), vector(&engine, 3)];
        let mut parameters = own.clone();
        // The second gradient lives elsewhere.
        let error = step(&mut parameters, &[vector(&engine, 2), vector(&other, 3)]).unwrap_err();
        assert!(matches!(error, Error::Placement { .. }), "{name}: {error}");
        for (own, parameter) in own.iter().zip(&parameters) {
            assert!(own.is_same(parameter), "{name}");
        }
        // Neither moments nor the number of steps have moved.
        let mut parameters = own;
        step(&mut parameters, &[vector(&engine, 2), vector(&engine, 3)]).unwrap();
        assert_eq!(parameters[0].to_vec::<f32>().unwrap(), expected(name, &engine, 2, 1), "{name}");
        assert_eq!(parameters[1].to_vec::<f32>().unwrap(), expected(name, &engine, 3, 1), "{name}");
    });
}

#[test]
fn parameters_of_other_shapes_or_of_another_device_start_with_a_new_state() {
    let (engine, other) = (common::cpu(), common::cpu());
    each(|name, step| {
        assert_eq!(steps(step, &engine, 1, 3), expected(name, &engine, 1, 3), "{name}");
        // A state of one element would be broadcast to all four.
        assert_eq!(steps(step, &engine, 4, 2), expected(name, &engine, 4, 2), "{name}");
        assert_eq!(steps(step, &other, 4, 2), expected(name, &engine, 4, 2), "{name}");
    });
}

#[test]
fn a_state_that_no_memory_holds_is_an_error() {
    let engine = common::cpu();
    each(|name, step| {
        for elements in [1 << 40, isize::MAX as usize / 8] {
            let huge = engine.zeros(&[elements], DType::F16).unwrap();
            let mut parameters = [vector(&engine, 2), huge.clone()];
            let outcome = step(&mut parameters, &[vector(&engine, 2), huge.clone()]);
            // Without a state there is nothing to allocate before the evaluation.
            if name == "sgd" {
                outcome.unwrap();
                continue;
            }
            let error = outcome.unwrap_err();
            let Error::Device(device) = &error else { panic!("{name}: {error:?}") };
            let is_memory =
                matches!(device.kind(), ErrorKind::OutOfMemory { .. } | ErrorKind::TooLarge { .. });
            assert!(is_memory, "{name}: {error:?}");
            assert!(parameters[1].is_same(&huge), "{name}");
        }
    });
}

#[test]
fn the_state_of_a_training_loop_is_planned_once() {
    let engine = common::cpu();
    let mut adam = Adam::new(0.1);
    let mut parameters = [vector(&engine, 4)];
    for _ in 0..3 {
        let gradient = parameters[0].mul(2.0).unwrap();
        adam.step(&mut parameters, &[gradient]).unwrap();
        let wanted: Vec<&Tensor> = parameters.iter().chain(adam.state()).collect();
        eval(&wanted).unwrap();
    }
    assert_eq!(engine.stats().plans_built, 1);
}

//! Every derivative of the registry against central differences of the reference in f64, and the derivative of every
//! derivative likewise.

mod common;

use common::Random;
use halite_ops::lower::TensorType;
use halite_ops::reference::{HostTensor, evaluate};
use halite_ops::registry::{self, OpRecord, Sample};
use halite_ops::{CustomOp, DType, Engine, Error, Result, Tensor, grad, vector_jacobian_product};
use std::sync::Arc;

/// Central differences with step h are off by about h^2 times the third derivative (1e-10) and by the rounding of
/// f64 over h (1e-11); both grow with the derivatives of the sample, which are below 1e4.
const RTOL: f64 = 1e-6;
const ATOL: f64 = 1e-6;
/// Step of the differences, relative to the element for large ones.
const STEP: f64 = 1e-5;
/// Inputs with more elements are tried along a few directions in place of every axis.
const MAX_ELEMENTS: usize = 48;
const DIRECTIONS: usize = 3;
/// Samples with more elements in all are long for the sake of kernels; their derivatives are those of the others.
const MAX_TOTAL: usize = 600;

/// A scalar function of some tensors, as a graph.
struct Function<'a> {
    value: &'a Tensor,
    inputs: &'a [Tensor],
}

impl Function<'_> {
    fn at(&self, inputs: &[HostTensor], rest: &[(&Tensor, HostTensor)]) -> f64 {
        let mut given: Vec<_> = self.inputs.iter().zip(inputs.iter().cloned()).collect();
        given.extend(rest.iter().cloned());
        evaluate(&[self.value], &given).unwrap()[0].data[0]
    }

    /// The slope along `direction` of input `index`.
    fn slope(
        &self,
        inputs: &[HostTensor],
        rest: &[(&Tensor, HostTensor)],
        index: usize,
        direction: &[f64],
    ) -> f64 {
        let moved = |step: f64| {
            let mut moved = inputs.to_vec();
            moved[index].data.iter_mut().zip(direction).for_each(|(x, d)| *x += step * d);
            self.at(&moved, rest)
        };
        (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
    }
}

/// Compares `gradients` (of `function`, one per entry of `wrt`) with differences; says what differs.
fn compare(
    function: &Function<'_>,
    wrt: &[usize],
    gradients: &[HostTensor],
    inputs: &[HostTensor],
    rest: &[(&Tensor, HostTensor)],
    random: &mut Random,
) -> Result<(), String> {
    for (&index, gradient) in wrt.iter().zip(gradients) {
        let elements = inputs[index].data.len();
        if gradient.shape != inputs[index].shape {
            return Err(format!("gradient {index} has shape {:?}", gradient.shape));
        }
        let directions: Vec<Vec<f64>> = if elements <= MAX_ELEMENTS {
            let axis = |i: usize| (0..elements).map(|j| f64::from(u8::from(i == j))).collect();
            (0..elements).map(axis).collect()
        } else {
            (0..DIRECTIONS).map(|_| random.vector(elements)).collect()
        };
        for (place, direction) in directions.iter().enumerate() {
            let expected = function.slope(inputs, rest, index, direction);
            let got: f64 = gradient.data.iter().zip(direction).map(|(g, d)| g * d).sum();
            let scale: f64 = expected.abs().max(direction.iter().map(|d| d.abs()).sum());
            let is_close = (got - expected).abs() <= ATOL + RTOL * scale;
            if !is_close {
                return Err(format!(
                    "input {index}, direction {place}: derivative {got}, differences {expected}"
                ));
            }
        }
    }
    Ok(())
}

/// A tensor of the engine whose value the test overrides.
fn placeholder(engine: &Engine, shape: &[usize]) -> Tensor {
    let elements = shape.iter().product();
    engine.tensor(&vec![0f64; elements], shape).unwrap()
}

/// Those of `wrt` that the output depends on. Any other reason for which a gradient cannot be formed is a failure.
fn reached(output: &Tensor, inputs: &[Tensor], wrt: &[usize]) -> Result<Vec<usize>, String> {
    let mut reached = Vec::new();
    for &index in wrt {
        match vector_jacobian_product(output, &output.full_like(1.0), &[&inputs[index]]) {
            Ok(_) => reached.push(index),
            Err(Error::Gradient { message, .. }) if message.contains("does not depend on") => {}
            Err(error) => return Err(format!("input {index}: {error}")),
        }
    }
    Ok(reached)
}

/// Where no path leads from an input to the value, differences must vanish.
fn vanish(
    function: &Function<'_>,
    wrt: impl Iterator<Item = usize>,
    hosts: &[HostTensor],
    rest: &[(&Tensor, HostTensor)],
    random: &mut Random,
) -> Result<(), String> {
    for index in wrt {
        let shape = &hosts[index].shape;
        let zeros = HostTensor::new(DType::F64, shape, vec![0.0; hosts[index].data.len()]);
        compare(function, &[index], &[zeros], hosts, rest, random)
            .map_err(|what| format!("cut off: {what}"))?;
    }
    Ok(())
}

fn check(engine: &Engine, record: &OpRecord, sample: &Sample) -> Result<(), String> {
    let mut random = Random(7);
    let dtype = if record.dtypes.contains(&DType::F64) { DType::F64 } else { DType::F32 };
    let message = |error: halite_ops::Error| error.to_string();
    let inputs = sample.inputs_on(engine, dtype).map_err(message)?;
    let hosts = sample.host_inputs(dtype);
    let output = sample.call(engine, dtype, &inputs).map_err(message)?;
    let floats: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype().is_float()).collect();
    let wrt = reached(&output, &inputs, &floats)?;
    if wrt.is_empty() {
        return Err("no input has a gradient".to_owned());
    }
    let wrt_tensors: Vec<&Tensor> = wrt.iter().map(|&index| &inputs[index]).collect();

    // First derivatives: of the sum of the output, weighted by a random cotangent.
    let output = output.cast(DType::F64).map_err(message)?;
    let cotangent = placeholder(engine, output.shape());
    let weights = HostTensor::new(DType::F64, output.shape(), random.vector(output.elements()));
    let first = vector_jacobian_product(&output, &cotangent, &wrt_tensors).map_err(message)?;
    let loss = output.mul(&cotangent).and_then(|product| product.sum_all()).map_err(message)?;
    let mut rest = vec![(&cotangent, weights)];
    let given: Vec<_> = inputs.iter().zip(hosts.iter().cloned()).chain(rest.iter().cloned()).collect();
    let values = evaluate(&first.iter().collect::<Vec<_>>(), &given).map_err(message)?;
    let function = Function { value: &loss, inputs: &inputs };
    compare(&function, &wrt, &values, &hosts, &rest, &mut random)?;
    let others = floats.iter().copied().filter(|index| !wrt.contains(index));
    vanish(&function, others, &hosts, &rest, &mut random)?;

    // Second derivatives: of the sum of the first ones, weighted again.
    let weights: Vec<Tensor> = first.iter().map(|gradient| placeholder(engine, gradient.shape())).collect();
    let mut slope: Option<Tensor> = None;
    for (gradient, weight) in first.iter().zip(&weights) {
        let part = gradient
            .cast(DType::F64)
            .and_then(|gradient| gradient.mul(weight))
            .and_then(|product| product.sum_all())
            .map_err(message)?;
        slope = Some(match slope {
            Some(sum) => sum.add(&part).map_err(message)?,
            None => part,
        });
        rest.push((weight, HostTensor::new(DType::F64, weight.shape(), random.vector(weight.elements()))));
    }
    let slope = slope.expect("wrt is not empty");
    // A linear op's derivative does not depend on its inputs any more.
    let of = reached(&slope, &inputs, &wrt).map_err(|what| format!("second: {what}"))?;
    let of_tensors: Vec<&Tensor> = of.iter().map(|&index| &inputs[index]).collect();
    let second = vector_jacobian_product(&slope, &slope.full_like(1.0), &of_tensors).map_err(message)?;
    let given: Vec<_> = inputs.iter().zip(hosts.iter().cloned()).chain(rest.iter().cloned()).collect();
    let values = evaluate(&second.iter().collect::<Vec<_>>(), &given).map_err(message)?;
    let function = Function { value: &slope, inputs: &inputs };
    let others = floats.iter().copied().filter(|index| !of.contains(index));
    compare(&function, &of, &values, &hosts, &rest, &mut random)
        .and_then(|()| vanish(&function, others, &hosts, &rest, &mut random))
        .map_err(|what| format!("second: {what}"))?;
    Ok(())
}

#[test]
fn first_and_second_derivatives_agree_with_central_differences() {
    let engine = common::cpu();
    let (mut tried, mut failures) = (0, Vec::new());
    for record in registry::ops().iter().filter(|record| record.is_differentiable) {
        for sample in record.samples.iter().filter(|sample| sample.has_gradient && sample.accepts(DType::F64))
        {
            let elements = |input: &registry::Input| input.shape.iter().product::<usize>();
            if sample.inputs.iter().map(elements).sum::<usize>() > MAX_TOTAL {
                continue;
            }
            tried += 1;
            if let Err(message) = check(&engine, record, sample) {
                failures.push(format!("{}, {}: {message}", record.name, sample.name));
            }
        }
    }
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    assert!(failures.is_empty(), "{} of {tried} samples fail", failures.len());
    assert!(tried > 300, "only {tried} samples have gradients");
}

/// The gradient of `loss` with respect to a vector with these elements, in the reference.
fn gradient_at(at: &[f64], loss: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f64> {
    let engine = common::cpu();
    let x = engine.tensor(at, &[at.len()]).unwrap();
    let loss = loss(&x).unwrap();
    let gradient = grad(&loss, &[&x]).unwrap().swap_remove(0);
    evaluate(&[&gradient], &[]).unwrap().swap_remove(0).data
}

#[test]
fn the_gradient_of_a_largest_element_is_shared_evenly_among_equals() {
    assert_eq!(gradient_at(&[2.0, 2.0, 1.0, 2.0], |x| x.max(&[0])), [1.0 / 3.0, 1.0 / 3.0, 0.0, 1.0 / 3.0]);
    assert_eq!(gradient_at(&[2.0, 1.0, 1.0], |x| x.min(&[0])), [0.0, 0.5, 0.5]);
}

#[test]
fn the_gradient_of_the_larger_of_two_equals_is_shared_evenly() {
    assert_eq!(gradient_at(&[1.0, 2.0, 3.0], |x| x.maximum(2.0)?.sum_all()), [0.0, 0.5, 1.0]);
    assert_eq!(gradient_at(&[1.0, 2.0, 3.0], |x| x.minimum(2.0)?.sum_all()), [1.0, 0.5, 0.0]);
}

#[test]
fn the_gradient_of_relu_at_zero_is_zero() {
    assert_eq!(gradient_at(&[-1.0, 0.0, 2.0], |x| x.relu()?.sum_all()), [0.0, 0.0, 1.0]);
}

#[test]
fn the_first_of_equals_in_a_window_gets_the_whole_gradient() {
    let gradient = gradient_at(&[3.0, 3.0, 1.0, 5.0], |x| {
        let windows = halite_ops::WindowAttributes {
            input: vec![4],
            window: vec![2],
            stride: vec![2],
            pad_low: vec![0],
            pad_high: vec![0],
        };
        x.window_max(&windows)?.sum_all()
    });
    assert_eq!(gradient, [1.0, 0.0, 0.0, 1.0]);
}

#[test]
fn powers_have_finite_derivatives_of_every_order_at_zero() {
    assert_eq!(gradient_at(&[0.0, 3.0], |x| x.pow(0.0)?.sum_all()), [0.0, 0.0]);
    assert_eq!(gradient_at(&[0.0, 3.0], |x| x.pow(1.0)?.sum_all()), [1.0, 1.0]);
    let second = gradient_at(&[0.0, 3.0], |x| {
        let first = grad(&x.pow(2.0)?.sum_all()?, &[x])?.swap_remove(0);
        first.sum_all()
    });
    assert_eq!(second, [2.0, 2.0]);
    let third = gradient_at(&[0.0, 3.0], |x| {
        let first = grad(&x.pow(2.0)?.sum_all()?, &[x])?.swap_remove(0);
        grad(&first.sum_all()?, &[x])?.swap_remove(0).sum_all()
    });
    assert_eq!(third, [0.0, 0.0]);
    // 2^x at x = 0, and 0^x, which is flat for positive x; then how their slope changes with the base.
    assert_eq!(gradient_at(&[0.0], |x| x.full_like(2.0).pow(x)?.sum_all()), [2f64.ln()]);
    assert_eq!(gradient_at(&[1.0], |x| x.full_like(0.0).pow(x)?.sum_all()), [0.0]);
    let mixed = gradient_at(&[0.0], |base| {
        let exponent = base.add(2.0)?.stop_gradient().mul(1.0)?;
        let slope = grad(&base.pow(&exponent)?.sum_all()?, &[&exponent])?.swap_remove(0);
        slope.sum_all()
    });
    assert_eq!(mixed, [0.0]);
}

#[test]
fn no_gradient_flows_through_a_stopped_value() {
    assert_eq!(gradient_at(&[2.0, 3.0], |x| x.mul(&x.stop_gradient())?.sum_all()), [2.0, 3.0]);
}

/// An operation without a derivative worth the name.
struct Broken;

impl CustomOp for Broken {
    fn name(&self) -> &str {
        "gradients.broken"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType, String> {
        Ok(inputs[0].clone())
    }

    fn derivative(&self, inputs: &[Tensor], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(inputs[0].sum_all()?); inputs.len()])
    }

    fn reference(&self, inputs: &[HostTensor]) -> Result<HostTensor, String> {
        Ok(inputs[0].clone())
    }
}

#[test]
fn an_input_is_left_out_only_where_the_output_does_not_depend_on_it() {
    let engine = common::cpu();
    let [x, other] = [1f64, 2.0].map(|value| engine.tensor(&[value, value], &[2]).unwrap());
    let y = x.exp().unwrap();
    assert_eq!(reached(&y, &[other, x.clone()], &[0, 1]), Ok(vec![1]));
    let broken = Tensor::call(Arc::new(Broken), &[&x]).unwrap();
    let message = reached(&broken, &[x], &[0]).unwrap_err();
    assert!(message.contains("the derivative of gradients.broken"), "{message}");
}

#[test]
fn a_tensor_that_was_evaluated_is_a_constant_and_says_so() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    let loss = x.mul(&x).unwrap().sum_all().unwrap();
    assert_eq!(loss.item().unwrap(), 5.0);
    let message = grad(&loss, &[&x]).unwrap_err().to_string();
    assert!(message.contains("evaluated before") && message.contains("reference_gradients.rs"), "{message}");
}

#[test]
fn a_tensor_used_many_times_gets_the_sum_of_its_gradients() {
    let gradient = gradient_at(&[3.0], |x| {
        let mut sum = x.clone();
        for _ in 0..9 {
            sum = sum.add(x)?;
        }
        sum.mul(x)?.sum_all()
    });
    assert_eq!(gradient, [60.0]);
}

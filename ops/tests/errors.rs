//! Calls that must be refused: what the message says, and whose line it names.

mod common;

use halite_ops::lower::TensorType;
use halite_ops::optim::{Adam, Sgd};
use halite_ops::reference::HostTensor;
use halite_ops::registry;
use halite_ops::{
    ConvOptions, CustomOp, DType, Error, Tensor, WindowAttributes, grad, vector_jacobian_product,
};
use std::sync::Arc;

#[test]
fn every_error_case_is_refused_with_op_shapes_and_the_callers_file() {
    let engine = common::cpu();
    let (mut tried, mut failures) = (0, Vec::new());
    for record in registry::ops() {
        for case in &record.errors {
            tried += 1;
            let call = format!("{}, {}", record.name, case.name);
            let error = match case.call(&engine) {
                Ok(tensor) => {
                    failures.push(format!("{call}: gave {tensor:?}"));
                    continue;
                }
                Err(error) => error,
            };
            let message = error.to_string();
            let missing: Vec<_> =
                case.message_contains.iter().filter(|part| !message.contains(**part)).collect();
            if !missing.is_empty() || !message.starts_with(case.source_file) || !error.is_usage() {
                failures.push(format!(
                    "{call}: '{message}' misses {missing:?} or is not of {}",
                    case.source_file
                ));
            }
        }
    }
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    assert!(failures.is_empty(), "{} of {tried} error cases fail", failures.len());
    assert!(tried > 60, "only {tried} error cases");
}

/// Each public method that can refuse, called from here: the message must name this file and the line of the call.
#[test]
fn messages_name_the_line_of_the_call() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0, 3.0], &[3]).unwrap();
    let y = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    let integers = engine.tensor(&[1i32, 2, 3], &[3]).unwrap();
    let images = engine.zeros(&[1, 1, 4, 4], DType::F32).unwrap();
    let windows = WindowAttributes {
        input: vec![7],
        window: vec![2],
        stride: vec![2],
        pad_low: vec![0],
        pad_high: vec![0],
    };
    let dilated = ConvOptions { dilation: vec![usize::MAX; 2], ..ConvOptions::padded(2, 0) };
    let grouped = ConvOptions { groups: usize::MAX, ..ConvOptions::padded(2, 0) };
    let still = WindowAttributes { stride: vec![1, 0], ..wide(2, 2) };
    let mut parameters = [x.clone()];
    macro_rules! refused {
        ($call:expr) => {
            let error: Error = ($call).map(drop).expect_err(stringify!($call));
            assert_names_line(&error, line!(), stringify!($call));
        };
    }
    refused!(x.add(&y));
    refused!(x.add(&integers));
    refused!(integers.exp());
    refused!(x.not());
    refused!(x.lt(&y));
    refused!(x.select(&x, &x));
    refused!(integers.relu());
    refused!(x.bitcast(DType::F16));
    refused!(x.reshape(&[2]));
    refused!(x.permute(&[1]));
    refused!(x.transpose());
    refused!(x.broadcast_to(&[4]));
    refused!(x.slice(&[0], &[9], &[1]));
    refused!(x.narrow(0, 0, 9));
    refused!(x.narrow(3, 0, 1));
    refused!(x.flip(&[1]));
    refused!(x.pad(&[-9], &[0], &[0], 0.0));
    refused!(x.pad(&[i64::MIN], &[i64::MAX], &[0], 0.0));
    refused!(x.pad(&[i64::MIN], &[i64::MIN], &[usize::MAX], 0.0));
    refused!(x.sum(&[1]));
    refused!(x.mean(&[1]));
    refused!(integers.mean(&[0]));
    refused!(x.max(&[0, 0]));
    refused!(x.min(&[1]));
    refused!(x.argmax(1));
    refused!(x.log_softmax(1));
    refused!(x.cross_entropy(&integers));
    refused!(x.matmul(&y));
    refused!(x.dot_general(&y, &Default::default(), DType::I32));
    refused!(images.conv2d(&images.reshape(&[1, 4, 2, 2]).unwrap(), 0));
    refused!(images.conv(&images, &ConvOptions::padded(1, 0)));
    refused!(images.conv2d(&images, 1 << 40));
    refused!(images.conv2d(&images, usize::MAX));
    refused!(images.conv(&images, &dilated));
    refused!(images.conv(&images, &grouped));
    refused!(x.window_max(&windows));
    refused!(x.window_sum(&wide(usize::MAX, 1)));
    refused!(images.window_max(&wide(1 << 40, 2)));
    refused!(images.window_max(&still));
    refused!(Tensor::call(Arc::new(Endless), &[&x]));
    refused!(x.window_sum(&windows));
    refused!(x.max_pool2d(2));
    refused!(x.mean_pool2d(2));
    refused!(images.max_pool2d(0));
    refused!(x.to_vec::<f64>());
    refused!(x.item());
    refused!(engine.tensor(&[1f32], &[2]));
    refused!(engine.full(&[usize::MAX, 8], DType::F32, 0.0));
    refused!(engine.iota(&[3], 0, DType::F32));
    refused!(engine.random_bits(&[usize::MAX, 8], 0, 0));
    refused!(engine.uniform(&[usize::MAX, 8], 0.0, 1.0, 0, 0));
    refused!(grad(&x, &[&x]));
    refused!(grad(&integers.sum_all().unwrap(), &[&x]));
    refused!(grad(&x.sum_all().unwrap(), &[&y]));
    // Undoing the cut would need more than the address space.
    let cut = x.pad(&[-(i64::MAX / 8)], &[i64::MAX / 8], &[0], 0.0).unwrap();
    refused!(vector_jacobian_product(&cut, &x, &[&x]));
    refused!(vector_jacobian_product(&x.exp().unwrap(), &y, &[&x]));
    refused!(Sgd::new(0.1).step(&mut parameters, &[]));
    refused!(Adam::new(0.1).step(&mut parameters, std::slice::from_ref(&y)));
}

/// Windows over `axes` axes of `images`, or over `x`, with as much padding as a window of this size may have.
fn wide(window: usize, axes: usize) -> WindowAttributes {
    WindowAttributes {
        input: vec![if axes == 1 { 3 } else { 4 }; axes],
        window: vec![window; axes],
        stride: vec![1; axes],
        pad_low: vec![window - 1; axes],
        pad_high: vec![window - 1; axes],
    }
}

/// An operation that claims a result beyond the address space.
struct Endless;

impl CustomOp for Endless {
    fn name(&self) -> &str {
        "errors.endless"
    }

    fn infer(&self, _inputs: &[TensorType]) -> Result<TensorType, String> {
        Ok(TensorType::new(DType::F32, &[1 << 40, 1 << 40]))
    }

    fn derivative(
        &self,
        inputs: &[Tensor],
        _: &Tensor,
        _: &Tensor,
    ) -> halite_ops::Result<Vec<Option<Tensor>>> {
        Ok(vec![None; inputs.len()])
    }

    fn reference(&self, _inputs: &[HostTensor]) -> Result<HostTensor, String> {
        Err("the result does not fit any memory".to_owned())
    }
}

#[test]
fn steps_and_gaps_with_nothing_behind_them_may_be_any_number() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]).unwrap();
    let step = 1 << 62;
    let corner = x.slice(&[1, 2], &[2, 3], &[step, step]).unwrap();
    let padded = corner.pad(&[1, 0], &[0, 1], &[usize::MAX, usize::MAX], 9.0).unwrap();
    let gradient = grad(&padded.sum_all().unwrap(), &[&x]).unwrap().remove(0);
    assert_eq!(corner.to_vec::<f32>().unwrap(), [6.0]);
    assert_eq!(padded.to_vec::<f32>().unwrap(), [9.0, 9.0, 6.0, 9.0]);
    assert_eq!(gradient.to_vec::<f32>().unwrap(), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
}

fn assert_names_line(error: &Error, line: u32, call: &str) {
    let message = error.to_string();
    let expected = format!("{}:{line}:", file!());
    assert!(message.starts_with(&expected), "{call}: '{message}' does not start with {expected}");
}

#[test]
fn operands_of_two_engines_are_refused_with_both_devices() {
    let (one, other) = (common::cpu(), common::cpu());
    let a = one.tensor(&[1f32], &[1]).unwrap();
    let b = other.tensor(&[1f32], &[1]).unwrap();
    let message = a.add(&b).unwrap_err().to_string();
    assert!(
        message.starts_with(file!()) && message.contains("cpu:0") && message.contains("to()"),
        "{message}"
    );
    let moved = b.to(&one).unwrap();
    assert_eq!(a.add(&moved).unwrap().to_vec::<f32>().unwrap(), [2.0]);
}

#[test]
fn a_refused_call_leaves_nothing_behind() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    let before = engine.stats();
    assert!(x.reshape(&[3]).is_err());
    assert!(Tensor::matmul(&x, &x).is_err());
    assert_eq!(engine.stats(), before);
}

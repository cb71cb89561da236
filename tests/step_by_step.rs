//! Stricter than whole trainings: from the CPU's weights, each device computes the same loss and gradients.

#![allow(missing_docs)]

mod common;

use common::{DEVICES, batches, network, opencl, relative_difference, session, values};
use halite::demo::network::CnnConfig;
use halite::{DType, Tensor};

const STEPS: usize = 50;
/// f32 sums of up to 2,048 products in another order.
const RTOL_F32: f64 = 1e-4;
/// f16 storage between layers, f32 accumulation.
const RTOL_F16: f64 = 1e-2;

fn every_device_agrees_with_the_cpu(storage: DType, rtol: f64) {
    let session = session();
    let config = CnnConfig { storage, ..CnnConfig::DIGITS };
    let mut cpu = network(&session, DEVICES[0], config, 11);
    let devices = DEVICES[1..].iter().map(ToString::to_string).chain(opencl(&session));
    let mut others: Vec<_> =
        devices.map(|device| (device.clone(), network(&session, &device, config, 11))).collect();
    let mut worst = 0f64;
    for (step, batch) in batches(STEPS).iter().enumerate() {
        let (images, labels) = cpu.upload(batch).unwrap();
        let (loss, gradients) = cpu.loss_and_gradients(&images, &labels).unwrap();
        let expected: Vec<Vec<f64>> = std::iter::once(&loss).chain(&gradients).map(values).collect();
        for (device, other) in &mut others {
            let moved = cpu.parameters().iter().map(|p| p.to(other.engine()).unwrap());
            let moved: Vec<Tensor> = moved.collect();
            other.set_parameters(moved);
            let (images, labels) = other.upload(batch).unwrap();
            let (loss, gradients) = other.loss_and_gradients(&images, &labels).unwrap();
            for (index, (tensor, expected)) in
                std::iter::once(&loss).chain(&gradients).zip(&expected).enumerate()
            {
                let difference = relative_difference(&values(tensor), expected);
                worst = worst.max(difference);
                let what = if index == 0 { "loss".to_owned() } else { format!("gradient {}", index - 1) };
                assert!(difference <= rtol, "{device} step {step}: {what} differs by {difference:e}");
            }
        }
        cpu.train(&images, &labels, 5e-3).unwrap();
    }
    println!("{storage}: largest relative difference {worst:e} over {STEPS} steps");
    for (device, other) in &others {
        assert_eq!(other.engine().stats().fallbacks, [], "{device}");
    }
}

#[test]
fn fifty_steps_in_f32() {
    every_device_agrees_with_the_cpu(DType::F32, RTOL_F32);
}

#[test]
fn fifty_steps_with_f16_storage() {
    every_device_agrees_with_the_cpu(DType::F16, RTOL_F16);
}

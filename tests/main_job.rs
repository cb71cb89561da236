//! The main job: what every device must reach on the handwritten digits.

#![allow(missing_docs)]

mod common;

use common::{DEVICES, network, opencl, session};
use halite::demo::digits::Digits;
use halite::demo::network::CnnConfig;
use halite::demo::progress::Progress;
use halite::demo::report::DemoReport;
use halite::demo::run::{Candidate, Options, run};
use halite::{DType, Session};

/// Half a point above what the demo promises would hide a regression; this is the promise itself.
const LEAST_ACCURACY: f64 = 0.97;
/// How far devices may differ: they round differently, and 20 epochs amplify that.
const ACCURACY_SPREAD: f64 = 0.015;
/// First-epoch losses: f32 sums in different orders, over 45 steps that build on one another.
const FIRST_LOSS_RTOL_F32: f64 = 1e-3;
/// The same with f16 storage, whose unit roundoff is 2^-11.
const FIRST_LOSS_RTOL_F16: f64 = 2e-2;

fn train(session: &Session, devices: &[&str], storage: DType, epochs: u32, seed: u64) -> DemoReport {
    let digits = Digits::builtin().unwrap();
    let config = CnnConfig { storage, ..CnnConfig::DIGITS };
    let candidates = devices
        .iter()
        .map(|&device| Candidate {
            id: device.to_owned(),
            name: device.to_owned(),
            open: Box::new(move || Ok(Box::new(network(session, device, config, seed)))),
        })
        .collect();
    let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
    let options = Options { epochs, batch: 32, seed };
    let report = run(options, &digits, candidates, Vec::new(), &Progress::hidden(&names, epochs, 45));
    for device in &report.devices {
        assert_eq!(device.error, None, "{}", device.id);
        assert_eq!(device.fallbacks, [], "{} must run every op itself", device.id);
        assert!(device.launches > 0 && device.peak_memory_bytes > 0);
    }
    report
}

fn assert_close(report: &DemoReport, what: &str, rtol: f64) {
    let reference = report.devices[0].loss[0];
    for device in &report.devices {
        let difference = (device.loss[0] - reference).abs() / reference;
        assert!(
            difference <= rtol,
            "{} {what}: first loss {} against {reference}",
            device.id,
            device.loss[0]
        );
    }
}

/// One test a seed, so that they run side by side and a failure names its seed.
fn every_device_learns_the_digits(seed: u64) {
    let report = train(&session(), &DEVICES, DType::F32, 20, seed);
    let accuracies: Vec<f64> = report.devices.iter().map(|device| device.test_accuracy.unwrap()).collect();
    println!("seed {seed}: accuracies {accuracies:?}");
    let (least, most) =
        accuracies.iter().fold((1.0f64, 0.0f64), |(least, most), &a| (least.min(a), most.max(a)));
    assert!(least >= LEAST_ACCURACY, "seed {seed}: {accuracies:?}");
    assert!(most - least <= ACCURACY_SPREAD, "seed {seed}: {accuracies:?}");
    assert_close(&report, &format!("seed {seed}"), FIRST_LOSS_RTOL_F32);
}

#[test]
fn every_device_learns_the_digits_from_seed_0() {
    every_device_learns_the_digits(0);
}

#[test]
fn every_device_learns_the_digits_from_seed_1() {
    every_device_learns_the_digits(1);
}

#[test]
fn every_device_learns_the_digits_from_seed_2() {
    every_device_learns_the_digits(2);
}

#[test]
fn every_device_learns_the_digits_from_seed_3() {
    every_device_learns_the_digits(3);
}

#[test]
fn every_device_learns_the_digits_from_seed_4() {
    every_device_learns_the_digits(4);
}

#[test]
fn first_epoch_agrees_with_f16_storage() {
    let report = train(&session(), &DEVICES, DType::F16, 1, 0);
    assert_close(&report, "f16", FIRST_LOSS_RTOL_F16);
}

#[test]
fn an_opencl_device_learns_the_digits_as_the_cpu_does() {
    let session = session();
    let Some(device) = opencl(&session) else { return };
    let report = train(&session, &[DEVICES[0], &device], DType::F32, 20, 0);
    assert_close(&report, "opencl", FIRST_LOSS_RTOL_F32);
    let [cpu, opencl] = [0, 1].map(|index: usize| report.devices[index].test_accuracy.unwrap());
    assert!(opencl >= LEAST_ACCURACY && (cpu - opencl).abs() <= ACCURACY_SPREAD, "{cpu} {opencl}");
    let report = train(&session, &[DEVICES[0], &device], DType::F16, 1, 0);
    assert_close(&report, "opencl f16", FIRST_LOSS_RTOL_F16);
}

#[test]
fn initial_weights_are_equal_as_bits_on_every_device() {
    let session = session();
    let bits = |device: &str| -> Vec<Vec<u32>> {
        let network = network(&session, device, CnnConfig::DIGITS, 3);
        let parameters = network.parameters().iter();
        parameters.map(|p| p.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()).collect()
    };
    let reference = bits(DEVICES[0]);
    assert!(reference[0].iter().any(|&bits| bits != 0));
    let others = DEVICES[1..].iter().map(ToString::to_string).chain(opencl(&session));
    for device in others {
        assert!(bits(&device) == reference, "{device}");
    }
}

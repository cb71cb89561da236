//! The training loop of the demo, over anything that can take a step.

use super::digits::{Batch, Digits};
use super::progress::{DeviceProgress, Progress};
use super::report::{DemoReport, DeviceReport, Fallback, UnavailableBackend};
use crate::Error;
use halite_ops::Error as OpsError;
use std::time::{Duration, Instant};

/// Adam's learning rate in the first step; it falls in a straight line to zero after the last one.
///
/// With weights drawn as for rectifiers (He et al., 2015) and batches of 32 this is near the largest rate
/// that trains smoothly, so that 20 epochs are enough.
pub const LEARNING_RATE: f32 = 5e-3;

/// Any failure of a device; its text is shown in one line.
pub type TrainError = Box<dyn std::error::Error + Send + Sync>;

/// A network with its optimiser on one device.
///
/// 1. Made by [`Candidate::open`], with initial weights that follow from the seed alone.
/// 2. [`step`](Self::step) for each batch of an epoch, then [`epoch_loss`](Self::epoch_loss).
/// 3. After the last epoch [`predict`](Self::predict), then [`statistics`](Self::statistics).
///
/// After a failure only [`statistics`](Self::statistics) is called.
pub trait Trainer {
    /// Learns from one batch. May return before the device is done.
    ///
    /// # Errors
    /// What stops the device from training.
    fn step(&mut self, batch: Batch, learning_rate: f32) -> Result<(), TrainError>;

    /// The mean loss of the steps since the last call. Waits for them.
    ///
    /// # Errors
    /// What went wrong in these steps.
    fn epoch_loss(&mut self) -> Result<f64, TrainError>;

    /// The digit that the network sees in each image; the labels of `images` must not be used.
    ///
    /// # Errors
    /// What stops the device from evaluating.
    fn predict(&mut self, images: Batch) -> Result<Vec<i32>, TrainError>;

    /// What the device counted so far.
    fn statistics(&self) -> Statistics;
}

/// What a device counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Most device memory in use at one time.
    pub peak_memory_bytes: u64,
    /// Kernels launched.
    pub launches: u64,
    /// Operations that another device had to run.
    pub fallbacks: Vec<Fallback>,
}

/// Opens a device and makes the network on it.
pub type Open<'a> = Box<dyn FnOnce() -> Result<Box<dyn Trainer + 'a>, TrainError> + 'a>;

/// A device that is to train.
pub struct Candidate<'a> {
    /// Name within this process, such as `cpu:0`.
    pub id: String,
    /// The product's name.
    pub name: String,
    /// Called when the device's turn comes.
    pub open: Open<'a>,
}

/// How to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How often to go through the training images.
    pub epochs: u32,
    /// Images per step.
    pub batch: usize,
    /// Seed of the order of the images; the candidates take theirs from the same one.
    pub seed: u64,
}

/// Trains on each device in turn, so that none takes cores from another's measurement.
///
/// A device that fails stays in the report with its error, and the others go on. All devices see the same
/// batches in the same order.
pub fn run(
    options: Options,
    digits: &Digits,
    candidates: Vec<Candidate<'_>>,
    unavailable: Vec<UnavailableBackend>,
    progress: &Progress,
) -> DemoReport {
    let devices = candidates
        .into_iter()
        .enumerate()
        .map(|(index, candidate)| train(options, digits, candidate, progress.device(index)))
        .collect();
    DemoReport {
        task: "digits".to_owned(),
        train_images: digits.train().len(),
        test_images: digits.test().len(),
        devices,
        unavailable,
    }
}

fn train(
    options: Options,
    digits: &Digits,
    candidate: Candidate<'_>,
    mut progress: DeviceProgress,
) -> DeviceReport {
    let mut report = DeviceReport {
        id: candidate.id,
        name: candidate.name,
        epochs: 0,
        loss: Vec::new(),
        test_accuracy: None,
        images_per_second: None,
        peak_memory_bytes: 0,
        launches: 0,
        fallbacks: Vec::new(),
        error: None,
        is_wrong_input: false,
    };
    progress.start();
    let outcome = (candidate.open)().and_then(|mut trainer| {
        let outcome = learn_and_test(options, digits, trainer.as_mut(), &mut report, &mut progress);
        let statistics = trainer.statistics();
        report.peak_memory_bytes = statistics.peak_memory_bytes;
        report.launches = statistics.launches;
        report.fallbacks = statistics.fallbacks;
        outcome
    });
    match outcome {
        Ok((accuracy, rate)) => progress.finish(accuracy, rate),
        Err(error) => {
            report.is_wrong_input = is_wrong_input(&error);
            let error = error.to_string();
            progress.fail(&error);
            report.error = Some(error);
        }
    }
    report
}

/// Whether the user's profile is at fault: some mistakes in it show only for the sizes at hand.
fn is_wrong_input(error: &TrainError) -> bool {
    let by_profile = |error: &OpsError| matches!(error, OpsError::Profile(_));
    match error.downcast_ref() {
        Some(Error::Profile(_)) => true,
        Some(Error::Ops(error)) => by_profile(error),
        Some(_) => false,
        None => error.downcast_ref().is_some_and(by_profile),
    }
}

/// Returns the test accuracy and the training images per second.
fn learn_and_test(
    options: Options,
    digits: &Digits,
    trainer: &mut dyn Trainer,
    report: &mut DeviceReport,
    progress: &mut DeviceProgress,
) -> Result<(f64, f64), TrainError> {
    let train = digits.train();
    let steps = (train.steps_per_epoch(options.batch) as u64) * u64::from(options.epochs);
    let (mut step, mut images, mut elapsed) = (0_u64, 0_usize, Duration::ZERO);
    for epoch in 0..options.epochs {
        let start = Instant::now();
        for batch in train.epoch(options.batch, options.seed, u64::from(epoch)) {
            let learning_rate = LEARNING_RATE * (1.0 - step as f32 / steps as f32);
            let len = batch.len();
            trainer.step(batch, learning_rate)?;
            step += 1;
            images += len;
            progress.step(len);
        }
        let loss = trainer.epoch_loss()?;
        elapsed += start.elapsed();
        report.images_per_second = Some(images as f64 / elapsed.as_secs_f64().max(f64::EPSILON));
        if !loss.is_finite() {
            return Err(format!("the loss became {loss} in epoch {}; try another seed", epoch + 1).into());
        }
        report.loss.push(loss);
        report.epochs = epoch + 1;
        progress.epoch(loss);
    }

    let test = digits.test();
    let predicted = trainer.predict(test.all())?;
    if predicted.len() != test.len() {
        return Err(format!("{} predictions for {} test images", predicted.len(), test.len()).into());
    }
    let right = predicted.iter().zip(test.labels()).filter(|&(&p, &label)| p == i32::from(label)).count();
    let accuracy = right as f64 / test.len() as f64;
    report.test_accuracy = Some(accuracy);
    Ok((accuracy, report.images_per_second.unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::digits::{CLASSES, PIXELS};
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Learns the mean image of each class: simple, and right often enough to tell labels from noise.
    struct NearestMean {
        sums: Vec<[f64; PIXELS]>,
        counts: [f64; CLASSES],
        losses: Vec<f64>,
        rates: Rc<RefCell<Vec<f32>>>,
        fail_at_step: Option<u64>,
        steps: u64,
    }

    impl NearestMean {
        fn class_of(&self, image: &[f32]) -> i32 {
            let distance = |class: usize| -> f64 {
                let mean = self.sums[class].iter().map(|sum| sum / self.counts[class]);
                image.iter().zip(mean).map(|(&x, mean)| (f64::from(x) - mean).powi(2)).sum()
            };
            (0..CLASSES).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).expect("ten classes") as i32
        }
    }

    impl Trainer for NearestMean {
        fn step(&mut self, batch: Batch, learning_rate: f32) -> Result<(), TrainError> {
            self.rates.borrow_mut().push(learning_rate);
            self.steps += 1;
            if self.fail_at_step == Some(self.steps) {
                return Err("device lost\nin a step".into());
            }
            for (image, &label) in batch.images.chunks(PIXELS).zip(&batch.labels) {
                self.counts[label as usize] += 1.0;
                let sums = &mut self.sums[label as usize];
                sums.iter_mut().zip(image).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            self.losses.push(1.0 / self.steps as f64);
            Ok(())
        }

        fn epoch_loss(&mut self) -> Result<f64, TrainError> {
            let losses = std::mem::take(&mut self.losses);
            Ok(losses.iter().sum::<f64>() / losses.len() as f64)
        }

        fn predict(&mut self, images: Batch) -> Result<Vec<i32>, TrainError> {
            Ok(images.images.chunks(PIXELS).map(|image| self.class_of(image)).collect())
        }

        fn statistics(&self) -> Statistics {
            Statistics { launches: self.steps, ..Statistics::default() }
        }
    }

    fn candidate(id: &str, fail_at_step: Option<u64>) -> (Candidate<'static>, Rc<RefCell<Vec<f32>>>) {
        let rates = Rc::new(RefCell::new(Vec::new()));
        let shared = Rc::clone(&rates);
        let open: Open<'static> = Box::new(move || {
            Ok(Box::new(NearestMean {
                sums: vec![[0.0; PIXELS]; CLASSES],
                counts: [0.0; CLASSES],
                losses: Vec::new(),
                rates: shared,
                fail_at_step,
                steps: 0,
            }))
        });
        (Candidate { id: id.into(), name: "nearest mean".into(), open }, rates)
    }

    fn trained(candidates: Vec<Candidate<'_>>) -> DemoReport {
        let digits = Digits::builtin().unwrap();
        let names: Vec<String> = candidates.iter().map(|candidate| candidate.id.clone()).collect();
        let options = Options { epochs: 3, batch: 32, seed: 5 };
        let progress =
            Progress::hidden(&names, options.epochs, digits.train().steps_per_epoch(options.batch));
        run(options, &digits, candidates, Vec::new(), &progress)
    }

    #[test]
    fn a_learner_reaches_the_accuracy_that_its_method_has() {
        let (one, rates) = candidate("cpu:0", None);
        let report = trained(vec![one]);
        let device = &report.devices[0];
        // Nearest mean recognises about 90 % of these digits; 10 % is what guessing would get.
        assert!((0.85..0.97).contains(&device.test_accuracy.unwrap()), "{:?}", device.test_accuracy);
        assert_eq!((device.epochs, device.loss.len(), device.launches), (3, 3, 135));
        assert!(device.loss[2] < device.loss[0] && device.images_per_second.unwrap() > 0.0);
        assert!(report.succeeded());

        let rates = rates.borrow();
        assert_eq!((rates.len(), rates[0]), (135, LEARNING_RATE));
        assert!(rates.windows(2).all(|pair| pair[1] < pair[0]) && *rates.last().unwrap() > 0.0);
    }

    #[test]
    fn a_device_that_fails_keeps_what_is_known_and_the_others_go_on() {
        let (broken, _) = candidate("npu:0", Some(50));
        let absent = Candidate {
            id: "cuda:0".into(),
            name: "gone".into(),
            open: Box::new(|| Err("no memory left".into())),
        };
        let (healthy, _) = candidate("cpu:0", None);
        let report = trained(vec![broken, absent, healthy]);
        assert!(!report.succeeded());
        let [broken, absent, healthy] = &report.devices[..] else { panic!("three devices") };
        assert_eq!((broken.epochs, broken.loss.len(), broken.launches), (1, 1, 50));
        assert_eq!(broken.test_accuracy, None);
        assert!(broken.images_per_second.is_some());
        assert!(broken.error.as_deref().unwrap().starts_with("device lost"));
        assert_eq!(absent.error.as_deref(), Some("no memory left"));
        assert!(healthy.error.is_none() && healthy.epochs == 3);
    }

    #[test]
    fn a_loss_that_is_no_number_stops_the_device() {
        struct Diverging;
        impl Trainer for Diverging {
            fn step(&mut self, _: Batch, _: f32) -> Result<(), TrainError> {
                Ok(())
            }
            fn epoch_loss(&mut self) -> Result<f64, TrainError> {
                Ok(f64::NAN)
            }
            fn predict(&mut self, _: Batch) -> Result<Vec<i32>, TrainError> {
                unreachable!("a diverged network is not tested")
            }
            fn statistics(&self) -> Statistics {
                Statistics::default()
            }
        }
        let open: Open<'static> = Box::new(|| Ok(Box::new(Diverging)));
        let report = trained(vec![Candidate { id: "cpu:0".into(), name: "diverging".into(), open }]);
        let error = report.devices[0].error.as_deref().unwrap();
        assert_eq!(error, "the loss became NaN in epoch 1; try another seed");
        assert!(!report.to_json().contains("NaN,"));
    }
}

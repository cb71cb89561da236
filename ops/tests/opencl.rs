//! Samples of the registry on the first OpenCL device, against the reference in f64; nothing may fall back.
//!
//! A driver compiles a program for almost every pair of sample and dtype, and that is where the time goes (PoCL 3.1: 0.1
//! to 0.2 s each, half of it for the headers of OpenCL C), so not every pair is tried: see [`dealt`].

mod common;

use halite_ops::registry::{self, OpRecord};
use halite_ops::{DType, Engine};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Failures that are printed; all are counted.
const SHOWN: usize = 40;

/// Set to 1 to try every sample with every dtype.
const EVERYTHING: &str = "HALITE_TEST_EVERYTHING";

/// One sample in so many is tried with f32, whatever its turn is.
const F32_TURNS: usize = 4;

/// Ops that have a sample of a name, if the name tells a kind of shape rather than something of the op's own.
const SHARING_OPS: usize = 10;

/// Threads that try samples, each with an engine of its own: PoCL compiles one program at a time for each context.
const THREADS: usize = 2;

/// A sample of an op, and the dtype that it is tried with.
struct Trial {
    record: usize,
    sample: usize,
    dtype: DType,
}

/// Of each op: every fourth sample with f32, each other dtype with one sample, and each sample that is left with one
/// dtype; the choice is what has been tried least often with samples of the same name, over all ops. At last, what is left
/// of names that ops share and widths of integers and floats: the name tells the kind of shape.
fn dealt(records: &[OpRecord], listed: &[DType]) -> Vec<Trial> {
    let mut times: BTreeMap<(&str, DType), usize> = BTreeMap::new();
    let mut trials: Vec<Trial> = Vec::new();
    for (number, record) in records.iter().enumerate() {
        let (samples, dtypes) = (&record.samples, dtypes_of(record, listed));
        let first = trials.len();
        let mut choose = |trials: &mut Vec<Trial>, pairs: &mut dyn Iterator<Item = (usize, DType)>| {
            let is_met = |sample: usize| trials[first..].iter().any(|trial| trial.sample == sample);
            let accepted = pairs.filter(|&(sample, dtype)| samples[sample].accepts(dtype));
            let rarest = accepted.min_by_key(|&(sample, dtype)| {
                (times.get(&(samples[sample].name.as_str(), dtype)).copied(), is_met(sample))
            });
            if let Some((sample, dtype)) = rarest {
                *times.entry((&samples[sample].name, dtype)).or_default() += 1;
                trials.push(Trial { record: number, sample, dtype });
            }
        };
        if dtypes.contains(&DType::F32) {
            for sample in (0..samples.len()).step_by(F32_TURNS) {
                choose(&mut trials, &mut std::iter::once((sample, DType::F32)));
            }
        }
        for &dtype in &dtypes {
            if !trials[first..].iter().any(|trial| trial.dtype == dtype) {
                choose(&mut trials, &mut (0..samples.len()).map(|sample| (sample, dtype)));
            }
        }
        for sample in 0..samples.len() {
            if !trials[first..].iter().any(|trial| trial.sample == sample) {
                choose(&mut trials, &mut dtypes.iter().map(|&dtype| (sample, dtype)));
            }
        }
    }
    let mut met = kinds(records, &trials);
    let left = everything(records, listed).into_iter();
    trials.extend(left.filter(|trial| kind(records, trial).is_some_and(|kind| met.insert(kind))));
    trials
}

/// The name of a trial's sample, if several ops have samples of that name, and the width of its dtype.
fn kind<'a>(records: &'a [OpRecord], trial: &Trial) -> Option<(&'a str, usize, bool)> {
    let name = &records[trial.record].samples[trial.sample].name;
    let ops = records.iter().filter(|record| record.samples.iter().any(|sample| sample.name == *name));
    (ops.count() >= SHARING_OPS).then_some((name, trial.dtype.size(), trial.dtype.is_float()))
}

fn kinds<'a>(records: &'a [OpRecord], trials: &[Trial]) -> BTreeSet<(&'a str, usize, bool)> {
    trials.iter().filter_map(|trial| kind(records, trial)).collect()
}

/// Every sample with every dtype.
fn everything(records: &[OpRecord], listed: &[DType]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (number, record) in records.iter().enumerate() {
        for dtype in dtypes_of(record, listed) {
            let accepted = record.samples.iter().enumerate().filter(|(_, sample)| sample.accepts(dtype));
            trials.extend(accepted.map(|(sample, _)| Trial { record: number, sample, dtype }));
        }
    }
    trials
}

/// The dtypes of an op that a device lists.
fn dtypes_of(record: &OpRecord, listed: &[DType]) -> Vec<DType> {
    record.dtypes.iter().copied().filter(|dtype| listed.contains(dtype)).collect()
}

#[test]
fn the_opencl_device_agrees_with_the_reference_on_samples_of_every_op() {
    let Some(first) = common::opencl() else { return };
    let info = first.device().info().clone();
    let records = registry::ops();
    let trials = if std::env::var_os(EVERYTHING).is_some_and(|value| value == "1") {
        everything(&records, &info.dtypes)
    } else {
        dealt(&records, &info.dtypes)
    };
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let try_in_turn = |engine: &Engine| {
        while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
            let record = &records[trial.record];
            let sample = &record.samples[trial.sample];
            if let Err(mismatch) = registry::check_on(engine, record, sample, trial.dtype) {
                let failure = format!("{} {}, {}: {mismatch}", record.name, trial.dtype, sample.name);
                failures.lock().expect("no thread panics with it").push(failure);
            }
        }
        engine.stats().fallbacks
    };
    let fallbacks: Vec<_> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS)
            .map(|_| scope.spawn(|| try_in_turn(&common::opencl().expect("a device was opened before"))))
            .collect();
        let mut fallbacks = try_in_turn(&first);
        for other in others {
            fallbacks.extend(other.join().expect("a mismatch is noted, and nothing else fails"));
        }
        fallbacks
    });
    let failures = failures.into_inner().expect("no thread panicked");
    println!("{} ({}): {} samples tried, {} failed", info.id, info.name, trials.len(), failures.len());
    for failure in failures.iter().take(SHOWN) {
        println!("FAILED {failure}");
    }
    assert!(failures.is_empty(), "{} samples fail", failures.len());
    assert!(!trials.is_empty(), "nothing was tried");
    assert!(fallbacks.is_empty(), "the device has no kernel for {fallbacks:?}");
}

#[test]
fn what_is_dealt_meets_every_sample_dtype_and_kind_of_shape() {
    let records = registry::ops();
    let (dealt, all) = (dealt(&records, &DType::ALL), everything(&records, &DType::ALL));
    let samples = |trials: &[Trial]| -> BTreeSet<_> {
        trials.iter().map(|trial| (trial.record, trial.sample)).collect()
    };
    let dtypes = |trials: &[Trial]| -> BTreeSet<_> {
        trials.iter().map(|trial| (trial.record, trial.dtype)).collect()
    };
    assert_eq!(samples(&dealt), samples(&all), "a sample of an op is left out");
    assert_eq!(dtypes(&dealt), dtypes(&all), "a dtype of an op is left out");
    assert_eq!(
        kinds(&records, &dealt),
        kinds(&records, &all),
        "a kind of shape does not meet a kind of dtype"
    );
    assert!(4 * dealt.len() < all.len(), "{} of {} are no selection", dealt.len(), all.len());
    println!("{} of {} samples are dealt", dealt.len(), all.len());
}

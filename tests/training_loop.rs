//! A training loop plans once, and its memory does not grow.

#![allow(missing_docs)]

mod common;

use common::{batches, network, session};
use halite::demo::network::CnnConfig;

const WARM_UP: usize = 50;

// One test, since resident memory is the whole process's.
#[test]
fn thousands_of_steps_share_one_plan_and_a_constant_memory() {
    train("cpu:0", 10_000);
    // An emulated step takes longer.
    train("npu:0", 1_000);
}

fn train(device: &str, steps: usize) {
    let session = session();
    let mut cnn = network(&session, device, CnnConfig::DIGITS, 0);
    let batches = batches(45);
    let mut at_warm_up = None;
    for step in 0..steps {
        let (images, labels) = cnn.upload(&batches[step % batches.len()]).unwrap();
        // The rate changes with every step: it is a run-time scalar and must not plan anew.
        cnn.train(&images, &labels, 1e-3 / (1.0 + step as f64)).unwrap();
        if step == WARM_UP {
            cnn.engine().synchronize().unwrap();
            at_warm_up = Some((cnn.engine().stats(), resident_bytes()));
        }
    }
    cnn.engine().synchronize().unwrap();
    let (before, resident_before) = at_warm_up.unwrap();
    let after = cnn.engine().stats();
    // One plan draws the initial weights, one is the step; up to four steps are in flight at a time.
    assert_eq!((before.plans_built, after.plans_built), (2, 2), "{device}: plans depend on steps or timing");
    assert_eq!(after.evaluations - before.evaluations, (steps - WARM_UP - 1) as u64);
    assert_eq!(after.pool.reserved_bytes, before.pool.reserved_bytes, "{device}: memory grows");
    assert_eq!(after.pool.peak_in_use_bytes, before.pool.peak_in_use_bytes);
    if let (Some(before), Some(after)) = (resident_before, resident_bytes()) {
        // The allocator's own noise; a leak of one graph a step would be hundreds of megabytes.
        const NOISE: u64 = 8 << 20;
        assert!(after <= before + NOISE, "{device}: resident memory grew from {before} to {after} bytes");
    }
}

/// This process's resident memory, where the system tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

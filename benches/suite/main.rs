//! One suite of benchmarks for every device that is found: `cargo bench --bench suite`.
//!
//! | group | what is timed |
//! | --- | --- |
//! | `copy/DEVICE` | copies to the device, from it and within it |
//! | `launch/DEVICE` | kernels that do nothing: one, a hundred, a hundred recorded ones |
//! | `matmul/DEVICE` | square products in f32, with the share of the profile's peak |
//! | `train_step/DEVICE` | the training steps of `benches/peers` |
//!
//! A filter behind `--` chooses some by name: `cargo bench --bench suite -- copy/cpu`. What a device cannot do is
//! skipped with a reason.

#[path = "../common/mod.rs"]
mod common;
mod copy;
mod launch;
mod matmul;
mod train_step;

use criterion::Criterion;
use halite::Session;
use halite::hal::DeviceInfo;
use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

/// What a group comes to.
type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let session = match Session::new() {
        Ok(session) => session,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    let found = session.discover();
    for absent in &found.absent {
        eprintln!("{} is absent: {}", absent.backend, absent.reason);
    }
    for info in &found.devices {
        run(&mut criterion, &session, info, "copy", copy::bench);
        run(&mut criterion, &session, info, "launch", launch::bench);
        run(&mut criterion, &session, info, "matmul", matmul::bench);
        run(&mut criterion, &session, info, "train_step", train_step::bench);
    }
    criterion.final_summary();
    ExitCode::SUCCESS
}

/// Runs one group on one device; a failure ends the group and is shown.
fn run(
    criterion: &mut Criterion,
    session: &Session,
    info: &DeviceInfo,
    group: &str,
    bench: fn(&mut Criterion, &Session, &DeviceInfo, &str) -> Outcome,
) {
    let name = format!("{group}/{}", info.id);
    if let Err(error) = bench(criterion, session, info, &name) {
        skip(&name, error);
    }
}

fn skip(name: &str, reason: impl Display) {
    eprintln!("{name} is skipped: {reason}");
}

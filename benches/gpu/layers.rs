//! What layers cost: launches of a kernel that does nothing, and the training step, with none and inside of each that is
//! meant to stay on.
//!
//! A device without layers is the backend's own object, with nothing around it; the same side twice shows what a
//! difference of nothing looks like on this machine.

use crate::common::{CASES, TrainStep};
use crate::race::Side;
use crate::report::{Pair, Report, Work};
use crate::{Outcome, Subject, failure, launch};
use halite::hal::{Arg, Device, Layer, MemoryKind};
use halite::layers::trace::TraceLayer;
use halite::layers::validate::Validate;
use halite::{Engine, Session};

/// Launches in a row.
const ROW: usize = 100;
/// Speed of the training step over that without the layer: a twentieth more time, and twice the time.
const TRACE_REQUIRED: f64 = 1.0 / 1.05;
const VALIDATE_REQUIRED: f64 = 1.0 / 2.0;
/// Steps before a measurement: plans are made, and both sets of weights have had their turn.
const WARM_UP_STEPS: u64 = 8;

pub(crate) fn bench(subject: &Subject, report: &mut Report) -> Outcome {
    let session = Session::builder().without_environment().build()?;
    let open = || session.open_device(&subject.info.id.to_string());
    let folder = std::env::temp_dir().join(format!("halite-bench-{}.json", std::process::id()));
    let trace = TraceLayer::to_file(&folder);
    // A benchmark that breaks rules would measure reports.
    let validate = Validate::on_finding(|finding| panic!("{finding}"));
    let devices = [
        ("no layer", open()?),
        ("no layer, again", open()?),
        ("trace", trace.wrap(open()?)?),
        ("validate", validate.wrap(open()?)?),
    ];
    launches(subject, report, &devices)?;
    for case in &CASES {
        let mut steps = Vec::new();
        for (name, device) in &devices {
            let profile = session.profile_of(device.info())?;
            let engine = Engine::new(device.clone(), profile, session.catalog().clone(), None)?;
            let mut step = TrainStep::new(&engine, case)?;
            step.run(WARM_UP_STEPS)?;
            steps.push((*name, step));
        }
        let sides =
            steps.iter_mut().map(|(name, step)| Side::new(*name, |count| Ok(step.run(count)?))).collect();
        let required = [None, Some(TRACE_REQUIRED), Some(VALIDATE_REQUIRED)];
        report.measure(
            &format!("training step {}", case.name),
            sides,
            &[Work::Times(1.0); 4],
            &pairs(required),
        )?;
        for (name, step) in &mut steps {
            let loss = step.mean_loss()?;
            if !loss.is_finite() {
                return Err(failure(format!("{name}: the loss became {loss}: these steps trained nothing")));
            }
        }
    }
    drop(devices);
    let _ = std::fs::remove_file(&folder);
    Ok(())
}

/// Every side next to the first.
fn pairs(required: [Option<f64>; 3]) -> Vec<Pair> {
    (1..).zip(required).map(|(ours, required)| Pair { ours, peer: Some(0), required }).collect()
}

fn launches(subject: &Subject, report: &mut Report, devices: &[(&str, Device)]) -> Outcome {
    let Some(source) = launch::source(subject) else {
        report.note("launches are left out: there is no kernel in this device's formats");
        return Ok(());
    };
    let mut sides = Vec::new();
    for (name, device) in devices {
        let (stream, kernel) = (device.create_stream()?, device.load(&source)?);
        let args = [Arg::Buffer(device.allocate(launch::BUFFER_BYTES as u64, MemoryKind::Device)?.all())];
        sides.push(Side::new(*name, move |count| {
            launch::timed(count, || {
                (0..ROW).try_for_each(|_| stream.launch(&kernel, [1, 1, 1], &args))?;
                Ok(stream.synchronize()?)
            })
        }));
    }
    let works = [Work::Times(ROW as f64); 4];
    report.measure(&format!("{ROW} launches, one wait; each"), sides, &works, &pairs([None; 3]))
}

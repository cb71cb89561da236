//! The training step of `benches/peers`, recorded once and replayed.

use crate::common::{CASES, TrainStep};
use crate::race::Side;
use crate::report::{Pair, Report, Work};
use crate::{Outcome, Subject, failure, graphs};

/// Steps before a measurement: both sets of weights have had their turn, and so have their graphs.
const WARM_UP_STEPS: u64 = 8;

pub(crate) fn bench(subject: &Subject, report: &mut Report) -> Outcome {
    for case in &CASES {
        let mut step = TrainStep::new(&subject.engine, case)?;
        let before = graphs::counts();
        step.run(WARM_UP_STEPS)?;
        let launches = subject.engine.stats().launches;
        step.run(1)?;
        let launches = subject.engine.stats().launches - launches;
        let after = graphs::counts();
        let side = Side::new(format!("{launches} launches"), |count| Ok(step.run(count)?));
        report.measure(
            &format!("training step {}", case.name),
            vec![side],
            &[Work::Times(1.0)],
            &[Pair::first(&[], None)],
        )?;
        let loss = step.mean_loss()?;
        if !loss.is_finite() {
            return Err(failure(format!(
                "{}: the loss became {loss}: these steps trained nothing",
                case.name
            )));
        }
        if subject.is_cuda() {
            let (built, refused) = (after.0 - before.0, after.1 - before.1);
            report.note(match (built, refused) {
                (0, 0) => format!("{}: replayed launch by launch", case.name),
                (built, 0) => format!("{}: replayed as native CUDA graphs ({built} built)", case.name),
                (_, refused) => format!("{}: {refused} lists could not become CUDA graphs", case.name),
            });
        }
    }
    for fallback in subject.engine.stats().fallbacks {
        report.note(format!("{} ran on the CPU {} times: {}", fallback.op, fallback.count, fallback.reason));
    }
    Ok(())
}

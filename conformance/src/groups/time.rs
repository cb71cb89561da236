//! Device time: never backwards, parts that add up, and no more than the wall's.

use super::Tests;
use crate::context::{Context, ends};
use crate::outcome::{Outcome, Stop, unsupported};
use halite_hal::{ErrorKind, Event, Stream};
use std::time::{Duration, Instant};

/// Readings of a clock are rounded one by one; clocks of devices and hosts do not run alike.
const SLACK: Duration = Duration::from_millis(2);

pub(super) fn tests(tests: &mut Tests) {
    tests.add("same-event-is-no-time", "an event is no time away from itself", |context| {
        let event = marks(context, &context.stream()?, 1)?.remove(0);
        ensure_eq!(elapsed(&event, &event)?, Duration::ZERO, "the time");
        Ok(())
    });
    tests.add(
        "other-order-is-no-time",
        "the time to an earlier event is zero, and not negative",
        |context| {
            let events = marks(context, &context.stream()?, 2)?;
            ensure_eq!(
                elapsed(&events[1], &events[0])?,
                Duration::ZERO,
                "the time from the later to the earlier"
            );
            Ok(())
        },
    );
    tests.add("work-takes-time", "there is time between the events around long work", |context| {
        let stream = context.stream()?;
        let begin = Instant::now();
        let events = marks(context, &stream, 2)?;
        let (wall, device) = (begin.elapsed(), elapsed(&events[0], &events[1])?);
        ensure!(device > Duration::ZERO, "long work took no time");
        ensure!(device <= wall + SLACK, "the work took {device:?} of the device and {wall:?} of the host");
        Ok(())
    });
    tests.add("longer-work-takes-longer", "ten times the work takes more time", |context| {
        let stream = context.stream()?;
        let mut times = Vec::new();
        for time in [Duration::from_millis(2), Duration::from_millis(20)] {
            let mut shortest = Duration::MAX;
            // A busy host makes any one of them longer, and none shorter.
            context.busy(&stream, time)?;
            for _ in 0..4 {
                let first = stream.record()?;
                context.busy(&stream, time)?;
                let second = stream.record()?;
                ends(&second, "the work")?;
                shortest = shortest.min(elapsed(&first, &second)?);
            }
            times.push(shortest);
        }
        ensure!(times[1] > times[0], "the short work took {:?}, the long one {:?}", times[0], times[1]);
        Ok(())
    });
    tests.add("parts-add-up", "the times between events of a stream add up to the whole", |context| {
        let events = marks(context, &context.stream()?, 9)?;
        let mut parts = Duration::ZERO;
        for pair in events.windows(2) {
            parts += elapsed(&pair[0], &pair[1])?;
        }
        let whole = elapsed(&events[0], &events[8])?;
        ensure!(
            parts <= whole + SLACK && whole <= parts + SLACK,
            "the parts take {parts:?}, the whole {whole:?}"
        );
        Ok(())
    });
    tests.add("times-grow-along-a-stream", "later events of a stream are no nearer", |context| {
        let events = marks(context, &context.stream()?, 12)?;
        let times = events.iter().map(|event| elapsed(&events[0], event)).collect::<Result<Vec<_>, _>>()?;
        ensure!(times.is_sorted(), "the times from the first event are {times:?}");
        Ok(())
    });
    tests.add(
        "waits-order-times",
        "an event behind a wait is no earlier than what was waited for",
        |context| {
            let [first, second] = context.streams()?;
            for _ in 0..5 {
                let begin = first.record()?;
                context.busy(&first, Duration::from_millis(3))?;
                let end = first.record()?;
                second.wait(&end)?;
                let behind = second.record()?;
                ends(&behind, "the event behind the wait")?;
                let (work, whole) = (elapsed(&begin, &end)?, elapsed(&begin, &behind)?);
                ensure!(
                    whole + SLACK >= work,
                    "the work took {work:?}, and what waited for it came after {whole:?}"
                );
            }
            Ok(())
        },
    );
    tests.add("asked-again-is-the-same", "the time between two events never changes", |context| {
        let events = marks(context, &context.stream()?, 2)?;
        let first = elapsed(&events[0], &events[1])?;
        for _ in 0..10 {
            ensure_eq!(elapsed(&events[0], &events[1])?, first, "the time, asked again");
        }
        Ok(())
    });
    tests.add(
        "not-done-is-refused",
        "before both events are done, asking for the time is an invalid argument",
        |context| {
            let stream = context.stream()?;
            let first = marks(context, &stream, 1)?.remove(0);
            elapsed(&first, &first)?;
            context.busy(&stream, Duration::from_millis(60))?;
            let second = stream.record()?;
            let answer = second.elapsed_since(&first);
            // A device that works within its calls is done by now.
            if !second.is_done()? {
                ensure_kind!(answer, ErrorKind::InvalidArgument, "the time to an event that is not done");
            }
            ends(&second, "the work")
        },
    );
}

/// Events of a stream with work between them, all done.
fn marks(context: &Context, stream: &Stream, count: usize) -> Result<Vec<Event>, Stop> {
    let mut events = vec![stream.record()?];
    for _ in 1..count {
        context.busy(stream, Duration::from_millis(2))?;
        events.push(stream.record()?);
    }
    let done: Outcome = events.iter().try_for_each(|event| ends(event, "an event"));
    done.map(|()| events)
}

/// The time; a device without a clock says so, and leaves the test out.
fn elapsed(earlier: &Event, later: &Event) -> Result<Duration, Stop> {
    match later.elapsed_since(earlier) {
        Err(error) if *error.kind() == ErrorKind::Unsupported => {
            Err(unsupported(format!("the device has no clock: {}", error.message())))
        }
        other => Ok(other?),
    }
}

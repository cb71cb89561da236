//! Points on a stream.

use crate::api::RawEvent;
use crate::device::DeviceShared;
use crate::stream::StreamShared;
use halite_hal::{Error, ErrorKind, Event, Result, driver};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// The driver has no wait with a limit, so such a wait looks again and again: first at once, then after sleeps that
/// grow from the first of these to the second.
const SLEEPS: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// After so long the log says that a caller waits for a lost device.
const TOLD_AFTER: Duration = Duration::from_secs(10);
/// How long it looks before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// A command, and so the point behind it.
pub(crate) struct Point {
    pub(crate) raw: RawEvent,
    /// Its number among the stream's commands.
    pub(crate) sequence: u64,
    /// The stream, which settles outcomes in order. It lives until all of its commands are settled.
    pub(crate) stream: Weak<StreamShared>,
    /// How the work up to the point ended.
    pub(crate) outcome: OnceLock<Result<()>>,
    pub(crate) device: Arc<DeviceShared>,
}

impl Point {
    /// The outcome if the work is over, else `None`.
    pub(crate) fn poll(&self) -> Option<Result<()>> {
        if self.outcome.get().is_none() {
            self.settle(0);
        }
        self.outcome.get().cloned()
    }

    /// As [`poll`](Self::poll), after waiting; `None` when the limit came first.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Result<()>> {
        if let Some(outcome) = self.poll() {
            return Some(outcome);
        }
        if !wait_for(&self.raw, &self.device, timeout) {
            return None;
        }
        self.settle(self.sequence);
        Some(self.outcome.get().cloned().unwrap_or(Ok(())))
    }

    /// Whether the driver may still be at work: it says so, or nothing.
    pub(crate) fn may_be_running(&self) -> bool {
        !matches!(self.raw.status(), Ok(..=0))
    }

    /// Blocks until the driver is done with the command, also after the device's loss and however long that takes.
    pub(crate) fn wait_until_over(&self) {
        wait_for(&self.raw, &self.device, None);
        let begin = Instant::now();
        let mut is_told = false;
        while self.may_be_running() && self.raw.wait().is_err() {
            if !is_told && begin.elapsed() > TOLD_AFTER {
                is_told = true;
                log::error!(
                    "{}: a caller waits for its memory, which the driver of the lost device still uses",
                    self.device.info().id
                );
            }
            thread::sleep(SLEEPS.1);
        }
    }

    fn settle(&self, up_to: u64) {
        match self.stream.upgrade() {
            Some(stream) => stream.settle(up_to),
            // Settled by whoever let go of the stream; a lost device may have kept it from that.
            None => drop(self.device.check().map_err(|error| self.outcome.set(Err(error)))),
        }
    }
}

/// Waits until a command is over, and says whether it is.
pub(crate) fn wait_for(event: &RawEvent, device: &DeviceShared, timeout: Option<Duration>) -> bool {
    let is_over = || device.is_lost() || !matches!(event.status(), Ok(1..));
    let Some(limit) = timeout else {
        if let Err(error) = event.wait()
            && !is_over()
        {
            // Neither over nor to be waited for: whatever the driver says, nothing more is to be had of the device.
            let message = format!("the driver cannot wait for its work any more: {}", error.message());
            device.note(&crate::error::with_kind(&error, ErrorKind::DeviceLost, message));
        }
        return true;
    };
    let begin = Instant::now();
    let mut pause = SLEEPS.0;
    loop {
        if is_over() {
            return true;
        }
        let waited = begin.elapsed();
        if waited >= limit {
            return false;
        }
        if waited < SPIN {
            thread::yield_now();
        } else {
            thread::sleep(pause.min(limit - waited));
            pause = (pause * 2).min(SLEEPS.1);
        }
    }
}

/// An event as the layer sees it.
pub(crate) enum OpenClEvent {
    /// On a stream that had failed already; the failure.
    OfFailed(Error),
    /// On a stream that had not.
    Recorded(Arc<Point>),
}

impl OpenClEvent {
    /// When a point was reached that is done, in nanoseconds of the device.
    fn reached_at(&self, which: &str) -> Result<u64> {
        let point = match self {
            Self::OfFailed(error) => return Err(error.clone()),
            Self::Recorded(point) => point,
        };
        match point.poll() {
            None => Err(Error::invalid(format!("the {which} event is not done; wait for it first"))),
            Some(Err(error)) => Err(error),
            Some(Ok(())) => match point.device.noting_loss(point.raw.ended_at()) {
                // NOTE: some drivers answer with zero for what they do not measure.
                Ok(0) => Err(Error::unsupported("the driver tells no times of its commands")),
                other => other,
            },
        }
    }
}

impl driver::Event for OpenClEvent {
    fn is_done(&self) -> Result<bool> {
        match self {
            Self::OfFailed(error) => Err(error.clone()),
            Self::Recorded(point) => point.poll().map_or(Ok(false), |outcome| outcome.map(|()| true)),
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let outcome = match self {
            Self::OfFailed(error) => return Err(error.clone()),
            Self::Recorded(point) => point.wait(timeout),
        };
        outcome.unwrap_or_else(|| Err(timed_out(timeout)))
    }

    fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        let earlier = earlier.object::<Self>().ok_or_else(foreign)?;
        let (begin, end) = (earlier.reached_at("earlier")?, self.reached_at("later")?);
        Ok(Duration::from_nanos(end.saturating_sub(begin)))
    }
}

/// The error for a limit that came before the work was over.
pub(crate) fn timed_out(timeout: Option<Duration>) -> Error {
    let after = timeout.unwrap_or(Duration::MAX);
    Error::new(ErrorKind::Timeout { after }, format!("not reached within {after:?}; the work goes on"))
}

/// The error for an event that another backend made.
pub(crate) fn foreign() -> Error {
    Error::invalid("the event was not made by this backend; record it on a stream of this device")
}

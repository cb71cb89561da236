//! Points on a stream that may carry an injected failure, or be reached late.

use super::schedule::Schedule;
use super::script::{Action, Call};
use halite_hal::{Error, ErrorKind, Event, Result, driver};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a delayed wait sleeps before it looks whether the device has been lost.
const SLEEP_SLICE: Duration = Duration::from_millis(5);

pub(super) struct FaultEvent {
    schedule: Arc<Schedule>,
    inner: Box<dyn driver::Event>,
    /// The injected failure of work before the point.
    pub(super) failure: Option<Error>,
    /// When slow work before the point is over.
    pub(super) until: Option<Instant>,
    /// Delays on the stream so far.
    slowed_by: Duration,
    /// Whether the point was seen over; that never changes again, also when the device is lost.
    is_over: AtomicBool,
}

impl FaultEvent {
    pub(super) fn new(
        schedule: Arc<Schedule>,
        inner: Box<dyn driver::Event>,
        failure: Option<Error>,
        until: Option<Instant>,
        slowed_by: Duration,
    ) -> Self {
        Self { schedule, inner, failure, until, slowed_by, is_over: AtomicBool::new(false) }
    }

    /// The part of `event` that this layer made for the opening with `schedule`; other layers may stand around it, and
    /// this one may be chosen twice.
    pub(super) fn of<'a>(event: &'a Event, schedule: &Arc<Schedule>) -> Option<&'a Self> {
        let mut found = event.object::<Self>()?;
        while !Arc::ptr_eq(&found.schedule, schedule) {
            let mut inner = found.inner.as_ref();
            found = loop {
                match (inner as &dyn Any).downcast_ref() {
                    Some(next) => break next,
                    None => inner = inner.inner()?,
                }
            };
        }
        Some(found)
    }

    /// The failure of a stream of the opening with `own` that waits for this event of a lost peer.
    pub(super) fn lost_link(&self, own: &Arc<Schedule>) -> Option<Error> {
        if Arc::ptr_eq(&self.schedule, own) || self.is_over.load(Ordering::Acquire) {
            return None;
        }
        self.schedule.check().err().map(driver::failure_of_peer)
    }

    fn outcome(&self) -> Result<()> {
        self.is_over.store(true, Ordering::Release);
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl driver::Event for FaultEvent {
    fn is_done(&self) -> Result<bool> {
        if !self.is_over.load(Ordering::Acquire) {
            self.schedule.check()?;
            if !self.inner.is_done()? || self.until.is_some_and(|until| until > Instant::now()) {
                return Ok(false);
            }
        }
        self.outcome().map(|()| true)
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        if !self.is_over.load(Ordering::Acquire) {
            self.schedule.check()?;
            match self.schedule.next(Call::Event, 0) {
                Some(injection) if injection.action == Action::Lost => {
                    return Err(self.schedule.lose(&injection));
                }
                Some(injection) => return Err(injection.timeout(timeout)),
                None => {}
            }
            let start = Instant::now();
            self.inner.wait(timeout)?;
            sleep_until(&self.schedule, self.until, start, timeout)?;
        }
        self.outcome()
    }

    fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        if !self.is_done()? {
            return Err(Error::invalid("the later event is not done; wait for it first"));
        }
        let elapsed = self.inner.elapsed_since(earlier);
        let Some(own) = Self::of(earlier, &self.schedule) else { return elapsed };
        if !own.is_done()? {
            return Err(Error::invalid("the earlier event is not done; wait for it first"));
        }
        let delays = self.slowed_by.saturating_sub(own.slowed_by);
        Ok(elapsed?.saturating_add(delays))
    }

    fn inner(&self) -> Option<&dyn driver::Event> {
        Some(self.inner.as_ref())
    }
}

/// Blocks until slow work is over, at most until `timeout` after `start`.
///
/// # Errors
/// `Timeout`; `DeviceLost` when that happens meanwhile.
pub(super) fn sleep_until(
    schedule: &Schedule,
    until: Option<Instant>,
    start: Instant,
    timeout: Option<Duration>,
) -> Result<()> {
    loop {
        schedule.check()?;
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(());
        }
        let allowed = timeout.map_or(Duration::MAX, |timeout| timeout.saturating_sub(start.elapsed()));
        if allowed.is_zero() {
            let after = timeout.unwrap_or_default();
            let message =
                format!("not done after {after:?}: a rule of the layer 'fault' slows the work down");
            return Err(Error::new(ErrorKind::Timeout { after }, message));
        }
        thread::sleep(left.min(allowed).min(SLEEP_SLICE));
    }
}

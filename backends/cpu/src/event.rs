//! Points on a stream: done or failed, once and for all.

use crate::error::{self, lock};
use crate::kernel;
use crate::stream::StreamCore;
use crate::sync::{Condvar, Mutex, Patience, thread};
use halite_hal::{Error, Event, Result, driver};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// An event as the layer's handle holds it.
pub(crate) struct CpuEvent(pub(crate) Arc<EventCore>);

/// What the stream, everyone who waits, and the handles share.
pub(crate) struct EventCore {
    outcome: OnceLock<Outcome>,
    waiting: Mutex<Waiting>,
    reached: Condvar,
    /// For host threads that would rather run the stream than wait for a worker.
    stream: Weak<StreamCore>,
}

struct Outcome {
    at: Instant,
    failure: Option<Error>,
}

#[derive(Default)]
struct Waiting {
    streams: Vec<Arc<StreamCore>>,
    host_threads: usize,
}

/// How long a host thread looks at an event before it sleeps. It yields at each look, so a worker that wants the
/// core gets it.
const HOST_SPIN: Duration = Duration::from_micros(20);

impl EventCore {
    pub(crate) fn new(stream: Weak<StreamCore>) -> Self {
        Self {
            outcome: OnceLock::new(),
            waiting: Mutex::new(Waiting::default()),
            reached: Condvar::new(),
            stream,
        }
    }

    /// Marks the point as reached, and lets everyone who waits go on.
    pub(crate) fn reach(&self, failure: Option<Error>) {
        // Only the one `Record` command of this event comes here, so the cell is empty.
        _ = self.outcome.set(Outcome { at: Instant::now(), failure });
        let (streams, host_threads) = {
            let mut waiting = lock(&self.waiting);
            (std::mem::take(&mut waiting.streams), waiting.host_threads)
        };
        if host_threads > 0 {
            self.reached.notify_all();
        }
        for stream in streams {
            stream.resume();
        }
    }

    /// Whether the point is reached; the failure if there was one.
    pub(crate) fn is_done(&self) -> Result<bool> {
        match self.outcome.get() {
            None => Ok(false),
            Some(Outcome { failure: None, .. }) => Ok(true),
            Some(Outcome { failure: Some(failure), .. }) => Err(failure.clone()),
        }
    }

    /// Whether the point is reached, failed or not.
    pub(crate) fn is_over(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Resumes `stream` once the event is reached; gives it back when that is so already.
    pub(crate) fn resume_when_reached(&self, stream: Arc<StreamCore>) -> Option<Arc<StreamCore>> {
        let mut waiting = lock(&self.waiting);
        // `reach` sets the outcome before it takes the lock, so either it is seen here or the stream is seen there.
        if self.is_over() {
            return Some(stream);
        }
        waiting.streams.push(stream);
        None
    }

    /// Blocks the calling host thread.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        if self.is_done()? {
            return Ok(());
        }
        if kernel::is_inside() {
            return Err(Error::invalid(
                "a kernel waits for work of its own device, which may never get a thread; wait on the host",
            ));
        }
        match timeout {
            None => {
                if let Some(stream) = self.stream.upgrade() {
                    stream.run_until(self);
                }
                self.sleep(None, Duration::ZERO)
            }
            Some(limit) => self.sleep(Instant::now().checked_add(limit), limit),
        }
    }

    fn sleep(&self, deadline: Option<Instant>, limit: Duration) -> Result<()> {
        let left = deadline.map_or(HOST_SPIN, |end| end.saturating_duration_since(Instant::now()));
        let spin = left.min(HOST_SPIN);
        let patience = Patience::new();
        while !self.is_over() && patience.elapsed() < spin {
            thread::yield_now();
        }
        let mut waiting = lock(&self.waiting);
        waiting.host_threads += 1;
        while !self.is_over() {
            waiting = match deadline.map(|end| end.saturating_duration_since(Instant::now())) {
                None => self.reached.wait(waiting).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let woken = self.reached.wait_timeout(waiting, left);
                    woken.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
            };
        }
        waiting.host_threads -= 1;
        drop(waiting);
        if self.is_done()? { Ok(()) } else { Err(error::timeout(limit)) }
    }
}

impl driver::Event for CpuEvent {
    fn is_done(&self) -> Result<bool> {
        self.0.is_done()
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.0.wait(timeout)
    }

    fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        let earlier: &CpuEvent = earlier.object().ok_or_else(|| error::foreign("earlier event"))?;
        let reached = |event: &EventCore, which: &str| match event.outcome.get() {
            None => Err(Error::invalid(format!("the {which} event is not done; wait for it first"))),
            Some(Outcome { failure: Some(failure), .. }) => Err(failure.clone()),
            Some(outcome) => Ok(outcome.at),
        };
        let (begin, end) = (reached(&earlier.0, "earlier")?, reached(&self.0, "later")?);
        // NOTE: events of two streams may have been reached in the other order; that is no time at all.
        Ok(end.saturating_duration_since(begin))
    }
}

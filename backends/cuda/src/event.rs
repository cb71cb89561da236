//! Points on a stream.

use crate::context::EventHandle;
use crate::device::{DeviceShared, lock};
use crate::stream::StreamShared;
use halite_hal::{Error, ErrorKind, Event, Result, driver};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a wait with a limit only yields the processor between two looks, and how long it sleeps then, from the
/// first to the second.
const YIELDING: Duration = Duration::from_micros(50);
const SLEEPS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));

/// An event of the driver; used again by others when dropped.
pub(crate) struct EventShared {
    pub(crate) device: Arc<DeviceShared>,
    pub(crate) handle: EventHandle,
    /// Whether the device is known to be past it.
    is_over: AtomicBool,
    /// What was said of it first, which is said from then on.
    outcome: OnceLock<Result<()>>,
}

/// Where the work before an event stands. It does not fail by itself: a fault loses the device.
pub(crate) enum Progress {
    Running,
    Over,
    /// Nothing runs any more.
    Lost(Error),
    /// The driver does not say. What the work uses is not free.
    Refused(Error),
}

impl Drop for EventShared {
    fn drop(&mut self) {
        // A wait that is enqueued stands for what was recorded before it, whatever the event records next (CUDA Driver
        // API, `cuStreamWaitEvent`).
        lock(&self.device.events).push(self.handle);
    }
}

impl EventShared {
    /// An event that is not recorded yet.
    pub(crate) fn create(device: &Arc<DeviceShared>) -> Result<Self> {
        let used = lock(&device.events).pop();
        let handle = match used {
            Some(handle) => handle,
            None => device.call(|gpu| gpu.event_create())?,
        };
        Ok(Self { device: device.clone(), handle, is_over: AtomicBool::new(false), outcome: OnceLock::new() })
    }

    /// Where the work before the event stands now.
    pub(crate) fn progress(&self) -> Progress {
        if self.is_over() {
            return Progress::Over;
        }
        self.learn(self.device.call(|gpu| gpu.event_query(self.handle)))
    }

    /// Whether the device is known to be past the event.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Whether a failure was said of it, which is said from then on.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.outcome.get(), Some(Err(_)))
    }

    fn learn(&self, answer: Result<bool>) -> Progress {
        match answer {
            Ok(false) => Progress::Running,
            Ok(true) => {
                self.is_over.store(true, Ordering::Release);
                Progress::Over
            }
            Err(error) if self.device.is_lost() => Progress::Lost(error),
            Err(error) => Progress::Refused(error),
        }
    }

    /// The outcome of the work before the event, `None` while that is under way. Never waits.
    pub(crate) fn poll(&self) -> Option<Result<()>> {
        match self.outcome.get() {
            Some(outcome) => Some(outcome.clone()),
            None => self.tell(self.progress()),
        }
    }

    fn tell(&self, progress: Progress) -> Option<Result<()>> {
        let outcome = match progress {
            Progress::Running => return None,
            Progress::Over => Ok(()),
            Progress::Lost(error) | Progress::Refused(error) => Err(error),
        };
        Some(self.outcome.get_or_init(|| outcome).clone())
    }

    /// As [`poll`](Self::poll), after waiting.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Result<()>> {
        if let Some(outcome) = self.poll() {
            return Some(outcome);
        }
        let Some(limit) = timeout else {
            let answer = self.device.call(|gpu| gpu.event_synchronize(self.handle));
            return self.tell(self.learn(answer.map(|()| true)));
        };
        // The driver knows no wait with a limit.
        let start = Instant::now();
        let mut sleep = SLEEPS.0;
        loop {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return self.poll();
            }
            if start.elapsed() < YIELDING {
                std::thread::yield_now();
            } else {
                std::thread::sleep(sleep.min(left));
                sleep = (sleep * 2).min(SLEEPS.1);
            }
            if let Some(outcome) = self.poll() {
                return Some(outcome);
            }
        }
    }
}

/// An event as the layer sees it.
pub(crate) enum CudaEvent {
    /// On a stream that had failed already; the failure.
    OfFailed(Error),
    /// On a stream that had not.
    Recorded {
        event: Arc<EventShared>,
        /// The stream, which finishes reads and gives back what the work held.
        stream: Arc<StreamShared>,
        /// How many commands and resets came before.
        sequence: u64,
        generation: u64,
    },
}

impl CudaEvent {
    fn settle(&self, ask: impl FnOnce(&EventShared) -> Option<Result<()>>) -> Result<bool> {
        match self {
            Self::OfFailed(error) => Err(error.clone()),
            Self::Recorded { event, stream, sequence, generation } => match ask(event) {
                None => Ok(false),
                Some(outcome) => stream.settle(event, *sequence, *generation, outcome).map(|()| true),
            },
        }
    }
}

impl driver::Event for CudaEvent {
    fn is_done(&self) -> Result<bool> {
        self.settle(EventShared::poll)
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        if self.settle(|event| event.wait(timeout))? { Ok(()) } else { Err(timed_out(timeout)) }
    }

    fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        let earlier = earlier.object::<Self>().ok_or_else(foreign)?;
        let both = [earlier, self].map(|event| match event {
            Self::Recorded { event, .. } => Ok(event),
            Self::OfFailed(error) => Err(error.clone()),
        });
        let [from, to] = both;
        let (from, to) = (from?, to?);
        for event in [from, to] {
            match event.poll() {
                Some(outcome) => outcome?,
                None => return Err(Error::invalid("both events must be done; wait for them first")),
            }
        }
        let milliseconds = to.device.call(|gpu| gpu.event_elapsed_ms(from.handle, to.handle))?;
        // Negative in the other order; what is no number, the driver would have to answer for.
        let milliseconds = f64::from(milliseconds).max(0.0);
        Ok(Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default())
    }
}

/// The error for work that is not done within a limit.
pub(crate) fn timed_out(timeout: Option<Duration>) -> Error {
    let after = timeout.unwrap_or(Duration::MAX);
    Error::new(ErrorKind::Timeout { after }, format!("not reached within {after:?}; the work goes on"))
}

/// The error for an event that another backend made.
pub(crate) fn foreign() -> Error {
    Error::invalid("the event was not made by this backend; record it on a stream of this device")
}

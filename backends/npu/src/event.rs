//! Points on a stream.

use crate::api::Progress;
use crate::device::DeviceShared;
use crate::stream::{StreamShared, timeout_ns};
use halite_hal::plugin::EventHandle;
use halite_hal::{Error, ErrorKind, Event, Result, driver};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// A plugin's event, recorded.
pub(crate) struct EventShared {
    pub(crate) device: Arc<DeviceShared>,
    pub(crate) handle: EventHandle,
    /// What the plugin said once the work was over; it is not asked again.
    outcome: OnceLock<Result<()>>,
}

impl Drop for EventShared {
    fn drop(&mut self) {
        self.device.library.event_destroy(self.handle);
    }
}

impl EventShared {
    /// An event that is not recorded yet.
    pub(crate) fn create(device: &Arc<DeviceShared>) -> Result<Self> {
        let handle = device.library.event_create(device.handle)?;
        Ok(Self { device: device.clone(), handle, outcome: OnceLock::new() })
    }

    /// The outcome if the work is over, else `None`.
    ///
    /// # Errors
    /// When the plugin does not answer, or the device is lost: that is no outcome of this event's work.
    pub(crate) fn poll(&self) -> Result<Option<Result<()>>> {
        self.ask(|| self.device.library.event_query(self.handle))
    }

    /// As [`poll`](Self::poll), after waiting.
    pub(crate) fn wait(self: &Arc<Self>, timeout: Option<Duration>) -> Result<Option<Result<()>>> {
        let Some(limit) = timeout else {
            return self.ask(|| self.device.library.event_wait(self.handle, timeout_ns(None)));
        };
        let known = self.poll()?;
        if known.is_some() || limit.is_zero() {
            return Ok(known);
        }
        let own = self.clone();
        let wait = move |timeout| own.device.library.event_wait(own.handle, timeout_ns(timeout));
        self.ask(|| self.device.bounded("event_wait", limit, wait))
    }

    fn ask(&self, question: impl FnOnce() -> Result<Progress>) -> Result<Option<Result<()>>> {
        if let Some(outcome) = self.outcome.get() {
            return Ok(Some(outcome.clone()));
        }
        self.device.check()?;
        let outcome = match self.device.noting_progress(question())? {
            Progress::Pending => return Ok(None),
            Progress::Done => Ok(()),
            Progress::Failed(error) => Err(error),
        };
        Ok(Some(self.outcome.get_or_init(|| outcome).clone()))
    }
}

/// An event as the layer sees it.
pub(crate) enum NpuEvent {
    /// On a stream that had failed already; the failure.
    OfFailed(Error),
    /// On a stream that had not.
    Recorded {
        event: Arc<EventShared>,
        /// The stream, to give back what the work held; it may be gone.
        stream: Weak<StreamShared>,
        /// How many commands and resets came before.
        sequence: u64,
        generation: u64,
    },
}

impl NpuEvent {
    fn settle(&self, ask: impl FnOnce(&Arc<EventShared>) -> Result<Option<Result<()>>>) -> Result<bool> {
        match self {
            Self::OfFailed(error) => Err(error.clone()),
            Self::Recorded { event, stream, sequence, generation } => match ask(event)? {
                None => Ok(false),
                Some(outcome) => {
                    let Some(stream) = stream.upgrade() else { return outcome.map(|()| true) };
                    stream.settle(*sequence, *generation, outcome).map(|()| true)
                }
            },
        }
    }
}

impl driver::Event for NpuEvent {
    fn is_done(&self) -> Result<bool> {
        self.settle(|event| event.poll())
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        if self.settle(|event| event.wait(timeout))? {
            return Ok(());
        }
        let Some(after) = timeout else {
            return Err(match self {
                Self::OfFailed(error) => error.clone(),
                Self::Recorded { event, .. } => {
                    event.device.library.breach("ends an event_wait without a limit before the work is over")
                }
            });
        };
        Err(Error::new(ErrorKind::Timeout { after }, format!("not reached within {after:?}; wait again")))
    }

    fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        let earlier = earlier.object::<Self>().ok_or_else(foreign)?;
        let (Self::Recorded { event: from, .. }, Self::Recorded { event: to, .. }) = (earlier, self) else {
            return Err(Error::invalid("an event of a failed stream has no time; reset the stream"));
        };
        for event in [from, to] {
            if !matches!(event.poll()?, Some(Ok(()))) {
                return Err(Error::invalid("both events must be done; wait for them first"));
            }
        }
        let device = &to.device;
        match device.noting_loss(device.library.event_elapsed(from.handle, to.handle)) {
            // Both are this device's and done, so it can only be their order.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidArgument) => Ok(Duration::ZERO),
            other => Ok(Duration::from_nanos(other?)),
        }
    }
}

/// The error for an event that another backend made.
pub(crate) fn foreign() -> Error {
    Error::invalid("the event was not made by this backend; record it on a stream of this device")
}

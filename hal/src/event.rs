//! Points on a stream that can be waited for.

use crate::buffer::fresh_id;
use crate::{DeviceId, Result, driver};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A point on a stream: everything enqueued before [`Stream::record`](crate::Stream::record) made it.
///
/// 1. `record` makes a new one each time; an event never changes what it stands for.
/// 2. It is over when all that work is: done, or failed with the first failure among it. That never changes again.
/// 3. The host asks or waits for it here, a stream of the same device, or one whose peer that is,
///    by [`Stream::wait`](crate::Stream::wait).
/// 4. Clones are handles to the same point. Dropping them all is always allowed, also before it is reached. An
///    event does not keep its stream, nor the stream its events.
///
/// Every method may be called from any thread.
#[derive(Clone)]
pub struct Event(Arc<Inner>);

struct Inner {
    id: u64,
    device: DeviceId,
    event: Box<dyn driver::Event>,
}

impl Event {
    /// Wraps a backend's event. For backends.
    pub fn new(device: DeviceId, event: Box<dyn driver::Event>) -> Self {
        Self(Arc::new(Inner { id: fresh_id(), device, event }))
    }

    /// A number that no other object of this process has had.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The device whose stream recorded it.
    pub fn device(&self) -> &DeviceId {
        &self.0.device
    }

    /// Whether the point has been reached. May ask the driver; never waits.
    ///
    /// # Errors
    /// The first failure of the work before the point.
    pub fn is_done(&self) -> Result<bool> {
        self.0.event.is_done().map_err(|e| e.on_device(self.device()).in_call("event.is_done"))
    }

    /// Blocks until the point is reached, at most for `timeout`; `None` waits without limit.
    ///
    /// # Errors
    /// `Timeout` (the work goes on; wait again), or the first failure of the work before the point.
    /// `InvalidArgument` when a native kernel of the same device would have to wait.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.0.event.wait(timeout).map_err(|e| e.on_device(self.device()).in_call("event.wait"))
    }

    /// Device time between `earlier` and this event; both must be done. May ask the driver; never waits.
    ///
    /// Resolution is the device's clock. Zero when they were reached in the other order, as on two streams they may
    /// be.
    ///
    /// # Errors
    /// `InvalidArgument` when one is not done, or they are of different devices; the failure, or `InvalidArgument`,
    /// when one has failed; `Unsupported` without a clock.
    pub fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        let name = |e: crate::Error| e.on_device(self.device()).in_call("event.elapsed_since");
        if !earlier.device().is_same_opening(self.device()) {
            return Err(name(crate::Error::invalid(format!(
                "the earlier event is of {}; devices share no clock",
                earlier.device().beside(self.device())
            ))));
        }
        self.0.event.elapsed_since(earlier).map_err(name)
    }

    /// The backend's object, or that of a layer around it, if it is a `T`. For backends and layers.
    pub fn object<T: driver::Event>(&self) -> Option<&T> {
        let mut event = self.0.event.as_ref();
        loop {
            if let Some(found) = (event as &dyn std::any::Any).downcast_ref() {
                return Some(found);
            }
            event = event.inner()?;
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event#{}({})", self.id(), self.device())
    }
}

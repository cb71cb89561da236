//! Points on a stream: reached as soon as they are recorded, unless the device is paused.

use super::device::{Point, Shared};
use crate::{Error, Result, driver};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct NullEvent {
    device: Arc<Shared>,
    point: Point,
}

impl NullEvent {
    pub(super) fn new(device: Arc<Shared>, point: Point) -> Self {
        Self { device, point }
    }

    fn reached_at(&self, which: &str) -> Result<Instant> {
        let at = self.device.reached(self.point)?;
        at.ok_or_else(|| Error::invalid(format!("the {which} event is not done; wait for it first")))
    }
}

impl driver::Event for NullEvent {
    fn is_done(&self) -> Result<bool> {
        Ok(self.device.reached(self.point)?.is_some())
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.device.wait(self.point, timeout)
    }

    fn elapsed_since(&self, earlier: &crate::Event) -> Result<Duration> {
        let Some(earlier) = earlier.object::<Self>() else {
            return Err(Error::invalid("the earlier event was not recorded on a null device"));
        };
        Ok(self.reached_at("later")?.saturating_duration_since(earlier.reached_at("earlier")?))
    }
}

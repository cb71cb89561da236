//! The device: its properties, its memory, and how far its streams have come.

use super::buffer::{Account, NullMemory};
use super::stream::NullStream;
use super::{error, kernel};
use crate::{
    Buffer, DeviceInfo, Error, ErrorKind, Health, Kernel, KernelSource, MemoryInfo, MemoryKind, Result,
    driver,
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A null device as its concrete type; clones are handles to the same device.
///
/// [`Device::new(Arc::new(null.clone()))`](crate::Device::new) makes the handle that callers use.
#[derive(Clone)]
pub struct NullDevice(Arc<Shared>);

impl NullDevice {
    pub(super) fn new(info: DeviceInfo) -> Self {
        let account = Account::new(info.memory_bytes);
        let progress = Mutex::default();
        Self(Arc::new(Shared { info, account, progress, progressed: Condvar::new() }))
    }

    /// The checked handle to this device.
    pub fn device(&self) -> crate::Device {
        crate::Device::new(Arc::new(self.clone()))
    }

    /// Keeps everything that is enqueued from now on from being done, on every stream, until
    /// [`resume`](Self::resume): events are not done, blocking calls block, and the work holds its buffers.
    pub fn pause(&self) {
        self.0.progress().paused = true;
    }

    /// Lets paused work be done, now and from now on.
    pub fn resume(&self) {
        let mut progress = self.0.progress();
        if !progress.paused || progress.lost.is_some() {
            return;
        }
        progress.paused = false;
        progress.resumed_at.push(Instant::now());
        let done = std::mem::take(&mut progress.queued);
        drop(progress);
        self.0.progressed.notify_all();
        // Buffers are dropped with no lock held: a drop may come back here.
        drop(done);
    }

    /// Loses the device for good: every later call fails with `DeviceLost` and this reason, or that of the first
    /// call. Paused work never runs; whoever waits for it gets the same failure.
    pub fn lose(&self, reason: impl Into<String>) {
        let mut progress = self.0.progress();
        progress.lost.get_or_insert(reason.into());
        let skipped = std::mem::take(&mut progress.queued);
        drop(progress);
        self.0.progressed.notify_all();
        drop(skipped);
    }
}

/// What the device and its objects share.
pub(super) struct Shared {
    info: DeviceInfo,
    account: Arc<Account>,
    progress: Mutex<Progress>,
    progressed: Condvar,
}

#[derive(Default)]
struct Progress {
    lost: Option<String>,
    paused: bool,
    /// When each pause ended; a point that was recorded during pause `n` is reached when entry `n` is there.
    resumed_at: Vec<Instant>,
    queued: Vec<Work>,
}

/// What enqueued work holds until it is done. A real backend keeps more: here nothing is done with it.
pub(super) struct Work {
    pub(super) _buffers: Vec<Buffer>,
    pub(super) _kernel: Option<Kernel>,
}

/// A moment in the device's order of work.
#[derive(Debug, Clone, Copy)]
pub(super) enum Point {
    /// It was reached as soon as it was made.
    At(Instant),
    /// It is reached when this pause ends.
    AfterPause(usize),
}

impl Shared {
    /// Runs `work` at once, which takes doing nothing, or queues it during a pause.
    pub(super) fn enqueue(&self, work: Work) -> Result<()> {
        let mut progress = self.progress();
        progress.check()?;
        if progress.paused {
            progress.queued.push(work);
        }
        Ok(())
    }

    /// The point behind everything enqueued so far.
    pub(super) fn now(&self) -> Result<Point> {
        let progress = self.progress();
        progress.check()?;
        Ok(if progress.paused {
            Point::AfterPause(progress.resumed_at.len())
        } else {
            Point::At(Instant::now())
        })
    }

    /// When `point` was reached, `None` if it has not been.
    pub(super) fn reached(&self, point: Point) -> Result<Option<Instant>> {
        self.progress().reached(point)
    }

    pub(super) fn wait(&self, point: Point, timeout: Option<Duration>) -> Result<()> {
        let start = Instant::now();
        let mut progress = self.progress();
        while progress.reached(point)?.is_none() {
            progress = match timeout.map(|limit| limit.saturating_sub(start.elapsed())) {
                None => self.progressed.wait(progress).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let after = timeout.unwrap_or_default();
                    let message = format!("not done after {after:?}; the device is paused");
                    return Err(Error::new(ErrorKind::Timeout { after }, message));
                }
                Some(left) => {
                    self.progressed.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Ok(())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn check(&self) -> Result<()> {
        self.lost.as_ref().map_or(Ok(()), |reason| Err(error::lost(reason)))
    }

    fn reached(&self, point: Point) -> Result<Option<Instant>> {
        let at = match point {
            Point::At(at) => Some(at),
            Point::AfterPause(pause) => self.resumed_at.get(pause).copied(),
        };
        // What was done before the loss stays done; only what was under way fails with the device.
        if at.is_none() {
            self.check()?;
        }
        Ok(at)
    }
}

impl driver::Device for NullDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.0.progress().check()?;
        Ok(self.0.account.info())
    }

    fn health(&self) -> Health {
        match &self.0.progress().lost {
            None => Health::Ok,
            Some(reason) => Health::Lost { reason: reason.clone() },
        }
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.0.progress().check()?;
        if kind != MemoryKind::Device {
            let message =
                format!("no {kind:?} memory: the host cannot address a null device; use MemoryKind::Device");
            return Err(Error::unsupported(message));
        }
        let memory = NullMemory::new(&self.0.account, len_bytes)?;
        Ok(Buffer::new(self.0.info.id.clone(), kind, len_bytes, None, Box::new(memory)))
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.0.progress().check()?;
        Ok(Box::new(NullStream::new(self.0.clone())))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.0.progress().check()?;
        kernel::load(&self.0.info, source)
    }
}

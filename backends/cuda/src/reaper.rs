//! Gives back what finished work held, while nobody asks.
//!
//! Streams let go of finished work whenever they are used. For what is in flight when a program pauses or drops its
//! stream, a thread per device looks again and again until nothing is in flight, and then sleeps. A function on a thread
//! of the driver would tell at once, but there the driver may not be called, which giving memory back takes. The same
//! thread frees what only calls that wait can free.

use crate::device::{DeviceShared, lock};
use crate::stream::StreamShared;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// Time between two looks: it grows from the first to the second while nothing is finished.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(32));

/// The streams of a device, and the thread that looks after them.
#[derive(Default)]
pub(crate) struct Reaper {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the thread knows that something is in flight or to be freed.
    awake: AtomicBool,
    has_thread: AtomicBool,
}

#[derive(Default)]
struct State {
    streams: Vec<Weak<StreamShared>>,
    /// Streams without handles, whose work is not over.
    orphans: Vec<Arc<StreamShared>>,
    stopped: bool,
}

impl Reaper {
    /// Looks after `stream` from now on.
    pub(crate) fn watch(self: &Arc<Self>, stream: &Arc<StreamShared>) {
        let mut state = lock(&self.state);
        state.streams.retain(|stream| stream.strong_count() > 0);
        state.streams.push(Arc::downgrade(stream));
    }

    /// Starts the thread, for this device.
    pub(crate) fn start(self: &Arc<Self>, device: Weak<DeviceShared>) {
        let reaper = self.clone();
        let thread = thread::Builder::new().name("halite-cuda".into()).spawn(move || reaper.run(&device));
        match thread {
            Ok(_) => self.has_thread.store(true, Ordering::Release),
            Err(error) => {
                log::warn!("no thread for finished CUDA work, which is given back by later calls: {error}");
            }
        }
    }

    /// Whether there is a thread to free things on.
    pub(crate) fn has_thread(&self) -> bool {
        self.has_thread.load(Ordering::Acquire)
    }

    /// Says that something was enqueued, or is to be freed.
    pub(crate) fn wake(&self) {
        if !self.awake.swap(true, Ordering::AcqRel) {
            // The lock keeps the thread from missing this between its look and its sleep.
            drop(lock(&self.state));
            self.changed.notify_all();
        }
    }

    /// Holds a stream whose last handle is gone until its work is over.
    pub(crate) fn adopt(&self, stream: Arc<StreamShared>) {
        lock(&self.state).orphans.push(stream);
        self.wake();
    }

    /// Every stream that is alive.
    pub(crate) fn streams(&self) -> Vec<Arc<StreamShared>> {
        lock(&self.state).streams.iter().filter_map(Weak::upgrade).collect()
    }

    /// Ends the thread: the device is gone, and with it all streams.
    pub(crate) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }

    fn run(&self, device: &Weak<DeviceShared>) {
        let mut pause = PAUSES.0;
        loop {
            {
                let mut state = lock(&self.state);
                while !state.stopped && !self.awake.load(Ordering::Acquire) {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    pause = PAUSES.0;
                }
                if state.stopped {
                    return;
                }
                // Work that is enqueued from here on wakes again.
                self.awake.store(false, Ordering::Release);
            }
            let (is_busy, has_progress) = self.look();
            // Its last handle may be this one, and then its end comes back here.
            if let Some(device) = device.upgrade() {
                device.free_remains();
            }
            if !is_busy {
                continue;
            }
            self.awake.store(true, Ordering::Release);
            pause = if has_progress { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            let state = lock(&self.state);
            if !state.stopped {
                drop(self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Lets every stream give back what is over; whether something is in flight, and whether something was over.
    fn look(&self) -> (bool, bool) {
        let (mut is_busy, mut has_progress) = (false, false);
        for stream in self.streams() {
            let before = stream.in_flight();
            if before == 0 {
                continue;
            }
            stream.mark();
            stream.reap();
            let left = stream.in_flight();
            is_busy |= left > 0;
            has_progress |= left < before;
        }
        // Asked without the lock: whoever gives something back may have a stream's books, and comes here to say so.
        let orphans = std::mem::take(&mut lock(&self.state).orphans);
        let (over, left): (Vec<_>, Vec<_>) = orphans.into_iter().partition(|stream| stream.in_flight() == 0);
        lock(&self.state).orphans.extend(left);
        // The last stream may be the last of its device, whose end comes back here.
        drop(over);
        (is_busy, has_progress)
    }
}

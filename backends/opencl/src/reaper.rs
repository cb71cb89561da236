//! Gives back what finished work held, while nobody asks.
//!
//! Streams let go of finished work whenever they are used. For what is in flight when a program pauses or drops its
//! stream, a thread per device looks again and again until nothing is in flight, and then sleeps. Event callbacks would
//! tell at once, but on threads of the driver, on which neither the driver nor the program's drops may be called.

use crate::device::lock;
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
    /// Whether the thread knows that something is in flight.
    awake: AtomicBool,
}

#[derive(Default)]
struct State {
    streams: Vec<Weak<StreamShared>>,
    /// Streams without handles, whose work is not over.
    orphans: Vec<Arc<StreamShared>>,
    has_thread: bool,
    stopped: bool,
}

impl Reaper {
    /// Looks after `stream` from now on.
    pub(crate) fn watch(self: &Arc<Self>, stream: &Arc<StreamShared>) {
        let mut state = lock(&self.state);
        state.streams.retain(|stream| stream.strong_count() > 0);
        state.streams.push(Arc::downgrade(stream));
        if !state.has_thread && !state.stopped {
            let reaper = self.clone();
            let thread = thread::Builder::new().name("halite-opencl".into());
            state.has_thread = thread.spawn(move || reaper.run()).map_err(no_thread).is_ok();
        }
    }

    /// Says that something was enqueued.
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

    /// Ends the thread, because the device is gone and with it all streams, or keeps it from being started.
    pub(crate) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }

    fn run(&self) {
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
            let (busy, progress) = self.look();
            if !busy {
                continue;
            }
            self.awake.store(true, Ordering::Release);
            pause = if progress { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            let state = lock(&self.state);
            if !state.stopped {
                drop(self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Lets every stream give back what is over; whether something is in flight, and whether something was over.
    fn look(&self) -> (bool, bool) {
        let (mut busy, mut progress) = (false, false);
        for stream in self.streams() {
            let before = stream.in_flight();
            stream.flush();
            stream.settle(0);
            let left = stream.in_flight();
            busy |= left > 0;
            progress |= left < before;
        }
        let over: Vec<_> = {
            let mut state = lock(&self.state);
            let (over, left) = state.orphans.drain(..).partition(|stream| stream.in_flight() == 0);
            state.orphans = left;
            over
        };
        // The last stream may be the last of its device, whose end comes back here.
        drop(over);
        (busy, progress)
    }
}

fn no_thread(error: std::io::Error) {
    log::warn!("no thread for finished OpenCL work, which is given back by later calls: {error}");
}

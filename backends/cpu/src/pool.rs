//! Worker threads: they run streams that are ready, help with open launches, and sleep when there is neither.
//!
//! A worker without work looks around for [`SPIN`] before it sleeps, so that the launches of a running program
//! pay for no wake-up. To publish work is to write it and then look for sleepers; to fall asleep is to enter the
//! list of sleepers and then look for work; both in that order and sequentially consistent, so one of the two sees
//! the other. A publisher wakes nobody while enough others are looking around: whoever stops looking because it
//! found something wakes the next if more is waiting.
//!
//! Workers hold the shared part alone. When the last [`Pool`] handle goes, which ready streams hold too, they end
//! by themselves; nobody joins them, so the last handle may be dropped on a worker.

use crate::error::lock;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::{Mutex, Patience, spin_loop};
use crate::team::{Shares, Slot};
use halite_hal::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Something that a worker can run: a stream with commands.
pub(crate) trait Task: Send + Sync {
    /// Runs until there is nothing to do at the moment.
    fn run(self: Arc<Self>, team: &Team<'_>);
}

/// The handle that keeps the workers alive.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

/// A thread that runs streams, with the helpers that it may get.
pub(crate) struct Team<'a> {
    shared: &'a Shared,
    slot: &'a Slot,
}

struct Shared {
    state: State,
    ready: Mutex<VecDeque<Arc<dyn Task>>>,
    /// One per worker, then [`SPARE_SLOTS`] for threads from outside.
    slots: Box<[Slot]>,
    threads: usize,
    sleepers: Mutex<Vec<Sleeper>>,
    woken: Box<[AtomicBool]>,
    closed: AtomicBool,
}

/// What idle workers look at, on a cache line of its own.
#[repr(align(128))]
struct State {
    /// Tasks in `ready`.
    ready: AtomicUsize,
    /// Slots that may be open.
    open: AtomicUsize,
    /// Workers that look for work.
    looking: AtomicUsize,
    /// Workers in `sleepers`.
    sleeping: AtomicUsize,
}

struct Sleeper {
    index: usize,
    thread: Thread,
}

/// How long an idle worker looks for work before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// How long of it it keeps its core. To yield on a busy machine is to be gone for milliseconds.
const EAGER_SPIN: Duration = Duration::from_micros(25);
/// Looks for work between looks at the clock.
const LOOKS_PER_TIME: u32 = if cfg!(shuttle) { 1 } else { 8 };
/// Workers that one thread wakes: each costs it a system call.
const WOKEN_BY_ONE: usize = 2;
/// Threads from outside that may run streams at the same time.
const SPARE_SLOTS: usize = 4;

impl Pool {
    /// Starts `threads` workers, at least one.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let threads = threads.max(1);
        let state = State {
            ready: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            looking: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
        };
        let shared = Arc::new(Shared {
            state,
            ready: Mutex::new(VecDeque::new()),
            slots: (0..threads + SPARE_SLOTS).map(|_| Slot::new()).collect(),
            threads,
            sleepers: Mutex::new(Vec::with_capacity(threads)),
            woken: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            closed: AtomicBool::new(false),
        });
        // Made before the threads, so that dropping it on a failure below ends those that did start.
        let pool = Self { shared: shared.clone() };
        for index in 0..threads {
            let shared = shared.clone();
            let worker = thread::Builder::new().name(format!("halite-cpu-{index}"));
            worker.spawn(move || shared.work(index)).map_err(|error| {
                let kind = ErrorKind::Backend {
                    code: error.raw_os_error().unwrap_or(0).into(),
                    message: error.to_string(),
                };
                let message = format!("cannot start thread {index} of {threads}; set HALITE_CPU_THREADS");
                Error::new(kind, message).in_call("thread::spawn")
            })?;
        }
        Ok(pool)
    }

    /// Hands a task to the workers.
    pub(crate) fn schedule(&self, task: Arc<dyn Task>) {
        let mut ready = lock(&self.shared.ready);
        ready.push_back(task);
        self.shared.state.ready.fetch_add(1, Ordering::SeqCst);
        drop(ready);
        self.shared.wake(1);
    }

    /// Whether tasks wait for a worker.
    pub(crate) fn has_ready(&self) -> bool {
        self.shared.state.ready.load(Ordering::Relaxed) > 0
    }

    /// Lets the calling thread, which is no worker, run a task with the workers' help. `None` when too many do.
    pub(crate) fn with_team(&self, run: impl FnOnce(&Team<'_>)) -> Option<()> {
        let spare = &self.shared.slots[self.shared.threads..];
        let free = |slot: &&Slot| !slot.borrowed.swap(true, Ordering::Acquire);
        let borrowed = Borrowed(spare.iter().find(free)?);
        run(&Team { shared: &self.shared, slot: borrowed.0 });
        Some(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.wake_sleepers(usize::MAX);
    }
}

impl Team<'_> {
    /// Threads that work at once at most.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `body` here and on idle workers, each taking shares of `items` until none are left. `body` must not
    /// unwind where it can avoid it; if it does, so does this call, after everyone has left.
    pub(crate) fn share<F: Fn(&Shares<'_>) + Sync>(&self, items: u64, body: &F) {
        let shared = self.shared;
        let helpers = items.saturating_sub(1).min(shared.threads as u64 - 1) as u32;
        if helpers == 0 {
            return Shares::alone(items, body);
        }
        shared.state.open.fetch_add(1, Ordering::SeqCst);
        let _counted = CountDown(&shared.state.open);
        self.slot.share(items, helpers, body, || shared.wake(helpers as usize));
    }
}

impl Shared {
    fn work(&self, index: usize) {
        loop {
            if let Some(task) = self.take_ready() {
                // A task catches what kernels throw, so a panic here is a defect; it must not end the worker.
                let team = Team { shared: self, slot: &self.slots[index] };
                if catch_unwind(AssertUnwindSafe(|| task.run(&team))).is_err() {
                    log::error!("a stream of the cpu backend panicked outside of a kernel");
                }
            } else if !self.help(index) && !self.look(index) {
                return;
            }
        }
    }

    fn take_ready(&self) -> Option<Arc<dyn Task>> {
        if self.state.ready.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut ready = lock(&self.ready);
        let task = ready.pop_front()?;
        let more = self.state.ready.fetch_sub(1, Ordering::SeqCst) > 1;
        drop(ready);
        if more {
            // Whoever published it may have counted on this worker, which is taken now.
            self.wake(1);
        }
        Some(task)
    }

    /// Helps one open launch, neighbours first so that helpers spread; whether there was one.
    fn help(&self, index: usize) -> bool {
        if self.state.open.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let (before, after) = self.slots.split_at(index);
        after.iter().chain(before).any(Slot::help)
    }

    fn has_work(&self) -> bool {
        self.state.ready.load(Ordering::SeqCst) > 0
            || (self.state.open.load(Ordering::SeqCst) > 0 && self.slots.iter().any(|slot| slot.places() > 0))
    }

    /// Looks for work, then sleeps until woken; `false` when the pool is closed.
    fn look(&self, index: usize) -> bool {
        self.state.looking.fetch_add(1, Ordering::SeqCst);
        let found = self.spin();
        self.state.looking.fetch_sub(1, Ordering::SeqCst);
        found || self.sleep(index)
    }

    fn spin(&self) -> bool {
        let patience = Patience::new();
        loop {
            for _ in 0..LOOKS_PER_TIME {
                if self.has_work() {
                    return true;
                }
                spin_loop();
            }
            let idle = patience.elapsed();
            if idle > SPIN || self.closed.load(Ordering::Relaxed) {
                return false;
            }
            if idle > EAGER_SPIN {
                thread::yield_now();
            }
        }
    }

    fn sleep(&self, index: usize) -> bool {
        {
            let mut sleepers = lock(&self.sleepers);
            sleepers.push(Sleeper { index, thread: thread::current() });
            self.state.sleeping.fetch_add(1, Ordering::SeqCst);
        }
        if self.has_work() || self.closed.load(Ordering::SeqCst) {
            let mut sleepers = lock(&self.sleepers);
            if let Some(place) = sleepers.iter().position(|sleeper| sleeper.index == index) {
                sleepers.swap_remove(place);
                self.state.sleeping.fetch_sub(1, Ordering::SeqCst);
            }
            self.woken[index].store(false, Ordering::Relaxed);
            // Ready streams hold the pool, so none are left once it is closed.
            return !self.closed.load(Ordering::SeqCst);
        }
        while !self.woken[index].swap(false, Ordering::Acquire) {
            thread::park();
        }
        if self.state.open.load(Ordering::SeqCst) > 0 {
            // One place is this worker's; it wakes others for the rest.
            let places = self.slots.iter().map(Slot::places).sum::<usize>();
            self.wake(places.saturating_sub(1));
        }
        !self.closed.load(Ordering::SeqCst)
    }

    /// Sees to it that `count` workers come to look for work, as far as there are idle ones. The caller wakes a
    /// few; those wake the rest, so that a launch does not wait until its runner has woken a hundred.
    fn wake(&self, count: usize) {
        let looking = self.state.looking.load(Ordering::SeqCst);
        if looking < count && self.state.sleeping.load(Ordering::SeqCst) > 0 {
            self.wake_sleepers((count - looking).min(WOKEN_BY_ONE));
        }
    }

    #[cold]
    fn wake_sleepers(&self, count: usize) {
        let mut sleepers = lock(&self.sleepers);
        for _ in 0..count {
            let Some(sleeper) = sleepers.pop() else { return };
            self.state.sleeping.fetch_sub(1, Ordering::SeqCst);
            self.woken[sleeper.index].store(true, Ordering::Release);
            sleeper.thread.unpark();
        }
    }
}

/// Gives a spare slot back when dropped.
struct Borrowed<'a>(&'a Slot);

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.0.borrowed.store(false, Ordering::Release);
    }
}

/// Takes one off a counter when dropped.
struct CountDown<'a>(&'a AtomicUsize);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// Time to call a missing wake-up a hang.
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Report(Sender<Option<String>>);

    impl Task for Report {
        fn run(self: Arc<Self>, _: &Team<'_>) {
            // The receiver may have given up after a failure.
            _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }

    #[test]
    fn tasks_that_come_while_workers_fall_asleep_are_not_lost() {
        let (sender, receiver) = channel();
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            // From well before the end of the spin to well after it, so that the pauses hit every step between.
            for pause_us in 0..1000 {
                let patience = Patience::new();
                while patience.elapsed() < SPIN / 2 + Duration::from_nanos(pause_us * 100) {
                    thread::yield_now();
                }
                let tasks = 1 + pause_us % 4;
                (0..tasks).for_each(|_| pool.schedule(Arc::new(Report(sender.clone()))));
                for _ in 0..tasks {
                    let name = receiver.recv_timeout(PATIENCE).expect("a worker takes the task").unwrap();
                    assert!(name.starts_with("halite-cpu-"));
                }
            }
        }
    }

    #[test]
    fn a_task_that_panics_costs_no_worker() {
        struct Throw;
        impl Task for Throw {
            fn run(self: Arc<Self>, _: &Team<'_>) {
                panic!("on purpose");
            }
        }
        let pool = Pool::new(1).unwrap();
        let (sender, receiver) = channel();
        (0..10).for_each(|_| pool.schedule(Arc::new(Throw)));
        pool.schedule(Arc::new(Report(sender)));
        assert!(receiver.recv_timeout(PATIENCE).is_ok());
    }

    #[test]
    fn threads_from_outside_get_teams_up_to_a_limit_and_give_them_back() {
        fn nested(pool: &Pool, depth: usize) -> usize {
            let mut deepest = depth;
            pool.with_team(|team| {
                assert_eq!(team.threads(), 2);
                deepest = nested(pool, depth + 1);
            });
            deepest
        }
        let pool = Pool::new(2).unwrap();
        assert_eq!(nested(&pool, 0), SPARE_SLOTS);
        assert_eq!(nested(&pool, 0), SPARE_SLOTS);
    }

    #[test]
    fn sleeping_workers_are_woken_for_a_launch_until_all_take_part() {
        for threads in [2, 9] {
            let pool = Pool::new(threads).unwrap();
            // Long enough for every worker to be asleep.
            thread::sleep(4 * SPIN);
            let inside = AtomicUsize::new(0);
            let patience = Patience::new();
            pool.with_team(|team| {
                team.share(threads as u64, &|shares| {
                    while shares.take().is_some() {
                        // Each of the threads takes one item and waits for all others.
                        inside.fetch_add(1, Ordering::SeqCst);
                        while inside.load(Ordering::SeqCst) < threads && patience.elapsed() < PATIENCE {
                            thread::yield_now();
                        }
                    }
                });
            })
            .expect("a spare slot is free");
            assert_eq!(inside.load(Ordering::SeqCst), threads);
            assert!(patience.elapsed() < PATIENCE, "not every thread took part");
        }
    }
}

//! Streams as in-order queues, which one worker thread per device runs.
//!
//! The worker takes the first command of some stream that need not wait for an event, and turns among the streams. A
//! wait is a command that stays in front until its event is over, so it blocks its stream and never the worker.

use crate::builtin::Builtin;
use crate::device::Device;
use crate::failure::{Failure, Result};
use crate::machine::Arg;
use halite_hal::plugin;
use halite_npu_isa::Program;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// One pattern's repetitions are written in pieces of at most this many bytes, a multiple of every pattern's length.
const FILL_BYTES: usize = 64 << 10;

/// What is between two devices at a time.
const PEER_BYTES: usize = 1 << 20;

/// Memory of the host that a copy in flight uses; the host keeps it until the copy is over.
pub(crate) struct HostMemory {
    pointer: *mut u8,
    len: usize,
}

// SAFETY: the interface makes the copy the only user of the memory until it is over, on whatever thread it runs.
unsafe impl Send for HostMemory {}

impl HostMemory {
    /// # Safety
    /// `pointer` is valid for `len` bytes (for writes too, if [`Self::as_mut_slice`] will be used) until the command that
    /// it becomes part of is over, and nobody else uses the memory meanwhile (or writes it, if it is only read).
    pub(crate) unsafe fn new(pointer: *mut u8, len: usize) -> Self {
        Self { pointer, len }
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: valid and unchanged while the command lives, by the contract of `new`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: valid, writable and exclusive while the command lives, by the contract of `new`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

/// What a stream runs. Addresses are checked when it is enqueued.
pub(crate) enum Command {
    Write { dst: u64, src: HostMemory },
    Read { dst: HostMemory, src: u64 },
    Copy { dst: u64, src: u64, len: u64 },
    CopyPeer { dst: u64, peer: Arc<Device>, src: u64, len: u64 },
    Fill { dst: u64, len: u64, pattern: Vec<u8> },
    Launch { program: Arc<Program>, kernel: Arc<str>, blocks: u32, args: Vec<Arg> },
    Builtin { builtin: Arc<Builtin>, addresses: Vec<u64> },
    Wait(Arc<Event>),
    Record(Arc<Event>),
}

/// Where an event stands.
#[derive(Debug, Clone, Default)]
pub(crate) enum Progress {
    /// Not recorded; nobody waits for it.
    #[default]
    Created,
    Pending,
    Done(Instant),
    Failed(Failure),
}

/// A point on a stream.
pub(crate) struct Event {
    pub(crate) device: Arc<Device>,
    /// Changes under the lock of the queues, so that whoever waits there misses nothing.
    progress: Mutex<Progress>,
    /// Queues of other devices that wait for it.
    elsewhere: Mutex<Vec<Queues>>,
}

impl Event {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self { device, progress: Mutex::default(), elsewhere: Mutex::default() }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, progress: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// Lets queues of another device know when it is over, unless it is.
    fn watch(&self, queues: Queues) {
        if !matches!(self.progress(), Progress::Pending) {
            return;
        }
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).push(queues);
    }

    /// Wakes the other devices that wait for it. It is over, and no queue is locked: theirs will be.
    fn wake_elsewhere(&self) {
        let waiting = std::mem::take(&mut *self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner));
        for queues in waiting {
            // Under the lock, so that no worker is between its look at the event and its sleep.
            drop(queues.lock());
            queues.0.work.notify_all();
        }
    }
}

/// A stream's name within its device.
pub(crate) struct Stream {
    pub(crate) device: Arc<Device>,
    id: u64,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    enqueued: u64,
    completed: u64,
    failure: Option<Failure>,
    /// Nobody enqueues any more; the queue goes when it is empty.
    abandoned: bool,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<u64, Queue>,
    /// The stream that the worker served last.
    last: u64,
    shut_down: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to run.
    work: Condvar,
    /// Something is over.
    over: Condvar,
    next: AtomicU64,
}

/// The queues of one device.
#[derive(Clone, Default)]
pub(crate) struct Queues(Arc<Shared>);

impl Queues {
    pub(crate) fn create(&self, device: &Arc<Device>) -> Result<Arc<Stream>> {
        device.check()?;
        let id = self.0.next.fetch_add(1, Relaxed);
        self.lock().queues.insert(id, Queue::default());
        Ok(Arc::new(Stream { device: device.clone(), id }))
    }

    /// Runs what is still enqueued and then drops the queue.
    pub(crate) fn abandon(&self, stream: &Stream) {
        if let Some(queue) = self.lock().queues.get_mut(&stream.id) {
            queue.abandoned = true;
        }
        self.0.work.notify_all();
    }

    pub(crate) fn shut_down(&self) {
        self.lock().shut_down = true;
        self.0.work.notify_all();
    }

    pub(crate) fn enqueue(&self, stream: &Stream, command: Command) -> Result<()> {
        stream.device.check()?;
        let mut state = self.lock();
        let queue = queue_of(&mut state, stream)?;
        match &command {
            Command::Record(event) => event.set(Progress::Pending),
            // Before the worker looks at it: what is over later, wakes it.
            Command::Wait(event) if !std::ptr::eq(&*event.device, &*stream.device) => {
                event.watch(self.clone())
            }
            _ => {}
        }
        queue.commands.push_back(command);
        queue.enqueued += 1;
        drop(state);
        self.0.work.notify_all();
        Ok(())
    }

    /// Waits until everything enqueued so far is over; `Created` stands for "not yet".
    pub(crate) fn synchronize(&self, stream: &Stream, timeout: Option<Duration>) -> Result<Progress> {
        let target = queue_of(&mut self.lock(), stream)?.enqueued;
        self.wait_until(timeout, |state| {
            let queue = queue_of(state, stream)?;
            if queue.completed < target {
                return Ok(Progress::Pending);
            }
            Ok(match &queue.failure {
                Some(failure) => Progress::Failed(failure.clone()),
                None => Progress::Done(Instant::now()),
            })
        })
    }

    pub(crate) fn wait(&self, event: &Event, timeout: Option<Duration>) -> Result<Progress> {
        self.wait_until(timeout, |_| Ok(event.progress()))
    }

    /// Forgets the failure of a stream on which nothing runs.
    pub(crate) fn reset(&self, stream: &Stream) -> Result<()> {
        stream.device.check()?;
        let mut state = self.lock();
        let queue = queue_of(&mut state, stream)?;
        if queue.completed < queue.enqueued {
            return Err(Failure::invalid("the stream is not idle; synchronize it before the reset"));
        }
        queue.failure = None;
        Ok(())
    }

    /// Asks again whenever something is over, until the answer is not `Pending` or time is out.
    fn wait_until(
        &self,
        timeout: Option<Duration>,
        mut ask: impl FnMut(&mut State) -> Result<Progress>,
    ) -> Result<Progress> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock();
        loop {
            let progress = ask(&mut state)?;
            if !matches!(progress, Progress::Pending) {
                return Ok(progress);
            }
            state = match deadline {
                None => self.0.over.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Progress::Pending);
                    }
                    let woken = self.0.over.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// The worker's life: runs commands until the device is closed and nothing is left.
    pub(crate) fn work(&self, device: &Weak<Device>) {
        let mut state = self.lock();
        loop {
            let Some((id, command)) = state.take() else {
                if state.shut_down {
                    return;
                }
                state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // Streams hold their device, and a command is of a stream; without the device there is nobody to tell.
            let Some(device) = device.upgrade() else { return };
            let failure = state.queues.get(&id).and_then(|queue| queue.failure.clone());
            let failure = failure.or_else(|| device.check().err());
            let mut recorded = None;
            let result = match (command, failure) {
                (Command::Record(event), None) => {
                    event.set(Progress::Done(Instant::now()));
                    recorded = Some(event);
                    Ok(())
                }
                (Command::Record(event), Some(failure)) => {
                    event.set(Progress::Failed(failure.clone()));
                    recorded = Some(event);
                    Err(failure)
                }
                (_, Some(failure)) => Err(failure),
                (Command::Wait(event), None) => match event.progress() {
                    // The other end of the link is gone, and not this device.
                    Progress::Failed(failure)
                        if failure.status == plugin::STATUS_DEVICE_LOST
                            && !std::ptr::eq(&*event.device, &*device) =>
                    {
                        Err(Failure::new(plugin::STATUS_LINK, format!("the peer is lost: {}", failure.text)))
                    }
                    Progress::Failed(failure) => Err(failure),
                    _ => Ok(()),
                },
                (command, None) => {
                    drop(state);
                    let start = Instant::now();
                    let result = run(&device, command);
                    let busy = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    device.counts.busy_ns.fetch_add(busy, Relaxed);
                    state = self.lock();
                    result
                }
            };
            if let Some(queue) = state.queues.get_mut(&id) {
                queue.completed += 1;
                if let Err(failure) = result {
                    queue.failure.get_or_insert(failure);
                }
                if queue.abandoned && queue.commands.is_empty() {
                    state.queues.remove(&id);
                }
            }
            self.0.over.notify_all();
            // The last handle to the device may be this one, and closing joins this thread: not under the lock.
            drop(state);
            if let Some(event) = recorded {
                event.wake_elsewhere();
            }
            drop(device);
            state = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next command of the next stream that has one to run.
    fn take(&mut self) -> Option<(u64, Command)> {
        let ready = |queue: &Queue| match queue.commands.front() {
            None => false,
            // A stream that has failed skips the wait too.
            Some(Command::Wait(event)) => {
                queue.failure.is_some() || !matches!(event.progress(), Progress::Pending)
            }
            Some(_) => true,
        };
        self.queues.retain(|_, queue| !(queue.abandoned && queue.commands.is_empty()));
        let after = self.queues.range(self.last + 1..).find(|(_, queue)| ready(queue)).map(|(id, _)| *id);
        let id = after.or_else(|| self.queues.iter().find(|(_, queue)| ready(queue)).map(|(id, _)| *id))?;
        self.last = id;
        let command = self.queues.get_mut(&id)?.commands.pop_front()?;
        Some((id, command))
    }
}

fn queue_of<'a>(state: &'a mut State, stream: &Stream) -> Result<&'a mut Queue> {
    state.queues.get_mut(&stream.id).ok_or_else(|| Failure::invalid("the stream was given back"))
}

/// Runs one command; a panic is a failure of the emulator, reported like a driver's.
fn run(device: &Device, command: Command) -> Result<()> {
    let lost = device.loses_this_command();
    let outcome = catch_unwind(AssertUnwindSafe(|| execute(device, command, lost)));
    let result = outcome.unwrap_or_else(|_| {
        Err(Failure::new(plugin::STATUS_BACKEND, "internal fault of the emulator: a command panicked"))
    });
    if lost { Err(device.lose()) } else { result }
}

/// Executes one command; of a copy, `half` leaves the second half out.
fn execute(device: &Device, command: Command, half: bool) -> Result<()> {
    let memory = device.emulator.memory();
    let counts = &device.counts;
    let part = |len: usize| if half { len / 2 } else { len };
    match command {
        Command::Write { dst, src } => {
            let src = src.as_slice();
            let src = &src[..part(src.len())];
            memory.write(dst, src)?;
            counts.bytes_to_device.fetch_add(src.len() as u64, Relaxed);
        }
        Command::Read { mut dst, src } => {
            let dst = dst.as_mut_slice();
            let len = part(dst.len());
            memory.read(src, &mut dst[..len])?;
            counts.bytes_to_host.fetch_add(len as u64, Relaxed);
        }
        Command::Copy { dst, src, len } => {
            let len = if half { len / 2 } else { len };
            memory.copy(src, dst, len)?;
            counts.bytes_within.fetch_add(len, Relaxed);
        }
        Command::CopyPeer { dst, peer, src, len } => {
            let lost = |failure: Failure| Failure::new(plugin::STATUS_LINK, failure.text);
            let mut piece = vec![0; usize::try_from(len).map_or(PEER_BYTES, |len| len.min(PEER_BYTES))];
            let len = if half { len / 2 } else { len };
            let mut start = 0;
            while start < len {
                peer.check().map_err(lost)?;
                let piece = &mut piece[..(len - start).min(PEER_BYTES as u64) as usize];
                peer.emulator.memory().read(src + start, piece)?;
                memory.write(dst + start, piece)?;
                start += piece.len() as u64;
            }
            counts.bytes_from_peers.fetch_add(len, Relaxed);
        }
        Command::Fill { dst, len, pattern } => {
            let unit = pattern.len().max(1);
            let piece_len = usize::try_from(len).map_or(FILL_BYTES, |len| len.min(FILL_BYTES));
            let piece = pattern.repeat(piece_len / unit);
            let mut start = 0;
            while start < len {
                let count = (len - start).min(piece.len() as u64);
                memory.write(dst + start, &piece[..count as usize])?;
                start += count;
            }
        }
        Command::Launch { program, kernel, blocks, args } => {
            let report = device.emulator.launch(&program, &kernel, blocks, &args)?;
            counts.add_launch(&report);
        }
        Command::Builtin { builtin, addresses } => builtin.run(memory, &addresses)?,
        Command::Wait(_) | Command::Record(_) => {}
    }
    Ok(())
}

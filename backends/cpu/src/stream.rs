//! In-order queues, and who runs them when.
//!
//! A stream is in one of four [phases](Phase). Queueing into an idle one makes it *ready* and hands it to the
//! pool; the thread that takes it makes it *running* and is its runner, the only one that executes its commands,
//! until it is idle or *suspended* by an event, which makes it ready again once reached. So nobody blocks a
//! worker, and one worker is enough for any number of streams.
//!
//! The runner takes whole batches of commands, so both sides lock the queue rarely. A host thread that waits for
//! a stream which no worker has taken yet runs it itself: that is faster than to wake a worker and to be woken.

use crate::buffer::address;
use crate::command::{Batch, Command, HostRange, Pattern, Progress, Replay};
use crate::error::{self, lock};
use crate::event::{CpuEvent, EventCore};
use crate::kernel;
use crate::pool::{Pool, Task, Team};
use crate::sync::{Mutex, MutexGuard};
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{Arg, Binding, BufferSlice, CommandList, DeviceId, Error, Event, Kernel, Result, Scalar};
use std::sync::Arc;
use std::time::Duration;

/// A stream as the layer's handle holds it. Dropping it leaves queued work to the pool.
pub(crate) struct CpuStream(Arc<StreamCore>);

/// The queue, kept alive by handles, by the pool while it is ready, and by the event that it waits for.
pub(crate) struct StreamCore {
    pool: Arc<Pool>,
    device: DeviceId,
    queue: Mutex<Queue>,
    /// Locked by the runner while it runs.
    runner: Mutex<Runner>,
}

struct Queue {
    phase: Phase,
    /// Whether the pool has it, also if a host thread has run it in the meantime.
    scheduled: bool,
    /// What no runner has taken yet.
    incoming: Batch,
    /// The runner's failure, for those who enqueue.
    failure: Option<Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is queued.
    Idle,
    /// The pool has it.
    Ready,
    /// Some thread runs commands, or copies on behalf of its caller.
    Running,
    /// An event holds the stream.
    Suspended,
}

#[derive(Default)]
struct Runner {
    batch: Batch,
    failure: Option<Error>,
}

/// A copy of at most this many bytes is done by the caller when the stream is idle.
const INLINE_BYTES: usize = 64 << 10;
/// Up to here a blocking write into a busy stream copies the bytes aside instead of waiting for its turn.
const STAGED_BYTES: usize = 1 << 20;

impl CpuStream {
    pub(crate) fn new(pool: Arc<Pool>, device: DeviceId) -> Self {
        let queue = Queue { phase: Phase::Idle, scheduled: false, incoming: Batch::default(), failure: None };
        let runner = Mutex::new(Runner::default());
        Self(Arc::new(StreamCore { pool, device, queue: Mutex::new(queue), runner }))
    }

    fn push(&self, command: Command) -> Result<()> {
        self.0.enqueue(|batch| {
            batch.push(command);
            Ok(())
        })
    }

    /// Queues a command that ends with an event, poisoned or not.
    fn push_event(&self, command: impl FnOnce(Arc<EventCore>) -> Command) -> Arc<EventCore> {
        let event = Arc::new(EventCore::new(Arc::downgrade(&self.0)));
        let mut queue = lock(&self.0.queue);
        queue.incoming.push(command(event.clone()));
        self.0.start(queue);
        event
    }

    /// Queues a command that uses memory of the caller, and blocks until it is done or skipped.
    fn push_borrowing(&self, command: Command) -> Result<()> {
        if kernel::is_inside() {
            return Err(Error::invalid("a kernel cannot wait for a copy; use the asynchronous one"));
        }
        let mut queue = lock(&self.0.queue);
        if let Some(failure) = &queue.failure {
            return Err(failure.clone());
        }
        let event = Arc::new(EventCore::new(Arc::downgrade(&self.0)));
        queue.incoming.push(command);
        queue.incoming.push(Command::Record(event.clone()));
        self.0.start(queue);
        event.wait(None)
    }
}

impl driver::Stream for CpuStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        if src.as_slice().len() <= INLINE_BYTES && self.write_if_idle(dst, src.as_slice())? {
            return Ok(());
        }
        self.push(Command::Write { dst: dst.clone(), src })
    }

    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        if self.write_if_idle(dst, src)? {
            return Ok(());
        }
        if src.len() <= STAGED_BYTES {
            return self.push(Command::Write { dst: dst.clone(), src: src.into() });
        }
        let src = HostRange { ptr: src.as_ptr().cast_mut(), len: src.len() };
        self.push_borrowing(Command::WriteBorrowed { dst: dst.clone(), src })
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        if let Some(_turn) = self.0.take_turn()? {
            let len = dst.len().min(src.len_bytes() as usize);
            // SAFETY: `address` is valid for the slice's length, and this thread is the stream's runner, so no work
            // of the stream touches it; `dst` is borrowed exclusively and so lies elsewhere.
            unsafe { dst.as_mut_ptr().copy_from_nonoverlapping(address(src)?, len) };
            return Ok(());
        }
        let dst = HostRange { ptr: dst.as_mut_ptr(), len: dst.len() };
        self.push_borrowing(Command::ReadBorrowed { src: src.clone(), dst })
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.push(Command::Read { src: src.clone(), dst })
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        self.push(Command::Copy { dst: dst.clone(), src: src.clone() })
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        self.push(Command::Fill { dst: dst.clone(), pattern: Pattern::new(pattern)? })
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        self.0.enqueue(|batch| batch.push_launch(kernel, grid, args))
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        let replay = Replay { list: list.clone(), buffers: buffers.to_vec(), scalars: scalars.to_vec() };
        self.push(Command::Replay(Box::new(replay)))
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        Ok(Box::new(CpuEvent(self.push_event(Command::Record))))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        let event: &CpuEvent = event.object().ok_or_else(|| error::foreign("event"))?;
        let mut queue = lock(&self.0.queue);
        queue.incoming.push(Command::Wait(event.0.clone()));
        self.0.start(queue);
        Ok(())
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        {
            let queue = lock(&self.0.queue);
            if queue.phase == Phase::Idle {
                return queue.failure.clone().map_or(Ok(()), Err);
            }
        }
        self.push_event(Command::Record).wait(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.push_event(Command::Reset).wait(None)
    }
}

impl CpuStream {
    /// Copies at once if nothing is queued before; whether it did.
    fn write_if_idle(&self, dst: &BufferSlice, src: &[u8]) -> Result<bool> {
        let Some(_turn) = self.0.take_turn()? else { return Ok(false) };
        let len = src.len().min(dst.len_bytes() as usize);
        // SAFETY: `address` is valid for the slice's length, and this thread is the stream's runner, so no work of
        // the stream touches it; `src` is borrowed and so does not change.
        unsafe { src.as_ptr().copy_to_nonoverlapping(address(dst)?, len) };
        Ok(true)
    }
}

impl StreamCore {
    /// Adds to the queue with `push`, unless the stream is poisoned.
    fn enqueue(self: &Arc<Self>, push: impl FnOnce(&mut Batch) -> Result<()>) -> Result<()> {
        let mut queue = lock(&self.queue);
        if let Some(failure) = &queue.failure {
            return Err(failure.clone());
        }
        push(&mut queue.incoming)?;
        self.start(queue);
        Ok(())
    }

    /// Sees to it that what was just queued will run.
    fn start(self: &Arc<Self>, queue: MutexGuard<'_, Queue>) {
        if queue.phase == Phase::Idle {
            self.make_ready(queue);
        }
    }

    fn make_ready(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        queue.phase = Phase::Ready;
        if !std::mem::replace(&mut queue.scheduled, true) {
            drop(queue);
            self.pool.schedule(self.clone());
        }
    }

    /// Called by the event that held the stream.
    pub(crate) fn resume(self: Arc<Self>) {
        self.make_ready(lock(&self.queue));
    }

    /// Makes the caller the runner of a ready stream; whether it was one.
    fn claim(&self, mut queue: MutexGuard<'_, Queue>) -> bool {
        let ready = queue.phase == Phase::Ready;
        if ready {
            queue.phase = Phase::Running;
        }
        ready
    }

    /// Makes the caller the runner of an idle stream for the length of one copy.
    fn take_turn(self: &Arc<Self>) -> Result<Option<Turn<'_>>> {
        let mut queue = lock(&self.queue);
        if let Some(failure) = &queue.failure {
            return Err(failure.clone());
        }
        if queue.phase != Phase::Idle {
            return Ok(None);
        }
        queue.phase = Phase::Running;
        Ok(Some(Turn(self)))
    }

    /// Runs the stream on the calling host thread until `event`, if no worker has begun to.
    pub(crate) fn run_until(self: &Arc<Self>, event: &EventCore) {
        if lock(&self.queue).phase == Phase::Ready {
            self.pool.with_team(|team| {
                if self.claim(lock(&self.queue)) {
                    self.drive(team, Some(event));
                }
            });
        }
    }

    /// Executes commands as the runner, until there are none, an event blocks them, others want their turn, or
    /// `until` is reached.
    fn drive(self: &Arc<Self>, team: &Team<'_>, until: Option<&EventCore>) {
        let mut guard = lock(&self.runner);
        loop {
            let runner = &mut *guard;
            let poisoned = runner.failure.is_some();
            match runner.batch.advance(&mut runner.failure, team) {
                Progress::Done if poisoned != runner.failure.is_some() => {
                    runner.failure = runner.failure.take().map(|failure| failure.on_device(&self.device));
                    lock(&self.queue).failure.clone_from(&runner.failure);
                }
                Progress::Done => {}
                Progress::Reset(event) => {
                    lock(&self.queue).failure = None;
                    event.reach(None);
                }
                Progress::Blocked(event) => {
                    // Whoever resumes the stream may run it at once, so all of it is put down before.
                    lock(&self.queue).phase = Phase::Suspended;
                    drop(guard);
                    if event.resume_when_reached(self.clone()).is_none() {
                        return;
                    }
                    lock(&self.queue).phase = Phase::Running;
                    guard = lock(&self.runner);
                }
                Progress::Empty => {
                    let mut queue = lock(&self.queue);
                    if queue.incoming.is_empty() {
                        queue.phase = Phase::Idle;
                        drop(guard);
                        return;
                    }
                    std::mem::swap(&mut runner.batch, &mut queue.incoming);
                    drop(queue);
                    if until.is_none() && self.pool.has_ready() {
                        break;
                    }
                }
            }
            if until.is_some_and(EventCore::is_over) {
                break;
            }
        }
        let mut queue = lock(&self.queue);
        queue.phase = Phase::Idle;
        let more = !guard.batch.is_empty() || !queue.incoming.is_empty();
        drop(guard);
        if more {
            self.make_ready(queue);
        }
    }
}

impl Task for StreamCore {
    fn run(self: Arc<Self>, team: &Team<'_>) {
        let mut queue = lock(&self.queue);
        queue.scheduled = false;
        if self.claim(queue) {
            self.drive(team, None);
        }
    }
}

/// The right to copy on an idle stream; handed to the pool when dropped if something was queued meanwhile.
struct Turn<'a>(&'a Arc<StreamCore>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.phase = Phase::Idle;
        if !queue.incoming.is_empty() {
            self.0.start(queue);
        }
    }
}

//! In-order queues: what work in flight holds, how host memory gets there and back, and what a failure does.
//!
//! Every command is counted. What it uses is held under its number, and given back when an event says that the device is
//! past it. Events of the caller serve as such marks; in between, every [`MARK_EVERY`] commands, the stream records one
//! of its own.
//!
//! Two locks: `submit` keeps calls of the driver in the order of their numbers, and may be held while the driver makes
//! its caller wait for room in a queue; `books` guards what is held, for a bounded number of steps. Whoever has `books`
//! takes no other lock than those of the device's lists.
//!
//! On a GPU, work fails by losing the device, which every further call then reports. A stream's own failure is a refusal
//! that shows at an event only.

use crate::buffer::place;
use crate::context::{Current, StreamHandle};
use crate::device::{DeviceShared, lock};
use crate::event::{self, CudaEvent, EventShared, Progress};
use crate::graph::GraphList;
use crate::op::{self, Op};
use crate::peer;
use crate::transfer::{HostCopy, SmallRead};
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{
    Arg, Binding, Buffer, BufferSlice, Command, CommandList, Error, Event, Kernel, Result, Scalar,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Commands after which a stream without recorded events records one, to give back what finished ones held.
const MARK_EVERY: u64 = 64;

/// What a command in flight uses.
#[expect(dead_code, reason = "held, not read")]
pub(crate) enum Held {
    Buffer(Buffer),
    Kernel(Kernel),
    List(CommandList),
    Block(Arc<crate::staging::Block>),
    HostCopy(Arc<HostCopy>),
    Graph(Arc<crate::graph::Executable>),
    Event(Arc<EventShared>),
    /// Of another device.
    PeerEvent(Arc<EventShared>),
}

#[derive(Default)]
struct Books {
    /// Commands so far.
    sequence: u64,
    /// Resets so far: a failure from before a reset does not poison what came after.
    generation: u64,
    failure: Option<Error>,
    held: VecDeque<(u64, Held)>,
    reads: VecDeque<(u64, SmallRead)>,
    marks: VecDeque<(u64, Arc<EventShared>)>,
    /// The last command that a mark is behind.
    marked: u64,
    /// The first read that was given up with the device: events behind it must not say that its bytes are there.
    lost_read: Option<u64>,
    /// The first command that waited for an event which failed, and that failure: events behind it fail alike.
    failed_wait: Option<(u64, Error)>,
}

/// A stream, shared by the handle and by its events.
pub(crate) struct StreamShared {
    pub(crate) device: Arc<DeviceShared>,
    raw: StreamHandle,
    submit: Mutex<()>,
    books: Mutex<Books>,
}

/// A stream as the layer sees it. Dropping it lets enqueued work run to its end.
pub(crate) struct CudaStream(pub(crate) Arc<StreamShared>);

impl Drop for CudaStream {
    fn drop(&mut self) {
        if !self.0.is_idle() {
            self.0.device.reaper.adopt(self.0.clone());
        }
    }
}

impl Drop for StreamShared {
    fn drop(&mut self) {
        if let Ok(gpu) = self.device.context.enter() {
            gpu.stream_destroy(self.raw);
        }
    }
}

impl StreamShared {
    pub(crate) fn create(device: &Arc<DeviceShared>) -> Result<Arc<Self>> {
        let raw = device.call(|gpu| gpu.stream_create())?;
        Ok(Arc::new(Self { device: device.clone(), raw, submit: Mutex::default(), books: Mutex::default() }))
    }

    /// Whether no work in flight holds anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.reap();
        self.in_flight() == 0
    }

    /// How many things work in flight holds.
    pub(crate) fn in_flight(&self) -> usize {
        let books = lock(&self.books);
        books.held.len() + books.reads.len()
    }

    /// Gives back what finished work held. Never waits.
    pub(crate) fn reap(&self) {
        let released = {
            let mut books = lock(&self.books);
            if self.device.is_lost() { books.give_up() } else { books.reap() }
        };
        // Dropped outside of the lock: a drop may come back here.
        drop(released);
    }

    /// Puts a mark behind the last command, unless there is one, so that its end is noticed.
    pub(crate) fn mark(self: &Arc<Self>) {
        let _order = lock(&self.submit);
        if lock(&self.books).marked_all() {
            return;
        }
        // Without a mark, what is held waits for the next event; that is no failure.
        if let Ok(event) = self.record_mark() {
            let mut books = lock(&self.books);
            let sequence = books.sequence;
            books.add_mark(sequence, event);
        }
    }

    /// Notes what was said of an event behind `sequence` commands, and says how they ended: the first failure wins, and
    /// one of a waited-for event counts here too.
    pub(crate) fn settle(
        &self,
        event: &EventShared,
        sequence: u64,
        generation: u64,
        outcome: Result<()>,
    ) -> Result<()> {
        let mut books = lock(&self.books);
        let released = if event.is_over() { books.release(sequence) } else { Vec::new() };
        let mut outcome = outcome.and_then(|()| match &books.failed_wait {
            Some((first, error)) if *first <= sequence && books.generation == generation => {
                Err(error.clone())
            }
            _ => Ok(()),
        });
        if outcome.is_ok() && books.lost_read.is_some_and(|first| first <= sequence) {
            outcome = self.device.check();
        }
        if let Err(error) = &outcome
            && books.generation == generation
        {
            outcome = Err(books.failure.get_or_insert_with(|| error.clone()).clone());
        }
        drop(books);
        drop(released);
        outcome
    }

    pub(crate) fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let order = lock(&self.submit);
        if self.device.is_lost() {
            drop(order);
            self.reap();
            return self.device.check();
        }
        let (sequence, generation, last) = {
            let books = lock(&self.books);
            if books.marked_all() && books.marks.is_empty() {
                return books.failure.clone().map_or(Ok(()), Err);
            }
            // One that the driver has refused to answer for is no use to wait for.
            let last = books.marks.back().filter(|(_, mark)| books.marked_all() && !mark.is_refused());
            let last = last.map(|(_, mark)| mark.clone());
            (books.sequence, books.generation, last)
        };
        let event = match last {
            Some(mark) => mark,
            None => {
                let event = self.record_mark()?;
                lock(&self.books).add_mark(sequence, event.clone());
                event
            }
        };
        drop(order);
        let outcome = event.wait(timeout).ok_or_else(|| event::timed_out(timeout))?;
        self.settle(&event, sequence, generation, outcome)?;
        let books = lock(&self.books);
        match &books.failure {
            Some(error) if books.generation == generation => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Enqueues one command: `run` passes it to the driver, `held` is what it uses.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        held: impl IntoIterator<Item = Held>,
        run: impl FnOnce(&Current<'_>, StreamHandle) -> Result<()>,
    ) -> Result<()> {
        self.enqueue_read(held, None, run)
    }

    /// As [`enqueue`](Self::enqueue), for a command after whose end a read is to be finished.
    pub(crate) fn enqueue_read(
        self: &Arc<Self>,
        held: impl IntoIterator<Item = Held>,
        read: impl Into<Option<SmallRead>>,
        run: impl FnOnce(&Current<'_>, StreamHandle) -> Result<()>,
    ) -> Result<()> {
        let order = lock(&self.submit);
        self.admit()?;
        let result = self.device.call(|gpu| run(gpu, self.raw));
        let needs_mark = {
            let mut books = lock(&self.books);
            books.sequence += 1;
            let sequence = books.sequence;
            // Also after a failure: a part of the command may have been enqueued.
            books.held.extend(held.into_iter().map(|held| (sequence, held)));
            if result.is_ok() {
                books.reads.extend(read.into().map(|read| (sequence, read)));
            }
            sequence - books.marked >= MARK_EVERY
        };
        let mut released = Vec::new();
        if needs_mark && let Ok(event) = self.record_mark() {
            let mut books = lock(&self.books);
            let sequence = books.sequence;
            books.add_mark(sequence, event);
            released = books.reap();
        }
        drop(order);
        drop(released);
        self.device.reaper.wake();
        result
    }

    /// Whether the stream takes commands: the failure, if it does not.
    pub(crate) fn admit(&self) -> Result<()> {
        self.device.check()?;
        lock(&self.books).failure.clone().map_or(Ok(()), Err)
    }

    /// Records an event behind everything so far. The caller has `submit`.
    fn record_mark(&self) -> Result<Arc<EventShared>> {
        let event = Arc::new(EventShared::create(&self.device)?);
        self.device.call(|gpu| gpu.event_record(event.handle, self.raw))?;
        Ok(event)
    }

    pub(crate) fn record(self: &Arc<Self>) -> Result<CudaEvent> {
        let order = lock(&self.submit);
        self.device.check()?;
        if let Some(failure) = lock(&self.books).failure.clone() {
            return Ok(CudaEvent::OfFailed(failure));
        }
        let event = self.record_mark()?;
        let mut books = lock(&self.books);
        let (sequence, generation) = (books.sequence, books.generation);
        books.add_mark(sequence, event.clone());
        let released = books.reap();
        drop(books);
        drop(order);
        drop(released);
        Ok(CudaEvent::Recorded { event, stream: self.clone(), sequence, generation })
    }

    pub(crate) fn wait(self: &Arc<Self>, event: &CudaEvent) -> Result<()> {
        let (event, of_stream) = match event {
            CudaEvent::OfFailed(failure) => return self.fail(failure.clone()),
            CudaEvent::Recorded { event, stream, .. } => (event, stream),
        };
        let handle = event.handle;
        let is_peers = !Arc::ptr_eq(&event.device, &self.device);
        match event.poll() {
            Some(Ok(())) => self.device.check(),
            Some(Err(failure)) if is_peers => self.fail(driver::failure_of_peer(failure)),
            Some(Err(failure)) => self.fail(failure),
            // The stream is in order.
            None if Arc::ptr_eq(self, of_stream) => Ok(()),
            None if is_peers => {
                peer::enqueue(self, &event.device, [Held::PeerEvent(event.clone())], |gpu, raw| {
                    gpu.stream_wait(raw, handle)
                })
            }
            None => self.enqueue([Held::Event(event.clone())], |gpu, raw| gpu.stream_wait(raw, handle)),
        }
    }

    /// Poisons the stream with a failure that it waited for, unless it has one.
    pub(crate) fn fail(&self, failure: Error) -> Result<()> {
        self.device.check()?;
        lock(&self.books).failure.get_or_insert(failure);
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        // Once the failure is known here, nothing new is enqueued; the second wait is for what came in between.
        if self.synchronize(None).is_err() {
            self.device.check()?;
            let again = self.synchronize(None);
            self.device.check()?;
            if !self.is_idle() {
                // The driver does not say that the work is over, so neither can it be taken for that.
                return again;
            }
        }
        let mut books = lock(&self.books);
        books.failed_wait = None;
        if let Some(failure) = books.failure.take() {
            log::debug!("{}: a stream forgets its failure: {failure}", self.device.info.id);
            books.generation += 1;
        }
        Ok(())
    }

    /// Enqueues an operation that holds what is in `held`.
    pub(crate) fn run(self: &Arc<Self>, op: &Op, held: impl IntoIterator<Item = Held>) -> Result<()> {
        if matches!(op, Op::Nothing) {
            return self.admit();
        }
        self.enqueue(held, |gpu, stream| op.run(gpu, stream))
    }
}

impl Books {
    fn marked_all(&self) -> bool {
        self.marked == self.sequence
    }

    fn add_mark(&mut self, sequence: u64, event: Arc<EventShared>) {
        self.marks.push_back((sequence, event));
        self.marked = sequence;
    }

    /// Takes out what is held up to and including command `sequence`, which is over, and finishes reads.
    fn release(&mut self, sequence: u64) -> Vec<Held> {
        while self.marks.front().is_some_and(|(mark, _)| *mark <= sequence) {
            self.marks.pop_front();
        }
        // Here, under the lock: whoever has seen the event next finds the bytes in place.
        while self.reads.front().is_some_and(|(number, _)| *number <= sequence) {
            let Some((_, read)) = self.reads.pop_front() else { break };
            read.finish();
        }
        let count = self.held.partition_point(|(number, _)| *number <= sequence);
        let over: Vec<_> = self.held.drain(..count).collect();
        if self.failed_wait.is_none() {
            self.failed_wait = over.iter().find_map(|(number, held)| Some((*number, held.failure()?)));
        }
        over.into_iter().map(|(_, held)| held).collect()
    }

    /// Takes out what is held up to the last mark that is over.
    fn reap(&mut self) -> Vec<Held> {
        let mut released = Vec::new();
        while let Some((mark, event)) = self.marks.front() {
            let failure = match event.progress() {
                Progress::Over => {
                    let mark = *mark;
                    released.extend(self.release(mark));
                    self.failed_wait.as_ref().map(|(_, failure)| failure.clone())
                }
                Progress::Running => break,
                // The next look gives everything up after a loss, and asks again after a refusal. Until then nothing
                // more is enqueued.
                Progress::Lost(error) | Progress::Refused(error) => {
                    self.failure.get_or_insert(error);
                    break;
                }
            };
            if let Some(failure) = failure {
                self.failure.get_or_insert(failure);
            }
        }
        released
    }

    /// Takes out everything after a loss: nothing runs any more.
    fn give_up(&mut self) -> Vec<Held> {
        self.marks.clear();
        if let Some((number, _)) = self.reads.front() {
            self.lost_read.get_or_insert(*number);
        }
        self.reads.clear();
        let all = self.held.drain(..).map(|(_, held)| held);
        // A thread of the driver may be in the middle of a copy on the host, and nobody will say when it is over. What
        // it uses stays taken.
        all.filter_map(|held| match held {
            Held::HostCopy(copy) => {
                std::mem::forget(copy);
                None
            }
            held => Some(held),
        })
        .collect()
    }
}

impl Held {
    /// The failure of an event that was waited for.
    fn failure(&self) -> Option<Error> {
        match self {
            Self::Event(event) => event.poll()?.err(),
            Self::PeerEvent(event) => event.poll()?.err().map(driver::failure_of_peer),
            _ => None,
        }
    }
}

/// The buffers of a launch.
fn buffers(args: &[Arg]) -> impl Iterator<Item = Held> {
    args.iter().filter_map(|arg| match arg {
        Arg::Buffer(slice) => Some(Held::Buffer(slice.buffer().clone())),
        Arg::Scalar(_) => None,
    })
}

impl driver::Stream for CudaStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        self.0.write(dst, src)
    }

    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        self.0.write_blocking(dst, src)
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.0.read_blocking(src, dst)
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.0.read(src, dst)
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        peer::copy(&self.0, dst, src)
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        let op = op::fill(&self.0.device, place(dst)?, dst.len_bytes(), pattern)?;
        self.0.run(&op, [Held::Buffer(dst.buffer().clone())])
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        let op = op::launch(&self.0.device, kernel, grid, args)?;
        self.0.run(&op, buffers(args).chain([Held::Kernel(kernel.clone())]))
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        if let Some(graph) = list.object::<GraphList>()
            && graph.replay(&self.0, list, buffers, scalars)?
        {
            return Ok(());
        }
        list.enqueue(buffers, scalars, |command| match command {
            Command::Copy { dst, src } => self.copy(&dst, &src),
            Command::Fill { dst, pattern } => self.fill(&dst, &pattern),
            Command::Launch { kernel, grid, args } => self.launch(&kernel, grid, &args),
        })
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        Ok(Box::new(self.0.record()?))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.0.wait(event.object::<CudaEvent>().ok_or_else(event::foreign)?)
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.0.synchronize(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.0.reset()
    }
}

//! In-order queues: what work in flight holds, and what a failure does.
//!
//! Every command has a number and an event, and waits for the command before it. The queue is in order, but only a wait
//! list makes a failed command fail those behind it (OpenCL 1.2 specification, section 5.9); a queue alone may go on.
//! What a command uses is held until its event is over, and outcomes are settled in order, so that the first failure wins.
//!
//! A wait for an event of another stream is a barrier with that event in its list. When it is over, its stream's own
//! outcome decides, which may have to be settled first: [`StreamShared::settle`] does so with a list of what is left to
//! do instead of a recursion, and holds one stream's lock at a time.

use crate::api::{Mem, Queue, RawEvent, Waits};
use crate::buffer::{Argument, Place, place};
use crate::device::{DeviceShared, lock};
use crate::error::{self, SUCCESS};
use crate::event::{self, OpenClEvent, Point, wait_for};
use crate::kernel;
use crate::staging::{BLOCK_BYTES, Block, PART_BYTES, pieces};
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{Arg, Buffer, BufferSlice, Error, Event, Kernel, Result};
use ocl::ffi;
use std::cell::Cell;
use std::collections::VecDeque;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// Commands after which a stream tells the driver to begin, if nothing else does.
const FLUSH_EVERY: usize = 16;
/// Commands after which a stream gives back what finished ones held.
const SETTLE_EVERY: u64 = 32;

/// What a command in flight uses.
#[expect(dead_code, reason = "held, not read")]
#[derive(Clone)]
pub(crate) enum Held {
    Buffer(Buffer),
    Argument(Argument),
    Kernel(Kernel),
    Bytes(HostBytes),
    Target(HostTarget),
    Staging(Arc<Mem>),
    Block(Arc<Block>),
}

/// A command to be enqueued.
pub(crate) struct Command {
    /// Its name in a failure's message.
    pub(crate) what: What,
    pub(crate) held: Vec<Held>,
}

/// What a command does, for messages.
pub(crate) enum What {
    Transfer(&'static str),
    Kernel(Kernel),
}

struct Pending {
    point: Arc<Point>,
    what: What,
    /// The event of another stream that the command waited for.
    foreign: Option<Arc<Point>>,
    _held: Vec<Held>,
}

struct State {
    queue: Queue,
    /// Commands so far.
    sequence: u64,
    /// The first failure, and the number of the first command that it concerns.
    failure: Option<(u64, Error)>,
    pending: VecDeque<Pending>,
    /// What the driver may still work on, although it was lost or failed.
    abandoned: Vec<Pending>,
    unflushed: usize,
}

/// A stream, shared by the handle and by its events.
pub(crate) struct StreamShared {
    /// Held while commands are enqueued, so that those that belong together stay so. Never while anything is dropped that
    /// may come back to this stream.
    order: Mutex<()>,
    state: Mutex<State>,
    // After what was made of it.
    device: Arc<DeviceShared>,
}

/// The right to enqueue: no other thread does before it is dropped.
pub(crate) struct Turn<'a> {
    stream: &'a Arc<StreamShared>,
    /// Whether it is time to give back what finished commands held.
    is_due: Cell<bool>,
    _order: MutexGuard<'a, ()>,
}

/// A stream as the layer sees it. Dropping it lets enqueued work run to its end.
pub(crate) struct OpenClStream(pub(crate) Arc<StreamShared>);

impl Drop for OpenClStream {
    fn drop(&mut self) {
        self.0.flush();
        self.0.settle(0);
        if self.0.in_flight() > 0 {
            self.0.device.reaper.adopt(self.0.clone());
        }
    }
}

impl Drop for StreamShared {
    fn drop(&mut self) {
        // Whoever lost the device may still read and write the memory, which is then never freed.
        let abandoned = std::mem::take(&mut lock(&self.state).abandoned);
        if abandoned.iter().any(|command| command.point.may_be_running()) {
            log::warn!(
                "{}: the driver does not end {} commands; what they use stays taken",
                self.device.info().id,
                abandoned.len()
            );
            std::mem::forget(abandoned);
        }
    }
}

impl StreamShared {
    pub(crate) fn create(device: &Arc<DeviceShared>) -> Result<Arc<Self>> {
        let state = State {
            queue: device.create_queue()?,
            sequence: 0,
            failure: None,
            pending: VecDeque::new(),
            abandoned: Vec::new(),
            unflushed: 0,
        };
        Ok(Arc::new(Self { order: Mutex::new(()), state: Mutex::new(state), device: device.clone() }))
    }

    pub(crate) fn device(&self) -> &Arc<DeviceShared> {
        &self.device
    }

    /// Commands that are not known to be over.
    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.state).pending.len()
    }

    /// Whether no work in flight holds anything.
    pub(crate) fn is_idle(self: &Arc<Self>) -> bool {
        self.settle(0);
        self.in_flight() == 0
    }

    /// Lets everything enqueued begin.
    pub(crate) fn flush(&self) {
        lock(&self.state).flush(&self.device);
    }

    /// Settles the outcome of every command that is over, and gives back what it held. Commands up to number `up_to` are
    /// known to be over, whatever the driver says of them. Never waits.
    pub(crate) fn settle(self: &Arc<Self>, up_to: u64) {
        let mut left = vec![(self.clone(), up_to)];
        while let Some((stream, up_to)) = left.pop() {
            let (over, needed) = stream.take_over(up_to);
            // Freed outside of the lock: a drop may come back to this stream.
            drop(over);
            let Some(point) = needed else { continue };
            match point.stream.upgrade() {
                Some(other) => {
                    left.push((stream, up_to));
                    // Its waiter is over, so it is.
                    left.push((other, point.sequence));
                }
                None => {
                    _ = point.outcome.set(self.device.check());
                    left.push((stream, up_to));
                }
            }
        }
    }

    /// Takes out the commands that are over, in order, up to one whose outcome hangs on the returned event.
    fn take_over(&self, up_to: u64) -> (Vec<Pending>, Option<Arc<Point>>) {
        let mut state = lock(&self.state);
        let mut over = Vec::new();
        while let Some(front) = state.pending.front() {
            let lost = self.device.check().err();
            let status = front.point.raw.status();
            // Nobody waits for the end of what a lost device does.
            let is_over = matches!(status, Ok(..=0)) || lost.is_none() && front.point.sequence <= up_to;
            let own = match (lost, status) {
                (Some(lost), _) => Err(lost),
                (None, Ok(1..)) if !is_over => break,
                (None, Ok(0..)) => Ok(()),
                (None, Ok(code)) => Err(error::execution(code, &front.what.name())),
                (None, Err(error)) => Err(error),
            };
            let foreign = match front.foreign.as_ref().map(|point| (point, point.outcome.get())) {
                // After a loss nothing is waited for any more.
                Some((point, None)) if !self.device.is_lost() => return (over, Some(point.clone())),
                Some((_, Some(outcome))) => outcome.clone(),
                _ => Ok(()),
            };
            let number = front.point.sequence;
            if let Err(error) = foreign.and(own) {
                self.device.note(&error);
                state.fail(number, error);
            }
            let outcome = match &state.failure {
                Some((first, failure)) if *first <= number => Err(failure.clone()),
                _ => Ok(()),
            };
            let front = state.pending.pop_front().expect("it was looked at above");
            _ = front.point.outcome.set(outcome);
            if is_over {
                over.push(front);
            } else {
                state.abandoned.push(front);
            }
        }
        over.extend(state.abandoned.extract_if(.., |command| !command.point.may_be_running()));
        (over, None)
    }

    pub(crate) fn synchronize(self: &Arc<Self>, timeout: Option<Duration>) -> Result<()> {
        if self.device.is_lost() {
            self.settle(0);
            return self.device.check();
        }
        let (last, sequence) = {
            let mut state = lock(&self.state);
            state.flush(&self.device);
            (state.pending.back().map(|last| last.point.clone()), state.sequence)
        };
        if let Some(last) = last {
            if !wait_for(&last.raw, &self.device, timeout) {
                return Err(event::timed_out(timeout));
            }
            self.settle(sequence);
        }
        self.device.check()?;
        self.refuse_if_failed()
    }

    /// Enqueues one command: `run` passes it to the driver.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        command: Command,
        run: impl FnOnce(&Queue, &Waits<'_>) -> Result<RawEvent>,
    ) -> Result<Arc<Point>> {
        self.in_turn(|turn| turn.enqueue(command, None, run))
    }

    /// Enqueues with `run`, between whose commands no other thread's come.
    fn in_turn<T>(self: &Arc<Self>, run: impl FnOnce(&Turn<'_>) -> Result<T>) -> Result<T> {
        let turn = Turn { stream: self, is_due: Cell::new(false), _order: lock(&self.order) };
        let result = run(&turn);
        let is_due = turn.is_due.get();
        drop(turn);
        self.device.reaper.wake();
        match result {
            Ok(made) => {
                if is_due {
                    self.settle(0);
                }
                Ok(made)
            }
            Err(error) => {
                // What refused it may be a failure of the work before it, which says more.
                self.settle(0);
                self.device.check()?;
                self.refuse_if_failed()?;
                Err(error)
            }
        }
    }

    fn record(self: &Arc<Self>) -> Result<OpenClEvent> {
        let command = Command { what: What::Transfer("an event"), held: Vec::new() };
        let recorded = self.enqueue(command, |queue, waits| queue.barrier(waits));
        // Who waits for the event does not know this queue, so it must be on its way.
        self.flush();
        match recorded {
            Ok(point) => Ok(OpenClEvent::Recorded(point)),
            Err(error) => {
                self.device.check()?;
                match self.refuse_if_failed() {
                    Err(failure) => Ok(OpenClEvent::OfFailed(failure)),
                    Ok(()) => Err(error),
                }
            }
        }
    }

    fn wait(self: &Arc<Self>, event: &OpenClEvent) -> Result<()> {
        let (point, known) = match event {
            OpenClEvent::OfFailed(failure) => (None, Some(Err(failure.clone()))),
            OpenClEvent::Recorded(point) => (Some(point), point.poll()),
        };
        match (known, point) {
            (Some(Err(failure)), _) => {
                self.refuse_if_failed()?;
                let mut state = lock(&self.state);
                // What is enqueued already is before the wait.
                let next = state.sequence + 1;
                state.fail(next, failure);
                Ok(())
            }
            (None, Some(point)) if !std::ptr::eq(point.stream.as_ptr(), Arc::as_ptr(self)) => {
                let command = Command { what: What::Transfer("a wait for an event"), held: Vec::new() };
                self.in_turn(|turn| {
                    turn.enqueue(command, Some(point.clone()), |queue, waits| queue.barrier(waits))
                })?;
                Ok(())
            }
            // Reached already, or of this stream, which is in order.
            _ => Ok(()),
        }
    }

    fn reset(self: &Arc<Self>) -> Result<()> {
        // Once the failure is known here, nothing new is enqueued; the second wait is for what came in between.
        let failed = self.synchronize(None).is_err();
        self.device.check()?;
        if !failed {
            return Ok(());
        }
        _ = self.synchronize(None);
        self.device.check()?;
        // Some drivers take no work into a queue that has failed.
        let queue = self.device.noting_loss(self.device.create_queue())?;
        let mut state = lock(&self.state);
        if let Some((_, failure)) = state.failure.take() {
            log::debug!("{}: a stream forgets its failure: {failure}", self.device.info().id);
        }
        let old = std::mem::replace(&mut state.queue, queue);
        drop(state);
        drop(old);
        Ok(())
    }

    fn refuse_if_failed(&self) -> Result<()> {
        lock(&self.state).failure.clone().map_or(Ok(()), |(_, failure)| Err(failure))
    }

    /// What a command without work answers: the stream's failure, if there is one.
    pub(crate) fn enqueue_nothing(&self) -> Result<()> {
        self.device.check()?;
        self.refuse_if_failed()
    }

    /// Waits for a command that uses memory which the caller has lent, and says how it ended.
    fn wait_for_borrowed(&self, point: &Point) -> Result<()> {
        self.flush();
        // Whatever else has happened, the memory is the caller's again only when the driver is done with it.
        point.wait_until_over();
        point.wait(None).unwrap_or_else(|| Err(event::timed_out(None)))
    }

    /// As [`Turn::transfer`], in a turn of its own.
    ///
    /// # Safety
    /// As there.
    unsafe fn transfer(
        self: &Arc<Self>,
        what: &'static str,
        dst: Place<'_>,
        src: Place<'_>,
        len: u64,
        held: Vec<Held>,
    ) -> Result<Arc<Point>> {
        // SAFETY: the caller's promise.
        self.in_turn(|turn| unsafe { turn.transfer(what, dst, src, len, held) })
    }

    /// Copies from the device into memory that the caller has lent, as long as the range and at most [`PART_BYTES`], and
    /// waits for it.
    fn read_part(self: &Arc<Self>, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        let blocks: Vec<_> =
            dst.chunks(BLOCK_BYTES).map(|_| Block::acquire(&self.device)).collect::<Result<_>>()?;
        let points = self.in_turn(|turn| {
            let copies = pieces(dst.len(), BLOCK_BYTES).zip(&blocks);
            let copy = |((offset, len), block): ((usize, usize), &Arc<Block>)| {
                let piece = src.slice(offset as u64, len as u64)?;
                let held = vec![Held::Buffer(src.buffer().clone()), Held::Block(block.clone())];
                let target = Place::Host(block.as_mut_ptr());
                // SAFETY: a block is at least as long as a piece, this copy's alone, and held until it is over.
                unsafe { turn.transfer("a read", target, place(&piece)?, len as u64, held) }
            };
            copies.map(copy).collect::<Result<Vec<_>>>()
        })?;
        self.flush();
        for ((block, point), chunk) in blocks.iter().zip(&points).zip(dst.chunks_mut(BLOCK_BYTES)) {
            point.wait(None).unwrap_or_else(|| Err(event::timed_out(None)))?;
            // SAFETY: the copy into this block, the only one that uses it, is over; it is at least as long as the chunk.
            unsafe { ptr::copy_nonoverlapping(block.as_mut_ptr(), chunk.as_mut_ptr(), chunk.len()) };
        }
        Ok(())
    }

    /// Copies to the device from memory that the caller has lent, as long as the range and at most [`PART_BYTES`].
    fn write_part(self: &Arc<Self>, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        let begun = Cell::new(false);
        let result = self.in_turn(|turn| {
            for (offset, len) in pieces(src.len(), BLOCK_BYTES) {
                let block = Block::acquire(&self.device)?;
                // SAFETY: a block is at least as long as a piece, and nobody else's yet.
                unsafe { ptr::copy_nonoverlapping(src[offset..].as_ptr(), block.as_mut_ptr(), len) };
                let piece = dst.slice(offset as u64, len as u64)?;
                let source = Place::Host(block.as_mut_ptr());
                let held = vec![Held::Buffer(dst.buffer().clone()), Held::Block(block)];
                // SAFETY: a block is at least as long as a piece, only read from now on, and held until it is over.
                unsafe { turn.transfer("a write", place(&piece)?, source, len as u64, held)? };
                begun.set(true);
                // The driver copies this piece while the host copies the next one.
                self.flush();
            }
            Ok(())
        });
        if let Err(error) = &result
            && begun.get()
        {
            // Half of the write is under way, which nothing may build on.
            let mut state = lock(&self.state);
            let next = state.sequence + 1;
            state.fail(next, error.clone());
        }
        result
    }
}

impl Turn<'_> {
    /// Enqueues one command, behind `foreign`, an event of another stream, if there is one: `run` passes it to the driver.
    fn enqueue(
        &self,
        command: Command,
        foreign: Option<Arc<Point>>,
        run: impl FnOnce(&Queue, &Waits<'_>) -> Result<RawEvent>,
    ) -> Result<Arc<Point>> {
        let device = &self.stream.device;
        let mut state = lock(&self.stream.state);
        device.check()?;
        if let Some((_, failure)) = &state.failure {
            return Err(failure.clone());
        }
        let before = state.pending.back().map(|last| &last.point.raw);
        // NOTE: in some drivers (PoCL 3.1) what is enqueued behind a command that has failed already never ends.
        let result = match before.map(RawEvent::status) {
            Some(Ok(code @ ..SUCCESS)) => Err(error::execution(code, "the work before")),
            _ => {
                let events = before.into_iter().chain(foreign.as_ref().map(|point| &point.raw));
                run(&state.queue, &Waits::new(&events.collect::<Vec<_>>()))
            }
        };
        let raw = device.noting_loss(result)?;
        state.sequence += 1;
        let point = Arc::new(Point {
            raw,
            sequence: state.sequence,
            stream: Arc::downgrade(self.stream),
            outcome: OnceLock::new(),
            device: device.clone(),
        });
        let Command { what, held } = command;
        state.pending.push_back(Pending { point: point.clone(), what, foreign, _held: held });
        state.unflushed += 1;
        if state.unflushed >= FLUSH_EVERY {
            state.flush(device);
        }
        if point.sequence.is_multiple_of(SETTLE_EVERY) {
            self.is_due.set(true);
        }
        Ok(point)
    }

    /// Moves `len` bytes, at least one, between two places that `held` keeps alive.
    ///
    /// # Safety
    /// Host places are valid for `len` bytes, for writes where they are the target, until the returned command is over.
    unsafe fn transfer(
        &self,
        what: &'static str,
        dst: Place<'_>,
        src: Place<'_>,
        len: u64,
        mut held: Vec<Held>,
    ) -> Result<Arc<Point>> {
        let len = len as usize;
        let command = |held| Command { what: What::Transfer(what), held };
        match (dst, src) {
            (Place::Device(dst, to), Place::Device(src, from)) => {
                self.enqueue(command(held), None, |queue, waits| {
                    queue.copy((dst, to), (src, from), len, waits)
                })
            }
            (Place::Device(dst, to), Place::Host(src)) => {
                self.enqueue(command(held), None, |queue, waits| {
                    // SAFETY: the caller's promise.
                    unsafe { queue.write((dst, to), src, len, waits) }
                })
            }
            (Place::Host(dst), Place::Device(src, from)) => {
                self.enqueue(command(held), None, |queue, waits| {
                    // SAFETY: the caller's promise.
                    unsafe { queue.read(dst, (src, from), len, waits) }
                })
            }
            (Place::Host(dst), Place::Host(src)) => {
                // A queue copies between the host and itself only, so the bytes go by way of a buffer.
                let context = &self.stream.device.context;
                let staging = Arc::new(context.create_buffer(ffi::CL_MEM_READ_WRITE, len)?);
                held.push(Held::Staging(staging.clone()));
                // Both hold everything: the second may be refused, or be over first on a device that is lost.
                self.enqueue(command(held.clone()), None, |queue, waits| {
                    // SAFETY: the caller's promise.
                    unsafe { queue.write((&staging, 0), src, len, waits) }
                })?;
                self.enqueue(command(held), None, |queue, waits| {
                    // SAFETY: the caller's promise.
                    unsafe { queue.read(dst, (&staging, 0), len, waits) }
                })
            }
        }
    }
}

impl State {
    /// Notes that command `number` failed, unless one before it has.
    fn fail(&mut self, number: u64, error: Error) {
        if self.failure.as_ref().is_none_or(|(first, _)| number < *first) {
            self.failure = Some((number, error));
        }
    }

    fn flush(&mut self, device: &DeviceShared) {
        if self.unflushed == 0 || device.is_lost() {
            return;
        }
        self.unflushed = 0;
        // A failure comes back from the events, or from the next call.
        if let Err(error) = device.noting_loss(self.queue.flush()) {
            log::debug!("{}: {error}", device.info().id);
        }
    }
}

impl What {
    fn name(&self) -> String {
        match self {
            Self::Transfer(what) => (*what).to_owned(),
            Self::Kernel(kernel) => format!("kernel '{}'", kernel.name()),
        }
    }
}

impl driver::Stream for OpenClStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        if dst.len_bytes() == 0 {
            return self.0.enqueue_nothing();
        }
        let bytes = Place::Host(src.as_slice().as_ptr().cast_mut());
        let held = vec![Held::Buffer(dst.buffer().clone()), Held::Bytes(src.clone())];
        // SAFETY: the bytes are as long as the range (`driver::Stream`), only read from, and held until it is over.
        unsafe { self.0.transfer("a write", place(dst)?, bytes, dst.len_bytes(), held)? };
        Ok(())
    }

    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        if self.0.device.found.is_processor {
            if src.len() < BLOCK_BYTES || !self.0.is_idle() {
                return self.write(dst, src.into());
            }
            let held = vec![Held::Buffer(dst.buffer().clone())];
            let bytes = Place::Host(src.as_ptr().cast_mut());
            // SAFETY: the bytes are as long as the range (`driver::Stream`), only read from, and borrowed until the wait
            // below is over.
            let point = unsafe { self.0.transfer("a write", place(dst)?, bytes, dst.len_bytes(), held)? };
            return self.0.wait_for_borrowed(&point);
        }
        if src.len() < BLOCK_BYTES {
            return self.write(dst, src.into());
        }
        for (offset, len) in pieces(src.len(), PART_BYTES) {
            if !self.0.device.staging.has_room(len) {
                self.0.synchronize(None)?;
            }
            self.0.write_part(&dst.slice(offset as u64, len as u64)?, &src[offset..offset + len])?;
        }
        Ok(())
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        if dst.is_empty() {
            return self.0.enqueue_nothing();
        }
        if self.0.device.found.is_processor {
            let held = vec![Held::Buffer(src.buffer().clone())];
            let target = Place::Host(dst.as_mut_ptr());
            // SAFETY: the memory is as long as the range (`driver::Stream`) and borrowed until the wait below is over.
            let point = unsafe { self.0.transfer("a read", target, place(src)?, src.len_bytes(), held)? };
            return self.0.wait_for_borrowed(&point);
        }
        for (offset, len) in pieces(dst.len(), PART_BYTES) {
            self.0.read_part(&src.slice(offset as u64, len as u64)?, &mut dst[offset..offset + len])?;
        }
        Ok(())
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        if src.len_bytes() == 0 {
            return self.0.enqueue_nothing();
        }
        let target = Place::Host(dst.as_mut_ptr());
        let held = vec![Held::Buffer(src.buffer().clone()), Held::Target(dst)];
        // SAFETY: the target is as long as the range (`driver::Stream`), this copy's alone, and held until it is over.
        unsafe { self.0.transfer("a read", target, place(src)?, src.len_bytes(), held)? };
        Ok(())
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        if dst.len_bytes() == 0 {
            return self.0.enqueue_nothing();
        }
        let held = vec![Held::Buffer(dst.buffer().clone()), Held::Buffer(src.buffer().clone())];
        // SAFETY: pinned ranges lie in their buffers, which are held until the copy is over.
        unsafe { self.0.transfer("a copy", place(dst)?, place(src)?, dst.len_bytes(), held)? };
        Ok(())
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        if dst.len_bytes() == 0 {
            return self.0.enqueue_nothing();
        }
        let len = dst.len_bytes();
        let mut held = vec![Held::Buffer(dst.buffer().clone())];
        let command = |held| Command { what: What::Transfer("a fill"), held };
        match place(dst)? {
            Place::Device(mem, offset) => {
                self.0.enqueue(command(held), |queue, waits| {
                    queue.fill((mem, offset), len as usize, pattern, waits)
                })?;
            }
            host @ Place::Host(_) => {
                let flags = ffi::CL_MEM_READ_WRITE;
                let staging = Arc::new(self.0.device.context.create_buffer(flags, len as usize)?);
                held.push(Held::Staging(staging.clone()));
                self.0.in_turn(|turn| {
                    turn.enqueue(command(held.clone()), None, |queue, waits| {
                        queue.fill((&staging, 0), len as usize, pattern, waits)
                    })?;
                    // SAFETY: the pinned range lies in its buffer, which is held until the copy is over.
                    unsafe { turn.transfer("a fill", host, Place::Device(&staging, 0), len, held) }
                })?;
            }
        }
        Ok(())
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        kernel::launch(&self.0, kernel, grid, args)
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        Ok(Box::new(self.0.record()?))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.0.wait(event.object::<OpenClEvent>().ok_or_else(event::foreign)?)
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.0.synchronize(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.0.reset()
    }
}

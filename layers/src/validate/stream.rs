//! The stream: every call is checked, passed on, and entered in the books.

use super::books::{Operation, Use};
use super::finding::FindingKind;
use super::object::{BufferMark, KernelMark, Life, Object, Tracked, WatchedEvent, tells_the_end};
use super::report::Draft;
use super::shadow::Deed;
use super::state::State;
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{
    Access, Arg, ArgType, Binding, BufferSlice, Command, CommandList, Error, Event, Kernel, Result, Scalar,
};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct ValidateStream {
    state: Arc<State>,
    /// Of the device whose memory copies may read too, and whose events may be waited for.
    peer: Option<Arc<State>>,
    inner: Box<dyn driver::Stream>,
    /// Its place in clocks.
    slot: u32,
    _life: Life,
}

impl ValidateStream {
    pub(super) fn new(state: &Arc<State>, peer: Option<Arc<State>>, inner: Box<dyn driver::Stream>) -> Self {
        let (slot, number) = state.open_stream();
        let life = Life::new(state, Object::Stream(number));
        Self { state: state.clone(), peer, inner, slot, _life: life }
    }

    /// Passes an operation on and enters it in the books. Where suspicions are refused, it is judged first.
    fn enqueue(&self, mut operation: Operation, run: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.state.is_strict() {
            self.state.track(self.slot, &operation)?;
            return self.state.pass(run());
        }
        self.state.watch(&mut operation);
        self.state.pass(run())?;
        self.state.track(self.slot, &operation)
    }

    /// As [`enqueue`](Self::enqueue), for a call that waits: its place in the order is where it began.
    fn enqueue_waiting(&self, operation: &Operation, run: impl FnOnce() -> Result<()>) -> Result<()> {
        self.state.track(self.slot, operation)?;
        self.state.pass(run())
    }

    /// The host waits for all that was enqueued so far.
    fn finish(&self, wait: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.state.now(self.slot);
        let result = wait();
        if result.as_ref().err().is_none_or(|error| tells_the_end(error.kind())) {
            self.state.learn(&before);
            self.state.exhume();
            self.state.inspect_suspects();
        }
        self.state.pass(result)
    }

    fn refuse(&self, kind: FindingKind, object: String, message: String, remedy: &str) -> Error {
        let key = message.clone();
        self.state.refuse(Draft { kind, key, object, message, origin: None, remedy: remedy.to_owned() })
    }

    /// What the layer keeps of a range's buffer, if this opening of the device made it.
    fn own<'a>(&self, call: &str, role: &str, slice: &'a BufferSlice) -> Result<&'a Arc<Tracked>> {
        let buffer = slice.buffer();
        match buffer.object::<BufferMark>() {
            Some(BufferMark(tracked)) if tracked.belongs_to(&self.state) => Ok(tracked),
            _ => Err(self.refuse(
                FindingKind::ForeignHandle,
                format!("{buffer:?}"),
                format!("{call} got as its {role} a buffer that this opening of the device did not allocate"),
                "allocate it on the device that the stream is of, through the same handle",
            )),
        }
    }

    fn check_len(&self, call: &str, slice: &BufferSlice, len: usize) -> Result<()> {
        if slice.len_bytes() == len as u64 {
            return Ok(());
        }
        let message = format!("{call} is given {len} bytes of the host for a range of {}", slice.len_bytes());
        let remedy = "pass as many bytes as the range has";
        Err(self.refuse(FindingKind::OutOfRange, format!("{:?}", slice.buffer()), message, remedy))
    }

    /// As [`own`](Self::own), of the stream's peer too.
    fn source<'a>(&self, call: &str, slice: &'a BufferSlice) -> Result<&'a Arc<Tracked>> {
        match (slice.buffer().object::<BufferMark>(), &self.peer) {
            (Some(BufferMark(tracked)), Some(peer)) if tracked.belongs_to(peer) => Ok(tracked),
            _ => self.own(call, "source", slice),
        }
    }

    fn copy_operation(&self, call: &str, dst: &BufferSlice, src: &BufferSlice) -> Result<Operation> {
        let (to, from) = (self.own(call, "target", dst)?, self.source(call, src)?);
        let object = || format!("{:?} and {:?}", src.buffer(), dst.buffer());
        if dst.len_bytes() != src.len_bytes() {
            let (src, dst) = (src.len_bytes(), dst.len_bytes());
            let message = format!("{call} is given a source of {src} bytes and a target of {dst}");
            return Err(self.refuse(
                FindingKind::OutOfRange,
                object(),
                message,
                "make the ranges equally long",
            ));
        }
        if dst.overlaps(src) {
            let message =
                format!("{call} of bytes {:?} to bytes {:?} of the same buffer", src.range(), dst.range());
            let remedy = "copy through a third range, or in pieces that do not overlap";
            return Err(self.refuse(FindingKind::Overlap, object(), message, remedy));
        }
        let uses = vec![
            Use::new(to, dst, Access::Write, Deed::CopyTo),
            Use::new(from, src, Access::Read, Deed::CopyFrom),
        ];
        Ok(Operation { uses, is_copy: true, context: None })
    }

    fn fill_operation(&self, call: &str, dst: &BufferSlice, pattern: &[u8]) -> Result<Operation> {
        let tracked = self.own(call, "target", dst)?;
        let len = pattern.len() as u64;
        let divides = || dst.len_bytes().is_multiple_of(len) && dst.offset().is_multiple_of(len);
        if !matches!(len, 1 | 2 | 4 | 8) || !divides() {
            let message = format!(
                "{call} of {} bytes at offset {} with a pattern of {len} bytes",
                dst.len_bytes(),
                dst.offset()
            );
            let remedy = "use a pattern of 1, 2, 4 or 8 bytes that divides the range's length and offset";
            return Err(self.refuse(FindingKind::Misaligned, tracked.object(), message, remedy));
        }
        Ok(Operation::of(Use::new(tracked, dst, Access::Write, Deed::Fill)))
    }

    fn launch_operation(
        &self,
        call: &str,
        kernel: &Kernel,
        grid: [u32; 3],
        args: &[Arg],
    ) -> Result<Operation> {
        let name = kernel.name();
        let object = || format!("kernel '{name}'");
        let mark = kernel.object::<KernelMark>().filter(|mark| mark.belongs_to(&self.state));
        let Some(mark) = mark else {
            let message = format!("{call} of a kernel that this opening of the device did not load");
            return Err(self.refuse(FindingKind::ForeignHandle, object(), message, "load it on this device"));
        };
        let limits = &self.state.inner.info().limits;
        let most = kernel.signature().max_grid.unwrap_or(limits.max_grid);
        let fits = |axis: usize| grid[axis] <= most[axis].min(limits.max_grid[axis]);
        if grid.contains(&0) || !(0..3).all(fits) || args.len() > limits.max_args as usize {
            let message = format!(
                "{call} over the grid {grid:?} with {} arguments; the kernel takes at most {most:?}, the device {:?} and {}",
                args.len(),
                limits.max_grid,
                limits.max_args
            );
            let remedy = "split the launch, and leave one over nothing out";
            return Err(self.refuse(FindingKind::Limit, object(), message, remedy));
        }
        let mut uses = Vec::with_capacity(args.len());
        for (index, arg) in args.iter().enumerate() {
            let Arg::Buffer(slice) = arg else { continue };
            let tracked = self.own(call, "argument", slice)?;
            let Some(ArgType::Buffer { dtype, access }) = kernel.signature().args.get(index) else {
                continue;
            };
            let align = limits.offset_alignment_bytes.max(dtype.size() as u64);
            if slice.len_bytes() > 0 && !slice.offset().is_multiple_of(align) {
                let message = format!(
                    "{call} of '{name}' with argument {index} at byte {} of its buffer, where multiples of {align} are legal",
                    slice.offset()
                );
                let remedy = "place it at such a multiple, or copy it there";
                return Err(self.refuse(FindingKind::Misaligned, tracked.object(), message, remedy));
            }
            let deed = Deed::Launch { kernel: mark.number, arg: index as u32 };
            uses.push(Use::new(tracked, slice, *access, deed));
        }
        kernel.signature().check(name, self.state.inner.info(), grid, args).map_err(|error| {
            let message = format!("{call}: {}", error.message());
            let remedy = "pass what the kernel's signature says";
            self.refuse(FindingKind::Signature, object(), message, remedy)
        })?;
        Ok(Operation { uses, ..Operation::default() })
    }

    /// Checks what a replay binds, then each of its commands.
    fn replay_operations(
        &self,
        list: &CommandList,
        buffers: &[Binding],
        scalars: &[Scalar],
    ) -> Result<Vec<Operation>> {
        let object = || format!("{list:?}");
        if !list.device().is_same_opening(self.state.inner.id()) {
            let message =
                "stream.replay of a list that was not recorded for this opening of the device".to_owned();
            return Err(self.refuse(FindingKind::ForeignHandle, object(), message, "record it anew"));
        }
        let (slots, numbers) = (list.buffer_slots(), list.scalar_slots());
        if buffers.len() != slots.len() || scalars.len() != numbers {
            let message = format!(
                "stream.replay binds {} buffers and {} scalars to {} and {numbers} slots",
                buffers.len(),
                scalars.len(),
                slots.len()
            );
            return Err(self.refuse(FindingKind::Signature, object(), message, "bind each slot once"));
        }
        for (slot, (binding, needed)) in buffers.iter().zip(slots).enumerate() {
            if binding.len_bytes() < *needed {
                let got = binding.len_bytes();
                let message = format!("stream.replay binds {got} bytes to slot {slot}, which needs {needed}");
                return Err(self.refuse(FindingKind::OutOfRange, object(), message, "bind a longer range"));
            }
        }
        let mut operations = Vec::with_capacity(list.commands().len());
        let mut index = 0;
        list.enqueue(buffers, scalars, |command| {
            let operation = match &command {
                Command::Copy { dst, src } => Some(self.copy_operation("a recorded copy", dst, src)?),
                Command::Fill { dst, pattern } => {
                    Some(self.fill_operation("a recorded fill", dst, pattern)?)
                }
                // Such a launch does nothing, so backends leave it out.
                Command::Launch { grid, .. } if grid.contains(&0) => None,
                Command::Launch { kernel, grid, args } => {
                    Some(self.launch_operation("a recorded launch", kernel, *grid, args)?)
                }
            };
            operations.extend(operation.map(|operation| (index, operation)));
            index += 1;
            Ok(())
        })?;
        let named = |(index, operation)| Operation { context: Some((list.id(), index)), ..operation };
        Ok(operations.into_iter().map(named).collect())
    }
}

impl Drop for ValidateStream {
    fn drop(&mut self) {
        self.state.close_stream(self.slot);
    }
}

impl Operation {
    fn of(used: Use) -> Self {
        Self { uses: vec![used], ..Self::default() }
    }
}

impl driver::Stream for ValidateStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        const CALL: &str = "stream.write";
        self.state.enter(CALL)?;
        let tracked = self.own(CALL, "target", dst)?;
        self.check_len(CALL, dst, src.as_slice().len())?;
        let operation = Operation::of(Use::new(tracked, dst, Access::Write, Deed::Write));
        self.enqueue(operation, || self.inner.write(dst, src))
    }

    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        const CALL: &str = "stream.write_blocking";
        self.state.enter(CALL)?;
        let tracked = self.own(CALL, "target", dst)?;
        self.check_len(CALL, dst, src.len())?;
        let operation = Operation::of(Use::new(tracked, dst, Access::Write, Deed::Write));
        self.enqueue_waiting(&operation, || self.inner.write_blocking(dst, src))
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        const CALL: &str = "stream.read_blocking";
        self.state.enter(CALL)?;
        let tracked = self.own(CALL, "source", src)?;
        self.check_len(CALL, src, dst.len())?;
        let operation = Operation::of(Use::new(tracked, src, Access::Read, Deed::HostRead));
        self.state.track(self.slot, &operation)?;
        self.finish(|| self.inner.read_blocking(src, dst))
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        const CALL: &str = "stream.read";
        self.state.enter(CALL)?;
        let tracked = self.own(CALL, "source", src)?;
        self.check_len(CALL, src, dst.len_bytes())?;
        let operation = Operation::of(Use::new(tracked, src, Access::Read, Deed::HostRead));
        self.enqueue(operation, || self.inner.read(src, dst))
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        self.state.enter("stream.copy")?;
        let operation = self.copy_operation("stream.copy", dst, src)?;
        self.enqueue(operation, || self.inner.copy(dst, src))
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        self.state.enter("stream.fill")?;
        let operation = self.fill_operation("stream.fill", dst, pattern)?;
        self.enqueue(operation, || self.inner.fill(dst, pattern))
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        self.state.enter("stream.launch")?;
        let operation = self.launch_operation("stream.launch", kernel, grid, args)?;
        self.enqueue(operation, || self.inner.launch(kernel, grid, args))
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        self.state.enter("stream.replay")?;
        let operations = self.replay_operations(list, buffers, scalars)?;
        let track = || operations.iter().try_for_each(|operation| self.state.track(self.slot, operation));
        if self.state.is_strict() {
            // Each command comes after those before it, so all are entered though a later one may be refused.
            track()?;
            return self.state.pass(self.inner.replay(list, buffers, scalars));
        }
        self.state.pass(self.inner.replay(list, buffers, scalars))?;
        track()
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        let before = self.state.now(self.slot);
        let event = self.state.pass(self.inner.record())?;
        Ok(Box::new(WatchedEvent::new(&self.state, event, before)))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        let is_known = |event: &&WatchedEvent| {
            event.belongs_to(&self.state) || self.peer.as_ref().is_some_and(|peer| event.belongs_to(peer))
        };
        let watched = event.object::<WatchedEvent>().filter(is_known);
        let Some(watched) = watched else {
            let message =
                "stream.wait for an event that no stream of this opening of the device recorded".to_owned();
            let remedy = "record it on a stream of this device; wait for events of others on the host";
            return Err(self.refuse(FindingKind::EventNotRecorded, format!("{event:?}"), message, remedy));
        };
        self.state.pass(self.inner.wait(event))?;
        self.state.order(self.slot, &watched.clock);
        Ok(())
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.finish(|| self.inner.synchronize(timeout))
    }

    fn reset(&self) -> Result<()> {
        self.finish(|| self.inner.reset())
    }
}

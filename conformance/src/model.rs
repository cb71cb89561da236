//! Programs of random commands, and a model of them on the host.
//!
//! A program is a list of steps over a few buffers and streams, made from a seed. The device runs it with an event
//! wherever a step uses what another stream used before; the model runs it step by step. What reads give on the way, and
//! what the buffers hold in the end, must agree. A program that fails is cut to the shortest beginning that still fails.

use crate::context::{Context, download, same_bytes};
use crate::outcome::{Outcome, Stop, failed};
use crate::program::TestKernel;
use crate::random::Random;
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    BufferSlice, CommandListBuilder, DType, Event, Kernel, PendingRead, RecordedCommand, RecordedRange,
    Scalar, Stream, as_bytes, from_bytes,
};

const BUFFERS: usize = 5;
/// Bytes of a buffer: elements that every kernel can work on.
const LEN: usize = 2048;
const STEPS: usize = 120;

/// What a program is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix {
    pub(crate) streams: usize,
    pub(crate) kernels: bool,
    pub(crate) builtins: bool,
    pub(crate) lists: bool,
    pub(crate) allocations: bool,
}

impl Mix {
    /// Copies, fills, writes and reads on one stream.
    pub(crate) const PLAIN: Self =
        Self { streams: 1, kernels: false, builtins: false, lists: false, allocations: false };
}

#[derive(Debug, Clone)]
enum Command {
    Write {
        to: usize,
        at: usize,
        bytes: Vec<u8>,
        blocking: bool,
    },
    Fill {
        to: usize,
        at: usize,
        pattern: Vec<u8>,
        count: usize,
    },
    Copy {
        to: usize,
        at: usize,
        from: usize,
        from_at: usize,
        len: usize,
    },
    Read {
        from: usize,
        at: usize,
        len: usize,
        blocking: bool,
    },
    /// `test_update` over the whole buffer.
    Update {
        to: usize,
        add: u32,
    },
    /// The built-in add over whole buffers.
    Add {
        lhs: usize,
        rhs: usize,
        to: usize,
    },
    /// A copy and a fill, recorded and replayed.
    Replay {
        to: usize,
        from: usize,
        len: usize,
        value: u8,
    },
    /// Drops the buffer and takes another, filled with a value.
    Renew {
        to: usize,
        value: u8,
    },
}

impl Command {
    /// The buffers that are read, and the one that is written.
    fn uses(&self) -> (Vec<usize>, Option<usize>) {
        match *self {
            Self::Write { to, .. }
            | Self::Fill { to, .. }
            | Self::Update { to, .. }
            | Self::Renew { to, .. } => (vec![], Some(to)),
            Self::Copy { to, from, .. } | Self::Replay { to, from, .. } => (vec![from], Some(to)),
            Self::Read { from, .. } => (vec![from], None),
            Self::Add { lhs, rhs, to } => (vec![lhs, rhs], Some(to)),
        }
    }
}

#[derive(Debug, Clone)]
struct Step {
    stream: usize,
    command: Command,
}

/// A program with the kernels that it launches.
pub(crate) struct Program {
    seed: u64,
    streams: usize,
    steps: Vec<Step>,
    update: Option<Kernel>,
    add: Option<Kernel>,
}

impl Program {
    /// The program of a seed. Kernels that the device lacks are left out; without any that were asked for, so is the test.
    pub(crate) fn new(context: &Context, seed: u64, mix: Mix) -> Result<Self, Stop> {
        let only = |stop: Stop, wanted_alone: bool| match stop {
            Stop::Failed(_) => Err(stop),
            _ if wanted_alone => Err(stop),
            _ => Ok(None),
        };
        let update = match mix.kernels.then(|| context.kernel(TestKernel::Update)).transpose() {
            Ok(kernel) => kernel,
            Err(stop) => only(stop, !mix.builtins)?,
        };
        let operands = vec![OperandDesc::contiguous(DType::U32, &[(LEN / 4) as u64]); 3];
        let op = BuiltinOp::new(BuiltinKind::Add, operands)?;
        let add = match mix.builtins.then(|| context.builtin(op)).transpose() {
            Ok(kernel) => kernel,
            Err(stop) => only(stop, !mix.kernels)?,
        };
        let mut random = Random::named(seed, "programs");
        let mut steps = Vec::with_capacity(STEPS);
        while steps.len() < STEPS {
            if let Some(command) = command(&mut random, mix, update.is_some(), add.is_some()) {
                steps.push(Step { stream: random.index(mix.streams), command });
            }
        }
        Ok(Self { seed, streams: mix.streams, steps, update, add })
    }

    /// Runs it beside the model.
    pub(crate) fn check(&self, context: &Context) -> Outcome {
        let Err(stop) = self.run(context, self.steps.len()) else { return Ok(()) };
        let Stop::Failed(first_reason) = stop else { return Err(stop) };
        // The shortest beginning that fails, as far as failures come again.
        let (mut passing, mut failing, mut reason) = (0, self.steps.len(), first_reason);
        while passing + 1 < failing {
            let middle = (passing + failing) / 2;
            match self.run(context, middle) {
                Err(Stop::Failed(again)) => (failing, reason) = (middle, again),
                _ => passing = middle,
            }
        }
        let last = &self.steps[failing - 1];
        let seed = self.seed;
        Err(failed(format!(
            "seed {seed}, the first {failing} of {} steps, the last being {last:?}: {reason}",
            self.steps.len()
        )))
    }

    fn run(&self, context: &Context, count: usize) -> Outcome {
        let mut run = Run::new(context, self)?;
        let mut model = vec![vec![0u8; LEN]; BUFFERS];
        for (number, step) in self.steps[..count].iter().enumerate() {
            let expected = apply(&mut model, &step.command);
            run.step(number, step, expected).map_err(|stop| at_step(number, stop))?;
        }
        run.finish(&model)
    }
}

fn at_step(number: usize, stop: Stop) -> Stop {
    match stop {
        Stop::Failed(reason) => failed(format!("step {number}: {reason}")),
        other => other,
    }
}

fn command(random: &mut Random, mix: Mix, has_update: bool, has_add: bool) -> Option<Command> {
    let to = random.index(BUFFERS);
    let other = (to + 1 + random.index(BUFFERS - 1)) % BUFFERS;
    let at = random.index(LEN);
    let len = random.index(LEN - at) + 1;
    let blocking = random.below(4) == 0;
    Some(match random.below(16) {
        0..=2 => Command::Write { to, at, bytes: random.bytes(len), blocking },
        3..=5 => {
            let width = 1usize << random.below(4);
            let at = at / width * width;
            let count = random.index((LEN - at) / width) + 1;
            Command::Fill { to, at, pattern: random.bytes(width), count }
        }
        6..=9 => Command::Copy { to, at, from: other, from_at: random.index(LEN - len + 1), len },
        10 => Command::Read { from: to, at, len, blocking },
        11 | 12 if has_update => Command::Update { to, add: random.next_u64() as u32 },
        13 if has_add => {
            let third = (0..BUFFERS).find(|buffer| *buffer != to && *buffer != other)?;
            Command::Add { lhs: other, rhs: third, to }
        }
        14 if mix.lists => Command::Replay { to, from: other, len, value: random.next_u64() as u8 },
        15 if mix.allocations => Command::Renew { to, value: random.next_u64() as u8 },
        _ => return None,
    })
}

/// What a step does to the model; what a read gives.
fn apply(model: &mut [Vec<u8>], command: &Command) -> Option<Vec<u8>> {
    match command {
        Command::Write { to, at, bytes, .. } => model[*to][*at..at + bytes.len()].copy_from_slice(bytes),
        Command::Fill { to, at, pattern, count } => {
            model[*to][*at..at + pattern.len() * count].copy_from_slice(&pattern.repeat(*count));
        }
        Command::Copy { to, at, from, from_at, len } => {
            let bytes = model[*from][*from_at..from_at + len].to_vec();
            model[*to][*at..at + len].copy_from_slice(&bytes);
        }
        Command::Read { from, at, len, .. } => return Some(model[*from][*at..at + len].to_vec()),
        Command::Update { to, add } => {
            let words: Vec<u32> =
                from_bytes::<u32>(&model[*to]).iter().map(|x| x.wrapping_mul(3).wrapping_add(*add)).collect();
            model[*to].copy_from_slice(as_bytes(&words));
        }
        Command::Add { lhs, rhs, to } => {
            let (lhs, rhs) = (from_bytes::<u32>(&model[*lhs]), from_bytes::<u32>(&model[*rhs]));
            let sums: Vec<u32> = lhs.iter().zip(&rhs).map(|(a, b)| a.wrapping_add(*b)).collect();
            model[*to].copy_from_slice(as_bytes(&sums));
        }
        Command::Replay { to, from, len, value } => {
            let bytes = model[*from][..*len].to_vec();
            model[*to][..*len].copy_from_slice(&bytes);
            model[*to][0] = *value;
        }
        Command::Renew { to, value } => model[*to].fill(*value),
    }
    None
}

/// A buffer, and who uses it.
struct Place {
    buffer: BufferSlice,
    written: Option<(usize, Event)>,
    read: Vec<(usize, Event)>,
}

/// A program under way on the device.
struct Run<'a> {
    context: &'a Context,
    program: &'a Program,
    streams: Vec<Stream>,
    places: Vec<Place>,
    /// Reads that are not taken yet: step, read, expected.
    pending: Vec<(usize, PendingRead, Vec<u8>)>,
}

impl<'a> Run<'a> {
    fn new(context: &'a Context, program: &'a Program) -> Result<Self, Stop> {
        let streams = (0..program.streams).map(|_| context.stream()).collect::<Result<Vec<_>, _>>()?;
        let mut places = Vec::new();
        for _ in 0..BUFFERS {
            let buffer = context.upload(&streams[0], &[0; LEN])?;
            places.push(Place { buffer, written: Some((0, streams[0].record()?)), read: Vec::new() });
        }
        Ok(Self { context, program, streams, places, pending: Vec::new() })
    }

    fn step(&mut self, number: usize, step: &Step, expected: Option<Vec<u8>>) -> Outcome {
        let stream = self.streams[step.stream].clone();
        let (reads, writes) = step.command.uses();
        for &place in &reads {
            self.wait_for_writer(step.stream, place)?;
        }
        if let Some(place) = writes {
            self.wait_for_writer(step.stream, place)?;
            for (user, event) in &self.places[place].read {
                if *user != step.stream {
                    stream.wait(event)?;
                }
            }
        }
        self.enqueue(number, &stream, &step.command, expected)?;
        if self.streams.len() > 1 {
            let event = stream.record()?;
            for place in reads {
                self.places[place].read.push((step.stream, event.clone()));
            }
            if let Some(place) = writes {
                self.places[place].read.clear();
                self.places[place].written = Some((step.stream, event));
            }
        }
        // Some reads are taken long after they were enqueued.
        if number % 16 == 15 {
            self.take_reads()?;
        }
        Ok(())
    }

    fn wait_for_writer(&self, stream: usize, place: usize) -> Outcome {
        match &self.places[place].written {
            Some((writer, event)) if *writer != stream => Ok(self.streams[stream].wait(event)?),
            _ => Ok(()),
        }
    }

    fn enqueue(
        &mut self,
        number: usize,
        stream: &Stream,
        command: &Command,
        expected: Option<Vec<u8>>,
    ) -> Outcome {
        let part = |place: &Place, at: usize, len: usize| place.buffer.slice(at as u64, len as u64);
        match command {
            Command::Write { to, at, bytes, blocking } => {
                let target = part(&self.places[*to], *at, bytes.len())?;
                if *blocking {
                    stream.write_blocking(&target, bytes)?
                } else {
                    stream.write(&target, bytes.clone())?
                }
            }
            Command::Fill { to, at, pattern, count } => {
                stream.fill(&part(&self.places[*to], *at, pattern.len() * count)?, pattern)?;
            }
            Command::Copy { to, at, from, from_at, len } => {
                stream.copy(
                    &part(&self.places[*to], *at, *len)?,
                    &part(&self.places[*from], *from_at, *len)?,
                )?;
            }
            Command::Read { from, at, len, blocking } => {
                let (source, expected) =
                    (part(&self.places[*from], *at, *len)?, expected.unwrap_or_default());
                if *blocking {
                    same_bytes(&download(stream, &source)?, &expected, "the blocking read")?;
                } else {
                    self.pending.push((number, stream.read(&source)?, expected));
                }
            }
            Command::Update { to, add } => {
                let Some(kernel) = &self.program.update else { return Ok(()) };
                let n = Scalar::U32((LEN / 4) as u32);
                let args = [self.places[*to].buffer.clone().into(), n.into(), Scalar::U32(*add).into()];
                stream.launch(kernel, [1, 1, 1], &args)?;
            }
            Command::Add { lhs, rhs, to } => {
                let Some(kernel) = &self.program.add else { return Ok(()) };
                let operand = |place: &usize| &self.places[*place].buffer;
                self.context.run_builtin(stream, kernel, &[operand(lhs), operand(rhs), operand(to)])?;
            }
            Command::Replay { to, from, len, value } => {
                let slot = |slot, len: usize| RecordedRange::Slot { slot, offset: 0, len: len as u64 };
                let mut list = CommandListBuilder::new();
                list.push(RecordedCommand::Copy { dst: slot(0, *len), src: slot(1, *len) });
                list.push(RecordedCommand::Fill { dst: slot(0, 1), pattern: vec![*value] });
                let list = self.context.device().finish(list)?;
                let bindings = [self.places[*to].buffer.clone(), self.places[*from].buffer.clone()];
                stream.replay(&list, &bindings, &[])?;
            }
            Command::Renew { to, value } => {
                let buffer = self.context.buffer(LEN)?;
                stream.fill(&buffer, &[*value])?;
                self.places[*to].buffer = buffer;
            }
        }
        Ok(())
    }

    fn take_reads(&mut self) -> Outcome {
        for (number, read, expected) in self.pending.drain(..) {
            same_bytes(&read.wait()?, &expected, &format!("the read of step {number}"))?;
        }
        Ok(())
    }

    fn finish(mut self, model: &[Vec<u8>]) -> Outcome {
        self.take_reads()?;
        self.streams.iter().try_for_each(Stream::synchronize)?;
        for (number, (place, expected)) in self.places.iter().zip(model).enumerate() {
            same_bytes(
                &download(&self.streams[0], &place.buffer)?,
                expected,
                &format!("in the end, buffer {number}"),
            )?;
        }
        Ok(())
    }
}

//! A random program over streams, events, copies, kernels, lists and a pool, run under a schedule of faults and
//! compared with a model on the host: what is read without an error is right.

use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    Arg, Buffer, CommandList, CommandListBuilder, DType, Device, Error, ErrorKind, Event, Health, Kernel,
    KernelSource, Layer, MemoryKind, PendingRead, Pool, PoolConfig, RecordedArg, RecordedCommand,
    RecordedRange, Result, Stream, as_bytes, from_bytes,
};
use halite_layers::fault::Fault;
use halite_layers::verify::Verify;
use std::time::{Duration, Instant};

/// Elements of a buffer: a prime, so that nothing fits whole vectors.
const ELEMENTS: u64 = 257;
const LEN: u64 = 4 * ELEMENTS;
const BUFFERS: usize = 5;
const STREAMS: usize = 3;
const STEPS: usize = 120;
/// Tries of a call whose failures pass: rules strike rarely or a few times.
const TRIES: usize = 100;
/// Work that is under way when everything has been dropped ends within this.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// What a run met.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    /// Errors of any kind.
    pub(crate) errors: u64,
    /// Reads that were compared with the model.
    pub(crate) compared: u64,
    /// Runs that ended with the loss of the device.
    pub(crate) losses: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        self.errors += other.errors;
        self.compared += other.compared;
        self.losses += other.losses;
    }
}

/// Runs the program of `seed` on a device from `open`, under the schedule of the same seed. Every second seed also
/// corrupts copies, below the layer that looks at them again.
///
/// Panics when a number is wrong, an error is not the one that was injected, or something is left behind.
pub(crate) fn run(seed: u64, open: &dyn Fn() -> Device) -> Tally {
    let is_odd = seed % 2 == 1;
    run_with(seed, is_odd, is_odd, open)
}

/// As [`run`], with copies corrupted and looked at again or not.
pub(crate) fn run_with(seed: u64, corrupted: bool, verified: bool, open: &dyn Fn() -> Device) -> Tally {
    let corruption = if corrupted { "; transfer~0.05=corrupt" } else { "" };
    let script = format!("openings=1; random={seed}{corruption}");
    let context = format!("seed {seed}, '{}'", Fault::random_script(seed));
    let fault = Fault::with_script(&script).unwrap();
    let wrap = |inner: &Device| {
        let faulty = fault.wrap(inner.clone()).unwrap();
        if verified { Verify.wrap(faulty).unwrap() } else { faulty }
    };
    let inner = open();
    // A device that is still open is opened again, and what the last program used may be on its way back.
    drain(&inner, &context);
    let device = wrap(&inner);
    let mut tally = Tally::default();
    let outcome = Program::new(&device, seed, verified, &mut tally).and_then(|mut program| {
        program.run(&mut tally)?;
        program.finish(&mut tally)
    });
    match outcome {
        Ok(()) => assert_eq!(device.health(), Health::Ok, "{context}"),
        Err(error) => {
            assert_eq!(error.kind(), &ErrorKind::DeviceLost, "{context}: {error}");
            assert!(matches!(device.health(), Health::Lost { .. }), "{context}");
            assert_eq!(device.create_stream().unwrap_err().kind(), &ErrorKind::DeviceLost, "{context}");
            tally.losses += 1;
        }
    }
    drop(device);
    drain(&inner, &context);
    drop(inner);
    // Faults end with the first opening: the device works when it is opened anew.
    let anew = wrap(&open());
    let (stream, buffer) = (anew.create_stream().unwrap(), anew.allocate(4, MemoryKind::Device).unwrap());
    stream.write(&buffer.all(), vec![1, 2, 3, 4]).unwrap();
    assert_eq!(stream.read(&buffer.all()).unwrap().wait().unwrap(), [1, 2, 3, 4], "{context}");
    tally
}

/// Waits until nothing is left of the device's buffers.
fn drain(device: &Device, context: &str) {
    let start = Instant::now();
    loop {
        let now = device.memory().unwrap();
        if (now.used_bytes, now.buffers) == (0, 0) {
            break;
        }
        assert!(start.elapsed() < DRAIN_LIMIT, "{context}: {now:?} is left");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Program {
    device: Device,
    verified: bool,
    random: Random,
    streams: Vec<Stream>,
    pool: Pool,
    buffers: Vec<Slot>,
    kernels: Vec<(Kernel, Operation)>,
    list: Option<CommandList>,
    pending: Vec<(PendingRead, Option<Vec<u8>>)>,
}

/// A buffer with what the model knows of it.
struct Slot {
    buffer: Buffer,
    /// What it holds, `None` when a failure left that open.
    model: Option<Vec<u8>>,
    /// The stream that used it last, and the point behind that use.
    last_use: Option<(usize, Event)>,
    /// Whether it was written since all streams were last seen at rest.
    is_dirty: bool,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Copy,
    Fill(u32),
    Add,
}

impl Program {
    fn new(device: &Device, seed: u64, verified: bool, tally: &mut Tally) -> Result<Self> {
        let streams =
            (0..STREAMS).map(|_| persist(tally, || device.create_stream())).collect::<Result<Vec<_>>>()?;
        let pool = Pool::new(device.clone(), MemoryKind::Device, PoolConfig::default());
        let mut buffers = Vec::new();
        for _ in 0..BUFFERS {
            let buffer = persist(tally, || device.allocate(LEN, MemoryKind::Device))?;
            buffers.push(Slot { buffer, model: None, last_use: None, is_dirty: false });
        }
        let mut kernels = Vec::new();
        for operation in [Operation::Copy, Operation::Fill(0x0102_0304), Operation::Add] {
            let desc = || OperandDesc::contiguous(DType::U32, &[ELEMENTS]);
            let (kind, operands) = match operation {
                Operation::Copy => (BuiltinKind::Copy, 2),
                Operation::Fill(value) => (BuiltinKind::Fill { value_bits: value.into() }, 1),
                Operation::Add => (BuiltinKind::Add, 3),
            };
            let op = BuiltinOp::new(kind, (0..operands).map(|_| desc()).collect())?;
            kernels.push((persist(tally, || device.load(&KernelSource::Builtin(op.clone())))?, operation));
        }
        let random = Random(seed ^ 0x5EED);
        let (device, pending) = (device.clone(), Vec::new());
        let mut program =
            Self { device, verified, random, streams, pool, buffers, kernels, list: None, pending };
        program.list = Some(program.record_list()?);
        Ok(program)
    }

    /// A fill, an addition of two buffers, and a copy of the sum.
    fn record_list(&self) -> Result<CommandList> {
        let slot = |slot| RecordedRange::Slot { slot, offset: 0, len: LEN };
        let mut list = CommandListBuilder::new();
        list.push(RecordedCommand::Fill { dst: slot(0), pattern: vec![5] });
        let kernel = self.kernels[2].0.clone();
        let args = [0, 1, 2].map(|index| RecordedArg::Buffer(slot(index))).to_vec();
        list.push(RecordedCommand::Launch { kernel, grid: [1, 1, 1], args });
        list.push(RecordedCommand::Copy { dst: slot(0), src: slot(2) });
        self.device.finish(list)
    }

    fn run(&mut self, tally: &mut Tally) -> Result<()> {
        for _ in 0..STEPS {
            if let Err(error) = self.step(tally) {
                self.settle(error, tally)?;
            }
        }
        Ok(())
    }

    /// One random call. What it does to buffers is in the model when it was accepted.
    fn step(&mut self, tally: &mut Tally) -> Result<()> {
        let stream = self.random.below(STREAMS);
        let [first, second, third] = self.three_buffers();
        let offset = self.random.below(LEN as usize) as u64;
        let len = self.random.below((LEN - offset) as usize + 1) as u64;
        let value = self.random.next() as u8;
        let range = |slot: &Slot| slot.buffer.slice(offset, len).expect("it was drawn inside");
        let span = offset as usize..(offset + len) as usize;
        match self.random.below(9) {
            0 => {
                self.acquire(stream, &[first])?;
                let bytes: Vec<u8> = (0..len).map(|i| value.wrapping_add(i as u8)).collect();
                let dst = range(&self.buffers[first]);
                let written = match value % 2 {
                    0 => self.streams[stream].write(&dst, &bytes[..]),
                    _ => self.streams[stream].write_blocking(&dst, &bytes),
                };
                self.write(first, written, |model| model[span].copy_from_slice(&bytes))?;
                self.release(stream, &[first])
            }
            1 => {
                self.acquire(stream, &[first])?;
                let filled = self.streams[stream].fill(&range(&self.buffers[first]), &[value]);
                self.write(first, filled, |model| model[span].fill(value))?;
                self.release(stream, &[first])
            }
            2 => {
                // The whole buffer, which makes it known again.
                self.acquire(stream, &[first])?;
                let bytes: Vec<u8> = (0..LEN).map(|i| value.wrapping_mul(i as u8)).collect();
                let written = self.streams[stream].write(&self.buffers[first].buffer.all(), &bytes[..]);
                self.buffers[first].model.get_or_insert_default().resize(LEN as usize, 0);
                if written.is_err() {
                    self.buffers[first].model = None;
                }
                self.write(first, written, |model| model.copy_from_slice(&bytes))?;
                self.release(stream, &[first])
            }
            3 => {
                self.acquire(stream, &[first, second])?;
                let (dst, src) = (range(&self.buffers[first]), range(&self.buffers[second]));
                let copied = self.streams[stream].copy(&dst, &src);
                let source = self.buffers[second].model.clone();
                self.taint_unless(first, source.is_some());
                self.write(first, copied, |model| {
                    let source = source.expect("the target would be unknown as well");
                    model[span.clone()].copy_from_slice(&source[span]);
                })?;
                self.release(stream, &[first, second])
            }
            4 => {
                let (kernel, operation) = &self.kernels[self.random.below(self.kernels.len())];
                let (kernel, operation) = (kernel.clone(), *operation);
                let used: &[usize] = match operation {
                    Operation::Fill(_) => &[first],
                    Operation::Copy => &[second, first],
                    Operation::Add => &[second, third, first],
                };
                self.acquire(stream, used)?;
                let args: Vec<Arg> =
                    used.iter().map(|slot| Arg::Buffer(self.buffers[*slot].buffer.all())).collect();
                self.streams[stream].launch(&kernel, [1, 1, 1], &args)?;
                let out = self.result(operation, second, third);
                self.set(first, out);
                self.release(stream, used)
            }
            5 => {
                let used = [first, second, third];
                self.acquire(stream, &used)?;
                let bindings = used.map(|slot| self.buffers[slot].buffer.all());
                let list = self.list.clone().expect("it is made with the program");
                let replayed = self.streams[stream].replay(&list, &bindings, &[]);
                let fives = vec![5; LEN as usize];
                let sum = self.buffers[second].model.as_ref().map(|rhs| sum(&fives, rhs));
                let is_accepted = replayed.is_ok();
                for slot in [first, third] {
                    // Of a replay that is refused, some commands may be enqueued.
                    self.set(slot, sum.clone().filter(|_| is_accepted));
                }
                replayed?;
                self.release(stream, &used)
            }
            6 => {
                self.acquire(stream, &[first])?;
                let mut bytes = vec![0; len as usize];
                self.streams[stream].read_blocking(&range(&self.buffers[first]), &mut bytes)?;
                if let Some(model) = &self.buffers[first].model {
                    assert!(bytes == model[span], "a read gave a wrong number");
                    tally.compared += 1;
                }
                self.release(stream, &[first])
            }
            7 => {
                self.acquire(stream, &[first])?;
                let pending = self.streams[stream].read(&range(&self.buffers[first]))?;
                let expected = self.buffers[first].model.as_ref().map(|model| model[span].to_vec());
                self.pending.push((pending, expected));
                self.release(stream, &[first])
            }
            _ => {
                // Through memory of the pool, which goes back while the copy may be under way.
                self.acquire(stream, &[first])?;
                let scratch = self.pool.allocate(&self.streams[stream], LEN)?;
                self.streams[stream].fill(&scratch, &[value])?;
                let copied = self.streams[stream].copy(&self.buffers[first].buffer.all(), &scratch);
                self.buffers[first].model.get_or_insert_default().resize(LEN as usize, 0);
                if copied.is_err() {
                    self.buffers[first].model = None;
                }
                self.write(first, copied, |model| model.fill(value))?;
                self.release(stream, &[first])
            }
        }
    }

    /// Notes a write that was accepted. A refused one changes nothing, unless it was done and found wrong.
    fn write(&mut self, slot: usize, result: Result<()>, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let verified = self.verified;
        let slot = &mut self.buffers[slot];
        slot.is_dirty = true;
        match (&result, &mut slot.model) {
            (Ok(()), Some(model)) => change(model),
            (Err(_), model) if verified => *model = None,
            _ => {}
        }
        result
    }

    fn taint_unless(&mut self, slot: usize, is_known: bool) {
        if !is_known {
            self.buffers[slot].model = None;
        }
    }

    fn set(&mut self, slot: usize, model: Option<Vec<u8>>) {
        (self.buffers[slot].model, self.buffers[slot].is_dirty) = (model, true);
    }

    fn result(&self, operation: Operation, lhs: usize, rhs: usize) -> Option<Vec<u8>> {
        let model = |slot: usize| self.buffers[slot].model.clone();
        match operation {
            Operation::Fill(value) => Some(value.to_ne_bytes().repeat(ELEMENTS as usize)),
            Operation::Copy => model(lhs),
            Operation::Add => Some(sum(&model(lhs)?, &model(rhs)?)),
        }
    }

    /// Orders a stream behind the last uses of buffers on others.
    fn acquire(&mut self, stream: usize, slots: &[usize]) -> Result<()> {
        for &slot in slots {
            if let Some((user, event)) = &self.buffers[slot].last_use
                && *user != stream
            {
                self.streams[stream].wait(event)?;
            }
        }
        Ok(())
    }

    /// Marks the point behind this use. Without an event the host waits instead, which `settle` does.
    fn release(&mut self, stream: usize, slots: &[usize]) -> Result<()> {
        let event = self.streams[stream].record()?;
        for &slot in slots {
            self.buffers[slot].last_use = Some((stream, event.clone()));
        }
        Ok(())
    }

    /// Brings everything to rest after an error: what failed work may have skipped is unknown from then on.
    fn settle(&mut self, error: Error, tally: &mut Tally) -> Result<()> {
        judge(error, tally)?;
        let mut has_failed = false;
        for stream in &self.streams {
            loop {
                match stream.synchronize() {
                    Ok(()) => break,
                    Err(error) => {
                        let is_early = matches!(error.kind(), ErrorKind::Timeout { .. });
                        judge(error, tally)?;
                        if !is_early {
                            has_failed = true;
                            stream.reset()?;
                            break;
                        }
                    }
                }
            }
        }
        for slot in &mut self.buffers {
            if has_failed && slot.is_dirty {
                slot.model = None;
            }
            (slot.is_dirty, slot.last_use) = (false, None);
        }
        for (pending, expected) in std::mem::take(&mut self.pending) {
            loop {
                match pending.event().wait(None) {
                    Err(error) if matches!(error.kind(), ErrorKind::Timeout { .. }) => judge(error, tally)?,
                    _ => break,
                }
            }
            match (pending.wait(), expected) {
                (Ok(bytes), Some(expected)) => {
                    assert!(bytes == expected, "an asynchronous read gave a wrong number");
                    tally.compared += 1;
                }
                (Ok(_), None) => {}
                (Err(error), _) => judge(error, tally)?,
            }
        }
        Ok(())
    }

    /// Compares everything that is known, then shows that each stream still works.
    fn finish(mut self, tally: &mut Tally) -> Result<()> {
        self.settle(Error::new(ErrorKind::Link, "injected by the end of the program"), tally)?;
        tally.errors -= 1;
        for index in 0..BUFFERS {
            let stream = &self.streams[index % STREAMS];
            let slot = &self.buffers[index];
            let mut bytes = vec![0; LEN as usize];
            recovering(stream, tally, || stream.read_blocking(&slot.buffer.all(), &mut bytes))?;
            if let Some(model) = &slot.model {
                assert!(bytes == *model, "the last read gave a wrong number");
                tally.compared += 1;
            }
        }
        for (index, stream) in self.streams.iter().enumerate() {
            let buffer = self.buffers[index].buffer.all();
            recovering(stream, tally, || {
                stream.fill(&buffer, &[index as u8])?;
                stream.synchronize()
            })?;
            let mut bytes = vec![9; LEN as usize];
            recovering(stream, tally, || stream.read_blocking(&buffer, &mut bytes))?;
            assert!(
                bytes == vec![index as u8; LEN as usize],
                "a stream that was mended gives a wrong number"
            );
        }
        Ok(())
    }

    fn three_buffers(&mut self) -> [usize; 3] {
        let mut all: Vec<usize> = (0..BUFFERS).collect();
        std::array::from_fn(|_| {
            let place = self.random.below(all.len());
            all.swap_remove(place)
        })
    }
}

/// Calls again until it succeeds, after resetting the stream where it is poisoned.
fn recovering(stream: &Stream, tally: &mut Tally, mut call: impl FnMut() -> Result<()>) -> Result<()> {
    persist(tally, || {
        call().inspect_err(|_| {
            // Of a lost device the call's own error says enough.
            let _ = stream.reset();
        })
    })
}

/// Calls again until it succeeds: every injected failure but the loss of the device passes.
fn persist<T>(tally: &mut Tally, mut call: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..TRIES {
        match call() {
            Ok(value) => return Ok(value),
            Err(error) => judge(error, tally)?,
        }
    }
    panic!("the faults do not end");
}

/// Whether an error is one of those that were asked for; the loss of the device ends the program.
fn judge(error: Error, tally: &mut Tally) -> Result<()> {
    tally.errors += 1;
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DeviceLost => return Err(error),
        ErrorKind::Link if text.contains("as the layer 'verify' saw") => {}
        ErrorKind::Timeout { .. } | ErrorKind::OutOfMemory { .. } | ErrorKind::Build { .. } => {
            assert!(text.contains("layer 'fault'"), "{text}");
        }
        ErrorKind::Link | ErrorKind::Fault | ErrorKind::Backend { code: -1, .. } => {
            assert!(text.contains("injected by the"), "{text}");
        }
        _ => panic!("an error that was not asked for: {text}"),
    }
    Ok(())
}

/// Sums of `u32`, wrapping.
fn sum(lhs: &[u8], rhs: &[u8]) -> Vec<u8> {
    let (lhs, rhs): (Vec<u32>, Vec<u32>) = (from_bytes(lhs), from_bytes(rhs));
    let sums: Vec<u32> = lhs.iter().zip(&rhs).map(|(lhs, rhs)| lhs.wrapping_add(*rhs)).collect();
    as_bytes(&sums).to_vec()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

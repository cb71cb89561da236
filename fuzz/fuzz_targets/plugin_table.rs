//! The loader of plugins: whatever a table holds and whatever its functions answer, the loader reports it in an error of
//! its own, frees nothing that the plugin may still use, gives every handle back once, and ends every wait.
//!
//! The plugin's side, with what it checks, is `lying_plugin.rs`. An input has, in this order: how the plugin starts, a byte
//! of settings, the number of answers, the answers, and the program's actions of eight bytes each.
#![no_main]

use halite_fuzz::lying_plugin::{MARK, Start, World, entry};
use halite_fuzz::threads::{threads, wait_for_threads};
use halite_hal::builtin::{Activation, BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{
    Access, Arg, ArgType, Buffer, BufferSlice, DType, Device, Error, Event, HostMemory, Kernel, KernelSource,
    MemoryKind, PendingRead, Scalar, Signature, Stream,
};
use halite_npu::{NpuBackend, counters};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long the loader waits for a plugin that may hang, which then takes longer.
const SHORT_LIMIT: Duration = Duration::from_millis(10);
/// More commands than those after which a stream looks for finished ones by itself.
const MANY: usize = 80;
const MOST_ACTIONS: usize = 96;

/// Bytes of an action: what is done, and what with.
type Action = [u8; 8];

#[derive(Default)]
struct Objects {
    devices: Vec<Device>,
    buffers: Vec<Buffer>,
    streams: Vec<Stream>,
    reads: Vec<PendingRead>,
    events: Vec<Event>,
    kernels: Vec<Kernel>,
}

fn pick<T>(list: &[T], index: u8) -> Option<&T> {
    list.get(usize::from(index).checked_rem(list.len())?)
}

fn remove<T>(list: &mut Vec<T>, index: u8) {
    if let Some(index) = usize::from(index).checked_rem(list.len()) {
        list.swap_remove(index);
    }
}

/// What a plugin says is one line that no terminal obeys, but for the log of a build.
fn assert_clean(error: &Error) {
    assert!(!error.message().is_empty() && !error.message().contains(char::is_control), "{error:?}");
}

/// Whether every byte of a copy has arrived.
fn assert_arrived(bytes: &[u8]) {
    assert!(bytes.iter().all(|byte| *byte == MARK), "a copy is reported as done before it is");
}

impl Objects {
    /// A range of a buffer; those of absurd length take no memory here, and only short copies do on the host.
    fn slice(&self, buffer: u8, offset: u8, length: u8) -> Option<BufferSlice> {
        let buffer = pick(&self.buffers, buffer)?;
        let most = buffer.len_bytes().min(4096);
        let offset = u64::from(offset).min(most);
        buffer.slice(offset, (u64::from(length) * 8).min(most - offset)).ok()
    }

    /// Does one thing; what is refused is refused. Objects are chosen modulo their number.
    fn act(&mut self, backend: &NpuBackend, action: Action) -> Option<()> {
        let [what, first, second, third, fourth, fifth, sixth, seventh] = action;
        let stream = || pick(&self.streams, first);
        let slice = || self.slice(second, third, fourth);
        match what % 32 {
            0 => {
                if self.devices.len() < 3 {
                    self.devices.push(backend.open(0).ok()?);
                }
            }
            1 => remove(&mut self.devices, first),
            3 if fifth >= 128 => {
                let memory = HostMemory::zeroed(usize::from(third) << (fourth % 9)).ok()?;
                self.buffers.push(pick(&self.devices, first)?.import(&memory).ok()?);
            }
            2 | 3 => {
                let kinds = [MemoryKind::Device, MemoryKind::HostVisible, MemoryKind::Pinned];
                let kind = kinds[usize::from(second) % kinds.len()];
                let length = u64::from(third) << (fourth % 9);
                self.buffers.push(pick(&self.devices, first)?.allocate(length, kind).ok()?);
            }
            4 => {
                let length = u64::from(second) << (third % 64);
                self.buffers.push(pick(&self.devices, first)?.allocate(length, MemoryKind::Device).ok()?);
            }
            5 => remove(&mut self.buffers, first),
            6 if second >= 128 => {
                let (device, peer) = (pick(&self.devices, first)?, pick(&self.devices, third)?);
                self.streams.push(device.create_peer_stream(peer).ok()?);
            }
            6 => self.streams.push(pick(&self.devices, first)?.create_stream().ok()?),
            7 => remove(&mut self.streams, first),
            8 => stream()?.write(&slice()?, vec![1; slice()?.len_bytes() as usize]).ok()?,
            9 => stream()?.write_blocking(&slice()?, &vec![1; slice()?.len_bytes() as usize]).ok()?,
            10 => {
                let read = stream()?.read(&slice()?).ok()?;
                self.reads.push(read);
            }
            11 => {
                let index = usize::from(first).checked_rem(self.reads.len())?;
                assert_arrived(&self.reads.swap_remove(index).wait().ok()?);
            }
            12 => remove(&mut self.reads, first),
            13 => {
                let mut bytes = vec![0; slice()?.len_bytes() as usize];
                stream()?.read_blocking(&slice()?, &mut bytes).ok()?;
                assert_arrived(&bytes);
            }
            14 => stream()?.copy(&slice()?, &self.slice(fifth, sixth, fourth)?).ok()?,
            15 => stream()?.fill(&slice()?, &[1; 8][..1 << (fifth % 4)]).ok()?,
            16 => {
                for _ in 0..MANY {
                    stream()?.fill(&slice()?, &[1]).ok()?;
                }
            }
            17 => self.events.push(stream()?.record().ok()?),
            18 => stream()?.wait(pick(&self.events, second)?).ok()?,
            19 => {
                let limit = (second < 200).then(|| Duration::from_micros(second.into()));
                pick(&self.events, first)?.wait(limit).ok()?;
            }
            20 => {
                pick(&self.events, first)?.is_done().ok()?;
            }
            21 => {
                pick(&self.events, first)?.elapsed_since(pick(&self.events, second)?).ok()?;
            }
            22 => remove(&mut self.events, first),
            23 => stream()?.synchronize().ok()?,
            24 => stream()?.synchronize_timeout(Duration::from_micros(second.into())).ok()?,
            25 => stream()?.reset().ok()?,
            26 => {
                let device = pick(&self.devices, first)?;
                match second % 3 {
                    0 => drop(device.memory().ok()?),
                    1 => drop(device.health()),
                    _ => drop(counters(device).ok()?),
                }
            }
            27 => self.kernels.push(pick(&self.devices, first)?.load(&builtin(second, third, fourth)?).ok()?),
            28 => self.kernels.push(pick(&self.devices, first)?.load(&program(second)).ok()?),
            29 => {
                let kernel = pick(&self.kernels, second)?;
                let mut buffers = [fourth, fifth, sixth, seventh].into_iter();
                let args = kernel.signature().args.iter().map(|argument| match argument {
                    ArgType::Buffer { .. } => self.slice(buffers.next()?, 0, third).map(Arg::Buffer),
                    ArgType::Scalar(_) => Some(Arg::Scalar(Scalar::I32(7))),
                });
                let args = args.collect::<Option<Vec<_>>>()?;
                stream()?.launch(kernel, [u32::from(third) + 1, 1, 1], &args).ok()?;
            }
            30 => remove(&mut self.kernels, first),
            _ => {
                let buffer = pick(&self.buffers, first)?;
                let address = buffer.host_pointer()?;
                // SAFETY: the address is valid for the buffer's length while the handle lives, and the plugin does not
                // look at this memory.
                unsafe { address.write_bytes(3, buffer.len_bytes() as usize) };
            }
        }
        Some(())
    }
}

fn builtin(kind: u8, dtype: u8, extent: u8) -> Option<KernelSource> {
    let kinds = [
        BuiltinKind::Copy,
        BuiltinKind::Fill { value_bits: 7 },
        BuiltinKind::Add,
        BuiltinKind::MatMul,
        BuiltinKind::FusedMatMul { bias: false, activation: Activation::Relu, allow_tf32: false },
    ];
    let kind = kinds[usize::from(kind) % kinds.len()];
    let dtype = DType::ALL[usize::from(dtype) % DType::ALL.len()];
    let desc = OperandDesc::contiguous(dtype, &[2, extent.into()]);
    Some(KernelSource::Builtin(BuiltinOp::new(kind, vec![desc; kind.operand_count()]).ok()?))
}

/// A program; most of the time with the arguments that the plugin reports when it is honest.
fn program(way: u8) -> KernelSource {
    let mut args = vec![ArgType::Buffer { dtype: DType::F32, access: Access::ReadWrite }; 2];
    match way {
        0..220 => {}
        220..230 => args.clear(),
        230..240 => args.push(ArgType::Scalar(DType::I32)),
        _ => args[0] = ArgType::Buffer { dtype: DType::F32, access: Access::Read },
    }
    KernelSource::Binary {
        format: "npu-program",
        bytes: vec![1, 2, 3].into(),
        entry: if way == 255 { "a\0b".into() } else { "kernel".into() },
        workgroup: [1, 1, 1],
        signature: Signature::new(args),
        requires: Vec::new(),
    }
}

/// A loaded plugin stays for the life of the process, so those that gave everything back are used again.
static LOADED: Mutex<BTreeMap<Start, NpuBackend>> = Mutex::new(BTreeMap::new());

fuzz_target!(|input: &[u8]| {
    let Some((start, input)) = input.split_first_chunk::<{ Start::BYTES }>() else { return };
    let [settings, answers, input @ ..] = input else { return };
    let (answers, actions) = input.split_at(input.len().min(usize::from(*answers)));
    let (start, may_hang) = (Start::new(start), *settings >= 250);
    let count = threads();
    let world = World::begin(&start, answers, may_hang);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let backend = match loaded.remove(&start) {
        Some(backend) => backend,
        // SAFETY: the plugin keeps the rules about memory; its functions are there as long as the process.
        None => match unsafe { NpuBackend::with_linked_plugin(entry) } {
            Ok(backend) => backend,
            Err(error) => return assert_clean(&error),
        },
    };
    {
        let mut backend = backend.clone().without_environment();
        if may_hang {
            backend = backend.with_call_limit(SHORT_LIMIT);
        }
        if let Some(value) = ["value", "", "a\0b", "\n\x1b[2J"].get(usize::from(*settings % 8)) {
            backend = backend.with_option("key", *value);
        }
        let mut objects = Objects::default();
        if let Err(error) = backend.probe() {
            assert_clean(&error);
        }
        objects.act(&backend, [0; 8]);
        for action in actions.chunks(size_of::<Action>()).take(MOST_ACTIONS) {
            let mut whole = [0; size_of::<Action>()];
            whole[..action.len()].copy_from_slice(action);
            objects.act(&backend, whole);
            if whole[0] % 32 == 7 && !may_hang {
                // A dropped stream is waited for on a thread; what follows then happens in the same order each time.
                wait_for_threads(count);
            }
        }
    }
    wait_for_threads(count);
    if world.end() && !may_hang {
        loaded.insert(start, backend);
    }
});

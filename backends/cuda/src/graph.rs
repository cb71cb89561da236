//! Command lists as CUDA graphs: many commands, launched with one call.
//!
//! 1. A list's first replay runs its commands one by one: a list that is replayed once is not worth a graph.
//! 2. The next one builds a graph for its bindings, a chain with a node for each command, and launches it.
//! 3. Replays with the same bindings launch it again. With other scalars, the nodes that use them get new parameters; with
//!    other buffers, a further graph is built, up to [`MAX_INSTANCES`], and then the one that has not been used for longest
//!    gets new parameters. So a training step that swaps two sets of weights has a graph for each.
//! 4. What cannot be in a graph (a copy from pinned memory, a refusal of the driver) makes the list run one by one.
//!
//! A graph that is launched twice runs once after the other, also on two streams (CUDA Driver API, `cuGraphLaunch`).

use crate::api::{Address, call};
use crate::blas::MatMulCall;
use crate::buffer::place;
use crate::context::{Current, StreamHandle};
use crate::device::{DeviceShared, lock};
use crate::op::{self, Launch, Op};
use crate::stream::{Held, StreamShared};
use crate::sys::{
    CUDA_KERNEL_NODE_PARAMS, CUDA_MEMCPY3D, CUDA_MEMSET_NODE_PARAMS, CUgraph, CUgraphExec, CUgraphNode,
    CUmemorytype, CUstreamCaptureMode,
};
use halite_hal::{
    Binding, Command, CommandList, Error, ErrorKind, RecordedArg, RecordedCommand, RecordedRange, Result,
    Scalar,
};
use std::sync::{Arc, Mutex};
use std::{mem, ptr};

/// Graphs of one list, for as many sets of buffers.
const MAX_INSTANCES: usize = 4;
/// Fewer commands gain nothing.
const MIN_COMMANDS: usize = 2;

/// What a device keeps for a command list.
pub(crate) struct GraphList {
    device: Arc<DeviceShared>,
    /// Slots that each command uses.
    uses: Vec<Uses>,
    state: Mutex<State>,
}

#[derive(Default)]
struct Uses {
    buffers: Vec<usize>,
    scalars: Vec<usize>,
}

#[derive(Default)]
struct State {
    replays: u64,
    /// Whether the list cannot be a graph.
    is_refused: bool,
    instances: Vec<Instance>,
}

/// A graph with the bindings that are in its parameters.
struct Instance {
    executable: Arc<Executable>,
    buffers: Vec<Address>,
    scalars: Vec<u64>,
    last_replay: u64,
}

/// A graph that can be launched. Launches in flight hold it.
pub(crate) struct Executable {
    device: Arc<DeviceShared>,
    handle: CUgraphExec,
    /// What it was made of; the nodes are its.
    _graph: Graph,
    /// A node for each command that has work.
    nodes: Vec<Option<CUgraphNode>>,
}
// SAFETY: handles of the driver, whose functions any thread may call; changes are made under the list's lock.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

impl Drop for Executable {
    fn drop(&mut self) {
        if let Ok(gpu) = self.device.context.enter() {
            gpu.dispose(call!(gpu.driver(), cuGraphExecDestroy(self.handle)));
        }
    }
}

/// A graph, destroyed when dropped.
struct Graph {
    device: Arc<DeviceShared>,
    handle: CUgraph,
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(gpu) = self.device.context.enter() {
            gpu.dispose(call!(gpu.driver(), cuGraphDestroy(self.handle)));
        }
    }
}

/// Looks through recorded commands; `None` if they are not worth a graph.
pub(crate) fn prepare(device: &Arc<DeviceShared>, commands: &[RecordedCommand]) -> Option<GraphList> {
    if commands.len() < MIN_COMMANDS {
        return None;
    }
    let uses = commands.iter().map(Uses::of).collect();
    Some(GraphList { device: device.clone(), uses, state: Mutex::default() })
}

impl Uses {
    fn of(command: &RecordedCommand) -> Self {
        let mut uses = Self::default();
        let mut range = |range: &RecordedRange| {
            if let RecordedRange::Slot { slot, .. } = range {
                uses.buffers.push(*slot);
            }
        };
        match command {
            RecordedCommand::Copy { dst, src } => [dst, src].into_iter().for_each(range),
            RecordedCommand::Fill { dst, .. } => range(dst),
            RecordedCommand::Launch { args, .. } => {
                for arg in args {
                    match arg {
                        RecordedArg::Buffer(buffer) => range(buffer),
                        RecordedArg::ScalarSlot(slot) => uses.scalars.push(*slot),
                        RecordedArg::Scalar(_) => {}
                    }
                }
            }
        }
        uses
    }

    /// Whether the parameters differ between two sets of bindings.
    fn differ(&self, instance: &Instance, buffers: &[Address], scalars: &[u64]) -> bool {
        self.buffers.iter().any(|slot| instance.buffers[*slot] != buffers[*slot])
            || self.scalars.iter().any(|slot| instance.scalars[*slot] != scalars[*slot])
    }
}

impl GraphList {
    /// Enqueues the list as a graph; false if it is to be run command by command.
    pub(crate) fn replay(
        &self,
        stream: &Arc<StreamShared>,
        list: &CommandList,
        bindings: &[Binding],
        scalars: &[Scalar],
    ) -> Result<bool> {
        stream.admit()?;
        // Held until the graph is enqueued: another thread could change its parameters in between.
        let mut state = lock(&self.state);
        if state.is_refused {
            return Ok(false);
        }
        state.replays += 1;
        if state.replays == 1 {
            return Ok(false);
        }
        let mut buffers = Vec::with_capacity(bindings.len());
        for binding in bindings {
            let place = place(binding)?;
            // Of one list, some bindings may be fit for a graph and others not.
            if !place.is_of_device {
                return Ok(false);
            }
            buffers.push(place.address);
        }
        let scalar_bits: Vec<u64> = scalars.iter().map(|scalar| scalar.to_bits()).collect();
        let index = match self.instance(&mut state, list, (bindings, scalars), &buffers, &scalar_bits) {
            Ok(index) => index,
            Err(error) => {
                self.device.check()?;
                log::debug!("{}: {list:?} runs without a graph: {error}", self.device.info.id);
                state.is_refused = true;
                state.instances.clear();
                return Ok(false);
            }
        };
        let replay = state.replays;
        let instance = &mut state.instances[index];
        instance.last_replay = replay;
        let executable = instance.executable.clone();
        let handle = executable.handle;
        let held = bindings.iter().map(|binding| Held::Buffer(binding.buffer().clone()));
        let held = held.chain([Held::List(list.clone()), Held::Graph(executable)]);
        stream.enqueue(held, |gpu, stream| call!(gpu.driver(), cuGraphLaunch(handle, stream.0)))?;
        Ok(true)
    }

    /// The graph with these bindings in its parameters.
    fn instance(
        &self,
        state: &mut State,
        list: &CommandList,
        bound: (&[Binding], &[Scalar]),
        buffers: &[Address],
        scalars: &[u64],
    ) -> Result<usize> {
        let of_buffers = |instance: &Instance| instance.buffers == buffers;
        let same = state.instances.iter().position(|own| of_buffers(own) && own.scalars == scalars);
        if let Some(index) = same {
            return Ok(index);
        }
        let near = state.instances.iter().position(of_buffers);
        let index = match near {
            None if state.instances.len() < MAX_INSTANCES => None,
            None => (0..state.instances.len()).min_by_key(|index| state.instances[*index].last_replay),
            near => near,
        };
        if let Some(index) = index {
            let updated = self.update(&state.instances[index], list, bound, buffers, scalars);
            match updated {
                Ok(()) => {
                    let instance = &mut state.instances[index];
                    instance.buffers.copy_from_slice(buffers);
                    instance.scalars.copy_from_slice(scalars);
                    return Ok(index);
                }
                // Its parameters may be those of neither set of bindings now.
                Err(error) => {
                    log::debug!("{}: a graph is built anew: {error}", self.device.info.id);
                    state.instances.swap_remove(index);
                }
            }
        }
        let executable = Arc::new(self.build(list, bound)?);
        log::debug!("{}: {list:?} runs as a graph of {} nodes", self.device.info.id, executable.nodes.len());
        let (buffers, scalars) = (buffers.to_vec(), scalars.to_vec());
        state.instances.push(Instance { executable, buffers, scalars, last_replay: 0 });
        Ok(state.instances.len() - 1)
    }

    fn build(&self, list: &CommandList, (buffers, scalars): (&[Binding], &[Scalar])) -> Result<Executable> {
        let mut ops = Vec::with_capacity(self.uses.len());
        list.enqueue(buffers, scalars, |command| {
            ops.push(lower(&self.device, &command)?);
            Ok(())
        })?;
        self.device.call(|gpu| {
            let graph = Graph { device: self.device.clone(), handle: gpu.graph_create()? };
            let mut nodes: Vec<Option<CUgraphNode>> = Vec::with_capacity(ops.len());
            let mut last = None;
            for op in &ops {
                let node = add_node(&self.device, gpu, &graph, last, op)?;
                last = node.or(last);
                nodes.push(node);
            }
            let handle = gpu.graph_instantiate(graph.handle)?;
            Ok(Executable { device: self.device.clone(), handle, _graph: graph, nodes })
        })
    }

    /// Puts other bindings into the parameters of a graph.
    fn update(
        &self,
        instance: &Instance,
        list: &CommandList,
        (bindings, bound_scalars): (&[Binding], &[Scalar]),
        buffers: &[Address],
        scalars: &[u64],
    ) -> Result<()> {
        let mut index = 0;
        let mut changed = Vec::new();
        list.enqueue(bindings, bound_scalars, |command| {
            if self.uses[index].differ(instance, buffers, scalars) {
                changed.push((index, lower(&self.device, &command)?));
            }
            index += 1;
            Ok(())
        })?;
        let executable = &instance.executable;
        self.device.call(|gpu| {
            changed.iter().try_for_each(|(index, op)| match executable.nodes[*index] {
                Some(node) => update_node(&self.device, gpu, executable, node, op),
                None => Ok(()),
            })
        })
    }
}

/// A bound command in the driver's terms.
fn lower(device: &Arc<DeviceShared>, command: &Command) -> Result<Op> {
    match command {
        Command::Copy { dst, src } => Ok(op::copy(place(dst)?, place(src)?, dst.len_bytes())),
        Command::Fill { dst, pattern } => op::fill(device, place(dst)?, dst.len_bytes(), pattern),
        Command::Launch { kernel, grid, args } => op::launch(device, kernel, *grid, args),
    }
}

/// Adds a node behind `last`; none for an operation without work.
fn add_node(
    device: &Arc<DeviceShared>,
    gpu: &Current<'_>,
    graph: &Graph,
    last: Option<CUgraphNode>,
    op: &Op,
) -> Result<Option<CUgraphNode>> {
    let (driver, context) = (gpu.driver(), gpu.context().0);
    let before = last.as_slice();
    let (before, count) = (before.as_ptr(), before.len());
    let mut node = ptr::null_mut();
    match op {
        Op::Nothing => return Ok(None),
        Op::Copy { .. } => {
            let params = copy_params(op)?;
            call!(driver, cuGraphAddMemcpyNode(&mut node, graph.handle, before, count, &params, context))?;
        }
        Op::Set { .. } => {
            let params = set_params(op)?;
            call!(driver, cuGraphAddMemsetNode(&mut node, graph.handle, before, count, &params, context))?;
        }
        Op::Launch(launch) => with_kernel_params(launch, |params| {
            call!(driver, cuGraphAddKernelNode(&mut node, graph.handle, before, count, params))
        })?,
        Op::MatMul(matmul) => {
            let child = capture(device, gpu, matmul)?;
            call!(driver, cuGraphAddChildGraphNode(&mut node, graph.handle, before, count, child.handle))?;
        }
    }
    Ok(Some(node))
}

/// Gives a node the parameters of an operation of the same kind.
fn update_node(
    device: &Arc<DeviceShared>,
    gpu: &Current<'_>,
    executable: &Executable,
    node: CUgraphNode,
    op: &Op,
) -> Result<()> {
    let (driver, context, handle) = (gpu.driver(), gpu.context().0, executable.handle);
    match op {
        Op::Nothing => Ok(()),
        Op::Copy { .. } => {
            let params = copy_params(op)?;
            call!(driver, cuGraphExecMemcpyNodeSetParams(handle, node, &params, context))
        }
        Op::Set { .. } => {
            let params = set_params(op)?;
            call!(driver, cuGraphExecMemsetNodeSetParams(handle, node, &params, context))
        }
        Op::Launch(launch) => with_kernel_params(launch, |params| {
            call!(driver, cuGraphExecKernelNodeSetParams(handle, node, params))
        }),
        Op::MatMul(matmul) => {
            let child = capture(device, gpu, matmul)?;
            call!(driver, cuGraphExecChildGraphNodeSetParams(handle, node, child.handle))
        }
    }
}

/// What the library enqueues for a product, as a graph: its kernels are not ours to name.
fn capture(device: &Arc<DeviceShared>, gpu: &Current<'_>, matmul: &MatMulCall) -> Result<Graph> {
    let mut capture_stream = lock(&device.capture_stream);
    let stream = match *capture_stream {
        Some(stream) => stream,
        None => *capture_stream.insert(gpu.stream_create()?),
    };
    gpu.capture_begin(stream)?;
    let run = matmul.run(gpu, stream);
    // Ended in any case, so that the stream can be used again.
    let handle = gpu.capture_end(stream)?;
    let graph = Graph { device: device.clone(), handle };
    run.map(|()| graph)
}

fn copy_params(op: &Op) -> Result<CUDA_MEMCPY3D> {
    let Op::Copy { dst, src, len_bytes } = op else { return Err(other_kind()) };
    if !dst.is_of_device || !src.is_of_device {
        return Err(Error::unsupported("a copy from or to host memory is not put into a graph"));
    }
    // SAFETY: numbers, pointers and memory types, for which zeros are replaced or not looked at: `CUmemorytype` has no
    // zero, so both are set below before the structure is used.
    let mut params: mem::MaybeUninit<CUDA_MEMCPY3D> = mem::MaybeUninit::zeroed();
    let at = params.as_mut_ptr();
    // SAFETY: the pointer leads to the structure; fields are written in place.
    unsafe {
        (&raw mut (*at).srcMemoryType).write(CUmemorytype::CU_MEMORYTYPE_DEVICE);
        (&raw mut (*at).srcDevice).write(src.address);
        (&raw mut (*at).dstMemoryType).write(CUmemorytype::CU_MEMORYTYPE_DEVICE);
        (&raw mut (*at).dstDevice).write(dst.address);
        (&raw mut (*at).WidthInBytes).write(*len_bytes);
        (&raw mut (*at).Height).write(1);
        (&raw mut (*at).Depth).write(1);
    }
    // SAFETY: the memory types are written above; zeros are valid for all other fields.
    Ok(unsafe { params.assume_init() })
}

fn set_params(op: &Op) -> Result<CUDA_MEMSET_NODE_PARAMS> {
    let Op::Set { dst, value, element_bytes, count } = op else { return Err(other_kind()) };
    // One row, for which there is no pitch.
    Ok(CUDA_MEMSET_NODE_PARAMS {
        dst: *dst,
        pitch: 0,
        value: *value,
        elementSize: *element_bytes,
        width: *count,
        height: 1,
    })
}

/// Passes the parameters of a node to `use_params`. The driver copies the values; there is one for each parameter of the
/// kernel (see `Op::run`).
fn with_kernel_params(
    launch: &Launch,
    use_params: impl FnOnce(*const CUDA_KERNEL_NODE_PARAMS) -> Result<()>,
) -> Result<()> {
    let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
    launch.parameters.with_pointers(|pointers| {
        let params = CUDA_KERNEL_NODE_PARAMS {
            func: launch.function.0,
            gridDimX: gx,
            gridDimY: gy,
            gridDimZ: gz,
            blockDimX: bx,
            blockDimY: by,
            blockDimZ: bz,
            sharedMemBytes: launch.shared_bytes,
            kernelParams: pointers.as_mut_ptr(),
            extra: ptr::null_mut(),
        };
        use_params(&params)
    })
}

fn other_kind() -> Error {
    let kind = ErrorKind::Backend { code: 0, message: "no such node".into() };
    Error::new(kind, "a node of a graph is of another kind than its command")
}

impl Current<'_> {
    fn graph_create(&self) -> Result<CUgraph> {
        let mut graph = ptr::null_mut();
        call!(self.driver(), cuGraphCreate(&mut graph, 0))?;
        Ok(graph)
    }

    fn graph_instantiate(&self, graph: CUgraph) -> Result<CUgraphExec> {
        let mut executable = ptr::null_mut();
        call!(self.driver(), cuGraphInstantiateWithFlags(&mut executable, graph, 0))?;
        Ok(executable)
    }

    /// Makes a stream note what it is given and run nothing. What other threads do meanwhile is no concern of it.
    fn capture_begin(&self, stream: StreamHandle) -> Result<()> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        call!(self.driver(), cuStreamBeginCapture_v2(stream.0, mode))
    }

    fn capture_end(&self, stream: StreamHandle) -> Result<CUgraph> {
        let mut graph = ptr::null_mut();
        call!(self.driver(), cuStreamEndCapture(stream.0, &mut graph))?;
        Ok(graph)
    }
}

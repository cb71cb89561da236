//! An opened device with everything that evaluation needs: stream, pool, profile, kernels and plans.

mod recovery;

use crate::fuse::PlanNode;
use crate::hash::IdMap;
use crate::label::types;
use crate::lower::TensorType;
use crate::memory::{Content, Upload, Uploads, Value, WeakValue};
use crate::node::{Node, Placement, topological_order};
use crate::op::Op;
use crate::plan::{
    Bindings, ChosenKernel, FallbackRegion, LaunchInfo, OutputMemory, Plan, Region, SharedPlan,
};
use crate::{Catalog, CustomOp, DType, Result, Tensor};
use halite_hal::annotate::{self, Label, Note};
use halite_hal::{
    BufferSlice, Device, ErrorKind, Event, MemoryKind, Pool, PoolConfig, PoolStats, Scalar, Stream,
};
use halite_profiles::{PoolLimit, Profile};
use recovery::forfeit;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Evaluations that may be enqueued before the host waits for the oldest one.
const MAX_IN_FLIGHT: usize = 4;
/// Plans that an engine keeps; beyond, the least recently used goes.
const MAX_PLANS: usize = 256;
/// Words of plan keys that an engine keeps (32 MiB).
const MAX_PLAN_WORDS: usize = 4 << 20;
/// Lowered kernels that an engine keeps; beyond, all go and are lowered again as needed.
const MAX_KERNELS: usize = 4096;

/// A device that is ready to compute tensors.
///
/// 1. [`Engine::new`] takes an opened device, its profile and a catalog of kernels.
/// 2. Its methods make tensors; [`eval`] and reads compute them on the engine's one stream.
/// 3. Clones are handles to the same engine; it lives as long as a handle or a tensor does.
///
/// Every method may be called from any thread; evaluations take turns.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    // What the device made goes before it: a layer may report what outlives its device.
    work: Mutex<Work>,
    /// Locked after `work` where both are.
    uploads: Mutex<Uploads>,
    kernels: Mutex<HashMap<String, ChosenKernel>>,
    pool: Pool,
    stream: Stream,
    device: Device,
    profile: Arc<Profile>,
    catalog: Catalog,
    fallback: Option<Engine>,
    counters: Counters,
    fallbacks: Mutex<BTreeMap<(String, String), u64>>,
}

#[derive(Default)]
struct Counters {
    evaluations: AtomicU64,
    plans_built: AtomicU64,
    launches: AtomicU64,
}

/// What an engine has done since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Evaluations that had something to compute.
    pub evaluations: u64,
    /// Plans that were built; all other evaluations replayed one.
    pub plans_built: u64,
    /// Kernel launches, those on the fallback device included.
    pub launches: u64,
    /// Operations that ran on the fallback device.
    pub fallbacks: Vec<FallbackCount>,
    /// Memory.
    pub pool: PoolStats,
}

/// How often an operation ran on the fallback device, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallbackCount {
    /// The operation.
    pub op: String,
    /// Why the device has no kernel for it.
    pub reason: String,
    /// Times that it ran.
    pub count: u64,
}

#[derive(Default)]
struct Work {
    plans: PlanCache,
    in_flight: VecDeque<InFlight>,
}

/// An enqueued evaluation whose end has not been seen yet.
struct InFlight {
    event: Event,
    /// Reached when everything but the updates, which overwrite donated memory, is done. `None` without updates.
    before_updates: Option<Event>,
    /// Nodes that it settles, with what they are computed from: released when it is done, given back when it failed.
    outputs: Vec<(Weak<Node>, Vec<Tensor>)>,
    /// Leaves whose memory went over to an output: `(leaf, output)`.
    donors: Vec<(Weak<Node>, Weak<Node>)>,
    /// References that the inputs above hold, directly or not, to leaves and outputs by id. They do not count as
    /// somebody's interest in a value: whether they are still there depends on timing, and a plan must not.
    references: Vec<(u64, usize)>,
    /// Memory that it writes: what holds it beside the outputs has lost its value when the evaluation fails.
    written: Vec<WeakValue>,
    /// Writes of the host that were enqueued before it, and arrived when it is done.
    uploads: Vec<Upload>,
}

impl Engine {
    /// An engine on `device`.
    ///
    /// `fallback` computes what the device has no kernel for, where the profile allows it.
    ///
    /// # Errors
    /// The device's failure to make a stream.
    pub fn new(
        device: Device,
        profile: Arc<Profile>,
        catalog: Catalog,
        fallback: Option<Engine>,
    ) -> Result<Self> {
        let stream = device.create_stream()?;
        let limit = profile.memory().pool_limit.map(|limit| limit.bytes(device.info().memory_bytes));
        let limit_name = Some(pool_limit_name(&device, &profile));
        let config = PoolConfig { limit_bytes: limit, limit_name, ..PoolConfig::default() };
        let pool = Pool::new(device.clone(), memory_kind(&device, &profile)?, config);
        Ok(Self(Arc::new(Inner {
            device,
            stream,
            pool,
            profile,
            catalog,
            fallback,
            work: Mutex::default(),
            uploads: Mutex::default(),
            kernels: Mutex::default(),
            counters: Counters::default(),
            fallbacks: Mutex::default(),
        })))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The stream that evaluations run on.
    pub fn stream(&self) -> &Stream {
        &self.0.stream
    }

    /// The memory that tensors live in.
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// The profile that chooses kernels.
    pub fn profile(&self) -> &Profile {
        &self.0.profile
    }

    /// The kernel variants to choose from.
    pub fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }

    pub(crate) fn fallback_engine(&self) -> Option<&Engine> {
        self.0.fallback.as_ref()
    }

    /// Whether both handles name the same engine.
    pub fn is_same(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Counters since the engine was made, and memory now.
    pub fn stats(&self) -> EngineStats {
        let counters = &self.0.counters;
        let fallbacks = lock(&self.0.fallbacks)
            .iter()
            .map(|((op, reason), &count)| FallbackCount { op: op.clone(), reason: reason.clone(), count })
            .collect();
        EngineStats {
            evaluations: counters.evaluations.load(Ordering::Relaxed),
            plans_built: counters.plans_built.load(Ordering::Relaxed),
            launches: counters.launches.load(Ordering::Relaxed),
            fallbacks,
            pool: self.0.pool.stats(),
        }
    }

    /// Blocks until everything enqueued is done.
    ///
    /// # Errors
    /// The first failure; the tensors that it concerns are unsettled again, as [`eval`] says.
    pub fn synchronize(&self) -> Result<()> {
        let mut work = lock(&self.0.work);
        self.reap(&mut work, 0)?;
        let mark = lock(&self.0.uploads).mark();
        match self.0.stream.synchronize() {
            Ok(()) => lock(&self.0.uploads).arrived(mark),
            Err(error) => return Err(self.recover(&mut work, error.into())),
        }
        Ok(())
    }

    /// What evaluating `tensors` together would launch, in order. Computes nothing.
    ///
    /// # Errors
    /// As [`eval`], except for failures of launches.
    pub fn explain(&self, tensors: &[&Tensor]) -> Result<Vec<LaunchInfo>> {
        let mut work = lock(&self.0.work);
        let roots = open_roots(tensors);
        if roots.is_empty() {
            return Ok(Vec::new());
        }
        let graph = Graph::new(&roots, &work.in_flight);
        Ok(self.plan(&mut work, &graph)?.launches.clone())
    }

    /// A settled tensor of these bytes.
    pub(crate) fn leaf(&self, dtype: DType, shape: Vec<usize>, bytes: &[u8]) -> Result<Tensor> {
        let _label = annotate::scope(|| tensor_label("upload", &TensorType::new(dtype, &shape)));
        self.settled(dtype, shape, bytes.len() as u64, Content::Bytes(bytes.into()))
    }

    /// A settled tensor of zeros, which never lie on the host. Needs no plan.
    pub(crate) fn settled_zeros(&self, dtype: DType, shape: Vec<usize>) -> Result<Tensor> {
        let len_bytes = TensorType::new(dtype, &shape).len_bytes() as u64;
        self.settled(dtype, shape, len_bytes, Content::Zeros)
    }

    /// A settled tensor whose memory, if there is any, is given this content.
    fn settled(&self, dtype: DType, shape: Vec<usize>, len_bytes: u64, content: Content) -> Result<Tensor> {
        let _call = annotate::call();
        let value = self.once_more(|| self.upload(len_bytes, content.clone()))?;
        Ok(Tensor::from_node(Node::new(
            Op::Leaf,
            dtype,
            shape,
            Placement::Device(self.clone()),
            Vec::new(),
            Some(value),
        )))
    }

    fn upload(&self, len_bytes: u64, content: Content) -> Result<Value> {
        let value = Value::new(self.0.pool.allocate(&self.0.stream, len_bytes)?);
        if len_bytes == 0 {
            return Ok(value);
        }
        // Held over the write, so that whoever resets the stream knows of it.
        let mut uploads = lock(&self.0.uploads);
        if let Err(error) = content.write(&self.0.stream, &value.slice(len_bytes)?) {
            drop(uploads);
            return Err(self.recover(&mut lock(&self.0.work), error.into()));
        }
        uploads.push(&value, len_bytes, content);
        Ok(value)
    }

    /// Computes a tensor and copies its bytes to the host.
    pub(crate) fn read(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let _call = annotate::call();
        self.once_more(|| self.evaluate_and_copy(tensor))
    }

    fn evaluate_and_copy(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        self.evaluate(&[tensor])?;
        let mut bytes = vec![0; tensor.tensor_type().len_bytes()];
        let value = tensor.0.state().value.clone();
        let slice = match value {
            Some(value) => value.slice(bytes.len() as u64)?,
            None => {
                return Err(
                    halite_hal::Error::invalid("the tensor's memory was handed on to another one").into()
                );
            }
        };
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let label = annotate::scope(|| tensor_label("download", &tensor.tensor_type()));
        let mark = lock(&self.0.uploads).mark();
        let copied = self.0.stream.read_blocking(&slice, &mut bytes);
        drop(label);
        // The copy waited for everything before it, so whatever failed is known now.
        let mut work = lock(&self.0.work);
        match copied {
            Ok(()) => {
                lock(&self.0.uploads).arrived(mark);
                self.reap(&mut work, MAX_IN_FLIGHT).map(|()| bytes)
            }
            Err(error) => Err(self.recover(&mut work, error.into())),
        }
    }

    /// Enqueues the computation of every tensor that is not settled yet.
    pub(crate) fn evaluate(&self, tensors: &[&Tensor]) -> Result<()> {
        let _call = annotate::call();
        self.once_more(|| {
            let mut work = lock(&self.0.work);
            self.reap(&mut work, MAX_IN_FLIGHT)?;
            let roots = open_roots(tensors);
            if roots.is_empty() {
                return Ok(());
            }
            let mut span = annotate::span(&self.0.device, || Label::new("evaluate"));
            let graph = Graph::new(&roots, &work.in_flight);
            let plan = self.plan(&mut work, &graph)?;
            span.detail("launches", || plan.launches.len().to_string());
            self.run(&mut work, &graph, &plan).map_err(|error| self.recover(&mut work, error))
        })
    }

    fn plan(&self, work: &mut Work, graph: &Graph) -> Result<SharedPlan> {
        if let Some(plan) = work.plans.find(&graph.key) {
            return Ok(plan);
        }
        let _span = annotate::span(&self.0.device, || {
            Label::new("plan").with("nodes", graph.order.len().to_string())
        });
        let plan = Arc::new(Plan::new(self, &graph.plan_nodes(), &graph.donatable)?);
        self.0.counters.plans_built.fetch_add(1, Ordering::Relaxed);
        work.plans.insert(graph.key.clone(), plan.clone());
        Ok(plan)
    }

    fn run(&self, work: &mut Work, graph: &Graph, plan: &SharedPlan) -> Result<()> {
        let mut before_updates = None;
        let outcome = self.enqueue(work, graph, plan, &mut before_updates);
        if let (Err(_), Some(event)) = (&outcome, &before_updates) {
            forfeit(graph, plan, event);
        }
        outcome
    }

    /// Enqueues a plan's work and settles its outputs. `before_updates` is the point from which on donated memory may be
    /// overwritten, also after an error.
    fn enqueue(
        &self,
        work: &mut Work,
        graph: &Graph,
        plan: &SharedPlan,
        before_updates: &mut Option<Event>,
    ) -> Result<()> {
        let Inner { pool, stream, .. } = &*self.0;
        let values: Vec<Option<Value>> =
            graph.order.iter().map(|tensor| tensor.0.state().value.clone()).collect();
        let leaves = graph
            .order
            .iter()
            .zip(&values)
            .map(|(tensor, value)| {
                value.as_ref().map(|value| value.slice(tensor.tensor_type().len_bytes() as u64)).transpose()
            })
            .collect::<Result<Vec<_>>>()?;
        let new: Vec<Value> = plan
            .allocations
            .iter()
            .map(|&bytes| Ok(Value::new(pool.allocate(stream, bytes)?)))
            .collect::<Result<_>>()?;
        let outputs: Vec<BufferSlice> = new.iter().map(|value| value.whole().clone()).collect();
        let arena = pool.allocate(stream, plan.arena_bytes)?;
        let bindings =
            Bindings { leaves: &leaves, outputs: &outputs, arena: arena.as_slice(), scalars: &graph.scalars };
        for region in &plan.regions {
            match region {
                Region::Updates => *before_updates = Some(stream.record()?),
                Region::Device { list, slots, scalars } => {
                    let buffers =
                        slots.iter().map(|&slot| bindings.slot(slot)).collect::<Result<Vec<_>>>()?;
                    stream.replay(list, &buffers, &bindings.numbers(scalars))?;
                }
                Region::Fallback(region) => self.run_fallback(region, &bindings)?,
            }
        }
        if annotate::is_listening() {
            let stats = pool.stats();
            annotate::note(self.0.device.id(), || Note::Pool(&stats));
        }
        self.settle(work, graph, plan, values, &new, before_updates.clone())
    }

    /// Runs a unit on the fallback device; blocks, because its data go through the host.
    fn run_fallback(&self, region: &FallbackRegion, bindings: &Bindings<'_>) -> Result<()> {
        let Some(fallback) = &self.0.fallback else {
            return Err(halite_hal::Error::unsupported("the plan was made with a fallback engine").into());
        };
        let own = &self.0.device;
        let (op, reason) = (region.op.as_str(), region.reason.as_str());
        annotate::note(own.id(), || Note::Fallback { op, reason, target: fallback.device().id() });
        let _span = annotate::span(own, || {
            Label::new("fallback")
                .with("op", op)
                .with("reason", reason)
                .with("to", fallback.device().id().to_string())
        });
        let _label = annotate::scope(|| Label::new("fallback").with("op", op));
        self.copy_and_run(fallback, region, bindings).map_err(|error| {
            // The other engine has evaluations of its own, which must learn of the failure.
            fallback.recover(&mut lock(&fallback.0.work), error)
        })?;
        let key = (region.op.clone(), region.reason.clone());
        *lock(&self.0.fallbacks).entry(key).or_default() += 1;
        Ok(())
    }

    fn copy_and_run(
        &self,
        fallback: &Engine,
        region: &FallbackRegion,
        bindings: &Bindings<'_>,
    ) -> Result<()> {
        let (pool, stream) = (&fallback.0.pool, &fallback.0.stream);
        let mut held = Vec::new();
        for &(place, len) in &region.inputs {
            let mut bytes = vec![0; len as usize];
            self.0.stream.read_blocking(&bindings.range(place, len)?, &mut bytes)?;
            let allocation = pool.allocate(stream, len)?;
            stream.write(allocation.as_slice(), bytes)?;
            held.push(allocation);
        }
        for &(_, len) in &region.outputs {
            held.push(pool.allocate(stream, len)?);
        }
        if region.workspace_bytes > 0 {
            held.push(pool.allocate(stream, region.workspace_bytes)?);
        }
        let buffers: Vec<_> = held.iter().map(|allocation| allocation.as_slice().clone()).collect();
        stream.replay(
            &region.list,
            &buffers[..region.list.buffer_slots().len()],
            &bindings.numbers(&region.scalars),
        )?;
        for (&(place, len), allocation) in region.outputs.iter().zip(&held[region.inputs.len()..]) {
            let mut bytes = vec![0; len as usize];
            stream.read_blocking(allocation.as_slice(), &mut bytes)?;
            self.0.stream.write(&bindings.range(place, len)?, bytes)?;
        }
        Ok(())
    }

    /// Gives the output nodes their values, and remembers what to do when the work ends.
    fn settle(
        &self,
        work: &mut Work,
        graph: &Graph,
        plan: &Plan,
        values: Vec<Option<Value>>,
        new: &[Value],
        before_updates: Option<Event>,
    ) -> Result<()> {
        let mark = lock(&self.0.uploads).mark();
        let event = self.record_or_finish(work)?;
        // What had to be sent again meanwhile lies behind the event, and stays for the next evaluation.
        let uploads = lock(&self.0.uploads).take_before(mark);
        let (mut outputs, mut donors) = (Vec::new(), Vec::new());
        for &(node, memory) in &plan.outputs {
            let tensor = &graph.order[node];
            let value = match memory {
                OutputMemory::New(index) => Some(new[index].clone()),
                OutputMemory::Shared(leaf) => values[leaf].clone(),
                OutputMemory::Donated(leaf) => {
                    let donor = &graph.order[leaf];
                    donors.push((Arc::downgrade(&donor.0), Arc::downgrade(&tensor.0)));
                    let mut state = donor.0.state();
                    state.handed_on = true;
                    state.value.take()
                }
            };
            let mut state = tensor.0.state();
            state.value = value;
            outputs.push((Arc::downgrade(&tensor.0), std::mem::take(&mut state.inputs)));
        }
        self.0.counters.evaluations.fetch_add(1, Ordering::Relaxed);
        self.0.counters.launches.fetch_add(plan.launches.len() as u64, Ordering::Relaxed);
        let Some(event) = event else { return Ok(()) };
        let kept = |i: &usize| graph.edges[*i] > 0 && (graph.is_leaf[*i] || graph.is_output[*i]);
        let references = (0..graph.order.len()).filter(kept).map(|i| (graph.order[i].0.id, graph.edges[i]));
        work.in_flight.push_back(InFlight {
            event,
            before_updates,
            outputs,
            donors,
            references: references.collect(),
            written: new.iter().map(Value::downgrade).collect(),
            uploads,
        });
        Ok(())
    }

    pub(crate) fn remembered_kernel(&self, key: &str) -> Option<ChosenKernel> {
        lock(&self.0.kernels).get(key).cloned()
    }

    pub(crate) fn remember_kernel(&self, key: String, kernel: &ChosenKernel) {
        let mut kernels = lock(&self.0.kernels);
        if kernels.len() >= MAX_KERNELS {
            kernels.clear();
        }
        kernels.insert(key, kernel.clone());
    }
}

/// The label of a tensor's copy to or from the device.
fn tensor_label(name: &str, kind: &TensorType) -> Label {
    Label::new(name).with("tensor", types(std::slice::from_ref(kind)))
}

/// What bounds the pool, in messages: the profile's key, and what bounds the memory that it is a share of.
fn pool_limit_name(device: &Device, profile: &Profile) -> String {
    let name = format!("memory.pool_limit of profile '{}'", profile.name());
    match (profile.memory().pool_limit, &device.info().memory_limit_name) {
        (Some(PoolLimit::Share(_)), Some(whole)) => format!("{name}, a share of {whole},"),
        _ => name,
    }
}

/// Where tensors live: in memory that the host addresses too, if the profile wishes it and the device has such.
fn memory_kind(device: &Device, profile: &Profile) -> Result<MemoryKind> {
    if profile.memory().host_visible != Some(true) {
        return Ok(MemoryKind::Device);
    }
    match device.allocate(1, MemoryKind::HostVisible) {
        Ok(_) => Ok(MemoryKind::HostVisible),
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported) => Ok(MemoryKind::Device),
        Err(error) => Err(error.into()),
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({}, profile {})", self.device().id(), self.profile().name())
    }
}

/// Computes every tensor of a set, together: what they share is computed once. Returns when the work is enqueued;
/// reads wait for it.
///
/// Values that other live handles, or other unevaluated graphs, refer to are kept, so that they are not computed
/// again. Each tensor of the set is settled from then on.
///
/// # Errors
/// `NoKernel` when a device cannot compute an op and its profile forbids a fallback; the device's failure, also a
/// late one of an earlier evaluation. Whatever failed is unsettled again and can be tried again, unless an update had
/// begun to overwrite memory that an input handed on (see [`Tensor`]).
pub fn eval(tensors: &[&Tensor]) -> Result<()> {
    let mut rest: Vec<&Tensor> = tensors.to_vec();
    while let Some(first) = rest.first() {
        let engine = first.engine().clone();
        let (own, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|tensor| tensor.engine().is_same(&engine));
        engine.evaluate(&own)?;
        rest = others;
    }
    Ok(())
}

fn open_roots(tensors: &[&Tensor]) -> Vec<Tensor> {
    tensors.iter().filter(|tensor| !tensor.is_settled()).map(|&tensor| tensor.clone()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves consistent state behind, also when it unwinds.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of the lazy graph that an evaluation needs, in topological order, and its structure as a key.
struct Graph {
    order: Vec<Tensor>,
    inputs: Vec<Vec<usize>>,
    is_leaf: Vec<bool>,
    is_output: Vec<bool>,
    donatable: Vec<bool>,
    scalars: Vec<Option<Scalar>>,
    /// References to each node from others of the graph.
    edges: Vec<usize>,
    key: PlanKey,
}

impl Graph {
    fn new(roots: &[Tensor], in_flight: &VecDeque<InFlight>) -> Self {
        let order = topological_order(roots);
        let index: IdMap<usize> = order.iter().enumerate().map(|(i, tensor)| (tensor.0.id, i)).collect();
        // References from within: this list's own, the roots', and those of evaluations that are not done yet.
        let mut inside = vec![1usize; order.len()];
        for &(id, references) in in_flight.iter().flat_map(|evaluation| &evaluation.references) {
            if let Some(&node) = index.get(&id) {
                inside[node] += references;
            }
        }
        let mut edges = vec![0usize; order.len()];
        let mut is_output = vec![false; order.len()];
        for root in roots {
            inside[index[&root.0.id]] += 1;
            is_output[index[&root.0.id]] = true;
        }
        let mut inputs = Vec::with_capacity(order.len());
        let mut is_leaf = Vec::with_capacity(order.len());
        for tensor in &order {
            let state = tensor.0.state();
            // A leaf without a value was handed on by another thread's evaluation; binding it reports that.
            let leaf = state.is_settled() || matches!(tensor.0.op, Op::Leaf);
            is_leaf.push(leaf);
            let own: Vec<usize> =
                if leaf { Vec::new() } else { state.inputs.iter().map(|input| index[&input.0.id]).collect() };
            own.iter().for_each(|&input| edges[input] += 1);
            inputs.push(own);
        }
        let mut donatable = vec![false; order.len()];
        for (i, tensor) in order.iter().enumerate() {
            let held_outside = Arc::strong_count(&tensor.0) > inside[i] + edges[i];
            if is_leaf[i] {
                let alone = tensor.0.state().value.as_ref().is_some_and(Value::is_unique);
                donatable[i] = alone && !held_outside;
            } else if held_outside && !matches!(tensor.0.op, Op::Full(_) | Op::RuntimeScalar(_) | Op::Iota(_))
            {
                is_output[i] = true;
            }
        }
        let scalars = order
            .iter()
            .map(|tensor| match tensor.0.op {
                Op::RuntimeScalar(scalar) => Some(scalar),
                _ => None,
            })
            .collect();
        let mut graph =
            Self { order, inputs, is_leaf, is_output, donatable, scalars, edges, key: PlanKey::default() };
        graph.key = graph.encode();
        graph
    }

    fn encode(&self) -> PlanKey {
        let mut key = Vec::with_capacity(self.order.len() * 10);
        let mut custom_ops = Vec::new();
        for (i, tensor) in self.order.iter().enumerate() {
            let flags = u64::from(self.is_leaf[i])
                | u64::from(self.is_output[i]) << 1
                | u64::from(self.donatable[i]) << 2;
            let node = &tensor.0;
            key.push(flags | (node.dtype as u64) << 8 | (node.shape.len() as u64) << 16);
            key.extend(node.shape.iter().map(|&extent| extent as u64));
            key.push(self.inputs[i].len() as u64);
            key.extend(self.inputs[i].iter().map(|&input| input as u64));
            if !self.is_leaf[i] {
                node.op.encode(&mut key);
                if let Op::Custom(op) = &node.op {
                    custom_ops.push(op.clone());
                }
            }
        }
        PlanKey { words: key.into(), custom_ops: custom_ops.into() }
    }

    fn plan_nodes(&self) -> Vec<PlanNode> {
        self.order
            .iter()
            .enumerate()
            .map(|(i, tensor)| PlanNode {
                op: if self.is_leaf[i] { Op::Leaf } else { tensor.0.op.clone() },
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                inputs: self.inputs[i].clone(),
                is_leaf: self.is_leaf[i],
                is_output: self.is_output[i],
            })
            .collect()
    }
}

/// The structure of a graph; equal keys mean equal plans.
#[derive(Debug, Clone, Default)]
struct PlanKey {
    words: Box<[u64]>,
    /// The custom ops whose addresses are among the words. Kept alive, or a later op could get the address of an
    /// earlier one, and its plan.
    custom_ops: Box<[Arc<dyn CustomOp>]>,
}

impl PartialEq for PlanKey {
    fn eq(&self, other: &Self) -> bool {
        let same_ops = || self.custom_ops.iter().zip(&other.custom_ops).all(|(own, op)| Arc::ptr_eq(own, op));
        self.words == other.words && same_ops()
    }
}

impl Eq for PlanKey {}

impl Hash for PlanKey {
    /// Folds the words with multiplications; equality compares them all.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let fold = |hash: u64, word: &u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        state.write_u64(self.words.iter().fold(self.words.len() as u64, fold));
    }
}

/// Plans by structure; bounded by number and by key length, the least recently used goes first.
#[derive(Default)]
struct PlanCache {
    plans: HashMap<PlanKey, (SharedPlan, u64)>,
    words: usize,
    clock: u64,
}

impl PlanCache {
    fn find(&mut self, key: &PlanKey) -> Option<SharedPlan> {
        self.clock += 1;
        let (plan, used) = self.plans.get_mut(key)?;
        *used = self.clock;
        Some(plan.clone())
    }

    fn insert(&mut self, key: PlanKey, plan: SharedPlan) {
        self.words += key.words.len();
        self.plans.insert(key, (plan, self.clock));
        while self.plans.len() > MAX_PLANS || (self.words > MAX_PLAN_WORDS && self.plans.len() > 1) {
            let oldest = self.plans.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.words -= oldest.words.len();
            self.plans.remove(&oldest);
        }
    }
}

//! Nodes of the lazy graph: built once, settled once, dropped without recursion.

use crate::engine::Engine;
use crate::memory::Value;
use crate::op::Op;
use crate::{DType, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Where a node is computed.
#[derive(Clone)]
#[non_exhaustive]
pub(crate) enum Placement {
    /// On one device. A mesh of devices with a sharding will stand beside it.
    Device(Engine),
}

impl Placement {
    pub(crate) fn engine(&self) -> &Engine {
        let Self::Device(engine) = self;
        engine
    }
}

pub(crate) struct Node {
    /// Grows with creation, so inputs have smaller ids than their users.
    pub(crate) id: u64,
    pub(crate) op: Op,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) placement: Placement,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Emptied once the value is known to have been computed.
    pub(crate) inputs: Vec<Tensor>,
    /// There from the moment that an evaluation has enqueued its computation. From then on the node is a leaf for
    /// `grad` and for later evaluations.
    pub(crate) value: Option<Value>,
    /// Whether the value's memory was taken over by another tensor, which overwrote it.
    pub(crate) handed_on: bool,
}

impl State {
    /// Whether the node is a leaf for `grad` and for evaluations.
    pub(crate) fn is_settled(&self) -> bool {
        self.value.is_some() || self.handed_on
    }
}

impl Node {
    pub(crate) fn new(
        op: Op,
        dtype: DType,
        shape: Vec<usize>,
        placement: Placement,
        inputs: Vec<Tensor>,
        value: Option<Value>,
    ) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, op, dtype, shape, placement, state: Mutex::new(State { inputs, value, handed_on: false }) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held can only come from a failed allocation; the state stays consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The inputs of a node without a value; nothing for a settled one.
    pub(crate) fn open_inputs(&self) -> Vec<Tensor> {
        let state = self.state();
        if state.is_settled() { Vec::new() } else { state.inputs.clone() }
    }
}

impl Drop for Node {
    /// Takes the graph below apart with a list of its own, so that a chain of any length fits the stack.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut pending = std::mem::take(&mut state.inputs);
        while let Some(Tensor(node)) = pending.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                let state = node.state.get_mut().unwrap_or_else(PoisonError::into_inner);
                pending.append(&mut state.inputs);
            }
        }
    }
}

/// Every unsettled node below `roots` and the settled ones or leaves that they read, inputs before their users.
/// Iterative: a graph may be a million nodes deep.
pub(crate) fn topological_order(roots: &[Tensor]) -> Vec<Tensor> {
    let mut seen = crate::hash::IdMap::<()>::default();
    let mut order = Vec::new();
    let mut stack: Vec<(Tensor, Vec<Tensor>)> = Vec::new();
    for root in roots {
        if seen.insert(root.0.id, ()).is_none() {
            stack.push((root.clone(), root.0.open_inputs()));
        }
        while let Some((_, inputs)) = stack.last_mut() {
            match inputs.pop() {
                Some(input) => {
                    if seen.insert(input.0.id, ()).is_none() {
                        let below = input.0.open_inputs();
                        stack.push((input, below));
                    }
                }
                None => {
                    let (done, _) = stack.pop().expect("the loop's condition saw it");
                    order.push(done);
                }
            }
        }
    }
    order
}

//! From graph nodes to units of work: common subexpressions, views, fusion.
//!
//! A *unit* becomes the launches of one kernel variant. Elementwise nodes over one iteration space are gathered in
//! clusters, greedily and in linear time: every unit has a position in a valid order, and a node may join a
//! cluster (or two clusters merge) only if that order stays valid.

mod epilogue;

use crate::access::{Access, Source, ValueIndex};
use crate::build::{build_cluster, build_reduction, conv, dot, pad, window};
use crate::cluster::Cluster;
use crate::lower::{CustomCall, KernelOp, ReduceKind, TensorType};
use crate::op::Op;
use halite_hal::DType;
use std::collections::HashMap;

/// Most nodes of one cluster, so that kernels keep their intermediate values in registers or caches. Each may become
/// an output.
const MAX_CLUSTER_NODES: usize = 32;
/// Most reads of one cluster from outside, views and runtime scalars counted one by one. Together with the outputs they
/// stay below the 64 arguments that every device takes.
const MAX_CLUSTER_READS: usize = 24;
/// Clusters with more consumers than this are not merged, so that each merge is checked in constant time.
const MAX_TRACKED_CONSUMERS: usize = 64;

/// A node as the planner sees it.
#[derive(Debug, Clone)]
pub(crate) struct PlanNode {
    pub(crate) op: Op,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Indices of earlier nodes.
    pub(crate) inputs: Vec<usize>,
    /// Whether the node has a value already.
    pub(crate) is_leaf: bool,
    /// Whether its value is wanted.
    pub(crate) is_output: bool,
}

/// A dense tensor that lies in memory while the plan runs.
#[derive(Debug, Clone)]
pub(crate) struct PlanValue {
    pub(crate) kind: TensorType,
    /// The leaf node that holds it, or none if a unit computes it.
    pub(crate) leaf: Option<usize>,
}

/// One kernel's work.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) op: KernelOp,
    pub(crate) inputs: Vec<ValueIndex>,
    pub(crate) outputs: Vec<ValueIndex>,
    /// Runtime scalars of the op's program, as nodes.
    pub(crate) scalars: Vec<usize>,
}

/// The units in a valid order, the values that they exchange, and where each wanted node's value is.
#[derive(Debug)]
pub(crate) struct Fused {
    pub(crate) units: Vec<Unit>,
    pub(crate) values: Vec<PlanValue>,
    /// `(node, value)` for every output node.
    pub(crate) outputs: Vec<(usize, ValueIndex)>,
}

/// Fuses `nodes`, which stand in topological order.
pub(crate) fn fuse(nodes: &[PlanNode]) -> Fused {
    let mut fuser = Fuser::new(nodes);
    let canonical = canonical_nodes(nodes);
    for (index, node) in nodes.iter().enumerate() {
        fuser.accesses[index] = if canonical[index] != index {
            fuser.accesses[canonical[index]].clone()
        } else if node.is_leaf {
            let value = fuser.new_value(TensorType::new(node.dtype, &node.shape), Some(index));
            Some(Access::dense(Source::Value(value), node.dtype, &node.shape))
        } else {
            Some(fuser.visit(index))
        };
    }
    let outputs: Vec<_> = (0..nodes.len())
        .filter(|&node| nodes[node].is_output)
        .map(|node| {
            let access = fuser.access(node).clone();
            (node, fuser.dense_value(&access, None))
        })
        .collect();
    fuser.finish(outputs)
}

/// For each node the first one that computes the same; leaves are distinct.
fn canonical_nodes(nodes: &[PlanNode]) -> Vec<usize> {
    let mut seen: HashMap<Vec<u64>, usize> = HashMap::new();
    let mut canonical: Vec<usize> = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let same = if node.is_leaf || matches!(node.op, Op::RuntimeScalar(_)) {
            index
        } else if let Some(operand) = multiplied_by_one(nodes, node) {
            canonical[operand]
        } else {
            let mut key = vec![node.dtype as u64, node.shape.len() as u64];
            key.extend(node.shape.iter().map(|&extent| extent as u64));
            key.extend(node.inputs.iter().map(|&input| canonical[input] as u64));
            node.op.encode(&mut key);
            *seen.entry(key).or_insert(index)
        };
        canonical.push(same);
    }
    canonical
}

/// The other operand of a product with the constant 1, which is exact in every dtype.
fn multiplied_by_one(nodes: &[PlanNode], node: &PlanNode) -> Option<usize> {
    if !matches!(node.op, Op::Binary(crate::cluster::BinaryOp::Mul)) {
        return None;
    }
    let is_one = |mut index: usize| {
        while matches!(nodes[index].op, Op::Expand | Op::Reshape) && !nodes[index].is_leaf {
            index = nodes[index].inputs[0];
        }
        !nodes[index].is_leaf && matches!(nodes[index].op, Op::Full(literal) if literal.to_f64() == 1.0)
    };
    match node.inputs[..] {
        [lhs, rhs] if is_one(rhs) => Some(lhs),
        [lhs, rhs] if is_one(lhs) => Some(rhs),
        _ => None,
    }
}

type UnitId = usize;

/// A unit under construction.
struct Draft {
    /// Place in the order; units with smaller positions run first.
    position: usize,
    work: Work,
    /// Units that read a value of this one; only kept for clusters.
    consumers: Vec<UnitId>,
    /// The unit that this one was merged into.
    merged_into: Option<UnitId>,
    /// Whether that unit is a reduction, whose program this cluster became.
    absorbed: bool,
}

enum Work {
    /// Elementwise nodes over one iteration space (without axes of extent 1), and how many reads from outside they
    /// make at most.
    Cluster { shape: Vec<usize>, nodes: Vec<usize>, reads: usize },
    /// A dense copy of a view.
    Copy { access: Access, value: ValueIndex },
    /// A reduction of a view.
    Reduce { node: usize, input: Access, value: ValueIndex },
    /// Anything else; its inputs are dense values.
    Ready(Unit),
}

pub(crate) struct Fuser<'a> {
    nodes: &'a [PlanNode],
    accesses: Vec<Option<Access>>,
    values: Vec<PlanValue>,
    /// The unit that computes a value; none for leaves.
    producers: Vec<Option<UnitId>>,
    drafts: Vec<Draft>,
    /// Dense copies that were made already.
    copies: HashMap<Access, ValueIndex>,
    /// The value of an elementwise node, which is materialised only if something outside its cluster reads it.
    value_of_node: HashMap<usize, ValueIndex>,
    node_of_value: HashMap<ValueIndex, usize>,
}

impl<'a> Fuser<'a> {
    fn new(nodes: &'a [PlanNode]) -> Self {
        Self {
            nodes,
            accesses: vec![None; nodes.len()],
            values: Vec::new(),
            producers: Vec::new(),
            drafts: Vec::new(),
            copies: HashMap::new(),
            value_of_node: HashMap::new(),
            node_of_value: HashMap::new(),
        }
    }

    pub(crate) fn node(&self, index: usize) -> &PlanNode {
        &self.nodes[index]
    }

    /// How an earlier node is read.
    pub(crate) fn access(&self, node: usize) -> &Access {
        self.accesses[node].as_ref().expect("nodes are visited in topological order")
    }

    fn new_value(&mut self, kind: TensorType, leaf: Option<usize>) -> ValueIndex {
        self.values.push(PlanValue { kind, leaf });
        self.producers.push(None);
        self.values.len() - 1
    }

    fn new_unit(&mut self, work: Work) -> UnitId {
        let position = self.drafts.len();
        self.drafts.push(Draft { position, work, consumers: Vec::new(), merged_into: None, absorbed: false });
        position
    }

    fn visit(&mut self, index: usize) -> Access {
        let node = &self.nodes[index];
        let dense = |source| Access::dense(source, node.dtype, &node.shape);
        match &node.op {
            Op::Full(literal) => dense(Source::Constant(*literal)),
            Op::RuntimeScalar(_) => dense(Source::Scalar(index)),
            Op::Iota(axis) => Access::iota(*axis, node.dtype, &node.shape),
            Op::Reshape | Op::Permute(_) | Op::Expand | Op::Slice { .. } | Op::Flip(_) | Op::StopGradient => {
                let input = self.access(node.inputs[0]).clone();
                input.moved(&node.op, &node.shape).unwrap_or_else(|| {
                    let value = self.dense_value(&input, None);
                    let dense = Access::dense(Source::Value(value), input.dtype, &input.shape);
                    dense.moved(&node.op, &node.shape).expect("every movement of a dense tensor is a view")
                })
            }
            op if op.is_elementwise() => {
                let value = self.new_value(TensorType::new(node.dtype, &node.shape), None);
                self.value_of_node.insert(index, value);
                self.node_of_value.insert(value, index);
                self.place(index, value);
                dense(Source::Value(value))
            }
            Op::Reduce { .. } => {
                let input = self.access(node.inputs[0]).clone();
                let value = self.new_value(TensorType::new(node.dtype, &node.shape), None);
                let unit = self.new_unit(Work::Reduce { node: index, input: input.clone(), value });
                self.consume(&input, unit);
                self.producers[value] = Some(unit);
                dense(Source::Value(value))
            }
            _ => {
                let unit = self.heavy(index);
                let value = unit.outputs[0];
                let inputs = unit.inputs.clone();
                let id = self.new_unit(Work::Ready(unit));
                self.producers[value] = Some(id);
                for input in inputs {
                    self.consume_value(input, id);
                }
                dense(Source::Value(value))
            }
        }
    }

    /// The unit of a contraction, window, padding or custom op; operands that are no suitable views are copied.
    fn heavy(&mut self, index: usize) -> Unit {
        let node = &self.nodes[index];
        let operands: Vec<Access> = node.inputs.iter().map(|&input| self.access(input).clone()).collect();
        let (op, inputs) = match &node.op {
            Op::Dot(axes) => dot(self, axes, &operands, node),
            Op::Conv { operand, geometry } => {
                (conv(*operand, geometry, &operands, node), self.dense_values(&operands))
            }
            Op::Window { kind, attributes } => {
                (window(*kind, attributes, node, &operands), self.dense_values(&operands))
            }
            Op::Pad { low, high, interior, value } => {
                (pad(low, high, interior, *value, &operands[0], node), self.dense_values(&operands))
            }
            Op::Custom(op) => (KernelOp::Custom(CustomCall { op: op.clone() }), self.dense_values(&operands)),
            op => unreachable!("{} is no heavy op", op.name()),
        };
        let value = self.new_value(TensorType::new(node.dtype, &node.shape), None);
        Unit { op, inputs, outputs: vec![value], scalars: Vec::new() }
    }

    fn dense_values(&mut self, operands: &[Access]) -> Vec<ValueIndex> {
        operands.iter().map(|operand| self.dense_value(operand, None)).collect()
    }

    /// The value that holds exactly the elements of `access` (with its axes in the order `axes`, if given), which is
    /// copied unless it is one already.
    pub(crate) fn dense_value(&mut self, access: &Access, axes: Option<&[usize]>) -> ValueIndex {
        let access = axes.map_or_else(|| access.clone(), |axes| access.permuted(axes));
        if let Some(value) = access.value()
            && access.is_dense()
            && self.values[value].kind.elements() == access.elements()
            && self.values[value].kind.dtype == access.dtype
        {
            return value;
        }
        if let Some(&value) = self.copies.get(&access) {
            return value;
        }
        let value = self.new_value(TensorType::new(access.dtype, &access.shape), None);
        let unit = self.new_unit(Work::Copy { access: access.clone(), value });
        self.consume(&access, unit);
        self.producers[value] = Some(unit);
        self.copies.insert(access, value);
        value
    }

    fn find(&self, mut unit: UnitId) -> UnitId {
        while let Some(next) = self.drafts[unit].merged_into {
            unit = next;
        }
        unit
    }

    fn producer(&self, value: ValueIndex) -> Option<UnitId> {
        self.producers[value].map(|unit| self.find(unit))
    }

    fn consume(&mut self, access: &Access, unit: UnitId) {
        if let Some(value) = access.value() {
            self.consume_value(value, unit);
        }
    }

    fn consume_value(&mut self, value: ValueIndex, unit: UnitId) {
        if let Some(producer) = self.producer(value)
            && producer != unit
        {
            let consumers = &mut self.drafts[producer].consumers;
            if consumers.last() != Some(&unit) && consumers.len() <= MAX_TRACKED_CONSUMERS {
                consumers.push(unit);
            }
        }
    }

    /// Puts an elementwise node into a cluster.
    fn place(&mut self, index: usize, value: ValueIndex) {
        let shape = squeezed(&self.nodes[index].shape);
        let operands: Vec<Access> =
            self.nodes[index].inputs.iter().map(|&input| self.access(input).clone()).collect();
        // Clusters that the node could join, and those and others that it must come after.
        let mut fusable: Vec<UnitId> = Vec::new();
        let mut before: Vec<UnitId> = Vec::new();
        for operand in &operands {
            let Some(producer) = operand.value().and_then(|value| self.producer(value)) else { continue };
            if self.reads_point_by_point(operand, producer, &shape) {
                if !fusable.contains(&producer) {
                    fusable.push(producer);
                }
            } else {
                before.push(producer);
            }
        }
        fusable.retain(|unit| !before.contains(unit));
        let after = before.iter().map(|&unit| self.drafts[unit].position).max();
        fusable.sort_by_key(|&unit| std::cmp::Reverse(self.drafts[unit].position));
        let target = match fusable.first() {
            Some(&last) if after < Some(self.drafts[last].position) && self.has_room(last, &operands) => last,
            _ => self.new_unit(Work::Cluster { shape, nodes: Vec::new(), reads: operands.len() }),
        };
        for unit in fusable {
            if unit != target {
                self.try_merge(unit, target);
            }
        }
        self.producers[value] = Some(target);
        let from_outside = |access: &&Access| match access.source {
            Source::Value(value) => self.producer(value) != Some(target),
            Source::Scalar(_) => true,
            Source::Constant(_) | Source::Position => false,
        };
        let outside: Vec<&Access> = operands.iter().filter(from_outside).collect();
        let external: Vec<ValueIndex> = outside.iter().filter_map(|access| access.value()).collect();
        let count = outside.len();
        if let Work::Cluster { nodes, reads, .. } = &mut self.drafts[target].work {
            // A new cluster was made with room for all operands, which are counted exactly only now.
            *reads = if nodes.is_empty() { count } else { *reads + count };
            nodes.push(index);
            nodes.sort_unstable();
        }
        for value in external {
            self.consume_value(value, target);
        }
    }

    /// Whether point `i` of a consumer over `shape` needs point `i` of the producing cluster alone.
    fn reads_point_by_point(&self, operand: &Access, producer: UnitId, shape: &[usize]) -> bool {
        let Work::Cluster { shape: produced, .. } = &self.drafts[producer].work else { return false };
        let value = operand.value().expect("it has a producer");
        produced == shape
            && operand.is_dense()
            && squeezed(&operand.shape) == *shape
            && self.values[value].kind.elements() == operand.elements()
    }

    fn has_room(&self, cluster: UnitId, operands: &[Access]) -> bool {
        let Work::Cluster { nodes, reads, .. } = &self.drafts[cluster].work else { return false };
        nodes.len() < MAX_CLUSTER_NODES && reads + operands.len() <= MAX_CLUSTER_READS
    }

    /// Moves the nodes of `from` into `into`, which comes later, if nothing in between reads them.
    fn try_merge(&mut self, from: UnitId, into: UnitId) {
        let position = self.drafts[into].position;
        let consumers = &self.drafts[from].consumers;
        let movable = consumers.len() <= MAX_TRACKED_CONSUMERS
            && consumers.iter().all(|&unit| {
                let unit = self.find(unit);
                unit == into || self.drafts[unit].position > position
            });
        let (Work::Cluster { nodes: a, reads: x, .. }, Work::Cluster { nodes: b, reads: y, .. }) =
            (&self.drafts[from].work, &self.drafts[into].work)
        else {
            return;
        };
        // One node more is about to join.
        let fits = a.len() + b.len() < MAX_CLUSTER_NODES && x + y <= MAX_CLUSTER_READS;
        // A view of `from` other than point by point must stay a value in memory, written before `into` starts.
        if !movable || !fits || self.reads_otherwise(b, from) {
            return;
        }
        let (moved, all_reads) = (a.clone(), x + y);
        let from_consumers = std::mem::take(&mut self.drafts[from].consumers);
        self.drafts[from].merged_into = Some(into);
        self.drafts[into].consumers.extend(from_consumers.into_iter().filter(|&unit| unit != into));
        if let Work::Cluster { nodes, reads, .. } = &mut self.drafts[into].work {
            nodes.extend(moved);
            nodes.sort_unstable();
            *reads = all_reads;
        }
    }

    /// Whether any of `nodes` reads a value of cluster `producer` other than point by point.
    fn reads_otherwise(&self, nodes: &[usize], producer: UnitId) -> bool {
        nodes.iter().any(|&node| {
            let shape = squeezed(&self.nodes[node].shape);
            self.nodes[node].inputs.iter().any(|&input| {
                let operand = self.access(input);
                operand.value().and_then(|value| self.producer(value)) == Some(producer)
                    && !self.reads_point_by_point(operand, producer, &shape)
            })
        })
    }

    fn finish(mut self, outputs: Vec<(usize, ValueIndex)>) -> Fused {
        self.absorb_epilogues(&outputs);
        self.absorb_reductions(&outputs);
        let mut order: Vec<UnitId> =
            (0..self.drafts.len()).filter(|&unit| self.drafts[unit].merged_into.is_none()).collect();
        order.sort_by_key(|&unit| self.drafts[unit].position);
        let needed = self.values_in_memory(&order, &outputs);
        let works: Vec<_> = order.iter().map(|&unit| (unit, self.take_work(unit))).collect();
        let units = works.into_iter().filter_map(|(_, work)| self.unit(work, &needed)).collect();
        Fused { units, values: self.values, outputs }
    }

    fn take_work(&mut self, unit: UnitId) -> Work {
        let empty = Work::Cluster { shape: Vec::new(), nodes: Vec::new(), reads: 0 };
        std::mem::replace(&mut self.drafts[unit].work, empty)
    }

    /// A cluster whose only reader is a reduction becomes that reduction's program.
    fn absorb_reductions(&mut self, outputs: &[(usize, ValueIndex)]) {
        let mut is_output = vec![false; self.values.len()];
        outputs.iter().for_each(|&(_, value)| is_output[value] = true);
        for reduction in 0..self.drafts.len() {
            let Work::Reduce { input, .. } = &self.drafts[reduction].work else { continue };
            let Some(cluster) = input.value().and_then(|value| self.producer(value)) else { continue };
            let Work::Cluster { shape, nodes, .. } = &self.drafts[cluster].work else { continue };
            let shape = shape.clone();
            let private = self.drafts[cluster].consumers.iter().all(|&unit| self.find(unit) == reduction)
                && nodes.iter().all(|node| !is_output[self.value_of_node[node]]);
            if private && self.reads_point_by_point(input, cluster, &shape) && squeezed(&input.shape) == shape
            {
                // The cluster lives on inside the reduction: its nodes are found through `producer`.
                self.drafts[cluster].merged_into = Some(reduction);
                self.drafts[cluster].absorbed = true;
            }
        }
    }

    /// For each value whether something reads it from memory.
    fn values_in_memory(&self, order: &[UnitId], outputs: &[(usize, ValueIndex)]) -> Vec<bool> {
        let mut needed = vec![false; self.values.len()];
        outputs.iter().for_each(|&(_, value)| needed[value] = true);
        for &unit in order {
            match &self.drafts[unit].work {
                Work::Cluster { nodes, .. } => self.mark_external(nodes, unit, &mut needed),
                Work::Copy { access, .. } => {
                    if let Some(value) = access.value() {
                        needed[value] = true;
                    }
                }
                Work::Reduce { input, .. } => match input.value() {
                    Some(value) if self.producer(value) == Some(unit) => {
                        let cluster =
                            self.producers[value].map(|own| self.last_cluster(own)).expect("it was absorbed");
                        if let Work::Cluster { nodes, .. } = &self.drafts[cluster].work {
                            self.mark_external(nodes, unit, &mut needed);
                        }
                    }
                    Some(value) => needed[value] = true,
                    None => {}
                },
                Work::Ready(unit) => unit.inputs.iter().for_each(|&value| needed[value] = true),
            }
        }
        needed
    }

    fn mark_external(&self, nodes: &[usize], unit: UnitId, needed: &mut [bool]) {
        for &node in nodes {
            for &input in &self.nodes[node].inputs {
                if let Some(value) = self.access(input).value()
                    && self.producer(value) != Some(unit)
                {
                    needed[value] = true;
                }
            }
        }
    }

    /// The cluster, possibly absorbed by a reduction, that a unit's nodes ended in.
    fn last_cluster(&self, mut unit: UnitId) -> UnitId {
        while let (Some(next), false) = (self.drafts[unit].merged_into, self.drafts[unit].absorbed) {
            unit = next;
        }
        unit
    }

    fn unit(&mut self, work: Work, needed: &[bool]) -> Option<Unit> {
        match work {
            Work::Cluster { nodes, .. } => {
                let outputs: Vec<_> = nodes
                    .iter()
                    .map(|node| self.value_of_node[node])
                    .filter(|&value| needed[value])
                    .collect();
                let wanted: Vec<usize> = outputs.iter().map(|value| self.node_of_value[value]).collect();
                if wanted.is_empty() {
                    return None;
                }
                let shape = self.nodes[wanted[0]].shape.clone();
                let built = build_cluster(self, &nodes, &wanted, &shape, None);
                Some(Unit {
                    op: KernelOp::Elementwise(built.cluster),
                    inputs: built.inputs,
                    outputs,
                    scalars: built.scalars,
                })
            }
            Work::Copy { access, value } => {
                let built = crate::build::build_copy(&access);
                Some(Unit {
                    op: KernelOp::Elementwise(built.cluster),
                    inputs: built.inputs,
                    outputs: vec![value],
                    scalars: built.scalars,
                })
            }
            Work::Reduce { node, input, value } => {
                if !needed[value] {
                    return None;
                }
                let Op::Reduce { kind, axes } = &self.nodes[node].op else { return None };
                let (kind, axes): (ReduceKind, Vec<usize>) = (*kind, axes.clone());
                let absorbed = input.value().and_then(|value| self.producers[value]).and_then(|own| {
                    let cluster = self.last_cluster(own);
                    match &self.drafts[cluster].work {
                        Work::Cluster { nodes, .. } if self.drafts[cluster].absorbed => Some(nodes.clone()),
                        _ => None,
                    }
                });
                let built =
                    build_reduction(self, kind, &axes, &input, absorbed.as_deref(), self.nodes[node].dtype);
                Some(Unit {
                    op: KernelOp::Reduce(built.0),
                    inputs: built.1.inputs,
                    outputs: vec![value],
                    scalars: built.1.scalars,
                })
            }
            Work::Ready(unit) => unit.outputs.iter().any(|&value| needed[value]).then_some(unit),
        }
    }

    /// The node that computes `value` elementwise, if one does.
    pub(crate) fn elementwise_node(&self, value: ValueIndex) -> Option<usize> {
        self.node_of_value.get(&value).copied()
    }
}

/// A program with the values and scalar nodes that its inputs and scalars stand for.
pub(crate) struct Built {
    pub(crate) cluster: Cluster,
    pub(crate) inputs: Vec<ValueIndex>,
    pub(crate) scalars: Vec<usize>,
}

/// `shape` without axes of extent 1.
fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&extent| extent != 1).collect()
}

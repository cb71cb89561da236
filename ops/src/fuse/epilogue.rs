//! Contractions take in the bias and the ReLU behind them: `relu(x + bias)` costs no pass over memory of its own.
//!
//! A node moves into a contraction only if nothing else reads what it replaces, so no value is computed twice and none
//! that is wanted gets lost.

use super::{Fuser, UnitId, Work};
use crate::access::{Access, Source, ValueIndex};
use crate::cluster::{BinaryOp, CompareOp};
use crate::lower::{BiasAxis, ConvOperand, Epilogue, KernelOp};
use crate::op::Op;
use std::collections::HashMap;

/// Who reads a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// A node of a cluster.
    Node(usize, UnitId),
    /// A unit as a whole.
    Unit,
}

impl Fuser<'_> {
    /// Moves the bias and the ReLU behind each contraction into it, where they are.
    pub(super) fn absorb_epilogues(&mut self, outputs: &[(usize, ValueIndex)]) {
        let mut is_output = vec![false; self.values.len()];
        outputs.iter().for_each(|&(_, value)| is_output[value] = true);
        let readers = self.readers();
        for unit in 0..self.drafts.len() {
            let Work::Ready(work) = &self.drafts[unit].work else { continue };
            let (value, op) = (work.outputs[0], work.op.clone());
            let Some((node, cluster, bias, axis)) = self.bias_behind(unit, &op, value, &readers, &is_output)
            else {
                continue;
            };
            let mut absorbed = vec![node];
            let mut epilogue = Epilogue { bias: Some(axis), relu: false };
            if let Some(relu) = self.relu_behind(self.value_of_node[&node], cluster, &readers, &is_output) {
                absorbed.extend(relu);
                epilogue.relu = true;
            }
            self.absorb(unit, cluster, &absorbed, bias, epilogue);
        }
    }

    fn absorb(
        &mut self,
        unit: UnitId,
        cluster: UnitId,
        nodes: &[usize],
        bias: ValueIndex,
        epilogue: Epilogue,
    ) {
        let last = nodes[nodes.len() - 1];
        let result = self.value_of_node[&last];
        if let Work::Ready(work) = &mut self.drafts[unit].work {
            match &mut work.op {
                KernelOp::Dot(dot) => dot.epilogue = epilogue,
                KernelOp::Conv(conv) => conv.epilogue = epilogue,
                _ => unreachable!("only contractions have a bias behind them"),
            }
            work.inputs.push(bias);
            work.outputs = vec![result];
        }
        if let Work::Cluster { nodes: own, .. } = &mut self.drafts[cluster].work {
            own.retain(|node| !nodes.contains(node));
        }
        self.producers[result] = Some(unit);
        self.node_of_value.remove(&result);
    }

    /// The addition of a vector that alone reads a contraction's result: `(node, its cluster, the vector, its axis)`.
    fn bias_behind(
        &self,
        unit: UnitId,
        op: &KernelOp,
        value: ValueIndex,
        readers: &HashMap<ValueIndex, Vec<Reader>>,
        is_output: &[bool],
    ) -> Option<(usize, UnitId, ValueIndex, BiasAxis)> {
        let [Reader::Node(node, cluster)] = readers.get(&value)?[..] else { return None };
        let kind = &self.values[value].kind;
        if is_output[value] || kind.elements() == 0 || self.node(node).dtype != kind.dtype {
            return None;
        }
        let Op::Binary(BinaryOp::Add) = self.node(node).op else { return None };
        let [lhs, rhs] = self.node(node).inputs[..] else { return None };
        let (own, other) = match self.access(lhs).value() == Some(value) {
            true => (self.access(lhs), self.access(rhs)),
            false => (self.access(rhs), self.access(lhs)),
        };
        if !own.is_dense() || own.elements() != kind.elements() || other.dtype != operand_dtype(op)? {
            return None;
        }
        let bias = other.value()?;
        let axes = match op {
            KernelOp::Dot(dot) => {
                vec![(BiasAxis::Column, 1, dot.n), (BiasAxis::Row, dot.n, dot.m)]
            }
            KernelOp::Conv(conv) if conv.operand == ConvOperand::Output => {
                let pixels = conv.geometry.output.iter().product();
                vec![(BiasAxis::Channel, pixels, conv.geometry.out_channels)]
            }
            _ => return None,
        };
        let (axis, ..) = axes.into_iter().find(|&(_, inner, extent)| {
            self.values[bias].kind.elements() == extent && runs_along(other, inner, extent)
        })?;
        // The vector must be there when the contraction starts.
        let is_earlier = match self.producer(bias) {
            None => true,
            Some(producer) => {
                producer != cluster && self.drafts[producer].position < self.drafts[unit].position
            }
        };
        is_earlier.then_some((node, cluster, bias, axis))
    }

    /// The nodes of `select(x <= 0, 0, x)` that alone read `value`; the result comes last.
    fn relu_behind(
        &self,
        value: ValueIndex,
        cluster: UnitId,
        readers: &HashMap<ValueIndex, Vec<Reader>>,
        is_output: &[bool],
    ) -> Option<[usize; 2]> {
        let own = readers.get(&value)?;
        let node = |reader: &Reader| match *reader {
            Reader::Node(node, unit) if unit == cluster => Some(node),
            _ => None,
        };
        let ([first, second], false) = (&own[..], is_output[value]) else { return None };
        let (first, second) = (node(first)?, node(second)?);
        let (condition, select) = if first < second { (first, second) } else { (second, first) };
        let is_zero = |input: usize| matches!(self.access(input).source, Source::Constant(zero) if zero.to_f64() == 0.0);
        let reads_value = |input: usize| {
            let access = self.access(input);
            access.value() == Some(value)
                && access.is_dense()
                && access.elements() == self.values[value].kind.elements()
        };
        let (Op::Compare(CompareOp::Le), Op::Select) = (&self.node(condition).op, &self.node(select).op)
        else {
            return None;
        };
        let (&[x, zero], &[chosen, if_true, if_false]) =
            (&self.node(condition).inputs[..], &self.node(select).inputs[..])
        else {
            return None;
        };
        let mask = *self.value_of_node.get(&condition)?;
        let is_relu = reads_value(x)
            && is_zero(zero)
            && self.access(chosen).value() == Some(mask)
            && self.access(chosen).is_dense()
            && is_zero(if_true)
            && reads_value(if_false);
        let is_private = !is_output[mask] && readers.get(&mask)?.len() == 1;
        (is_relu && is_private).then_some([condition, select])
    }

    /// Every read of every value that a unit computes.
    fn readers(&self) -> HashMap<ValueIndex, Vec<Reader>> {
        let mut readers: HashMap<ValueIndex, Vec<Reader>> = HashMap::new();
        let mut note = |value: Option<ValueIndex>, reader: Reader| {
            if let Some(value) = value {
                readers.entry(value).or_default().push(reader);
            }
        };
        for (unit, draft) in self.drafts.iter().enumerate().filter(|(_, draft)| draft.merged_into.is_none()) {
            match &draft.work {
                Work::Cluster { nodes, .. } => {
                    for &node in nodes {
                        for &input in &self.node(node).inputs {
                            note(self.access(input).value(), Reader::Node(node, unit));
                        }
                    }
                }
                Work::Copy { access, .. } => note(access.value(), Reader::Unit),
                Work::Reduce { input, .. } => note(input.value(), Reader::Unit),
                Work::Ready(work) => work.inputs.iter().for_each(|&value| note(Some(value), Reader::Unit)),
            }
        }
        readers
    }
}

fn operand_dtype(op: &KernelOp) -> Option<halite_hal::DType> {
    match op {
        KernelOp::Dot(dot) => Some(dot.dtype),
        KernelOp::Conv(conv) => Some(conv.dtype),
        _ => None,
    }
}

/// Whether element `i` of the view, counted row-major, is element `(i / inner) % extent` of its source.
fn runs_along(view: &Access, inner: usize, extent: usize) -> bool {
    let (mut inside, mut along) = (1, 1);
    for axis in (0..view.shape.len()).rev().filter(|&axis| view.shape[axis] != 1) {
        let length = view.shape[axis];
        let expected = if inside < inner {
            inside *= length;
            0
        } else if along < extent {
            let stride = along;
            along *= length;
            stride
        } else {
            0
        };
        if view.strides[axis] != expected as i64 {
            return false;
        }
    }
    view.offset == 0 && inside == inner && along == extent
}

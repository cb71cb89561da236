//! Reverse-mode differentiation: the backward graph, built of ordinary nodes.

use crate::derivative::vector_jacobian;
use crate::hash::IdMap;
use crate::node::topological_order;
use crate::{Error, Result, Tensor};

/// Gradients of a single-element tensor with respect to `wrt`, in that order and of their shapes and dtypes.
///
/// Nothing is computed: the result is a lazy graph, which can be differentiated again. Only unsettled nodes have a
/// history; a tensor that was evaluated before is a constant.
///
/// # Errors
/// `Gradient` when the loss has several elements, holds no floats, or does not depend on one of `wrt` (for example
/// because it was evaluated before the call).
#[track_caller]
pub fn grad(loss: &Tensor, wrt: &[&Tensor]) -> Result<Vec<Tensor>> {
    if loss.elements() != 1 {
        let message =
            format!("the loss must have one element, got shape {:?}; reduce it first", loss.shape());
        return Err(Error::gradient(message));
    }
    vector_jacobian_product(loss, &loss.full_like(1.0), wrt)
}

/// The product of `cotangent`, shaped like `output`, with the Jacobian of `output` with respect to each of `wrt`.
///
/// # Errors
/// As [`grad`], and when the cotangent's shape or dtype is not the output's.
#[track_caller]
pub fn vector_jacobian_product(output: &Tensor, cotangent: &Tensor, wrt: &[&Tensor]) -> Result<Vec<Tensor>> {
    if !output.dtype().is_float() {
        return Err(Error::gradient(format!("only floats have gradients, the output is {}", output.dtype())));
    }
    if (cotangent.shape(), cotangent.dtype()) != (output.shape(), output.dtype()) {
        return Err(Error::gradient(format!(
            "the cotangent is {} {:?}, the output {} {:?}; they must agree",
            cotangent.dtype(),
            cotangent.shape(),
            output.dtype(),
            output.shape()
        )));
    }
    let order = topological_order(std::slice::from_ref(output));
    let mut depends: IdMap<()> = wrt.iter().map(|tensor| (tensor.0.id, ())).collect();
    for tensor in &order {
        if tensor.0.open_inputs().iter().any(|input| depends.contains_key(&input.0.id)) {
            depends.insert(tensor.0.id, ());
        }
    }
    let mut cotangents: IdMap<Tensor> = IdMap::default();
    let reached: IdMap<()> = order.iter().map(|tensor| (tensor.0.id, ())).collect();
    for (index, tensor) in wrt.iter().enumerate() {
        if !tensor.dtype().is_float() {
            let dtype = tensor.dtype();
            return Err(Error::gradient(format!(
                "only floats have gradients, tensor {index} of the list is {dtype}"
            )));
        }
        if !reached.contains_key(&tensor.0.id) {
            return Err(Error::gradient(format!(
                "the output does not depend on tensor {index} of the list ({tensor:?}); if it was evaluated \
                 before, form the gradient first"
            )));
        }
    }
    cotangents.insert(output.0.id, cotangent.clone());
    for tensor in order.iter().rev() {
        let inputs = tensor.0.open_inputs();
        if inputs.is_empty() || !depends.contains_key(&tensor.0.id) {
            continue;
        }
        let Some(cotangent) = cotangents.get(&tensor.0.id).cloned() else { continue };
        let wanted: Vec<bool> = inputs
            .iter()
            .map(|input| input.dtype().is_float() && depends.contains_key(&input.0.id))
            .collect();
        if !wanted.contains(&true) {
            continue;
        }
        let parts = vector_jacobian(tensor, &inputs, &cotangent, &wanted)?;
        check_parts(tensor, &inputs, &parts)?;
        for ((input, part), _) in inputs.iter().zip(parts).zip(&wanted).filter(|(_, wanted)| **wanted) {
            let Some(part) = part else { continue };
            let total = match cotangents.remove(&input.0.id) {
                Some(sum) => sum.add(&part)?,
                None => part,
            };
            cotangents.insert(input.0.id, total);
        }
    }
    Ok(wrt
        .iter()
        .map(|tensor| cotangents.get(&tensor.0.id).cloned().unwrap_or_else(|| tensor.full_like(0.0)))
        .collect())
}

/// Checks the cotangents of a node's inputs; those of a custom op come from another crate.
#[track_caller]
fn check_parts(node: &Tensor, inputs: &[Tensor], parts: &[Option<Tensor>]) -> Result<()> {
    let name = node.0.op.name();
    if parts.len() != inputs.len() {
        let (expected, got) = (inputs.len(), parts.len());
        return Err(Error::gradient(format!(
            "the derivative of {name} must give {expected} cotangents, got {got}"
        )));
    }
    for (index, (input, part)) in inputs.iter().zip(parts).enumerate() {
        if let Some(part) = part
            && part.tensor_type() != input.tensor_type()
        {
            return Err(Error::gradient(format!(
                "the derivative of {name} gives {} {:?} for input {index}, which is {} {:?}",
                part.dtype(),
                part.shape(),
                input.dtype(),
                input.shape()
            )));
        }
    }
    Ok(())
}

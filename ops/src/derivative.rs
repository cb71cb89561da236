//! The derivative of every primitive, as one table.
//!
//! `g` is the cotangent of the node's value `y`; the answer holds the cotangent of each input, `None` where it is
//! zero everywhere. Whatever is built here are ordinary tensors, so derivatives have derivatives.

use crate::cluster::{BinaryOp, UnaryOp};
use crate::lower::{ConvGeometry, ConvOperand, ReduceKind, WindowKind};
use crate::op::{DotAxes, Op, WindowAttributes};
use crate::{Error, Result, Tensor};

type Cotangents = Result<Vec<Option<Tensor>>>;

/// Cotangents of the inputs of `y`; entries that are not `wanted` may be `None`.
#[track_caller]
pub(crate) fn vector_jacobian(y: &Tensor, inputs: &[Tensor], g: &Tensor, wanted: &[bool]) -> Cotangents {
    let x = &inputs[0];
    match &y.0.op {
        Op::Leaf | Op::RuntimeScalar(_) | Op::Full(_) | Op::Iota(_) | Op::RandomBits => Ok(Vec::new()),
        Op::Unary(op) => one(unary(*op, x, y, g)?),
        Op::Binary(op) => binary(*op, x, &inputs[1], y, g, wanted),
        Op::Compare(_) | Op::Bitcast | Op::StopGradient => Ok(vec![None; inputs.len()]),
        Op::Select => {
            let zero = g.full_like(0.0);
            Ok(vec![None, Some(x.select(g, &zero)?), Some(x.select(&zero, g)?)])
        }
        Op::Cast => one(if y.dtype().is_float() { Some(g.cast(x.dtype())?) } else { None }),
        Op::Reshape => one(Some(g.reshape(x.shape())?)),
        Op::Permute(axes) => one(Some(g.permute(&inverse(axes))?)),
        Op::Expand => one(Some(unexpand(g, x.shape())?)),
        Op::Slice { start, step } => one(Some(unslice(g, x.shape(), start, step)?)),
        Op::Flip(axes) => one(Some(g.flip(axes)?)),
        Op::Pad { low, high, interior, .. } => one(Some(unpad(g, x.shape(), low, high, interior)?)),
        Op::Reduce { kind, axes } => one(reduce(*kind, axes, x, y, g)?),
        Op::Dot(axes) => dot(axes, x, &inputs[1], g, wanted),
        Op::Conv { operand, geometry } => conv(*operand, geometry, x, &inputs[1], g, wanted),
        Op::Window { kind, attributes } => window(*kind, attributes, inputs, g),
        Op::Custom(op) => op.derivative(inputs, y, g),
    }
}

fn one(cotangent: Option<Tensor>) -> Cotangents {
    Ok(vec![cotangent])
}

#[track_caller]
fn unary(op: UnaryOp, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
    Ok(Some(match op {
        UnaryOp::Neg => g.neg()?,
        UnaryOp::Abs => g.mul(&x.sign()?)?,
        UnaryOp::Sign | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round | UnaryOp::Not => return Ok(None),
        UnaryOp::Exp => g.mul(y)?,
        UnaryOp::Log => g.div(x)?,
        UnaryOp::Sqrt => g.mul(0.5)?.div(y)?,
        UnaryOp::Rsqrt => g.mul(-0.5)?.mul(y)?.div(x)?,
        UnaryOp::Sin => g.mul(&x.cos()?)?,
        UnaryOp::Cos => g.mul(&x.sin()?.neg()?)?,
        UnaryOp::Tanh => g.mul(&y.mul(y)?.neg()?.add(1.0)?)?,
    }))
}

#[track_caller]
fn binary(op: BinaryOp, a: &Tensor, b: &Tensor, y: &Tensor, g: &Tensor, wanted: &[bool]) -> Cotangents {
    let when = |wanted: bool, build: &dyn Fn() -> Result<Tensor>| wanted.then(build).transpose();
    let [da, db]: [&dyn Fn() -> Result<Tensor>; 2] = match op {
        BinaryOp::Add => [&|| Ok(g.clone()), &|| Ok(g.clone())],
        BinaryOp::Sub => [&|| Ok(g.clone()), &|| g.neg()],
        BinaryOp::Mul => [&|| g.mul(b), &|| g.mul(a)],
        BinaryOp::Div => [&|| g.div(b), &|| g.mul(y)?.div(b)?.neg()],
        // a - b * trunc(a / b), where trunc is sign * floor(abs).
        BinaryOp::Rem => [&|| Ok(g.clone()), &|| {
            let ratio = a.div(b)?;
            g.mul(&ratio.sign()?.mul(&ratio.abs()?.floor()?)?)?.neg()
        }],
        // Where a term of the formula is infinite but its factor is 0, the base or the exponent is replaced by 1 before
        // the term is formed: behind it, a select would hide the infinity from this derivative but not from the next.
        BinaryOp::Pow => [
            &|| {
                let (zero, one) = (a.full_like(0.0), a.full_like(1.0));
                let constant = a.eq(&zero)?.and(&b.eq(&zero)?)?;
                g.mul(b)?.mul(&a.pow(&constant.select(&one, &b.sub(1.0)?)?)?)
            },
            &|| {
                let base = a.eq(&a.full_like(0.0))?.select(&a.full_like(1.0), a)?;
                g.mul(y)?.mul(&base.log()?)
            },
        ],
        BinaryOp::Max | BinaryOp::Min => {
            [&|| g.mul(&share_of_extreme(a, b, y)?), &|| g.mul(&share_of_extreme(b, a, y)?)]
        }
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => {
            return Ok(vec![None, None]);
        }
    };
    Ok(vec![when(wanted[0], da)?, when(wanted[1], db)?])
}

/// 1 where `a` alone is the extreme `y`, 1/2 where both are, else 0.
#[track_caller]
fn share_of_extreme(a: &Tensor, b: &Tensor, y: &Tensor) -> Result<Tensor> {
    let [zero, half, one] = [0.0, 0.5, 1.0].map(|value| a.full_like(value));
    let won = b.eq(y)?.select(&half, &one)?;
    a.eq(y)?.select(&won, &zero)
}

fn inverse(axes: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; axes.len()];
    for (out, &axis) in axes.iter().enumerate() {
        inverse[axis] = out;
    }
    inverse
}

#[track_caller]
fn unexpand(g: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let repeated: Vec<_> = (0..shape.len()).filter(|&axis| shape[axis] != g.shape()[axis]).collect();
    g.sum(&repeated)?.reshape(shape)
}

#[track_caller]
fn unslice(g: &Tensor, shape: &[usize], start: &[usize], step: &[usize]) -> Result<Tensor> {
    let low: Vec<i64> = start.iter().map(|&s| s as i64).collect();
    let interior: Vec<_> = step.iter().map(|&s| s - 1).collect();
    let high: Vec<i64> = (0..shape.len())
        .map(|axis| {
            let taken = g.shape()[axis];
            let covered = if taken == 0 { 0 } else { (taken - 1) * step[axis] + 1 };
            shape[axis] as i64 - low[axis] - covered as i64
        })
        .collect();
    g.pad(&low, &high, &interior, 0.0)
}

/// Takes back from a padded cotangent what belongs to the unpadded elements; those that were cut get 0.
#[track_caller]
fn unpad(g: &Tensor, shape: &[usize], low: &[i64], high: &[i64], interior: &[usize]) -> Result<Tensor> {
    // Undo the cuts (and only them) with zeros, so that every element's place exists; then take the places.
    let restore = |edge: &[i64]| edge.iter().map(|&e| (-e).max(0)).collect::<Vec<_>>();
    let (cut_low, cut_high) = (restore(low), restore(high));
    let whole = if cut_low.iter().chain(&cut_high).any(|&cut| cut > 0) {
        g.pad(&cut_low, &cut_high, &vec![0; shape.len()], 0.0)?
    } else {
        g.clone()
    };
    let start: Vec<_> = low.iter().map(|&l| l.max(0) as usize).collect();
    let step: Vec<_> = interior.iter().map(|&i| i + 1).collect();
    let end: Vec<_> = (0..shape.len())
        .map(|axis| start[axis] + shape[axis].checked_sub(1).map_or(0, |last| last * step[axis] + 1))
        .collect();
    whole.slice(&start, &end, &step)
}

#[track_caller]
fn reduce(kind: ReduceKind, axes: &[usize], x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
    let mut kept = x.shape().to_vec();
    axes.iter().for_each(|&axis| kept[axis] = 1);
    let spread = |tensor: &Tensor| tensor.reshape(&kept)?.broadcast_to(x.shape());
    Ok(Some(match kind {
        ReduceKind::Sum => spread(g)?,
        ReduceKind::Max | ReduceKind::Min => {
            let [zero, one] = [0.0, 1.0].map(|value| x.full_like(value));
            let is_extreme = x.eq(&spread(y)?)?.select(&one, &zero)?;
            let count = is_extreme.sum(axes)?;
            spread(&g.div(&count)?)?.mul(&is_extreme)?
        }
        ReduceKind::ArgMax => return Ok(None),
        ReduceKind::Prod => {
            let message =
                "prod has no derivative here; multiply the elements one by one, or detach the product";
            return Err(Error::gradient(message));
        }
    }))
}

/// For `y = dot(a, b)` each cotangent is a contraction of `g` with the other operand over that one's free axes.
#[track_caller]
fn dot(axes: &DotAxes, a: &Tensor, b: &Tensor, g: &Tensor, wanted: &[bool]) -> Cotangents {
    let g = &g.cast(a.dtype())?;
    let batch = axes.lhs_batch.len();
    let free = |rank: usize, contract: &[usize], batch: &[usize]| {
        (0..rank).filter(|axis| !contract.contains(axis) && !batch.contains(axis)).collect::<Vec<_>>()
    };
    let lhs_free = free(a.rank(), &axes.lhs_contract, &axes.lhs_batch);
    let rhs_free = free(b.rank(), &axes.rhs_contract, &axes.rhs_batch);
    let g_batch: Vec<_> = (0..batch).collect();
    let g_lhs: Vec<_> = (batch..batch + lhs_free.len()).collect();
    let g_rhs: Vec<_> = (batch + lhs_free.len()..g.rank()).collect();
    let toward_lhs = || {
        let over = DotAxes {
            lhs_contract: g_rhs.clone(),
            rhs_contract: rhs_free.clone(),
            lhs_batch: g_batch.clone(),
            rhs_batch: axes.rhs_batch.clone(),
        };
        // Result axes: batch, free axes of a, then b's contracted axes in ascending order.
        let mut pairs: Vec<_> = axes.rhs_contract.iter().zip(&axes.lhs_contract).collect();
        pairs.sort_unstable();
        let places = axes.lhs_batch.iter().chain(&lhs_free).chain(pairs.iter().map(|(_, place)| *place));
        g.dot_general(b, &over, a.dtype())?.permute(&inverse(&places.copied().collect::<Vec<_>>()))
    };
    let toward_rhs = || {
        let over = DotAxes {
            lhs_contract: lhs_free.clone(),
            rhs_contract: g_lhs.clone(),
            lhs_batch: axes.lhs_batch.clone(),
            rhs_batch: g_batch.clone(),
        };
        // Result axes: batch, a's contracted axes in ascending order, free axes of b.
        let mut pairs: Vec<_> = axes.lhs_contract.iter().zip(&axes.rhs_contract).collect();
        pairs.sort_unstable();
        let places = axes.rhs_batch.iter().chain(pairs.iter().map(|(_, place)| *place)).chain(&rhs_free);
        a.dot_general(g, &over, b.dtype())?.permute(&inverse(&places.copied().collect::<Vec<_>>()))
    };
    Ok(vec![wanted[0].then(toward_lhs).transpose()?, wanted[1].then(toward_rhs).transpose()?])
}

/// The trilinear form `T(input, filter, output)`: whichever operand a node computes, its cotangents are the form
/// solved for each of the other two, with `g` in the place of the node.
fn conv(
    operand: ConvOperand,
    geometry: &ConvGeometry,
    first: &Tensor,
    second: &Tensor,
    g: &Tensor,
    wanted: &[bool],
) -> Cotangents {
    let solve = |target: ConvOperand, a: &Tensor, b: &Tensor| a.conv_operand(b, target, geometry.clone());
    let when = |index: usize, build: &dyn Fn() -> Tensor| wanted[index].then(build);
    Ok(match operand {
        // first = input, second = filter, g = output
        ConvOperand::Output => vec![
            when(0, &|| solve(ConvOperand::Input, g, second)),
            when(1, &|| solve(ConvOperand::Filter, g, first)),
        ],
        // first = output, second = filter, g = input
        ConvOperand::Input => vec![
            when(0, &|| solve(ConvOperand::Output, g, second)),
            when(1, &|| solve(ConvOperand::Filter, first, g)),
        ],
        // first = output, second = input, g = filter
        ConvOperand::Filter => vec![
            when(0, &|| solve(ConvOperand::Output, second, g)),
            when(1, &|| solve(ConvOperand::Input, first, g)),
        ],
    })
}

fn window(kind: WindowKind, attributes: &WindowAttributes, inputs: &[Tensor], g: &Tensor) -> Cotangents {
    let x = &inputs[0];
    let node = |kind, first: &Tensor, rest: &[&Tensor]| first.window_node(kind, attributes, rest);
    Ok(match kind {
        WindowKind::Max => vec![Some(node(WindowKind::ScatterToMax, x, &[g]))],
        WindowKind::Sum => vec![Some(node(WindowKind::Spread, g, &[]))],
        // The places depend on x, but stepwise: their derivative is zero almost everywhere.
        WindowKind::ScatterToMax => vec![None, Some(node(WindowKind::GatherAtMax, x, &[g]))],
        WindowKind::GatherAtMax => vec![None, Some(node(WindowKind::ScatterToMax, x, &[g]))],
        WindowKind::Spread => vec![Some(node(WindowKind::Sum, g, &[]))],
    })
}

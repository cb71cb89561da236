//! The plain definition of every primitive, in f64 on the host: what devices and derivatives are tested against.
//!
//! Slow and simple on purpose. Floats are computed in f64 and not rounded to their dtype; integers are exact as long
//! as they fit 53 bits, and wrap as their dtype does.

use crate::cluster::{BinaryOp, CompareOp, UnaryOp, contiguous_strides};
use crate::hash::IdMap;
use crate::lower::{ConvGeometry, ConvOperand, ReduceKind, WindowKind};
use crate::node::topological_order;
use crate::op::{DotAxes, Op, WindowAttributes};
use crate::random::{Numbers, threefry2x32};
use crate::{DType, Result, Tensor};
use halite_hal::from_bytes;

/// A dense row-major tensor of f64 on the host; `dtype` says how integers wrap.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// The dtype that the tensor stands for.
    pub dtype: DType,
    /// Extent per axis.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl HostTensor {
    /// A tensor of these elements.
    pub fn new(dtype: DType, shape: &[usize], data: Vec<f64>) -> Self {
        Self { dtype, shape: shape.to_vec(), data }
    }

    fn from_index(dtype: DType, shape: &[usize], element: impl FnMut(Vec<usize>) -> f64) -> Self {
        Self { dtype, shape: shape.to_vec(), data: indices(shape).map(element).collect() }
    }

    fn at(&self, index: &[usize]) -> f64 {
        let strides = contiguous_strides(&self.shape);
        self.data[index.iter().zip(strides).map(|(&i, stride)| i * stride as usize).sum::<usize>()]
    }
}

/// Evaluates `outputs` in f64. A node in `given` has that value; every other leaf has its device's.
///
/// # Errors
/// The failure of a device whose leaf is read, or of a custom op's reference.
pub fn evaluate(outputs: &[&Tensor], given: &[(&Tensor, HostTensor)]) -> Result<Vec<HostTensor>> {
    let roots: Vec<Tensor> = outputs.iter().map(|&tensor| tensor.clone()).collect();
    let mut known: IdMap<HostTensor> =
        given.iter().map(|(tensor, value)| (tensor.0.id, value.clone())).collect();
    for tensor in topological_order(&roots) {
        if known.contains_key(&tensor.0.id) {
            continue;
        }
        let inputs = tensor.0.open_inputs();
        let value = if tensor.is_settled() {
            HostTensor::new(tensor.dtype(), tensor.shape(), tensor.to_f64()?)
        } else {
            let operands: Vec<&HostTensor> = inputs.iter().map(|input| &known[&input.0.id]).collect();
            apply(&tensor, &operands)?
        };
        known.insert(tensor.0.id, value);
    }
    Ok(outputs.iter().map(|tensor| known[&tensor.0.id].clone()).collect())
}

/// Elements of `bytes` as f64 (64-bit integers beyond 2^53 are rounded).
pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    fn convert<T: halite_hal::Element>(bytes: &[u8], to: impl Fn(T) -> f64) -> Vec<f64> {
        from_bytes::<T>(bytes).into_iter().map(to).collect()
    }
    match dtype {
        DType::Bool | DType::U8 => convert::<u8>(bytes, f64::from),
        DType::I8 => convert::<i8>(bytes, f64::from),
        DType::I16 => convert::<i16>(bytes, f64::from),
        DType::U16 => convert::<u16>(bytes, f64::from),
        DType::I32 => convert::<i32>(bytes, f64::from),
        DType::U32 => convert::<u32>(bytes, f64::from),
        DType::I64 => convert::<i64>(bytes, |v| v as f64),
        DType::U64 => convert::<u64>(bytes, |v| v as f64),
        DType::F16 => convert::<half::f16>(bytes, half::f16::to_f64),
        DType::BF16 => convert::<half::bf16>(bytes, half::bf16::to_f64),
        DType::F32 => convert::<f32>(bytes, f64::from),
        _ => convert::<f64>(bytes, |v| v),
    }
}

fn apply(tensor: &Tensor, inputs: &[&HostTensor]) -> Result<HostTensor> {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let pointwise = |f: &dyn Fn(usize) -> f64| {
        let elements = shape.iter().product();
        HostTensor::new(dtype, shape, (0..elements).map(f).collect())
    };
    Ok(match &tensor.0.op {
        Op::Leaf => HostTensor::new(dtype, shape, tensor.to_f64()?),
        Op::RuntimeScalar(scalar) => pointwise(&|_| scalar.to_f64()),
        Op::Full(literal) => pointwise(&|_| literal.to_f64()),
        Op::Iota(axis) => HostTensor::from_index(dtype, shape, |index| index[*axis] as f64),
        Op::RandomBits => {
            let key = [inputs[0].data[0] as u32, inputs[1].data[0] as u32];
            pointwise(&|i| f64::from(threefry2x32(&mut Numbers, key, [i as u32, 0])[0]))
        }
        Op::Unary(op) => pointwise(&|i| wrap(dtype, unary(*op, dtype, inputs[0].data[i]))),
        Op::Binary(op) => pointwise(&|i| binary(*op, dtype, inputs[0].data[i], inputs[1].data[i])),
        Op::Compare(op) => pointwise(&|i| {
            let (a, b) = (inputs[0].data[i], inputs[1].data[i]);
            f64::from(u8::from(match op {
                CompareOp::Eq => a == b,
                CompareOp::Lt => a < b,
                CompareOp::Le => a <= b,
            }))
        }),
        Op::Select => {
            pointwise(&|i| if inputs[0].data[i] != 0.0 { inputs[1].data[i] } else { inputs[2].data[i] })
        }
        Op::Cast => pointwise(&|i| cast(inputs[0].dtype, dtype, inputs[0].data[i])),
        Op::Bitcast => pointwise(&|i| bitcast(inputs[0].dtype, dtype, inputs[0].data[i])),
        Op::Reshape | Op::StopGradient => HostTensor::new(dtype, shape, inputs[0].data.clone()),
        Op::Permute(axes) => HostTensor::from_index(dtype, shape, |index| {
            let mut source = vec![0; index.len()];
            axes.iter().zip(&index).for_each(|(&axis, &i)| source[axis] = i);
            inputs[0].at(&source)
        }),
        Op::Expand => HostTensor::from_index(dtype, shape, |index| {
            let source: Vec<_> =
                index.iter().zip(&inputs[0].shape).map(|(&i, &e)| if e == 1 { 0 } else { i }).collect();
            inputs[0].at(&source)
        }),
        Op::Slice { start, step } => HostTensor::from_index(dtype, shape, |index| {
            let source: Vec<_> =
                (0..index.len()).map(|axis| start[axis] + index[axis] * step[axis]).collect();
            inputs[0].at(&source)
        }),
        Op::Flip(axes) => HostTensor::from_index(dtype, shape, |mut index| {
            axes.iter().for_each(|&axis| index[axis] = shape[axis] - 1 - index[axis]);
            inputs[0].at(&index)
        }),
        Op::Pad { low, interior, value, .. } => HostTensor::from_index(dtype, shape, |index| {
            let source: Option<Vec<usize>> = (0..index.len())
                .map(|axis| {
                    let (place, step) = (index[axis] as i64 - low[axis], interior[axis] as i64 + 1);
                    let inside = place >= 0 && place % step == 0;
                    inside.then_some((place / step) as usize).filter(|&i| i < inputs[0].shape[axis])
                })
                .collect();
            source.map_or(value.to_f64(), |source| inputs[0].at(&source))
        }),
        Op::Reduce { kind, axes } => reduce(*kind, axes, inputs[0], dtype, shape),
        Op::Dot(axes) => dot(axes, inputs[0], inputs[1], dtype, shape),
        Op::Conv { operand, geometry } => conv(*operand, geometry, inputs[0], inputs[1], dtype, shape),
        Op::Window { kind, attributes } => window(*kind, attributes, inputs, dtype, shape),
        Op::Custom(op) => {
            let owned: Vec<HostTensor> = inputs.iter().map(|&input| input.clone()).collect();
            op.reference(&owned).map_err(|message| crate::Error::shape(op.name(), message))?
        }
    })
}

/// Every index of a row-major tensor, in order.
fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let elements: usize = shape.iter().product();
    (0..elements).map(move |mut linear| {
        let mut index = vec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            index[axis] = linear % shape[axis];
            linear /= shape[axis];
        }
        index
    })
}

/// An exact integer result brought into the dtype's range, modulo its width; floats pass. Not idempotent at the ends
/// of 64-bit types, which f64 rounds out of range.
fn wrap(dtype: DType, value: f64) -> f64 {
    if !dtype.is_integer() {
        return value;
    }
    wrap_integer(dtype, value as i128)
}

fn wrap_integer(dtype: DType, value: i128) -> f64 {
    match dtype {
        DType::I8 => f64::from(value as i8),
        DType::U8 => f64::from(value as u8),
        DType::I16 => f64::from(value as i16),
        DType::U16 => f64::from(value as u16),
        DType::I32 => f64::from(value as i32),
        DType::U32 => f64::from(value as u32),
        DType::I64 => (value as i64) as f64,
        _ => (value as u64) as f64,
    }
}

fn unary(op: UnaryOp, dtype: DType, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Sign if x.is_nan() || x == 0.0 => x,
        UnaryOp::Sign => x.signum(),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Not if dtype == DType::Bool => f64::from(u8::from(x == 0.0)),
        UnaryOp::Not => -1.0 - x,
    }
}

fn binary(op: BinaryOp, dtype: DType, a: f64, b: f64) -> f64 {
    if dtype.is_integer() || dtype == DType::Bool {
        return integer_binary(op, dtype, a as i128, b as i128);
    }
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Rem => a % b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Max | BinaryOp::Min if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Max => a.max(b),
        BinaryOp::Min => a.min(b),
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => f64::NAN,
    }
}

fn integer_binary(op: BinaryOp, dtype: DType, a: i128, b: i128) -> f64 {
    let bits = 8 * dtype.size() as i128;
    let too_far = !(0..bits).contains(&b);
    let exact = match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a.checked_div(b).unwrap_or(0),
        BinaryOp::Rem => a.checked_rem(b).unwrap_or(0),
        BinaryOp::Max => a.max(b),
        BinaryOp::Min => a.min(b),
        BinaryOp::And => a & b,
        BinaryOp::Or => a | b,
        BinaryOp::Xor => a ^ b,
        BinaryOp::Shl if too_far => 0,
        BinaryOp::Shl => a << b,
        BinaryOp::Shr if too_far => -i128::from(a < 0),
        BinaryOp::Shr => a >> b,
        BinaryOp::Pow => 0,
    };
    if dtype == DType::Bool { f64::from(u8::from(exact != 0)) } else { wrap_integer(dtype, exact) }
}

fn cast(from: DType, to: DType, x: f64) -> f64 {
    if to == DType::Bool {
        return f64::from(u8::from(x != 0.0));
    }
    if to.is_integer() && from.is_float() {
        return crate::cluster::Literal::new(to, x).to_f64();
    }
    wrap(to, x)
}

fn bitcast(from: DType, to: DType, x: f64) -> f64 {
    let bits = crate::cluster::Literal::new(from, x).bits;
    crate::cluster::Literal { dtype: to, bits }.to_f64()
}

fn reduce(kind: ReduceKind, axes: &[usize], x: &HostTensor, dtype: DType, shape: &[usize]) -> HostTensor {
    let reduced: Vec<usize> = axes.iter().map(|&axis| x.shape[axis]).collect();
    HostTensor::from_index(dtype, shape, |kept| {
        let elements: Vec<f64> = indices(&reduced)
            .map(|inner| {
                let (mut kept, mut inner) = (kept.iter(), inner.iter());
                let index: Vec<usize> = (0..x.shape.len())
                    .map(|axis| if axes.contains(&axis) { inner.next() } else { kept.next() })
                    .map(|next| next.copied().unwrap_or(0))
                    .collect();
                x.at(&index)
            })
            .collect();
        let extreme =
            |start: f64, op: BinaryOp| elements.iter().fold(start, |a, &b| binary(op, DType::F64, a, b));
        let least = if dtype.is_float() {
            f64::NEG_INFINITY
        } else {
            crate::cluster::Literal::new(dtype, f64::NEG_INFINITY).to_f64()
        };
        let greatest = if dtype.is_float() {
            f64::INFINITY
        } else {
            crate::cluster::Literal::new(dtype, f64::INFINITY).to_f64()
        };
        match kind {
            ReduceKind::Sum => wrap(dtype, elements.iter().sum()),
            ReduceKind::Prod => wrap(dtype, elements.iter().product()),
            ReduceKind::Max => extreme(least, BinaryOp::Max),
            ReduceKind::Min => extreme(greatest, BinaryOp::Min),
            ReduceKind::ArgMax => first_largest(&elements).unwrap_or(0) as f64,
        }
    })
}

/// The place of the first largest element; a NaN counts as larger than any number.
fn first_largest(elements: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, &value) in elements.iter().enumerate() {
        let wins = match best {
            None => true,
            Some(b) => !elements[b].is_nan() && (value.is_nan() || value > elements[b]),
        };
        if wins {
            best = Some(i);
        }
    }
    best
}

fn dot(axes: &DotAxes, a: &HostTensor, b: &HostTensor, dtype: DType, shape: &[usize]) -> HostTensor {
    let free = |rank: usize, contract: &[usize], batch: &[usize]| {
        (0..rank).filter(|axis| !contract.contains(axis) && !batch.contains(axis)).collect::<Vec<_>>()
    };
    let lhs_free = free(a.shape.len(), &axes.lhs_contract, &axes.lhs_batch);
    let rhs_free = free(b.shape.len(), &axes.rhs_contract, &axes.rhs_batch);
    let contracted: Vec<usize> = axes.lhs_contract.iter().map(|&axis| a.shape[axis]).collect();
    HostTensor::from_index(dtype, shape, |index| {
        let (batch, rest) = index.split_at(axes.lhs_batch.len());
        let (of_lhs, of_rhs) = rest.split_at(lhs_free.len());
        let sum = indices(&contracted)
            .map(|inner| {
                let (mut i, mut j) = (vec![0; a.shape.len()], vec![0; b.shape.len()]);
                let set = |target: &mut Vec<usize>, axes: &[usize], values: &[usize]| {
                    axes.iter().zip(values).for_each(|(&axis, &value)| target[axis] = value);
                };
                set(&mut i, &axes.lhs_batch, batch);
                set(&mut i, &lhs_free, of_lhs);
                set(&mut i, &axes.lhs_contract, &inner);
                set(&mut j, &axes.rhs_batch, batch);
                set(&mut j, &rhs_free, of_rhs);
                set(&mut j, &axes.rhs_contract, &inner);
                a.at(&i) * b.at(&j)
            })
            .sum();
        wrap(dtype, sum)
    })
}

/// Walks over every product of the trilinear form and adds it to the operand that is computed.
fn conv(
    operand: ConvOperand,
    g: &ConvGeometry,
    first: &HostTensor,
    second: &HostTensor,
    dtype: DType,
    shape: &[usize],
) -> HostTensor {
    let mut result = HostTensor::new(dtype, shape, vec![0.0; shape.iter().product()]);
    let strides = contiguous_strides(shape);
    let (per_group_in, per_group_out) = (g.in_channels / g.groups, g.out_channels / g.groups);
    for batch in 0..g.batch {
        for out_channel in 0..g.out_channels {
            for channel in 0..per_group_in {
                for place in indices(&g.output) {
                    for tap in indices(&g.kernel) {
                        let input: Option<Vec<usize>> = (0..place.len())
                            .map(|axis| {
                                let at = place[axis] * g.stride[axis] + tap[axis] * g.dilation[axis];
                                at.checked_sub(g.pad_low[axis]).filter(|&at| at < g.input[axis])
                            })
                            .collect();
                        let Some(input) = input else { continue };
                        let in_channel = out_channel / per_group_out.max(1) * per_group_in + channel;
                        let x = [&[batch, in_channel][..], &input].concat();
                        let w = [&[out_channel, channel][..], &tap].concat();
                        let y = [&[batch, out_channel][..], &place].concat();
                        let (target, product) = match operand {
                            ConvOperand::Output => (&y, first.at(&x) * second.at(&w)),
                            ConvOperand::Input => (&x, first.at(&y) * second.at(&w)),
                            ConvOperand::Filter => (&w, first.at(&y) * second.at(&x)),
                        };
                        let linear: usize = target.iter().zip(&strides).map(|(&i, &s)| i * s as usize).sum();
                        result.data[linear] += product;
                    }
                }
            }
        }
    }
    result
}

fn window(
    kind: WindowKind,
    a: &WindowAttributes,
    inputs: &[&HostTensor],
    dtype: DType,
    shape: &[usize],
) -> HostTensor {
    let mut result = HostTensor::new(dtype, shape, vec![0.0; shape.iter().product()]);
    let leading = shape.len() - a.window.len();
    let places = a.output();
    let strides = contiguous_strides(shape);
    for outer in indices(&shape[..leading]) {
        for place in indices(&places) {
            let inside: Vec<Vec<usize>> = indices(&a.window)
                .filter_map(|tap| {
                    let spatial: Option<Vec<usize>> = (0..tap.len())
                        .map(|axis| {
                            let at = place[axis] * a.stride[axis] + tap[axis];
                            at.checked_sub(a.pad_low[axis]).filter(|&at| at < a.input[axis])
                        })
                        .collect();
                    spatial.map(|spatial| [&outer[..], &spatial].concat())
                })
                .collect();
            let of_window = [&outer[..], &place].concat();
            let largest = || {
                let elements: Vec<f64> = inside.iter().map(|index| inputs[0].at(index)).collect();
                first_largest(&elements).map(|i| &inside[i])
            };
            let mut add = |index: &[usize], value: f64| {
                let linear: usize = index.iter().zip(&strides).map(|(&i, &s)| i * s as usize).sum();
                result.data[linear] += value;
            };
            match kind {
                WindowKind::Max => {
                    add(&of_window, largest().map_or(f64::NEG_INFINITY, |index| inputs[0].at(index)))
                }
                WindowKind::Sum => add(&of_window, inside.iter().map(|index| inputs[0].at(index)).sum()),
                WindowKind::ScatterToMax => {
                    if let Some(index) = largest() {
                        add(index, inputs[1].at(&of_window));
                    }
                }
                WindowKind::GatherAtMax => {
                    add(&of_window, largest().map_or(0.0, |index| inputs[1].at(index)))
                }
                WindowKind::Spread => inside.iter().for_each(|index| add(index, inputs[0].at(&of_window))),
            }
        }
    }
    result
}

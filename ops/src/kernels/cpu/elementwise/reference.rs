//! A plain interpreter of clusters, one point at a time: floats in f64 and rounded after each step, integers exactly.

use crate::cluster::{BinaryOp, Cluster, CompareOp, Literal, StepOp, UnaryOp};
use halite_hal::{DType, Scalar};

/// Element `at` of a buffer of `dtype`, as bits.
pub(crate) fn read(bytes: &[u8], dtype: DType, at: usize) -> u64 {
    let size = dtype.size();
    let mut bits = [0; 8];
    bits[..size].copy_from_slice(&bytes[at * size..(at + 1) * size]);
    u64::from_le_bytes(bits)
}

/// Bits as a float; of a float type.
pub(crate) fn float(dtype: DType, bits: u64) -> f64 {
    Literal { dtype, bits }.to_f64()
}

/// Bits as an integer of any width; of an integer type or `bool`.
pub(crate) fn integer(dtype: DType, bits: u64) -> i128 {
    match dtype {
        DType::I8 => i128::from(bits as i8),
        DType::I16 => i128::from(bits as i16),
        DType::I32 => i128::from(bits as i32),
        DType::I64 => i128::from(bits as i64),
        _ => i128::from(bits),
    }
}

/// The low bits of an integer, as many as `dtype` has.
pub(crate) fn wrap(dtype: DType, value: i128) -> u64 {
    let bits = dtype.size() as u32 * 8;
    (value as u64) & (u64::MAX >> (64 - bits))
}

/// `value` rounded to `dtype`, to nearest even and once.
///
/// NOTE: `half` drops the low bits of an f64 before it rounds, so that a value just above a tie may round down.
pub(crate) fn rounded(dtype: DType, value: f64) -> u64 {
    let guess = Literal::new(dtype, value).bits;
    if !matches!(dtype, DType::F16 | DType::BF16) || !value.is_finite() {
        return guess;
    }
    let distance = |bits: u64| {
        let finite = float(dtype, bits);
        // Where infinity stands on the line of numbers, one step beyond the largest.
        let edge = if dtype == DType::F16 { 65536.0 } else { 2f64.powi(128) };
        let place = if finite.is_infinite() { edge.copysign(finite) } else { finite };
        (place - value).abs()
    };
    let nearby = [guess.wrapping_sub(1) & 0xffff, guess, (guess + 1) & 0xffff];
    let valid = nearby.into_iter().filter(|bits| !float(dtype, *bits).is_nan());
    valid.min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1)))).unwrap_or(guess)
}

fn unary(op: UnaryOp, dtype: DType, bits: u64) -> u64 {
    if !dtype.is_float() {
        let x = integer(dtype, bits);
        return match op {
            UnaryOp::Neg => wrap(dtype, -x),
            UnaryOp::Abs => wrap(dtype, x.abs()),
            UnaryOp::Sign => wrap(dtype, x.signum()),
            UnaryOp::Not if dtype == DType::Bool => bits ^ 1,
            _ => wrap(dtype, !x),
        };
    }
    let x = float(dtype, bits);
    let y = match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Sign if x > 0.0 => 1.0,
        UnaryOp::Sign if x < 0.0 => -1.0,
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
        _ => x,
    };
    rounded(dtype, y)
}

fn binary(op: BinaryOp, dtype: DType, a: u64, b: u64) -> u64 {
    let width = i128::from(dtype.size() as u64 * 8);
    if !dtype.is_float() {
        let (a, b) = (integer(dtype, a), integer(dtype, b));
        let amount = if (0..width).contains(&b) { b as u32 } else { 127 };
        return wrap(
            dtype,
            match op {
                BinaryOp::Add => a + b,
                BinaryOp::Sub => a - b,
                BinaryOp::Mul => a.wrapping_mul(b),
                BinaryOp::Div => a.checked_div(b).unwrap_or(0),
                BinaryOp::Rem => a.checked_rem(b).unwrap_or(0),
                BinaryOp::Max => a.max(b),
                BinaryOp::Min => a.min(b),
                BinaryOp::And => a & b,
                BinaryOp::Or => a | b,
                BinaryOp::Xor => a ^ b,
                BinaryOp::Shl if amount == 127 => 0,
                BinaryOp::Shl => a << amount,
                _ => a >> amount,
            },
        );
    }
    let (a, b) = (float(dtype, a), float(dtype, b));
    let y = match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Rem => a % b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Max if a > b || a.is_nan() => a,
        BinaryOp::Min if a < b || a.is_nan() => a,
        _ => b,
    };
    rounded(dtype, y)
}

fn compare(op: CompareOp, dtype: DType, a: u64, b: u64) -> bool {
    let order = if dtype.is_float() {
        float(dtype, a).partial_cmp(&float(dtype, b))
    } else {
        Some(integer(dtype, a).cmp(&integer(dtype, b)))
    };
    match op {
        CompareOp::Eq => order.is_some_and(|order| order.is_eq()),
        CompareOp::Lt => order.is_some_and(|order| order.is_lt()),
        CompareOp::Le => order.is_some_and(|order| order.is_le()),
    }
}

/// Converts an element; exact for integers beyond 2^53 as well.
pub(crate) fn cast(from: DType, to: DType, bits: u64) -> u64 {
    match (from.is_float(), to) {
        (true, DType::Bool) => u64::from(float(from, bits) != 0.0),
        (false, DType::Bool) => u64::from(bits != 0),
        // Through f64 a large integer would be rounded twice.
        (false, DType::F32) => u64::from((integer(from, bits) as f32).to_bits()),
        (false, DType::F64) => (integer(from, bits) as f64).to_bits(),
        (false, DType::BF16) => {
            // bf16 has 8 bits: an integer whose lower bits are one sticky bit rounds the same.
            let value = integer(from, bits);
            let sticky = if value.abs() < 1 << 40 {
                value
            } else {
                value & !0xffff | i128::from(value & 0xffff != 0) << 16
            };
            rounded(to, sticky as f64)
        }
        (false, DType::F16) => rounded(to, integer(from, bits) as f64),
        (false, _) => wrap(to, integer(from, bits)),
        // A signalling NaN or its payload may change, which tests ignore.
        (true, _) => rounded(to, float(from, bits)),
    }
}

/// The values of every output at every point, as bits.
pub(crate) fn interpret(cluster: &Cluster, inputs: &[&[u8]], scalars: &[Scalar]) -> Vec<Vec<u64>> {
    let points = cluster.points();
    let mut outputs = vec![Vec::with_capacity(points); cluster.outputs.len()];
    let mut index = vec![0usize; cluster.shape.len()];
    for point in 0..points {
        let mut rest = point;
        for axis in (0..cluster.shape.len()).rev() {
            index[axis] = rest % cluster.shape[axis];
            rest /= cluster.shape[axis];
        }
        let mut values: Vec<u64> = Vec::with_capacity(cluster.steps.len());
        for step in &cluster.steps {
            let dtype_of = |value: u32| cluster.steps[value as usize].dtype;
            let value = |id: u32| values[id as usize];
            let bits = match step.op {
                StepOp::Load(input) => {
                    let view = &cluster.inputs[input as usize];
                    let at: i64 = view.offset
                        + view.strides.iter().zip(&index).map(|(s, i)| s * *i as i64).sum::<i64>();
                    read(inputs[input as usize], view.dtype, at as usize)
                }
                StepOp::Scalar(scalar) => scalars[scalar as usize].to_bits(),
                StepOp::Constant(literal) => literal.bits,
                StepOp::Index(axis) => cast(DType::I64, step.dtype, index[axis as usize] as u64),
                StepOp::Unary(op, a) => unary(op, step.dtype, value(a)),
                StepOp::Binary(op, a, b) => binary(op, step.dtype, value(a), value(b)),
                StepOp::Compare(op, a, b) => u64::from(compare(op, dtype_of(a), value(a), value(b))),
                StepOp::Select(condition, a, b) => {
                    if value(condition) != 0 {
                        value(a)
                    } else {
                        value(b)
                    }
                }
                StepOp::Cast(a) => cast(dtype_of(a), step.dtype, value(a)),
                StepOp::Bitcast(a) if step.dtype == DType::Bool => u64::from(value(a) != 0),
                StepOp::Bitcast(a) => value(a),
            };
            values.push(bits);
        }
        for (output, id) in outputs.iter_mut().zip(&cluster.outputs) {
            output.push(values[*id as usize]);
        }
    }
    outputs
}

//! A plain interpreter of elementwise programs, point by point, in f64 and i64 with a rounding after each step.

use crate::cluster::{BinaryOp, Cluster, CompareOp, StepOp, UnaryOp};
use halite_hal::{DType, Scalar};

/// A value: floats in f64, everything else in i64. Both are exact for the machine's types.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Float(f64),
    Int(i64),
}

impl Value {
    fn float(self) -> f64 {
        match self {
            Self::Float(value) => value,
            Self::Int(value) => value as f64,
        }
    }

    fn int(self) -> i64 {
        match self {
            Self::Float(value) => value as i64,
            Self::Int(value) => value,
        }
    }

    pub(super) fn read(dtype: DType, bytes: &[u8], index: i64) -> Self {
        let at = usize::try_from(index).expect("views stay inside their buffers") * dtype.size();
        let bytes = &bytes[at..at + dtype.size()];
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        Self::of_bits(dtype, u64::from_ne_bytes(wide))
    }

    fn of_bits(dtype: DType, bits: u64) -> Self {
        match dtype {
            DType::F32 => Self::Float(f32::from_bits(bits as u32).into()),
            DType::F16 => Self::Float(half::f16::from_bits(bits as u16).into()),
            DType::BF16 => Self::Float(half::bf16::from_bits(bits as u16).into()),
            DType::I32 => Self::Int((bits as i32).into()),
            DType::I64 => Self::Int(bits as i64),
            _ => Self::Int(bits as i64),
        }
    }

    pub(super) fn bits(self, dtype: DType) -> u64 {
        match dtype {
            DType::F32 => (self.float() as f32).to_bits().into(),
            DType::F16 => half::f16::from_f32(self.float() as f32).to_bits().into(),
            DType::BF16 => half::bf16::from_f32(self.float() as f32).to_bits().into(),
            DType::I32 | DType::U32 => u64::from(self.int() as u32),
            DType::Bool | DType::U8 => u64::from(self.int() as u8),
            _ => self.int() as u64,
        }
    }

    /// Rounded or wrapped to the dtype.
    fn fit(self, dtype: DType) -> Self {
        Self::of_bits(dtype, self.bits(dtype))
    }
}

/// All outputs of a program, point by point in row-major order.
pub(super) fn evaluate(program: &Cluster, inputs: &[Vec<u8>], scalars: &[Scalar]) -> Vec<Vec<Value>> {
    let mut outputs = vec![Vec::new(); program.outputs.len()];
    let mut index = vec![0_i64; program.shape.len()];
    for _ in 0..program.points() {
        let values = point(program, inputs, scalars, &index);
        for (output, &step) in outputs.iter_mut().zip(&program.outputs) {
            output.push(values[step as usize]);
        }
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < program.shape[axis] as i64 {
                break;
            }
            index[axis] = 0;
        }
    }
    outputs
}

fn point(program: &Cluster, inputs: &[Vec<u8>], scalars: &[Scalar], index: &[i64]) -> Vec<Value> {
    let mut values: Vec<Value> = Vec::new();
    for step in &program.steps {
        let of = |value: u32| values[value as usize];
        let value = match step.op {
            StepOp::Load(n) => {
                let view = &program.inputs[n as usize];
                let at =
                    view.offset + index.iter().zip(&view.strides).map(|(i, stride)| i * stride).sum::<i64>();
                Value::read(view.dtype, &inputs[n as usize], at)
            }
            StepOp::Scalar(n) => match scalars[n as usize] {
                Scalar::F32(value) => Value::Float(value.into()),
                Scalar::I32(value) => Value::Int(value.into()),
                Scalar::U32(value) => Value::Int(value.into()),
                other => panic!("{other:?} is no scalar of a program"),
            },
            StepOp::Constant(literal) => Value::of_bits(literal.dtype, literal.bits),
            StepOp::Index(axis) => match step.dtype.is_float() {
                true => Value::Float(index[axis as usize] as f64),
                false => Value::Int(index[axis as usize]),
            },
            StepOp::Unary(op, a) if step.dtype.is_float() => Value::Float(unary_float(op, of(a).float())),
            StepOp::Unary(op, a) => Value::Int(unary_int(op, step.dtype, of(a).int())),
            StepOp::Binary(op, a, b) if step.dtype.is_float() => {
                Value::Float(binary_float(op, of(a).float(), of(b).float()))
            }
            StepOp::Binary(op, a, b) => Value::Int(binary_int(op, step.dtype, of(a).int(), of(b).int())),
            StepOp::Compare(op, a, b) => {
                let (a, b) = (of(a), of(b));
                let holds = match (a, b) {
                    (Value::Int(a), Value::Int(b)) => match op {
                        CompareOp::Eq => a == b,
                        CompareOp::Lt => a < b,
                        CompareOp::Le => a <= b,
                    },
                    _ => match op {
                        CompareOp::Eq => a.float() == b.float(),
                        CompareOp::Lt => a.float() < b.float(),
                        CompareOp::Le => a.float() <= b.float(),
                    },
                };
                Value::Int(holds.into())
            }
            StepOp::Select(mask, a, b) => {
                if of(mask).int() != 0 {
                    of(a)
                } else {
                    of(b)
                }
            }
            StepOp::Cast(a) => cast(of(a), step.dtype),
            StepOp::Bitcast(a) => Value::of_bits(step.dtype, of(a).bits(program.steps[a as usize].dtype)),
        };
        values.push(value.fit(step.dtype));
    }
    values
}

fn cast(value: Value, to: DType) -> Value {
    match (value, to) {
        (value, DType::Bool) => {
            Value::Int(i64::from(!matches!(value, Value::Int(0)) && value.float() != 0.0))
        }
        (Value::Float(value), DType::I32) => Value::Int((value as i32).into()),
        (Value::Float(value), DType::U32) => Value::Int((value as u32).into()),
        (Value::Float(value), DType::U8) => Value::Int((value as u8).into()),
        (Value::Float(value), to) if !to.is_float() => Value::Int(value as i64),
        (Value::Int(value), to) if to.is_float() => Value::Float((value as f32).into()),
        (value, _) => value,
    }
}

fn unary_float(op: UnaryOp, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Sign => {
            if x == 0.0 || x.is_nan() {
                x
            } else {
                x.signum()
            }
        }
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
        UnaryOp::Not => panic!("floats have no complement"),
    }
}

fn unary_int(op: UnaryOp, dtype: DType, x: i64) -> i64 {
    match op {
        UnaryOp::Neg => x.wrapping_neg(),
        UnaryOp::Abs => x.wrapping_abs(),
        UnaryOp::Sign => x.signum(),
        UnaryOp::Not if dtype == DType::Bool => i64::from(x == 0),
        UnaryOp::Not => !x,
        other => panic!("integers have no {other:?}"),
    }
}

fn binary_float(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Rem => a % b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Max if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Max => a.max(b),
        BinaryOp::Min if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Min => a.min(b),
        other => panic!("floats have no {other:?}"),
    }
}

fn binary_int(op: BinaryOp, dtype: DType, a: i64, b: i64) -> i64 {
    let width = 8 * dtype.size() as i64;
    match op {
        BinaryOp::Add => a.wrapping_add(b),
        BinaryOp::Sub => a.wrapping_sub(b),
        BinaryOp::Mul => a.wrapping_mul(b),
        BinaryOp::Div => {
            if b == 0 {
                0
            } else {
                a.wrapping_div(b)
            }
        }
        BinaryOp::Rem => {
            if b == 0 {
                0
            } else {
                a.wrapping_rem(b)
            }
        }
        BinaryOp::Max => a.max(b),
        BinaryOp::Min => a.min(b),
        BinaryOp::And => a & b,
        BinaryOp::Or => a | b,
        BinaryOp::Xor => a ^ b,
        BinaryOp::Shl => {
            if (0..width).contains(&b) {
                a << b
            } else {
                0
            }
        }
        BinaryOp::Shr => {
            if (0..width).contains(&b) {
                a >> b
            } else if a < 0 {
                -1
            } else {
                0
            }
        }
        BinaryOp::Pow => panic!("integers have no power"),
    }
}

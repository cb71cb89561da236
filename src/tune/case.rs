//! The work that candidates are tried with: sizes of real networks, one class of sizes a case.

use crate::Error;
use halite_hal::Error as HalError;
use halite_ops::{DType, Engine, Result, Tensor, grad};

/// A computation that one op dominates, and the sizes that it stands for.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The op, as profiles name it.
    pub op: &'static str,
    /// The sizes, as people write them.
    pub label: &'static str,
    /// The class of sizes, as a profile's `when`.
    pub when: &'static str,
    /// Shapes of the inputs.
    pub(super) inputs: &'static [&'static [usize]],
    pub(super) compute: fn(&[Tensor]) -> Result<Vec<Tensor>>,
}

/// The cases of `op`, or of every op.
///
/// # Errors
/// `InvalidArgument` for an op that has none.
pub fn cases(op: Option<&str>) -> std::result::Result<Vec<Case>, Error> {
    let Some(wanted) = op else { return Ok(CASES.to_vec()) };
    let name = op_named(wanted);
    let found: Vec<Case> = CASES.iter().copied().filter(|case| case.op == name).collect();
    if found.is_empty() {
        let mut known: Vec<&str> = CASES.iter().map(|case| case.op).collect();
        known.dedup();
        return Err(HalError::invalid(format!(
            "'{wanted}' is no op that can be tuned; use {}",
            known.join(", ")
        ))
        .into());
    }
    Ok(found)
}

/// The name in profiles of an op that people also call otherwise.
pub fn op_named(name: &str) -> &str {
    match name {
        "matmul" | "dot" => "dot_general",
        "conv" | "conv2d" => "conv_general",
        "window" | "pool" => "window_reduce",
        other => other,
    }
}

impl Case {
    /// The inputs, from a fixed seed, on this engine.
    pub(super) fn inputs_on(&self, engine: &Engine) -> Result<Vec<Tensor>> {
        let tensor = |(number, shape): (usize, &&[usize])| {
            let elements: usize = shape.iter().product();
            // A multiplicative sequence over the 24 bits of a float's mantissa: -1..1, no period within a tensor.
            let value = |i: usize| {
                let bits = (i as u32).wrapping_add(number as u32 * 77_777).wrapping_mul(2_654_435_761) >> 8;
                bits as f32 / (1u32 << 23) as f32 - 1.0
            };
            engine.tensor(&(0..elements).map(value).collect::<Vec<f32>>(), shape)
        };
        self.inputs.iter().enumerate().map(tensor).collect()
    }
}

fn product(x: &[Tensor]) -> Result<Vec<Tensor>> {
    Ok(vec![x[0].matmul(&x[1])?])
}

/// Of whole numbers, whose sums are exact, so that whoever adds them in another order rounds the same number.
fn product_in_bf16(x: &[Tensor]) -> Result<Vec<Tensor>> {
    let whole = |x: &Tensor| x.mul(4.0)?.round()?.cast(DType::BF16);
    Ok(vec![whole(&x[0])?.matmul(&whole(&x[1])?)?.cast(DType::F32)?])
}

/// The convolution and both its gradients, as a training step has them.
fn convolution(x: &[Tensor]) -> Result<Vec<Tensor>> {
    let y = x[0].conv2d(&x[1], 1)?;
    let loss = y.mul(&y)?.sum_all()?;
    let mut outputs = grad(&loss, &[&x[0], &x[1]])?;
    outputs.push(y);
    Ok(outputs)
}

/// Eleven operations on two inputs: four are transcendental.
fn chain(x: &[Tensor]) -> Result<Vec<Tensor>> {
    let (a, b) = (&x[0], &x[1]);
    let gate = a.mul(0.5)?.tanh()?.mul(0.5)?.add(0.5)?;
    let wave = b.exp()?.add(1.0)?.sqrt()?;
    Ok(vec![gate.mul(&wave)?.add(&a.mul(b)?)?.relu()?])
}

fn row_sums(x: &[Tensor]) -> Result<Vec<Tensor>> {
    Ok(vec![x[0].mul(&x[0])?.sum(&[1])?])
}

fn column_sums(x: &[Tensor]) -> Result<Vec<Tensor>> {
    Ok(vec![x[0].sum(&[0])?])
}

fn pooling(x: &[Tensor]) -> Result<Vec<Tensor>> {
    let y = x[0].max_pool2d(2)?;
    let loss = y.mul(&y)?.sum_all()?;
    let mut outputs = grad(&loss, &[&x[0]])?;
    outputs.push(y);
    Ok(outputs)
}

const CASES: [Case; 11] = [
    Case {
        op: "dot_general",
        label: "1024 x 1024 x 1024",
        when: "bits == 32 and m >= 256 and n >= 256",
        inputs: &[&[1024, 1024], &[1024, 1024]],
        compute: product,
    },
    Case {
        op: "dot_general",
        label: "8 x 2048 x 2048",
        when: "bits == 32 and m <= 16 and n >= 256",
        inputs: &[&[8, 2048], &[2048, 2048]],
        compute: product,
    },
    Case {
        op: "dot_general",
        label: "64 x 128 x 1568",
        when: "bits == 32 and (m < 256 or n < 256)",
        inputs: &[&[64, 1568], &[1568, 128]],
        compute: product,
    },
    Case {
        op: "dot_general",
        label: "1024 x 1024 x 1024 in bf16",
        when: "bits == 16 and m >= 256 and n >= 256",
        inputs: &[&[1024, 1024], &[1024, 1024]],
        compute: product_in_bf16,
    },
    Case {
        op: "conv_general",
        label: "64 images of 16 x 28 x 28, 32 filters 3 x 3",
        when: "bits == 32 and pixels >= 128",
        inputs: &[&[64, 16, 28, 28], &[32, 16, 3, 3]],
        compute: convolution,
    },
    Case {
        op: "conv_general",
        label: "32 images of 16 x 8 x 8, 32 filters 3 x 3",
        when: "bits == 32 and pixels < 128",
        inputs: &[&[32, 16, 8, 8], &[32, 16, 3, 3]],
        compute: convolution,
    },
    Case {
        op: "elementwise",
        label: "1,048,576 elements, 11 operations",
        when: "n >= 65536",
        inputs: &[&[1024, 1024], &[1024, 1024]],
        compute: chain,
    },
    Case {
        op: "elementwise",
        label: "4,096 elements, 11 operations",
        when: "n < 65536",
        inputs: &[&[64, 64], &[64, 64]],
        compute: chain,
    },
    Case {
        op: "reduce",
        label: "1024 rows of 1024",
        when: "k >= 256",
        inputs: &[&[1024, 1024]],
        compute: row_sums,
    },
    Case {
        op: "reduce",
        label: "128 rows of 1024, over the rows",
        when: "k < 256",
        inputs: &[&[128, 1024]],
        compute: column_sums,
    },
    Case {
        op: "window_reduce",
        label: "64 images of 32 x 28 x 28, windows 2 x 2",
        when: "window >= 1",
        inputs: &[&[64, 32, 28, 28]],
        compute: pooling,
    },
];

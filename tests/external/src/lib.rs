//! `swish`, an operation that Halite does not have, added from outside: a shape rule, a derivative, a plain
//! reference, a native kernel for CPUs and a program for NPUs.
//!
//! `out[i] = gain * x[i] / (1 + exp(-beta * x[i]))`, where `beta` is learned like any other parameter (Ramachandran,
//! Zoph and Le, "Searching for activation functions", 2017, section 4) and `gain` is an attribute, fixed for each
//! operation (Alcaide, "E-swish: Adjusting activations to different network depths", 2018). [`swish`] has the gain 1.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let session = halite_external_op::register(halite::Session::builder()).build()?;
//! let engine = session.open("cpu")?;
//! let x = engine.tensor(&[-1.0f32, 0.0, 1.0], &[3])?;
//! let beta = engine.tensor(&[1.0f32], &[1])?;
//! let out = halite_external_op::swish(&x, &beta)?.to_vec::<f32>()?;
//! assert!((out[2] - 0.731_058_6).abs() < 1e-6);
//!
//! let scaled = halite_external_op::Swish::new(1.5);
//! let out = scaled.call(&x, &beta)?.to_vec::<f32>()?;
//! assert!((out[2] - 1.096_587_9).abs() < 1e-6);
//! # Ok(())
//! # }
//! ```
//!
//! # Where NPUs come from
//!
//! Halite opens NPU plugins at run time. `HALITE_PLUGIN_PATH` names their files or folders; without it, Halite looks
//! beside the executable and in `deps` below it. Cargo builds the emulator's library into that `deps` folder, since
//! Halite depends on it; so `cargo run` and `cargo test` find it without further ado. A program that is installed
//! elsewhere takes the library along, or names it.

mod cpu;
mod npu;

use halite::ops::lower::{KernelOp, LowerRequest, TensorType, Unservable};
use halite::ops::reference::HostTensor;
use halite::{CustomOp, DType, SessionBuilder, Tensor};
use std::sync::{Arc, LazyLock};

/// The name under which kernels are registered and profiles choose.
pub const NAME: &str = "swish";

/// Makes the operation's kernels known to a session's engines.
#[must_use]
pub fn register(builder: SessionBuilder) -> SessionBuilder {
    builder.kernel(cpu::variant()).kernel(npu::variant())
}

/// `x / (1 + exp(-beta * x))`, elementwise; `beta` has one element.
///
/// # Errors
/// As [`Swish::call`].
#[track_caller]
pub fn swish(x: &Tensor, beta: &Tensor) -> halite::ops::Result<Tensor> {
    static OP: LazyLock<Arc<Swish>> = LazyLock::new(|| Swish::new(1.0));
    OP.call(x, beta)
}

/// The operation with its attribute, the gain; kernels find it in the call.
///
/// Keep one for all calls with the same gain: a plan is found again by the very operation that it was made for.
#[derive(Debug)]
pub struct Swish {
    gain: f32,
}

impl Swish {
    /// The operation with this gain.
    #[must_use]
    pub fn new(gain: f32) -> Arc<Self> {
        Arc::new(Self { gain })
    }

    /// `gain * x / (1 + exp(-beta * x))`, elementwise; `beta` has one element.
    ///
    /// # Errors
    /// `Shape` when `beta` has not exactly one element or an operand is not f32, `Placement` when the two live on
    /// different devices.
    #[track_caller]
    pub fn call(self: &Arc<Self>, x: &Tensor, beta: &Tensor) -> halite::ops::Result<Tensor> {
        Tensor::call(self.clone(), &[x, beta])
    }
}

/// The attribute of the operation that a kernel is asked for.
fn gain(request: &LowerRequest<'_>) -> Result<f32, Unservable> {
    let KernelOp::Custom(call) = request.op else {
        return Err(Unservable::new("the operation is a built-in"));
    };
    let swish = call.op_as::<Swish>();
    swish.map(|op| op.gain).ok_or_else(|| Unservable::new(format!("another crate's operation named {NAME}")))
}

impl CustomOp for Swish {
    fn name(&self) -> &str {
        NAME
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType, String> {
        let [x, beta] = inputs else {
            return Err(format!("takes x and beta, got {} tensors", inputs.len()));
        };
        if beta.elements() != 1 {
            return Err(format!("beta must have one element, got shape {:?}; reduce it first", beta.shape));
        }
        if let Some(other) = [x, beta].iter().find(|operand| operand.dtype != DType::F32) {
            return Err(format!("x and beta must be f32, got {}; cast first", other.dtype));
        }
        Ok(x.clone())
    }

    fn derivative(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> halite::ops::Result<Vec<Option<Tensor>>> {
        let (x, beta) = (&inputs[0], &inputs[1]);
        let one = x.full_like(1.0);
        let sigmoid = one.div(&x.mul(beta)?.neg()?.exp()?.add(1.0)?)?;
        // out * (1 - sigmoid) is what both derivatives share; the gain is in out already.
        let shared = output.mul(&one.sub(&sigmoid)?)?.mul(cotangent)?;
        let by_x = sigmoid.mul(cotangent)?.mul(self.gain)?.add(&shared.mul(beta)?)?;
        let by_beta = shared.mul(x)?.sum_all()?.reshape(beta.shape())?;
        Ok(vec![Some(by_x), Some(by_beta)])
    }

    fn reference(&self, inputs: &[HostTensor]) -> Result<HostTensor, String> {
        let [x, beta] = inputs else {
            return Err(format!("takes x and beta, got {} tensors", inputs.len()));
        };
        let beta = beta.data.first().ok_or("beta is empty")?;
        let gain = f64::from(self.gain);
        let data = x.data.iter().map(|x| gain * (x / (1.0 + (-beta * x).exp()))).collect();
        Ok(HostTensor::new(x.dtype, &x.shape, data))
    }
}

//! Lazy tensors: every method checks types and shapes, adds a node, and computes nothing.

pub(crate) mod contract;
mod creation;
mod elementwise;
mod movement;
mod reduce;
mod window;

use crate::engine::Engine;
use crate::lower::TensorType;
use crate::node::Node;
use crate::op::Op;
use crate::{CustomOp, DType, Error, Result};
use halite_hal::{Element, from_bytes};
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

/// A tensor: a node of a lazy graph on one device.
///
/// 1. Methods build nodes; shape, dtype and placement errors appear there, with the caller's source line.
/// 2. [`eval`](crate::eval), [`to_vec`](Self::to_vec) and the like compute; device errors appear there. A failed
///    evaluation leaves its inputs as they were, and may be tried again, but for one case: a value that nobody else
///    holds (a weight whose handle was replaced by its successor) hands its memory on to the result. If such an
///    update fails when it has begun to overwrite that memory, the old value is lost; reading its successor is then an
///    error that says to make the input anew.
/// 3. A node is computed once. From then on it is *settled*: a leaf for [`grad`](crate::grad()) and for later
///    evaluations, and what it was computed from is released. Form gradients before reading the loss.
///
/// Clones are handles to the same node. `Send + Sync`; handles may be used from any thread.
#[derive(Clone)]
pub struct Tensor(pub(crate) Arc<Node>);

impl Tensor {
    pub(crate) fn from_node(node: Node) -> Self {
        Self(Arc::new(node))
    }

    /// A node on the device of its first input.
    pub(crate) fn build(op: Op, dtype: DType, shape: Vec<usize>, inputs: Vec<Tensor>) -> Self {
        let placement = inputs[0].0.placement.clone();
        Self::from_node(Node::new(op, dtype, shape, placement, inputs, None))
    }

    /// Extent per axis; empty for a single element.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.shape.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.0.elements()
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Dtype and shape.
    pub fn tensor_type(&self) -> TensorType {
        TensorType::new(self.dtype(), self.shape())
    }

    /// The device that computes and holds the tensor.
    pub fn engine(&self) -> &Engine {
        self.0.placement.engine()
    }

    /// Whether the value has been computed (or its computation enqueued).
    pub fn is_settled(&self) -> bool {
        self.0.state().value.is_some()
    }

    /// Whether both handles name the same node.
    pub fn is_same(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Computes the tensor and copies its elements to the host, row-major. Blocks.
    ///
    /// # Errors
    /// `DType` when the elements are not `T` (`bool` reads as `u8`), or the device's failure.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let fits = self.dtype() == T::DTYPE || (self.dtype() == DType::Bool && T::DTYPE == DType::U8);
        if !fits {
            let message = format!("the tensor holds {}, asked for {}; cast it first", self.dtype(), T::DTYPE);
            return Err(Error::dtype("to_vec", message));
        }
        Ok(from_bytes(&self.engine().read(self)?))
    }

    /// Computes the tensor and copies its elements to the host as f64, whatever their dtype. Blocks.
    ///
    /// # Errors
    /// The device's failure.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        Ok(crate::reference::decode(self.dtype(), &self.engine().read(self)?))
    }

    /// The only element as f64. Blocks.
    ///
    /// # Errors
    /// `Shape` when there is not exactly one element, or the device's failure.
    #[track_caller]
    pub fn item(&self) -> Result<f64> {
        if self.elements() != 1 {
            let message =
                format!("a tensor of shape {:?} has no single element; reduce it first", self.shape());
            return Err(Error::shape("item", message));
        }
        Ok(self.to_f64()?[0])
    }

    /// A settled copy of this tensor's value on another device (or the same). Blocks when it differs.
    ///
    /// # Errors
    /// The failure of either device.
    pub fn to(&self, engine: &Engine) -> Result<Tensor> {
        if engine.is_same(self.engine()) {
            return Ok(self.clone());
        }
        let bytes = self.engine().read(self)?;
        engine.leaf(self.dtype(), self.shape().to_vec(), &bytes)
    }

    /// A settled tensor with this one's value and no history: gradients end here.
    ///
    /// # Errors
    /// The device's failure.
    pub fn detach(&self) -> Result<Tensor> {
        crate::eval(&[self])?;
        let value = self.0.state().value.clone();
        let placement = self.0.placement.clone();
        let node = Node::new(Op::Leaf, self.dtype(), self.shape().to_vec(), placement, Vec::new(), value);
        Ok(Self::from_node(node))
    }

    /// Calls an operation of another crate on `inputs`.
    ///
    /// # Errors
    /// `Shape` with the operation's own message, `Placement` when the inputs live on different devices.
    #[track_caller]
    pub fn call(op: Arc<dyn CustomOp>, inputs: &[&Tensor]) -> Result<Tensor> {
        let name = op.name().to_owned();
        if inputs.is_empty() {
            return Err(Error::shape(
                name,
                "an operation needs at least one tensor, which places it on a device",
            ));
        }
        for input in &inputs[1..] {
            same_engine(&name, inputs[0], input)?;
        }
        let types: Vec<_> = inputs.iter().map(|input| input.tensor_type()).collect();
        let out = match op.infer(&types) {
            Ok(out) => out,
            Err(message) => return Err(Error::shape(name, message)),
        };
        creation::check_elements(&name, &out.shape)?;
        let inputs = inputs.iter().map(|&input| input.clone()).collect();
        Ok(Self::build(Op::Custom(op), out.dtype, out.shape, inputs))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.engine().device().id();
        write!(f, "Tensor#{}({}, {} {:?}, {device})", self.0.id, self.0.op.name(), self.dtype(), self.shape())
    }
}

/// What an elementwise method takes beside `self`: a tensor, or a number of the tensor's dtype.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// A tensor.
    Tensor(&'a Tensor),
    /// A constant. It is part of a plan's key: for numbers that change from call to call, use
    /// [`Engine::runtime_scalar`].
    Number(f64),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl From<f64> for Operand<'_> {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<f32> for Operand<'_> {
    fn from(number: f32) -> Self {
        Self::Number(number.into())
    }
}

impl From<i32> for Operand<'_> {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

#[track_caller]
pub(crate) fn same_engine(op: &str, lhs: &Tensor, rhs: &Tensor) -> Result<()> {
    if lhs.engine().is_same(rhs.engine()) {
        return Ok(());
    }
    let name = |tensor: &Tensor| tensor.engine().device().id().to_string();
    Err(Error::Placement { op: op.to_owned(), lhs: name(lhs), rhs: name(rhs), location: Location::caller() })
}

/// An axis with its padding; `None` where kernels could not count its places in signed 64-bit integers.
fn padded_extent(extent: usize, low: usize, high: usize) -> Option<usize> {
    let padded = extent.checked_add(low)?.checked_add(high)?;
    i64::try_from(padded).is_ok().then_some(padded)
}

#[track_caller]
pub(crate) fn check_axes(op: &str, axes: &[usize], rank: usize) -> Result<()> {
    for (index, axis) in axes.iter().enumerate() {
        if *axis >= rank {
            return Err(Error::shape(
                op,
                format!("axis {axis} of a tensor with {rank} axes; they count from 0"),
            ));
        }
        if axes[..index].contains(axis) {
            return Err(Error::shape(op, format!("axis {axis} is named twice in {axes:?}")));
        }
    }
    Ok(())
}

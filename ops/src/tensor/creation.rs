//! Tensors from nothing: constants, indices, random numbers, and data of the host.

use crate::cluster::Literal;
use crate::engine::Engine;
use crate::node::{Node, Placement};
use crate::op::Op;
use crate::{DType, Error, Result, Tensor};
use halite_hal::{Element, Scalar, as_bytes};

impl Engine {
    /// A settled tensor of the host's `data`, row-major.
    ///
    /// # Errors
    /// `Shape` when the number of elements is not the shape's product, or the device's failure.
    #[track_caller]
    pub fn tensor<T: Element>(&self, data: &[T], shape: &[usize]) -> Result<Tensor> {
        check_elements("tensor", shape)?;
        if data.len() != shape.iter().product::<usize>() {
            let message = format!("{} elements do not fill shape {shape:?}", data.len());
            return Err(Error::shape("tensor", message));
        }
        self.leaf(T::DTYPE, shape.to_vec(), as_bytes(data))
    }

    /// `value` everywhere, a constant of every plan that it is part of.
    ///
    /// # Errors
    /// `Shape` when the shape's product does not fit the address space.
    #[track_caller]
    pub fn full(&self, shape: &[usize], dtype: DType, value: f64) -> Result<Tensor> {
        check_elements("full", shape)?;
        Ok(self.node(Op::Full(Literal::new(dtype, value)), dtype, shape))
    }

    /// Zeros.
    ///
    /// # Errors
    /// As [`full`](Self::full).
    #[track_caller]
    pub fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.full(shape, dtype, 0.0)
    }

    /// A single number (`f32`, `i32` or `u32`) that is passed to kernels at run time: graphs that differ in its value
    /// alone share one plan. For learning rates, steps, seeds.
    ///
    /// # Errors
    /// `DType` for 64-bit scalars.
    #[track_caller]
    pub fn runtime_scalar(&self, value: Scalar) -> Result<Tensor> {
        if !matches!(value, Scalar::F32(_) | Scalar::I32(_) | Scalar::U32(_)) {
            let message = format!("a runtime scalar is f32, i32 or u32, got {}", value.dtype());
            return Err(Error::dtype("runtime_scalar", message));
        }
        Ok(self.node(Op::RuntimeScalar(value), value.dtype(), &[]))
    }

    /// The index along `axis`, as `dtype` (an integer type).
    ///
    /// # Errors
    /// `Shape` when there is no such axis, `DType` when the type holds no integers.
    #[track_caller]
    pub fn iota(&self, shape: &[usize], axis: usize, dtype: DType) -> Result<Tensor> {
        check_elements("iota", shape)?;
        super::check_axes("iota", &[axis], shape.len())?;
        if !matches!(dtype, DType::I32 | DType::U32) {
            return Err(Error::dtype(
                "iota",
                format!("indices are i32 or u32, asked for {dtype}; cast them"),
            ));
        }
        Ok(self.node(Op::Iota(axis), dtype, shape))
    }

    /// 32 random bits per element: element `i` is the first word of Threefry2x32 (20 rounds) under the key
    /// `(seed, stream)` at counter `(i, 0)`. The same on every device. Seed and stream are runtime scalars.
    ///
    /// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    ///
    /// # Errors
    /// `Shape` when the elements cannot be counted in 32 bits.
    #[track_caller]
    pub fn random_bits(&self, shape: &[usize], seed: u32, stream: u32) -> Result<Tensor> {
        check_elements("random_bits", shape)?;
        let elements: usize = shape.iter().product();
        if u32::try_from(elements).is_err() {
            return Err(Error::shape(
                "random_bits",
                format!("{elements} elements exceed the 32-bit counter; split them"),
            ));
        }
        let key = [self.runtime_scalar(Scalar::U32(seed))?, self.runtime_scalar(Scalar::U32(stream))?];
        Tensor::build(Op::RandomBits, DType::U32, vec![elements], key.into()).reshape(shape)
    }

    /// Uniform `f32` in `[low, high)`: the upper 24 bits of [`random_bits`](Self::random_bits) times 2^-24, scaled.
    /// Unscaled uniforms (0, 1) are equal as bits everywhere; so are scaled ones on devices that round as IEEE 754.
    ///
    /// # Errors
    /// As [`random_bits`](Self::random_bits).
    #[track_caller]
    pub fn uniform(&self, shape: &[usize], low: f64, high: f64, seed: u32, stream: u32) -> Result<Tensor> {
        let bits = self.random_bits(shape, seed, stream)?;
        let flat = bits.reshape(&[bits.elements()])?;
        let unit = flat.shr(8)?.cast(DType::F32)?.mul(1.0 / f64::from(1u32 << 24))?;
        let scaled = if (low, high) == (0.0, 1.0) { unit } else { unit.mul(high - low)?.add(low)? };
        scaled.reshape(shape)
    }

    fn node(&self, op: Op, dtype: DType, shape: &[usize]) -> Tensor {
        let placement = Placement::Device(self.clone());
        Tensor::from_node(Node::new(op, dtype, shape.to_vec(), placement, Vec::new(), None))
    }
}

impl Tensor {
    /// `value` everywhere, shaped and placed like this tensor.
    pub fn full_like(&self, value: f64) -> Tensor {
        self.engine().node(Op::Full(Literal::new(self.dtype(), value)), self.dtype(), self.shape())
    }

    pub(crate) fn constant(&self, literal: Literal) -> Tensor {
        self.engine().node(Op::Full(literal), literal.dtype, &[])
    }
}

#[track_caller]
pub(crate) fn check_elements(op: &str, shape: &[usize]) -> Result<()> {
    // Extents of 0 must not hide an overflow of the others: strides are computed from them.
    let product = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent.max(1)));
    match product {
        Some(elements) if isize::try_from(elements.saturating_mul(8)).is_ok() => Ok(()),
        _ => Err(Error::shape(op, format!("shape {shape:?} has more elements than the address space"))),
    }
}

//! Sample calls: shapes, values, and the call itself.

use crate::cluster::Literal;
use crate::reference::HostTensor;
use crate::{DType, Engine, Result, Tensor};
use std::fmt;
use std::sync::Arc;

/// What a sample's call is given.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The device, for calls that make tensors from nothing.
    pub engine: &'a Engine,
    /// The dtype that the op is tried with.
    pub dtype: DType,
    /// The sample's inputs.
    pub inputs: &'a [Tensor],
}

/// The dtype of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputDType {
    /// The one that the op is tried with.
    Tried,
    /// Always this one.
    Fixed(DType),
}

/// Where an input's elements come from; each is rounded to the input's dtype, saturating.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Uniform in a range; whole numbers for integers, without their sign for unsigned ones.
    Between(f64, f64),
    /// Uniform in both `-high..-low` and `low..high`, so that no element is close to 0; else as `Between`.
    AwayFromZero(f64, f64),
    /// Distinct whole multiples of a step around 0, shuffled: no two elements are equal or close.
    Distinct(f64),
    /// These in turn.
    Cycle(Vec<f64>),
}

/// One input of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Extents.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub dtype: InputDType,
    /// The elements.
    pub values: Values,
}

impl Input {
    /// An input of the tried dtype.
    pub fn new(shape: &[usize], values: Values) -> Self {
        Self { shape: shape.to_vec(), dtype: InputDType::Tried, values }
    }

    /// An input of a fixed dtype.
    pub fn of(dtype: DType, shape: &[usize], values: Values) -> Self {
        Self { shape: shape.to_vec(), dtype: InputDType::Fixed(dtype), values }
    }

    /// The elements, as `dtype` (where the input's own is not fixed) holds them.
    fn host(&self, dtype: DType, seed: u64) -> HostTensor {
        let dtype = match self.dtype {
            InputDType::Tried => dtype,
            InputDType::Fixed(fixed) => fixed,
        };
        let mut random = SplitMix(seed);
        let elements: usize = self.shape.iter().product();
        let mut data: Vec<f64> = match &self.values {
            Values::Between(low, high) => (0..elements).map(|_| random.between(*low, *high)).collect(),
            Values::AwayFromZero(low, high) => (0..elements)
                .map(|_| {
                    let size = random.between(*low, *high);
                    if random.next() & 1 == 0 { size } else { -size }
                })
                .collect(),
            Values::Distinct(step) => {
                let mut places: Vec<usize> = (0..elements).collect();
                for last in (1..elements).rev() {
                    places.swap(last, (random.next() % (last as u64 + 1)) as usize);
                }
                places.iter().map(|&place| (place as f64 - (elements / 2) as f64) * step).collect()
            }
            Values::Cycle(values) => values.iter().copied().cycle().take(elements).collect(),
        };
        let drawn = matches!(self.values, Values::Between(..) | Values::AwayFromZero(..));
        for value in &mut data {
            if drawn && !dtype.is_float() {
                *value = value.round();
            }
            if drawn && !dtype.is_signed() {
                *value = value.abs();
            }
            *value = Literal::new(dtype, *value).to_f64();
        }
        HostTensor::new(dtype, &self.shape, data)
    }
}

type Build = dyn Fn(Call<'_>) -> Result<Tensor> + Send + Sync;

/// A call of an op that works.
#[derive(Clone)]
#[non_exhaustive]
pub struct Sample {
    /// What is special about it.
    pub name: String,
    /// What it is called on.
    pub inputs: Vec<Input>,
    /// Whether the derivative exists at these inputs, so that differences of the value approach it.
    pub has_gradient: bool,
    accepts: fn(DType) -> bool,
    build: Arc<Build>,
}

impl Sample {
    /// A call of `build` on `inputs`, at which the derivative exists.
    pub fn new(
        name: impl Into<String>,
        inputs: impl IntoIterator<Item = Input>,
        build: impl Fn(Call<'_>) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            inputs: inputs.into_iter().collect(),
            has_gradient: true,
            accepts: |_| true,
            build: Arc::new(build),
        }
    }

    /// The same at a kink, a jump or a value that is not finite: differences say nothing about the derivative.
    #[must_use]
    pub fn without_gradient(mut self) -> Self {
        self.has_gradient = false;
        self
    }

    /// The same for some of the op's dtypes only.
    #[must_use]
    pub fn only(mut self, accepts: fn(DType) -> bool) -> Self {
        self.accepts = accepts;
        self
    }

    /// Whether the call makes sense with `dtype`, one of the record's.
    pub fn accepts(&self, dtype: DType) -> bool {
        (self.accepts)(dtype)
    }

    /// The inputs' elements when the op is tried with `dtype`: the same at every call.
    pub fn host_inputs(&self, dtype: DType) -> Vec<HostTensor> {
        let seeds = self.name.bytes().fold(0u64, |seed, byte| {
            (seed.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        });
        let inputs = self.inputs.iter().enumerate();
        inputs.map(|(index, input)| input.host(dtype, seeds.wrapping_add(index as u64))).collect()
    }

    /// The inputs on a device.
    ///
    /// # Errors
    /// The device's failure.
    pub fn inputs_on(&self, engine: &Engine, dtype: DType) -> Result<Vec<Tensor>> {
        self.host_inputs(dtype).iter().map(|host| upload(engine, host)).collect()
    }

    /// Calls the op.
    ///
    /// # Errors
    /// Whatever the call reports; there is none unless the layer has a bug.
    pub fn call(&self, engine: &Engine, dtype: DType, inputs: &[Tensor]) -> Result<Tensor> {
        (self.build)(Call { engine, dtype, inputs })
    }
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sample")
            .field("name", &self.name)
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

/// A settled tensor with the elements of `host`.
fn upload(engine: &Engine, host: &HostTensor) -> Result<Tensor> {
    let size = host.dtype.size();
    let bytes: Vec<u8> = host
        .data
        .iter()
        .flat_map(|&value| Literal::new(host.dtype, value).bits.to_le_bytes().into_iter().take(size))
        .collect();
    engine.leaf(host.dtype, host.shape.clone(), &bytes)
}

/// SplitMix64: small, seeded, good enough for test data.
///
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17.
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 * 2f64.powi(-53);
        low + unit * (high - low)
    }
}

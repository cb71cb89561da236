//! The demo's networks: convolutions with pooling, then linear layers, trained with Adam.

use super::digits::{Batch, CLASSES};
use super::report::Fallback;
use super::run::{Statistics, TrainError, Trainer};
use halite_ops::optim::Adam;
use halite_ops::{DType, Engine, Result, Tensor, eval, grad};

/// Channels behind each convolution.
const CHANNELS: [usize; 2] = [16, 32];
/// Extent of every filter; with a padding of 1 it keeps the image's size.
const KERNEL: usize = 3;

/// Sizes of a [`Cnn`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CnnConfig {
    /// Height and width of the images, a multiple of 4.
    pub image: usize,
    /// Units of a further linear layer, with ReLU, before the last one.
    pub hidden: Option<usize>,
    /// Type in which images, activations and the weights' working copies are stored: f32 or f16. The weights
    /// themselves, the optimiser's state and the loss are f32.
    pub storage: DType,
    /// Share of each target that is spread over all classes.
    pub label_smoothing: f64,
}

impl CnnConfig {
    /// For the 8x8 digits: convolutions 1→16→32, linear 128→10. Smoothed targets are worth about half a point of
    /// test accuracy on these few images, in the worst of 16 seeds more than one.
    pub const DIGITS: Self = Self { image: 8, hidden: None, storage: DType::F32, label_smoothing: 0.1 };
    /// For 28x28 images: convolutions 1→16→32, linear 1568→128→10.
    pub const IMAGES_28: Self =
        Self { image: 28, hidden: Some(128), storage: DType::F32, label_smoothing: 0.0 };

    /// Shapes of weights and biases in turn, from the first layer to the last.
    pub fn parameter_shapes(&self) -> Vec<Vec<usize>> {
        let [first, second] = CHANNELS;
        let features = second * (self.image / 4) * (self.image / 4);
        let mut shapes = vec![
            vec![first, 1, KERNEL, KERNEL],
            vec![first],
            vec![second, first, KERNEL, KERNEL],
            vec![second],
        ];
        let mut inputs = features;
        for outputs in self.hidden.into_iter().chain([CLASSES]) {
            shapes.extend([vec![inputs, outputs], vec![outputs]]);
            inputs = outputs;
        }
        shapes
    }
}

/// A convolutional network on one device, with its optimiser.
pub struct Cnn {
    config: CnnConfig,
    engine: Engine,
    parameters: Vec<Tensor>,
    optimizer: Adam,
    /// Sum of the losses since it was last asked for, and how many they are.
    loss_sum: Tensor,
    losses: u32,
}

impl Cnn {
    /// A network whose initial weights follow from the seed alone: the same on every device.
    ///
    /// Weights are uniform within ±sqrt(6 / inputs) (He et al., "Delving deep into rectifiers", ICCV 2015), biases 0.
    ///
    /// # Errors
    /// The device's failure.
    pub fn new(engine: &Engine, config: CnnConfig, seed: u64) -> Result<Self> {
        let seed = (seed ^ (seed >> 32)) as u32;
        let mut parameters = Vec::new();
        for (index, shape) in config.parameter_shapes().iter().enumerate() {
            let inputs: usize = if shape.len() == 4 { shape[1..].iter().product() } else { shape[0] };
            let bound = (6.0 / inputs as f64).sqrt();
            parameters.push(if shape.len() == 1 {
                engine.tensor(&vec![0f32; shape[0]], shape)?
            } else {
                engine.uniform(shape, -bound, bound, seed, index as u32)?
            });
        }
        eval(&parameters.iter().collect::<Vec<_>>())?;
        let loss_sum = engine.tensor(&[0f32], &[])?;
        let optimizer = Adam::new(1e-3);
        Ok(Self { config, engine: engine.clone(), parameters, optimizer, loss_sum, losses: 0 })
    }

    /// The device that the network is on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Weights and biases in the order of [`CnnConfig::parameter_shapes`].
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// Replaces the weights, which must be f32 of the same shapes and on the same device.
    pub fn set_parameters(&mut self, parameters: Vec<Tensor>) {
        self.parameters = parameters;
    }

    /// Images `[len, 1, image, image]` and labels `[len]` of a batch on this network's device.
    ///
    /// # Errors
    /// The device's failure.
    pub fn upload(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let image = self.config.image;
        let images = self.engine.tensor(&batch.images, &[batch.len(), 1, image, image])?;
        let labels = self.engine.tensor(&batch.labels, &[batch.len()])?;
        Ok((images, labels))
    }

    /// Logits `[len, 10]` of images `[len, 1, image, image]`.
    ///
    /// # Errors
    /// `Shape` when the images have another size.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let storage = self.config.storage;
        let stored: Vec<Tensor> = self.parameters.iter().map(|p| p.cast(storage)).collect::<Result<_>>()?;
        let (convolutions, linears) = stored.split_at(2 * CHANNELS.len());
        let mut x = images.cast(storage)?;
        for layer in convolutions.chunks(2) {
            let bias = layer[1].reshape(&[1, layer[1].elements(), 1, 1])?;
            x = x.conv2d(&layer[0], KERNEL / 2)?.add(&bias)?.relu()?.max_pool2d(2)?;
        }
        x = x.reshape(&[images.shape()[0], x.elements() / images.shape()[0].max(1)])?;
        for (index, layer) in linears.chunks(2).enumerate() {
            if index > 0 {
                x = x.relu()?;
            }
            x = x.matmul(&layer[0])?.add(&layer[1])?;
        }
        Ok(x)
    }

    /// Mean cross-entropy of a batch, and its gradient with respect to every parameter; lazy.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn loss_and_gradients(&self, images: &Tensor, labels: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let loss = self.logits(images)?.cross_entropy_smoothed(labels, self.config.label_smoothing)?;
        let gradients = grad(&loss, &self.parameters.iter().collect::<Vec<_>>())?;
        Ok((loss, gradients))
    }

    /// One step of Adam; returns when the work is enqueued.
    ///
    /// # Errors
    /// The device's failure, also a late one of an earlier step.
    pub fn train(&mut self, images: &Tensor, labels: &Tensor, learning_rate: f64) -> Result<()> {
        let (loss, gradients) = self.loss_and_gradients(images, labels)?;
        self.optimizer.learning_rate = learning_rate;
        self.optimizer.step(&mut self.parameters, &gradients)?;
        self.loss_sum = self.loss_sum.add(&loss)?;
        self.losses += 1;
        // Only the new weights may refer to the old ones now, so that their memory is handed on.
        drop((loss, gradients));
        let mut wanted: Vec<&Tensor> = self.parameters.iter().collect();
        wanted.extend(self.optimizer.state());
        wanted.push(&self.loss_sum);
        eval(&wanted)
    }

    /// The mean loss since the last call; 0 without a step. Blocks.
    ///
    /// # Errors
    /// The device's failure.
    pub fn mean_loss(&mut self) -> Result<f64> {
        let sum = self.loss_sum.item()?;
        self.loss_sum = self.engine.tensor(&[0f32], &[])?;
        Ok(sum / f64::from(std::mem::take(&mut self.losses).max(1)))
    }
}

impl Trainer for Cnn {
    fn step(&mut self, batch: Batch, learning_rate: f32) -> Result<(), TrainError> {
        let (images, labels) = self.upload(&batch)?;
        Ok(self.train(&images, &labels, f64::from(learning_rate))?)
    }

    fn epoch_loss(&mut self) -> Result<f64, TrainError> {
        Ok(self.mean_loss()?)
    }

    fn predict(&mut self, images: Batch) -> Result<Vec<i32>, TrainError> {
        let (images, _) = self.upload(&images)?;
        Ok(self.logits(&images)?.argmax(1)?.to_vec::<i32>()?)
    }

    fn statistics(&self) -> Statistics {
        let stats = self.engine.stats();
        Statistics {
            peak_memory_bytes: stats.pool.peak_in_use_bytes,
            launches: stats.launches,
            fallbacks: stats
                .fallbacks
                .into_iter()
                .map(|fallback| Fallback { op: fallback.op, reason: fallback.reason })
                .collect(),
        }
    }
}

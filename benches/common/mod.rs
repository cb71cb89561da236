//! The training step that is measured: the networks of `benches/peers`, with batches that lie in memory.

use halite::demo::digits::{Batch, CLASSES};
use halite::demo::network::{Cnn, CnnConfig};
use halite::ops::Result;
use halite::{Engine, Tensor};
use std::time::{Duration, Instant};

/// Batches that take turns, so that no step finds its input in the first-level cache.
const BATCHES_IN_ROTATION: usize = 8;
/// As in the comparison's other side.
const LEARNING_RATE: f64 = 1e-3;

/// A network with the size of its batches.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) config: CnnConfig,
    pub(crate) batch: usize,
}

const DIGITS: CnnConfig = CnnConfig { label_smoothing: 0.0, ..CnnConfig::DIGITS };

/// Every case, the least work first.
pub(crate) const CASES: [Case; 3] = [
    Case { name: "digits8x8-b32", config: DIGITS, batch: 32 },
    Case { name: "digits8x8-b256", config: DIGITS, batch: 256 },
    Case { name: "images28x28-b64", config: CnnConfig::IMAGES_28, batch: 64 },
];

/// One network with its optimiser and its batches, ready to be stepped.
pub(crate) struct TrainStep {
    engine: Engine,
    network: Cnn,
    batches: Vec<(Tensor, Tensor)>,
    next: usize,
}

impl TrainStep {
    /// The case on a device; the first step plans.
    pub(crate) fn new(engine: &Engine, case: &Case) -> Result<Self> {
        let network = Cnn::new(engine, case.config, 0)?;
        let pixels = case.batch * case.config.image * case.config.image;
        let upload = |index: usize| {
            let mut draw = Draw(index as u64);
            let images = (0..pixels).map(|_| (draw.next() >> 8) as f32 / (1 << 24) as f32).collect();
            let labels = (0..case.batch).map(|_| (draw.next() as usize % CLASSES) as i32).collect();
            network.upload(&Batch { images, labels })
        };
        let batches = (0..BATCHES_IN_ROTATION).map(upload).collect::<Result<_>>()?;
        Ok(Self { engine: engine.clone(), network, batches, next: 0 })
    }

    /// Takes `steps` steps; the time until the device is done with the last one.
    pub(crate) fn run(&mut self, steps: u64) -> Result<Duration> {
        let begin = Instant::now();
        for _ in 0..steps {
            let (images, labels) = &self.batches[self.next];
            self.next = (self.next + 1) % self.batches.len();
            self.network.train(images, labels, LEARNING_RATE)?;
        }
        self.engine.synchronize()?;
        Ok(begin.elapsed())
    }

    /// Mean loss of the steps since the last call.
    pub(crate) fn mean_loss(&mut self) -> Result<f64> {
        self.network.mean_loss()
    }
}

/// Seeded numbers: a linear congruential generator (Knuth's MMIX constants), upper bits.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

//! What a person sees on stderr while devices train: one bar per device, or plain lines in a log.

use super::report::{epochs, joined, loss_digits, percent, whole};
use crate::cli::output;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Instant;

/// The progress of all devices of one run.
///
/// 1. Made once, with every device that will train; all bars appear, waiting.
/// 2. [`device`](Self::device) gives the handle of one of them, which may move to another thread.
/// 3. The handle is told of steps and epochs, and at last [`finish`](DeviceProgress::finish) or
///    [`fail`](DeviceProgress::fail).
///
/// Bars need a terminal on stderr; without one each epoch becomes a line.
#[derive(Debug)]
pub struct Progress {
    sink: Sink,
    bars: Vec<ProgressBar>,
    names: Vec<String>,
    epochs: u32,
}

/// The progress of one device.
#[derive(Debug)]
pub struct DeviceProgress {
    sink: Sink,
    bar: ProgressBar,
    name: String,
    epochs: u32,
    epoch: u32,
    loss: Option<f64>,
    images: u64,
    since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Bars,
    Lines,
    Nothing,
}

impl Progress {
    /// Progress on stderr for devices called `names`, each with this many epochs and steps per epoch.
    pub fn new(names: &[String], epochs: u32, steps_per_epoch: usize) -> Self {
        let terminal = console::Term::stderr().is_term();
        Self::with_sink(names, epochs, steps_per_epoch, if terminal { Sink::Bars } else { Sink::Lines })
    }

    /// Progress that nobody sees.
    pub fn hidden(names: &[String], epochs: u32, steps_per_epoch: usize) -> Self {
        Self::with_sink(names, epochs, steps_per_epoch, Sink::Nothing)
    }

    fn with_sink(names: &[String], epochs: u32, steps_per_epoch: usize, sink: Sink) -> Self {
        let target = match sink {
            Sink::Bars => ProgressDrawTarget::stderr_with_hz(10),
            Sink::Lines | Sink::Nothing => ProgressDrawTarget::hidden(),
        };
        let all = MultiProgress::with_draw_target(target);
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let style = ProgressStyle::with_template("  {prefix:.bold} {bar:28.cyan/dim} {wide_msg}")
            .expect("the template is valid")
            .progress_chars("━━─");
        let steps = u64::from(epochs) * steps_per_epoch as u64;
        let bars = names
            .iter()
            .map(|name| {
                let bar = all.add(ProgressBar::new(steps).with_style(style.clone()));
                bar.set_prefix(format!("{name:width$}"));
                bar.set_message("waiting");
                bar.tick();
                bar
            })
            .collect();
        Self { sink, bars, names: names.to_vec(), epochs }
    }

    /// The handle of device number `index`, counted as in [`new`](Self::new).
    ///
    /// # Panics
    /// If there is no such device.
    pub fn device(&self, index: usize) -> DeviceProgress {
        DeviceProgress {
            sink: self.sink,
            bar: self.bars[index].clone(),
            name: self.names[index].clone(),
            epochs: self.epochs,
            epoch: 0,
            loss: None,
            images: 0,
            since: None,
        }
    }
}

impl DeviceProgress {
    /// Training starts now.
    pub fn start(&mut self) {
        self.since = Some(Instant::now());
        self.bar.set_message("preparing");
    }

    /// One step with `images` was enqueued.
    pub fn step(&mut self, images: usize) {
        self.images += images as u64;
        self.bar.inc(1);
        self.bar.set_message(self.message());
    }

    /// An epoch is complete; `loss` is its mean training loss.
    pub fn epoch(&mut self, loss: f64) {
        self.epoch += 1;
        self.loss = Some(loss);
        self.bar.set_message(self.message());
        self.line(&self.message());
    }

    /// The device is done.
    pub fn finish(&mut self, test_accuracy: f64, images_per_second: f64) {
        let loss = self.loss.map(|loss| format!("loss {}  ", loss_digits(loss))).unwrap_or_default();
        let message = format!("{loss}test {}  {} images/s", percent(test_accuracy), whole(images_per_second));
        self.line(&message);
        self.bar.finish_with_message(message);
    }

    /// The device stopped early.
    pub fn fail(&mut self, error: &str) {
        let message = format!("failed after {}: {}", epochs(self.epoch), joined(error));
        self.line(&message);
        self.bar.abandon_with_message(message);
    }

    fn message(&self) -> String {
        let number = if self.sink == Sink::Bars { (self.epoch + 1).min(self.epochs) } else { self.epoch };
        let mut message = format!("epoch {number}/{}", self.epochs);
        if let Some(loss) = self.loss {
            message.push_str(&format!("  loss {}", loss_digits(loss)));
        }
        let seconds = self.since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        if seconds > 0.0 && self.images > 0 {
            message.push_str(&format!("  {} images/s", whole(self.images as f64 / seconds)));
        }
        message
    }

    fn line(&self, message: &str) {
        if self.sink == Sink::Lines {
            output::tell(format_args!("{}: {message}", self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sink_takes_a_whole_run() {
        let names = ["cpu:0".to_owned(), "opencl:0".to_owned()];
        for sink in [Sink::Bars, Sink::Lines, Sink::Nothing] {
            let progress = Progress::with_sink(&names, 2, 3, sink);
            let mut device = progress.device(0);
            device.start();
            for _ in 0..2 {
                (0..3).for_each(|_| device.step(32));
                device.epoch(0.5);
            }
            assert_eq!((device.bar.position(), device.images), (6, 192));
            assert!(device.message().starts_with("epoch 2/2  loss 0.500"), "{}", device.message());
            device.finish(0.98, 1000.0);
            assert!(device.bar.is_finished());

            let mut broken = progress.device(1);
            broken.start();
            broken.step(32);
            broken.fail("device lost\nfor good");
            assert!(broken.bar.is_finished());
            assert_eq!(broken.bar.message(), "failed after 0 epochs: device lost for good");
        }
    }

    #[test]
    fn a_run_without_devices_has_no_bars() {
        assert!(Progress::hidden(&[], 1, 1).bars.is_empty());
    }
}

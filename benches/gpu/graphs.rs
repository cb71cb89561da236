//! Whether recorded work ran as graphs of the driver: the CUDA backend tells its log.

use log::{LevelFilter, Log, Metadata, Record};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The module whose messages count.
const TARGET: &str = "halite_cuda::graph";

static BUILT: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

struct Listener;

impl Log for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        if message.contains("runs as a graph") {
            BUILT.fetch_add(1, Ordering::Relaxed);
        } else if message.contains("runs without a graph") {
            REFUSED.fetch_add(1, Ordering::Relaxed);
            eprintln!("{message}");
        }
    }

    fn flush(&self) {}
}

/// Begins to listen. Called once, before any device is opened.
pub(crate) fn listen() {
    // Whoever was there first would hear the messages instead; here is nobody else.
    if log::set_logger(&Listener).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// Graphs that were built so far, and lists that could not become one.
pub(crate) fn counts() -> (usize, usize) {
    (BUILT.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed))
}

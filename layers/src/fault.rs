//! The layer `fault`: failures on request, from a script and a seed.
//!
//! `HALITE_LAYERS="fault:launch@3=fail"` refuses the third launch on every device; `docs/layers.md` has the whole language.
//! A script is a list of rules, each of which names calls and what happens to them. The same script and the same calls
//! give the same faults, whatever other threads and devices do: each opening of a device counts for itself.
//!
//! # How faults arrive
//! As the real ones do, by the contracts of [`driver`](halite_hal::driver): a refused call enqueues nothing; work that
//! fails (`fault`) poisons its stream, is noticed a few calls later, and reaches events and waiting streams; a lost
//! device stays lost. Every error says that it is injected, and by which rule.
//!
//! # How it works
//! Calls that nothing befalls are passed on. Streams and events are wrapped: behind a fault the stream skips what is
//! enqueued, and its events report the failure once everything before it is over. Slow work is enqueued as it is, and
//! its end reported later. Corrupted bytes are really changed, in the copy alone and never in its source.

mod device;
mod event;
mod random;
mod schedule;
mod script;
mod stream;

use device::FaultDevice;
use halite_hal::{Device, Error, Layer, Result};
use script::Script;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes of a script in a file.
const MOST_SCRIPT_BYTES: u64 = 1 << 20;

/// The layer `fault`.
#[derive(Default)]
pub struct Fault {
    script: Option<Arc<Script>>,
    /// Openings so far, by the device's name.
    openings: Mutex<HashMap<String, u64>>,
    injected: Arc<AtomicU64>,
}

impl Fault {
    /// The layer without a script. It refuses to wrap a device until [`configure`](Layer::configure) gives it one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The layer with this script.
    ///
    /// # Errors
    /// `InvalidArgument` with line and column, what was expected there and what came.
    pub fn with_script(script: &str) -> Result<Self> {
        Ok(Self { script: Some(Arc::new(Script::parse(script)?)), ..Self::default() })
    }

    /// Faults that struck so far, on all devices that this layer wrapped. Rules whose calls never came have none.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    /// The schedule that `random=SEED` stands for: one to four rules, drawn from the seed alone. None corrupts copies.
    pub fn random_script(seed: u64) -> String {
        random::script(seed)
    }
}

impl Fault {
    fn script(&self) -> Result<&Arc<Script>> {
        self.script.as_ref().ok_or_else(|| {
            Error::invalid(
                "the layer 'fault' has no script; write what is to fail behind a colon, such as \
                 HALITE_LAYERS=fault:launch@3=fail",
            )
        })
    }
}

impl Layer for Fault {
    fn name(&self) -> &str {
        "fault"
    }

    fn check(&self) -> Result<()> {
        self.script().map(drop)
    }

    fn wrap(&self, inner: Device) -> Result<Device> {
        let script = self.script()?;
        let opening = {
            let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
            let opening = openings.entry(inner.id().to_string()).or_default();
            *opening += 1;
            *opening
        };
        if !script.affects(inner.id(), opening) {
            return Ok(inner);
        }
        Ok(Device::new(Arc::new(FaultDevice::new(inner, script.clone(), self.injected.clone()))))
    }

    /// Takes a script, or with `@FILE` one from a file.
    fn configure(&self, settings: &str) -> Result<Arc<dyn Layer>> {
        let Some(path) = settings.strip_prefix('@') else {
            return Ok(Arc::new(Self::with_script(settings)?));
        };
        let refuse = |reason: &dyn fmt::Display| {
            let message =
                format!("the script '{path}' of HALITE_LAYERS=fault:@{path} cannot be read: {reason}");
            Error::invalid(message)
        };
        let mut script = String::new();
        File::open(path)
            .and_then(|file| file.take(MOST_SCRIPT_BYTES + 1).read_to_string(&mut script))
            .map_err(|error| refuse(&error))?;
        if script.len() as u64 > MOST_SCRIPT_BYTES {
            return Err(refuse(&"it is larger than 1 MiB"));
        }
        let layer = Self::with_script(&script)
            .map_err(|error| Error::invalid(format!("'{path}': {}", error.message())))?;
        Ok(Arc::new(layer))
    }
}

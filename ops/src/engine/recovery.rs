//! What an engine does when its device fails: try again what passes, bring the stream back, and leave every tensor with
//! its value, without one, or with an error instead of wrong numbers.
//!
//! | failure | what is done |
//! | --- | --- |
//! | memory has run out, a link has failed | earlier work ends, unused memory goes back to the device; once more |
//! | a wait ends before the work | once more; then the error, and the work goes on |
//! | a kernel does not build | the next variant that fits; then, where the profile allows it, the CPU |
//! | work fails | its evaluation and all later ones are undone, the stream is reset, uploads are sent again |
//! | an update fails that overwrites memory | the old value is lost; using it says so |
//! | the device is lost | the error; nothing here can be used again |

use super::{Engine, Graph, InFlight, Work, lock};
use crate::plan::{OutputMemory, Plan};
use crate::{Error, Result};
use halite_hal::annotate::{self, Label};
use halite_hal::{ErrorKind, Event};
use std::collections::VecDeque;

/// How often uploads are sent again before their tensors are lost.
const MOST_ROUNDS: u32 = 3;

impl Engine {
    /// Does `work`, and once more if it failed for a lack of memory or of a link.
    pub(super) fn once_more<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let error = match work() {
            Err(Error::Device(error)) => error,
            outcome => return outcome,
        };
        if !matches!(error.kind(), ErrorKind::OutOfMemory { .. } | ErrorKind::Link) {
            return Err(error.into());
        }
        // Earlier evaluations hold what they were computed from, until they are known to be over.
        self.reap(&mut lock(&self.0.work), 0)?;
        self.0.pool.trim();
        if let Some(fallback) = self.fallback_engine() {
            fallback.0.pool.trim();
        }
        work()
    }

    /// Looks at enqueued evaluations in order: releases what finished ones were computed from, and waits until at
    /// most `keep` are left. After a failure every evaluation from the failed one on is undone.
    pub(super) fn reap(&self, work: &mut Work, keep: usize) -> Result<()> {
        while let Some(oldest) = work.in_flight.front() {
            let outcome = match oldest.event.is_done() {
                Ok(false) if work.in_flight.len() <= keep => return Ok(()),
                Ok(false) => {
                    let _span = annotate::span(&self.0.device, || Label::new("wait for the device"));
                    wait(&oldest.event)
                }
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => drop(work.in_flight.pop_front()),
                // The work goes on, so its outputs stay as they are, to be waited for again.
                Err(error) if is_timeout(&error) => return Err(error.into()),
                Err(error) => {
                    let mut uploads = lock(&self.0.uploads);
                    undo(&mut work.in_flight).into_iter().for_each(|taken| uploads.put_back(taken));
                    drop(uploads);
                    self.mend(true);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Brings stream and tensors back to where they can be used after a failure; the first failure wins.
    pub(super) fn recover(&self, work: &mut Work, error: Error) -> Error {
        match self.reap(work, 0) {
            Err(first) if !matches!(&first, Error::Device(first) if is_timeout(first)) => first,
            _ => {
                self.mend(false);
                error
            }
        }
    }

    /// Resets the stream, if it has failed, and sends again what may not have arrived.
    fn mend(&self, has_failed: bool) {
        let mut uploads = lock(&self.0.uploads);
        if !has_failed && self.0.stream.synchronize().is_ok() {
            uploads.take();
            return;
        }
        for round in 1..=MOST_ROUNDS {
            // A lost device cannot be reset; its own error says more than the reset's.
            let is_healthy = self.0.stream.reset().is_ok();
            if !is_healthy || uploads.repeat(&self.0.stream, round == MOST_ROUNDS) {
                return;
            }
        }
    }

    /// An event behind everything enqueued; where the driver refuses one, waits instead, and `None` says that everything
    /// is over.
    pub(super) fn record_or_finish(&self, work: &mut Work) -> Result<Option<Event>> {
        if let Ok(event) = self.0.stream.record() {
            return Ok(Some(event));
        }
        self.reap(work, 0)?;
        self.0.stream.synchronize()?;
        Ok(None)
    }
}

/// After an evaluation that failed while it was enqueued: takes donated memory from its leaves if it may have been
/// overwritten, so that nobody takes what lies there for the old value.
pub(super) fn forfeit(graph: &Graph, plan: &Plan, before_updates: &Event) {
    // Behind work that failed, updates are skipped.
    if before_updates.wait(None).is_err_and(|error| !is_timeout(&error)) {
        return;
    }
    for &(_, memory) in &plan.outputs {
        if let OutputMemory::Donated(leaf) = memory {
            let mut state = graph.order[leaf].0.state();
            (state.value, state.handed_on) = (None, true);
        }
    }
}

/// Takes evaluations back, the latest first: their outputs are unsettled again. Memory that an update may have begun
/// to overwrite is not given back as the old value; everything else is. Gives the uploads that were enqueued before any
/// of them.
fn undo(in_flight: &mut VecDeque<InFlight>) -> Vec<Vec<crate::memory::Upload>> {
    let mut uploads = Vec::new();
    while let Some(failed) = in_flight.pop_back() {
        let is_overwritten = failed.before_updates.is_some_and(|event| event.is_done().unwrap_or(false));
        for (donor, heir) in failed.donors {
            let (Some(donor), Some(heir)) = (donor.upgrade(), heir.upgrade()) else { continue };
            // Whoever else holds the heir's value has lost it either way.
            let value = heir.state().value.take().map(|value| value.given_back());
            if !is_overwritten {
                let mut state = donor.state();
                state.handed_on = value.is_none();
                state.value = value;
            }
        }
        for (node, inputs) in failed.outputs {
            if let Some(node) = node.upgrade() {
                let mut state = node.state();
                state.value = None;
                state.inputs = inputs;
            }
        }
        failed.written.iter().for_each(crate::memory::WeakValue::lose);
        uploads.push(failed.uploads);
    }
    uploads
}

/// Waits without limit, once more if the driver gives up before the work does.
fn wait(event: &Event) -> halite_hal::Result<()> {
    match event.wait(None) {
        Err(error) if is_timeout(&error) => event.wait(None),
        outcome => outcome,
    }
}

fn is_timeout(error: &halite_hal::Error) -> bool {
    matches!(error.kind(), ErrorKind::Timeout { .. })
}

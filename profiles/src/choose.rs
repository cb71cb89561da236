//! Choosing the kernel variant of an op: the profile's wishes among what the device can run.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::location::Location;
use crate::profile::Profile;
use crate::schema::Parameters;
use crate::suggest::list;

/// A kernel variant that the program has for the op. Candidates stand in order of registration, best
/// default first, and include those that this device cannot run: a name is a typing error only if no
/// kernel of the op has it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The variant's name.
    pub variant: &'a str,
    /// The device features that it needs.
    pub requires: &'a [&'a str],
}

/// The kernel variant to launch, with its sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The variant's name, one of the candidates'.
    pub variant: String,
    /// The sizes; empty for a default that no profile mentions.
    pub parameters: Parameters,
    /// The profile entry that chose; `None` for the default.
    pub origin: Option<Location>,
    /// What the profile would have preferred, and why it was left out.
    pub skipped: Vec<Skip>,
}

/// A profile entry that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skip {
    /// The variant that the entry names.
    pub variant: String,
    /// Why it does not fit.
    pub reason: String,
    /// Where the entry stands.
    pub origin: Location,
}

impl Profile {
    /// Chooses the variant of `op` for a device with `features` and an op with these shape `variables`.
    ///
    /// The first entry of the profile's list that fits wins: its variant is a candidate, the device has what
    /// the candidate requires, and its `when` holds. If the profile says nothing or nothing fits, the first
    /// candidate that the device can run is the default, without parameters.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownVariant`] for an entry of a user's file that names no candidate (a built-in entry is
    /// skipped, since a program may leave kernels out), [`Error::Evaluate`] for a `when` without a value, and
    /// [`Error::NoKernel`] if the device can run no candidate.
    pub fn choose(
        &self,
        op: &str,
        candidates: &[Candidate<'_>],
        features: &[String],
        variables: &[(&str, i64)],
    ) -> Result<Choice> {
        let mut skipped = Vec::new();
        let entries = self.kernel_entries(op);
        self.check_variants(op, candidates)?;
        for (index, entry) in entries.iter().enumerate() {
            let mut skip = |reason| {
                let variant = entry.variant().to_owned();
                skipped.push(Skip { variant, reason, origin: entry.origin().clone() });
            };
            let Some(candidate) = candidates.iter().find(|candidate| candidate.variant == entry.variant())
            else {
                skip(format!("this program has no such kernel of {op}"));
                continue;
            };
            if let Some(reason) = missing(candidate, features) {
                skip(reason);
                continue;
            }
            if let Some((condition, at)) = &entry.when {
                let holds = condition.evaluate(variables).map_err(|source| Error::Evaluate {
                    at: at.clone(),
                    key: Self::entry_path(op, index, "when"),
                    text: condition.to_string(),
                    source,
                })?;
                if !holds {
                    skip(format!("{condition} does not hold"));
                    continue;
                }
            }
            return Ok(Choice {
                variant: entry.variant().to_owned(),
                parameters: entry.parameters().clone(),
                origin: Some(entry.origin().clone()),
                skipped,
            });
        }
        let default = candidates.iter().find(|candidate| missing(candidate, features).is_none());
        let default = default.ok_or_else(|| Error::NoKernel {
            op: op.to_owned(),
            reasons: candidates
                .iter()
                .filter_map(|candidate| {
                    Some(format!("{} {}", candidate.variant, missing(candidate, features)?))
                })
                .collect(),
        })?;
        Ok(Choice {
            variant: default.variant.to_owned(),
            parameters: Parameters::default(),
            origin: None,
            skipped,
        })
    }

    /// Every entry is checked, also those behind the one that fits, so that a typing error shows on every
    /// machine and not only where the entry's turn comes.
    fn check_variants(&self, op: &str, candidates: &[Candidate<'_>]) -> Result<()> {
        for (index, entry) in self.kernel_entries(op).iter().enumerate() {
            let known = candidates.iter().any(|candidate| candidate.variant == entry.variant());
            if !known && !entry.origin().is_builtin() {
                return Err(Error::UnknownVariant {
                    at: entry.origin().clone(),
                    key: Self::entry_path(op, index, "variant"),
                    op: op.to_owned(),
                    variant: entry.variant().to_owned(),
                    known: candidates.iter().map(|candidate| candidate.variant.to_owned()).collect(),
                });
            }
        }
        Ok(())
    }
}

fn missing(candidate: &Candidate<'_>, features: &[String]) -> Option<String> {
    let missing: Vec<&&str> = candidate
        .requires
        .iter()
        .filter(|required| !features.iter().any(|feature| feature == *required))
        .collect();
    (!missing.is_empty()).then(|| format!("requires {}, which the device lacks", list(missing)))
}

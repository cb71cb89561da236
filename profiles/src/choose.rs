//! Choosing the kernel variant of an op: the profile's wishes among what the device can run.

use serde::Serialize;

use crate::condition::EvaluateError;
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
    /// Chooses the variant of `op` for a device with `features` and an op with these shape `variables`: the first of the
    /// [ranking](Self::ranking).
    ///
    /// # Errors
    ///
    /// As [`ranking`](Self::ranking).
    pub fn choose(
        &self,
        op: &str,
        candidates: &[Candidate<'_>],
        features: &[String],
        variables: &[(&str, i64)],
    ) -> Result<Choice> {
        let mut ranking = self.ranking(op, candidates, features, variables)?;
        Ok(ranking.swap_remove(0))
    }

    /// Everything that the profile would choose for `op`, best first; never empty. A variant that turns out not to
    /// serve the op at hand, for its type or layout, leaves it to the next one.
    ///
    /// The entries of the profile's list that fit, in order: the variant is a candidate, the device has what the
    /// candidate requires, and `when` holds. Then the candidates that the device can run and no such entry names, in
    /// their own order and without parameters.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownVariant`] for an entry of a user's file that names no candidate (a built-in entry is
    /// skipped, since a program may leave kernels out), [`Error::Evaluate`] for a `when` without a value before the
    /// first entry that fits (behind it, the entry is skipped), and [`Error::NoKernel`] if the device can run no
    /// candidate.
    pub fn ranking(
        &self,
        op: &str,
        candidates: &[Candidate<'_>],
        features: &[String],
        variables: &[(&str, i64)],
    ) -> Result<Vec<Choice>> {
        let mut ranking: Vec<Choice> = Vec::new();
        let mut skipped = Vec::new();
        self.check_variants(op, candidates)?;
        for (index, entry) in self.kernel_entries(op).iter().enumerate() {
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
                match condition.evaluate(variables) {
                    Ok(true) => {}
                    Ok(false) => {
                        skip(format!("{condition} does not hold"));
                        continue;
                    }
                    Err(source) if !ranking.is_empty() => {
                        skip(format!("{condition} has no value: {source}"));
                        continue;
                    }
                    Err(source) => {
                        return Err(Error::Evaluate {
                            at: at.clone(),
                            key: Self::entry_path(op, index, "when"),
                            text: condition.to_string(),
                            source,
                        });
                    }
                }
            }
            ranking.push(Choice {
                variant: entry.variant().to_owned(),
                parameters: entry.parameters().clone(),
                origin: Some(entry.origin().clone()),
                skipped: skipped.clone(),
            });
        }
        let is_named = |name: &str| ranking.iter().any(|choice| choice.variant == name);
        let runnable = candidates.iter().filter(|candidate| missing(candidate, features).is_none());
        let others: Vec<Choice> = runnable
            .filter(|candidate| !is_named(candidate.variant))
            .map(|candidate| Choice {
                variant: candidate.variant.to_owned(),
                parameters: Parameters::default(),
                origin: None,
                skipped: skipped.clone(),
            })
            .collect();
        ranking.extend(others);
        if ranking.is_empty() {
            return Err(Error::NoKernel {
                op: op.to_owned(),
                reasons: candidates
                    .iter()
                    .filter_map(|candidate| {
                        Some(format!("{} {}", candidate.variant, missing(candidate, features)?))
                    })
                    .collect(),
            });
        }
        Ok(ranking)
    }

    /// Checks that every `when` which a user's file has for `op` names only these variables: also behind the entry that
    /// fits, so that a typing error shows before anything runs.
    ///
    /// # Errors
    ///
    /// [`Error::Evaluate`] with file and line.
    pub fn check_conditions(&self, op: &str, variables: &[&str]) -> Result<()> {
        for (index, entry) in self.users_entries(op) {
            let Some((condition, at)) = &entry.when else { continue };
            if let Some(name) = condition.variables().into_iter().find(|name| !variables.contains(name)) {
                return Err(Error::Evaluate {
                    at: at.clone(),
                    key: Self::entry_path(op, index, "when"),
                    text: condition.to_string(),
                    source: EvaluateError::UnknownVariable {
                        name: name.to_owned(),
                        known: variables.iter().map(|known| (*known).to_owned()).collect(),
                    },
                });
            }
        }
        Ok(())
    }

    /// Checks that every variant which a user's file names for `op` is a candidate: also those behind the one that
    /// fits, so that a typing error shows on every machine and not only where the entry's turn comes.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownVariant`] with file and line.
    pub fn check_variants(&self, op: &str, candidates: &[Candidate<'_>]) -> Result<()> {
        for (index, entry) in self.users_entries(op) {
            let known = candidates.iter().any(|candidate| candidate.variant == entry.variant());
            if !known {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProfileSet;

    const CANDIDATES: [Candidate<'static>; 3] = [
        Candidate { variant: "avx512", requires: &["avx512f", "avx512bw"] },
        Candidate { variant: "avx2", requires: &["avx2", "fma"] },
        Candidate { variant: "portable", requires: &[] },
    ];

    fn choose(entries: &str, features: &[&str], variables: &[(&str, i64)]) -> Result<Choice> {
        choose_among(&CANDIDATES, entries, features, variables)
    }

    fn choose_among(
        candidates: &[Candidate<'_>],
        entries: &str,
        features: &[&str],
        variables: &[(&str, i64)],
    ) -> Result<Choice> {
        let text = format!("name: mine\nkernels:\n  matmul:\n{entries}");
        let set = ProfileSet::from_texts([("mine.yaml", text.as_str())])?;
        let features: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
        set.by_name("mine")?.choose("matmul", candidates, &features, variables)
    }

    const ENTRIES: &str = "  - { variant: avx512, when: m >= 64, tile: [192, 32, 384] }\n  \
                           - { variant: avx2, when: m >= 8, tile: [144, 16, 256], threads: 4 }\n  \
                           - { variant: portable, chunk: 512 }\n";

    #[test]
    fn the_first_entry_that_fits_wins() {
        let avx512 = ["avx512f", "avx512bw", "avx2", "fma"].as_slice();
        let avx2 = ["avx2", "fma"].as_slice();
        for (features, m, variant, line, skipped) in [
            (avx512, 64, "avx512", 4, vec![]),
            (avx512, 63, "avx2", 5, vec!["avx512: m >= 64 does not hold"]),
            (avx2, 64, "avx2", 5, vec!["avx512: requires avx512f, avx512bw, which the device lacks"]),
            (
                avx2,
                7,
                "portable",
                6,
                vec![
                    "avx512: requires avx512f, avx512bw, which the device lacks",
                    "avx2: m >= 8 does not hold",
                ],
            ),
            (
                &["avx2"],
                64,
                "portable",
                6,
                vec![
                    "avx512: requires avx512f, avx512bw, which the device lacks",
                    "avx2: requires fma, which the device lacks",
                ],
            ),
        ] {
            let choice = choose(ENTRIES, features, &[("m", m)]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(choice.variant, variant);
            assert_eq!(choice.origin.map(|origin| origin.line()), Some(line));
            let shown: Vec<String> =
                choice.skipped.iter().map(|skip| format!("{}: {}", skip.variant, skip.reason)).collect();
            assert_eq!(shown, skipped);
        }
        let choice = choose(ENTRIES, avx2, &[("m", 8)]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(choice.parameters.tile(), Some([144, 16, 256].as_slice()));
        assert_eq!(choice.parameters.threads(), Some([4].as_slice()));
        assert_eq!(choice.parameters.int("chunk"), None);
    }

    #[test]
    fn what_fits_less_well_stands_behind_with_its_own_sizes() {
        let text = format!(
            "name: mine\nkernels:\n  matmul:\n{ENTRIES}  - {{ variant: avx2, when: m / n > 1, chunk: 3 }}\n"
        );
        let set =
            ProfileSet::from_texts([("mine.yaml", text.as_str())]).unwrap_or_else(|error| panic!("{error}"));
        let mine = set.by_name("mine").unwrap_or_else(|error| panic!("{error}"));
        let features: Vec<String> = ["avx2", "fma"].map(str::to_owned).into();
        let ranking = |variables: &[(&str, i64)]| -> Vec<String> {
            let ranking = mine.ranking("matmul", &CANDIDATES, &features, variables);
            let ranking = ranking.unwrap_or_else(|error| panic!("{error}"));
            ranking.iter().map(|choice| format!("{} {}", choice.variant, choice.parameters)).collect()
        };
        let [tiled, chunked] = ["avx2 tile: [144, 16, 256], threads: [4]", "avx2 chunk: 3"];
        assert_eq!(ranking(&[("m", 8), ("n", 4)]), [tiled, "portable chunk: 512", chunked]);
        // A condition without a value is left out where something else fits.
        assert_eq!(ranking(&[("m", 7), ("n", 0)]), ["portable chunk: 512", "avx2 "]);
    }

    #[test]
    fn conditions_of_unknown_variables_are_refused_wherever_they_stand() {
        let text = "name: mine\nextends: cpu\nkernels:\n  reduce:\n  - { variant: portable }\n  \
                    - variant: portable\n    when: n > 3 and zz >= 3\n";
        let set = ProfileSet::from_texts([("mine.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
        let mine = set.by_name("mine").unwrap_or_else(|error| panic!("{error}"));
        let check = |variables: &[&str]| {
            mine.check_conditions("reduce", variables).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["n", "k", "zz"]), Ok(()));
        let condition = "mine.yaml:7: kernels.reduce[1].when 'n > 3 and zz >= 3' names the unknown variable";
        assert_eq!(check(&["n", "z"]), Err(format!("{condition} 'zz'; did you mean 'z'?")));
        assert_eq!(check(&["n", "k"]), Err(format!("{condition} 'zz'; use one of n, k")));
        assert_eq!(check(&[]), Err(format!("{condition} 'n'; none is accepted here")));
    }

    #[test]
    fn without_an_entry_that_fits_the_first_runnable_candidate_is_the_default() {
        for (entries, features, variant) in [
            ("  - { variant: avx512 }\n", ["avx2", "fma"].as_slice(), "avx2"),
            ("  - { variant: portable, when: m > 100 }\n", &["avx512f", "avx512bw"], "avx512"),
            ("  - { variant: avx2 }\n", &[], "portable"),
        ] {
            let choice = choose(entries, features, &[("m", 1)]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((choice.variant.as_str(), choice.origin), (variant, None));
            assert_eq!(choice.parameters, Parameters::default());
            assert_eq!(choice.skipped.len(), 1);
        }
        let profile = ProfileSet::builtin().by_name("npu").expect("built in");
        let choice = profile.choose("unheard_of", &CANDIDATES, &[], &[]).expect("portable requires nothing");
        assert_eq!((choice.variant.as_str(), choice.skipped.len()), ("portable", 0));
    }

    #[test]
    fn builtin_entries_may_name_kernels_that_the_program_left_out() {
        let profile = ProfileSet::builtin().by_name("cpu-avx512").expect("built in");
        let only = [Candidate { variant: "portable", requires: &[] }];
        let choice = profile.choose("reduce", &only, &[], &[]).expect("portable requires nothing");
        assert_eq!(choice.variant, "portable");
        assert_eq!(choice.parameters.int("chunk"), Some(512));
        assert_eq!(choice.skipped[0].reason, "this program has no such kernel of reduce");
        assert_eq!(choice.skipped[0].origin.file(), "builtin:cpu-avx512.yaml");
    }

    #[test]
    fn failures_say_what_to_do() {
        const PORTABLE: &str = "  - { variant: portable }\n";
        let only = [CANDIDATES[0], CANDIDATES[1]];
        for (candidates, entries, expected) in [
            (
                CANDIDATES.as_slice(),
                "  - { variant: portable }\n  - { variant: avx22 }\n",
                "mine.yaml:5: kernels.matmul[1].variant 'avx22' is not a kernel of matmul; did you mean 'avx2'?",
            ),
            (
                &CANDIDATES,
                "  - { variant: tensor_core }\n",
                "mine.yaml:4: kernels.matmul[0].variant 'tensor_core' is not a kernel of matmul; use one of \
                 avx512, avx2, portable",
            ),
            (
                &[],
                PORTABLE,
                "mine.yaml:4: kernels.matmul[0].variant 'portable' is not a kernel of matmul; none is accepted \
                 here",
            ),
            (
                &CANDIDATES,
                "  - variant: portable\n    when: rows > 3\n",
                "mine.yaml:5: kernels.matmul[0].when 'rows > 3' names the unknown variable 'rows'; use one of m, n",
            ),
            (
                &CANDIDATES,
                "  - { variant: portable, when: m / n > 3 }\n",
                "mine.yaml:4: kernels.matmul[0].when 'm / n > 3' divides by zero; guard the division, as in \
                 'n > 0 and m / n > 2'",
            ),
            (
                &only,
                "  - { variant: avx2 }\n",
                "no kernel of matmul fits this device: avx512 requires avx512f, avx512bw, which the device lacks, \
                 avx2 requires avx2, fma, which the device lacks; run the op on another device",
            ),
        ] {
            let message = choose_among(candidates, entries, &[], &[("m", 1), ("n", 0)]);
            assert_eq!(message.map_err(|error| error.to_string()), Err(expected.to_owned()));
        }
        let npu = ProfileSet::builtin().by_name("npu").expect("built in");
        let message = npu.choose("matmul", &[], &[], &[]).map_err(|error| error.to_string());
        let expected = "no kernel of matmul fits this device: it has none here; run the op on another device";
        assert_eq!(message, Err(expected.to_owned()));
    }
}

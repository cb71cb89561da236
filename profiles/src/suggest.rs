//! "Did you mean": the closest accepted word by edit distance.

use std::fmt::Display;

use crate::yaml::quote;

/// How many words a message lists, so that it stays one that a person reads.
const MAX_LISTED: usize = 16;

/// Says what to write instead of `word`: the closest accepted word, or the list where none is close.
pub(crate) fn advice<S: AsRef<str>>(word: &str, accepted: &[S]) -> String {
    match closest(word, accepted) {
        Some(best) => format!("did you mean '{}'?", quote(&best)),
        None if accepted.is_empty() => "none is accepted here".to_owned(),
        None => {
            let listed = list(accepted.iter().take(MAX_LISTED).map(|word| quote(&word.as_ref())));
            match accepted.len().saturating_sub(MAX_LISTED) {
                0 => format!("use one of {listed}"),
                others => format!("use one of {listed} or of {others} others"),
            }
        }
    }
}

/// The accepted word closest to `word`, unless all are too far away to be a typing error.
pub(crate) fn closest<'a, S: AsRef<str>>(word: &str, accepted: &'a [S]) -> Option<&'a str> {
    // About two edits in four letters: 'tiel' finds 'tile'. Never as many as letters: 'q' does not find 'm'.
    let length = word.chars().count();
    let allowed = (length / 3 + usize::from(length > 1)).min(length.saturating_sub(1));
    accepted
        .iter()
        .map(|candidate| (edit_distance(word, candidate.as_ref()), candidate.as_ref()))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Words separated by commas.
pub(crate) fn list<T: Display>(words: impl IntoIterator<Item = T>) -> String {
    words.into_iter().map(|word| word.to_string()).collect::<Vec<_>>().join(", ")
}

/// Levenshtein distance over characters, blind to case, so that `gb/s` finds `GB/s`.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_inserted_removed_and_replaced_characters() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("tiel", "tile", 2),
            ("GB/s", "gb/s", 0),
            ("ä", "a", 1),
        ] {
            assert_eq!(edit_distance(a, b), expected, "{a} {b}");
            assert_eq!(edit_distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn advice_names_the_closest_word_or_as_many_as_one_reads() {
        let accepted = ["variant", "when", "tile", "threads"];
        assert_eq!(advice("tiel", &accepted), "did you mean 'tile'?");
        assert_eq!(advice("thread", &accepted), "did you mean 'threads'?");
        assert_eq!(advice("colour", &accepted), "use one of variant, when, tile, threads");
        assert_eq!(advice::<&str>("x", &[]), "none is accepted here");
        let many: Vec<String> = (100..120).map(|number| number.to_string()).collect();
        let advice = advice("colour", &many);
        assert!(
            advice.starts_with("use one of 100, 101, ") && advice.ends_with(", 115 or of 4 others"),
            "{advice}"
        );
    }
}

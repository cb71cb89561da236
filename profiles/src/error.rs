//! Everything that can be wrong with a profile, its search path or a choice.
//!
//! Each message is one line: `FILE:LINE: what was wrong; what to do`.

use std::path::PathBuf;

use halite_hal::DType;

use crate::condition::{ConditionError, EvaluateError};
use crate::location::Location;
use crate::size::{Size, unread_text};
use crate::suggest::{advice, list};
use crate::units::UnitError;
use crate::yaml::{one_line, quote};

/// A profile or machine description that cannot be used, or a question that it does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read.
    #[error("{}: cannot read: {reason}; {hint}", one_line(&.path.display()))]
    Read {
        /// The path as it was given.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A file without content.
    #[error("{at}: the file is empty; write at least 'name: NAME'")]
    Empty {
        /// The first line.
        at: Location,
    },
    /// Text that is not YAML.
    #[error("{at}: damaged YAML: {reason}; correct the text at or just before this line")]
    Syntax {
        /// Where the parser stopped.
        at: Location,
        /// The parser's reason.
        reason: String,
    },
    /// A key that the schema does not have.
    #[error("{at}: unknown key '{key}' in {section}; {}", advice(.key, .accepted))]
    UnknownKey {
        /// Where the key stands.
        at: Location,
        /// The map that holds the key.
        section: String,
        /// The key.
        key: String,
        /// The keys that the schema has there.
        accepted: Vec<String>,
    },
    /// A key that stands twice in one map.
    #[error("{at}: key '{key}' was already given on line {}; keep one of the two", .first.line())]
    DuplicateKey {
        /// Where the key stands again.
        at: Location,
        /// Where it stood first.
        first: Location,
        /// The key.
        key: String,
    },
    /// A key that the schema requires.
    #[error("{at}: {section} has no key '{key}'; add '{key}: {example}'")]
    MissingKey {
        /// Where the map begins.
        at: Location,
        /// The map that lacks the key.
        section: String,
        /// The key.
        key: &'static str,
        /// A value for it.
        example: &'static str,
    },
    /// A value of the wrong type.
    #[error("{at}: {key} is {got}, expected {expected}; write for example '{example}'")]
    WrongType {
        /// Where the value stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// What the value is.
        got: String,
        /// What it should be.
        expected: &'static str,
        /// An example.
        example: &'static str,
    },
    /// A quantity with a wrong or missing unit, or out of range.
    #[error("{at}: {key}: {source}")]
    Quantity {
        /// Where the value stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// What is wrong with it.
        source: UnitError,
    },
    /// A word that is not among the accepted ones.
    #[error("{at}: {key} is '{word}'; {}", advice(.word, .accepted))]
    UnknownWord {
        /// Where the value stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// The value.
        word: String,
        /// The accepted values.
        accepted: Vec<String>,
    },
    /// `match.device` or `match.vendor` is not a regular expression.
    #[error(
        "{at}: {key} '{pattern}' is not a regular expression: {reason}; correct it, or put '\\' before a special character"
    )]
    Pattern {
        /// Where the value stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// The value.
        pattern: String,
        /// The regular expression parser's reason.
        reason: String,
    },
    /// `when` is not a condition.
    #[error("{at}: {key} '{text}' is not a condition: {source}")]
    Condition {
        /// Where the value stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// The value.
        text: String,
        /// What is wrong with it.
        source: ConditionError,
    },
    /// `when` has no value for the op's variables.
    #[error("{at}: {key} '{}' {source}", quote(.text))]
    Evaluate {
        /// Where the condition stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// The condition.
        text: String,
        /// Why it has no value.
        source: EvaluateError,
    },
    /// `extends` names no profile.
    #[error(
        "{at}: profile '{}' extends '{}', which is unknown; {}", quote(.name), quote(.parent), advice(.parent, .known)
    )]
    UnknownParent {
        /// Where `extends` stands.
        at: Location,
        /// The profile that extends.
        name: String,
        /// The name that no profile has.
        parent: String,
        /// All names.
        known: Vec<String>,
    },
    /// Profiles that extend each other in a circle.
    #[error("{at}: 'extends' goes in a circle: {}; remove one of these 'extends'", chain_text(.chain))]
    Cycle {
        /// The `extends` that closes the circle.
        at: Location,
        /// The profiles of the circle with the place of their `extends`; each extends the next, the last
        /// extends the first.
        chain: Vec<(String, Location)>,
    },
    /// Two profiles of one folder have the same name.
    #[error("{at}: profile '{}' is already defined at {first}; rename or remove one of the two", quote(.name))]
    DuplicateName {
        /// Where the name stands again.
        at: Location,
        /// Where it stood first.
        first: Location,
        /// The name.
        name: String,
    },
    /// No profile matches a device.
    #[error(
        "no profile matches the device '{device}' of backend '{backend}'; write one with \
         'match: {{ backend: {backend} }}' and name its folder in HALITE_PROFILE_PATH"
    )]
    NoMatch {
        /// The device's backend.
        backend: String,
        /// The device's name.
        device: String,
    },
    /// No profile has the name.
    #[error("unknown profile '{name}'; {}", advice(.name, .known))]
    UnknownProfile {
        /// The name that was asked for.
        name: String,
        /// All names.
        known: Vec<String>,
    },
    /// A user's profile has kernel entries for an op that the program does not have.
    #[error("{at}: kernels.{} is not an op of this program; {}", quote(.op), advice(.op, .known))]
    UnknownOp {
        /// Where the entries stand.
        at: Location,
        /// The op's name.
        op: String,
        /// All ops.
        known: Vec<String>,
    },
    /// A user's profile names a variant that no kernel of the op has.
    #[error("{at}: {key} '{}' is not a kernel of {op}; {}", quote(.variant), advice(.variant, .known))]
    UnknownVariant {
        /// Where the variant stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// The op.
        op: String,
        /// The variant.
        variant: String,
        /// The op's variants, in order of registration.
        known: Vec<String>,
    },
    /// A user's profile gives a kernel a size that it does not read, which would be without effect.
    #[error("{at}: {key} {}", unread_text(*.size, .variant, .reads))]
    UnreadSize {
        /// Where the size stands.
        at: Location,
        /// The path of the key.
        key: String,
        /// The variant.
        variant: String,
        /// The size.
        size: Size,
        /// The sizes that the variant reads.
        reads: Vec<Size>,
    },
    /// A wish under `accumulate` that no op allows.
    #[error(
        "{at}: accumulate.{dtype} is {wish}, but sums of {dtype} are kept in {}; write one of these or leave the key out",
        .allowed.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(" or ")
    )]
    Accumulate {
        /// Where the wish stands.
        at: Location,
        /// The type of the elements.
        dtype: DType,
        /// The type that was wished for.
        wish: DType,
        /// The types that sums of such elements may have.
        allowed: Vec<DType>,
    },
    /// No kernel of the op runs on the device.
    #[error("no kernel of {op} fits this device: {}; run the op on another device", no_kernel_text(.reasons))]
    NoKernel {
        /// The op.
        op: String,
        /// Why each candidate was left out.
        reasons: Vec<String>,
    },
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn chain_text(chain: &[(String, Location)]) -> String {
    let first = chain.first().map(|(name, _)| quote(name)).unwrap_or_default();
    let links = chain.iter().map(|(name, at)| format!("{} ({at})", quote(name)));
    links.chain([first]).collect::<Vec<_>>().join(" -> ")
}

fn no_kernel_text(reasons: &[String]) -> String {
    if reasons.is_empty() { "it has none here".to_owned() } else { list(reasons) }
}

//! Places in the caller's program, found from backtraces.

use std::backtrace::Backtrace;
use std::fmt;

/// Where something happened. Taking one walks the stack; symbols are looked up only when it is shown.
pub(super) struct Place(Backtrace);

/// What a stack without symbols, or with nothing but our own frames, is shown as.
const UNKNOWN: &str = "unknown (no symbols of the caller; build with debug = \"line-tables-only\")";

/// Frames that belong to the machinery between the caller and the layer.
const OWN: [&str; 8] = ["halite_", "std::", "core::", "alloc::", "backtrace", "rust_", "__rust", "_"];

impl Place {
    /// The caller's stack as it is now.
    pub(super) fn here() -> Self {
        Self(Backtrace::force_capture())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match first_outside(&self.0.to_string()) {
            Some((function, Some(position))) => write!(f, "{position} ({function})"),
            Some((function, None)) => f.write_str(&function),
            None => f.write_str(UNKNOWN),
        }
    }
}

/// Function and position of the first frame that is none of ours. The text is that of [`Backtrace`]: a line with
/// number and symbol, then, if known, one with the position.
fn first_outside(text: &str) -> Option<(String, Option<String>)> {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((number, symbol)) = line.trim_start().split_once(": ") else { continue };
        if number.parse::<u32>().is_err() {
            continue;
        }
        let position = lines.peek().and_then(|next| next.trim_start().strip_prefix("at "));
        // A method of a trait is shown as `<type as trait>::method`.
        let name = symbol.trim_start_matches(['<', '&', '(', '*', '[']).trim_start_matches("dyn ");
        if OWN.iter().any(|own| name.starts_with(own)) || symbol == "<unknown>" {
            continue;
        }
        let function = without_hash(symbol).to_owned();
        return Some((function, position.map(|position| without_column(position).to_owned())));
    }
    None
}

/// `krate::function::h0123456789abcdef` without the last part.
fn without_hash(symbol: &str) -> &str {
    match symbol.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => path,
        _ => symbol,
    }
}

/// `file:line:column` without the column.
fn without_column(position: &str) -> &str {
    match position.rsplit_once(':') {
        Some((rest, column)) if column.parse::<u32>().is_ok() && rest.contains(':') => rest,
        _ => position,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_outside_is_shown_without_hash_and_column() {
        let text = "   0: std::backtrace::Backtrace::force_capture\n             at /rustc/x/backtrace.rs:1:2\n   \
                    1: <halite_layers::validate::device::ValidateDevice as \
                    halite_hal::driver::Device>::allocate\n   2: halite_hal::device::Device::allocate\n   \
                    3: painter::blur::h0123456789abcdef\n             at ./src/blur.rs:40:9\n   4: main\n";
        let expected = ("painter::blur".to_owned(), Some("./src/blur.rs:40".to_owned()));
        assert_eq!(first_outside(text), Some(expected));
    }

    #[test]
    fn frames_without_positions_and_stacks_without_symbols_are_legal() {
        assert_eq!(
            first_outside("   0: <painter::Blur>::run\n").unwrap(),
            ("<painter::Blur>::run".into(), None)
        );
        assert_eq!(first_outside("   0: <unknown>\n   1: core::ops::f\n"), None);
        assert_eq!(first_outside("disabled backtrace"), None);
        assert_eq!(first_outside(""), None);
    }
}

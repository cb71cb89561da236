//! Places in the caller's program, found from backtraces.

use halite_hal::annotate;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// Where something happened. Taking one walks the stack, once a call; symbols are looked up only when it is shown.
pub(super) struct Place(Backtrace);

/// What a stack without symbols, or with nothing but our own frames, is shown as.
const UNKNOWN: &str = "unknown (no symbols of the caller; build with debug = \"line-tables-only\")";

/// Beginnings of symbols between the caller and the layer.
const OWN_SYMBOLS: [&str; 8] = ["halite_", "std::", "core::", "alloc::", "backtrace", "rust_", "__rust", "_"];

/// Where this crate was built; its siblings lie beside it.
const OWN_FOLDER: &str = env!("CARGO_MANIFEST_DIR");

thread_local! {
    /// The last call that the thread's user made of a library above the layer, with where it was made.
    static LAST_CALL: RefCell<Option<(u64, Arc<Place>)>> = const { RefCell::new(None) };
}

impl Place {
    /// The caller's stack as it is now; of one call of the program's ([`annotate::call`]), as it was when it was looked at
    /// first, for what differs since is not the program's.
    pub(super) fn here() -> Arc<Self> {
        let capture = || Arc::new(Self(Backtrace::force_capture()));
        let Some(call) = annotate::current_call() else { return capture() };
        let of_call = LAST_CALL.try_with(|last| {
            let mut last = last.borrow_mut();
            match &*last {
                Some((number, place)) if *number == call => place.clone(),
                _ => last.insert((call, capture())).1.clone(),
            }
        });
        // At the end of the thread there is no memory of it.
        of_call.unwrap_or_else(|_| capture())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = std::env::current_dir().unwrap_or_default();
        match first_outside(&self.0.to_string(), &current.to_string_lossy(), OWN_FOLDER) {
            Some((function, Some(position))) => write!(f, "{position} ({function})"),
            Some((function, None)) => f.write_str(&function),
            None => f.write_str(UNKNOWN),
        }
    }
}

/// Function and position of the first frame that is none of ours. The text is that of [`Backtrace`]: a line with
/// number and symbol, then, if known, one with the position, whose file is shown from the current folder on.
fn first_outside(text: &str, current: &str, own: &str) -> Option<(String, Option<String>)> {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((number, symbol)) = line.trim_start().split_once(": ") else { continue };
        if number.parse::<u32>().is_err() || symbol == "<unknown>" {
            continue;
        }
        let position = lines.peek().and_then(|next| next.trim_start().strip_prefix("at "));
        let is_own = match position {
            // Symbols of inlined functions do not name their crate, so files decide where they are known.
            Some(position) => is_own_file(position, current, own),
            // Nor can those without a file be told apart.
            None => !symbol.contains("::") || is_own_symbol(symbol),
        };
        if !is_own {
            let position = position.map(|position| without_column(position).to_owned());
            return Some((without_hash(symbol).to_owned(), position));
        }
    }
    None
}

fn is_own_symbol(symbol: &str) -> bool {
    // A method of a trait is shown as `<type as trait>::method`.
    let name = symbol.trim_start_matches(['<', '&', '(', '*', '[']).trim_start_matches("dyn ");
    OWN_SYMBOLS.iter().any(|own| name.starts_with(own))
}

/// Whether a file is one of the standard library's or of Halite's crates below the facade.
fn is_own_file(position: &str, current: &str, own: &str) -> bool {
    let [position, current, own] = [position, current, own].map(|path| path.replace('\\', "/"));
    let file = match position.strip_prefix("./") {
        Some(rest) => format!("{}/{rest}", current.trim_end_matches('/')),
        None => position,
    };
    // Where the toolchain has the source of the standard library, its inlined functions are said to lie there.
    if file.starts_with("/rustc/") || file.contains("/rustlib/src/rust/library/") {
        return true;
    }
    let Some((folder, name)) = own.trim_end_matches('/').rsplit_once('/') else { return false };
    let Some(rest) = file.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')) else { return false };
    // Tests and examples of a crate lie in other folders than its own code.
    let Some((krate, _)) = rest.split_once("/src/") else { return false };
    // `layers` beside `hal` in the repository, `halite-layers-0.1.0` beside `halite-hal-0.1.0` in a registry.
    match name.split_once("layers") {
        Some(("", "")) => {
            matches!(krate, "hal" | "layers" | "ops" | "profiles") || krate.starts_with("backends/")
        }
        Some((prefix, _)) => krate.starts_with(prefix) && !krate.contains('/'),
        None => false,
    }
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

    const OWN: &str = "/build/halite/layers";

    #[test]
    fn the_first_frame_outside_is_shown_without_hash_and_column() {
        let text = "   0: std::backtrace::Backtrace::force_capture\n             at /rustc/x/backtrace.rs:1:2\n   \
                    1: <halite_layers::validate::device::ValidateDevice as \
                    halite_hal::driver::Device>::allocate\n   2: halite_hal::device::Device::allocate\n   \
                    3: painter::blur::h0123456789abcdef\n             at ./src/blur.rs:40:9\n   4: main\n";
        let expected = ("painter::blur".to_owned(), Some("./src/blur.rs:40".to_owned()));
        assert_eq!(first_outside(text, "/home/painter", OWN), Some(expected));
    }

    #[test]
    fn one_call_is_in_one_place_and_the_next_is_looked_at_anew() {
        let call = annotate::call();
        let first = Place::here();
        assert!(Arc::ptr_eq(&first, &Place::here()));
        drop(call);
        assert!(!Arc::ptr_eq(&Place::here(), &Place::here()));
        let _call = annotate::call();
        assert!(!Arc::ptr_eq(&first, &Place::here()));
    }

    #[test]
    fn inlined_frames_are_told_apart_by_their_files() {
        let text = "   0: here\n             at ./src/validate/place.rs:18:14\n   1: launch\n   2: allocate\n             \
                    at /build/halite/hal/src/device.rs:9:9\n   3: buffer\n             at ./tests/validate/main.rs:5:5\n";
        let expected = ("buffer".to_owned(), Some("./tests/validate/main.rs:5".to_owned()));
        assert_eq!(first_outside(text, OWN, OWN), Some(expected));
    }

    #[test]
    fn own_files_are_those_of_the_crates_below_the_facade() {
        let is_own = |position: &str| is_own_file(position, "/build/halite", OWN);
        assert!(is_own("./hal/src/device.rs:1:1") && is_own("/build/halite/backends/cpu/src/stream.rs:1:1"));
        assert!(is_own("/rustc/0/library/core/src/ops/function.rs:1:1"));
        for krate in ["core", "alloc", "std"] {
            assert!(is_own(&format!(
                "/toolchains/stable/lib/rustlib/src/rust/library/{krate}/src/vec/mod.rs:1:1"
            )));
        }
        assert!(!is_own("./src/demo/network.rs:1:1") && !is_own("./hal/tests/registry.rs:1:1"));
        assert!(!is_own("/build/other/src/main.rs:1:1") && !is_own("src/main.rs:1:1"));
        let in_registry = |position: &str| is_own_file(position, "/", "/cargo/registry/halite-layers-0.1.0");
        assert!(in_registry("/cargo/registry/halite-hal-0.1.0/src/device.rs:1:1"));
        assert!(!in_registry("/cargo/registry/painter-2.0.0/src/device.rs:1:1"));
    }

    #[test]
    fn frames_without_positions_and_stacks_without_symbols_are_legal() {
        let outside = |text| first_outside(text, "", "");
        assert_eq!(outside("   0: <painter::Blur>::run\n").unwrap(), ("<painter::Blur>::run".into(), None));
        assert_eq!(outside("   0: <unknown>\n   1: core::ops::f\n"), None);
        assert_eq!(outside("disabled backtrace"), None);
        assert_eq!(outside(""), None);
    }
}

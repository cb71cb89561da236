//! Threads that an input leaves behind for a moment: the next input begins when they are gone, and so does the search
//! for leaks.

use std::time::{Duration, Instant};

/// Every thread that an input starts ends within this time.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How many threads this process has.
#[must_use]
pub fn threads() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("Linux says how many threads there are");
    // The name in parentheses may hold spaces; the number is the 18th field behind it.
    let fields = text.rsplit(')').next().expect("the line has a name");
    let count = fields.split_whitespace().nth(17).and_then(|field| field.parse().ok());
    count.expect("the line has a count of threads")
}

/// Waits until only `count` threads are left.
///
/// # Panics
/// When one of the others does not end.
pub fn wait_for_threads(count: u64) {
    let deadline = Instant::now() + END_WITHIN;
    while threads() > count {
        assert!(Instant::now() < deadline, "a thread does not end");
        std::thread::sleep(Duration::from_micros(50));
    }
}

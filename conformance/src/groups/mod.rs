//! The tests, one group a file.

mod abi;
mod allocation;
mod builtin;
mod discovery;
mod failure;
mod fill;
mod honesty;
mod import;
mod launch;
mod list;
mod loss;
mod openings;
mod order;
mod peer;
mod pool;
mod random;
mod threads;
mod time;
mod transfer;

use crate::context::Context;
use crate::outcome::{Outcome, failed};
use std::thread;

/// A test: a name, what is promised, and how it is checked.
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) run: Box<dyn Fn(&Context) -> Outcome + Send + Sync>,
}

/// The tests of a group, as they are collected.
pub(crate) struct Tests {
    group: &'static str,
    tests: Vec<Test>,
}

impl Tests {
    /// Adds a test to the group.
    pub(crate) fn add(
        &mut self,
        name: impl AsRef<str>,
        text: impl Into<String>,
        run: impl Fn(&Context) -> Outcome + Send + Sync + 'static,
    ) {
        let name = format!("{}/{}", self.group, name.as_ref());
        self.tests.push(Test { name, text: text.into(), run: Box::new(run) });
    }
}

/// Adds the tests of a group.
type Collect = fn(&mut Tests);

/// Every test, group by group: what later groups build on comes first.
pub(crate) fn all() -> Vec<Test> {
    let groups: &[(&'static str, Collect)] = &[
        ("discovery", discovery::tests),
        ("abi", abi::tests),
        ("allocation", allocation::tests),
        ("transfer", transfer::tests),
        ("fill", fill::tests),
        ("builtin", builtin::tests),
        ("launch", launch::tests),
        ("order", order::tests),
        ("threads", threads::tests),
        ("failure", failure::tests),
        ("loss", loss::tests),
        ("pool", pool::tests),
        ("list", list::tests),
        ("time", time::tests),
        ("openings", openings::tests),
        ("import", import::tests),
        ("peer", peer::tests),
        ("honesty", honesty::tests),
        ("random", random::tests),
    ];
    let mut tests = Tests { group: "", tests: Vec::new() };
    for (group, collect) in groups {
        tests.group = group;
        collect(&mut tests);
    }
    tests.tests
}

/// Runs a body in so many threads at once; the first that does not pass decides.
fn in_threads(count: usize, body: impl Fn(usize) -> Outcome + Sync) -> Outcome {
    let body = &body;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|index| scope.spawn(move || body(index))).collect();
        let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        outcomes
            .into_iter()
            .try_for_each(|outcome| outcome.unwrap_or_else(|_| Err(failed("a thread panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_distinct_and_every_test_says_what_is_promised() {
        let tests = all();
        let names: BTreeSet<&str> = tests.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(names.len(), tests.len());
        for test in &tests {
            let (group, name) = test.name.split_once('/').expect("a group and a name");
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(!name.is_empty() && group.chars().chain(name.chars()).all(is_word), "{}", test.name);
            assert!(test.text.len() > 10 && !test.text.ends_with('.'), "{}: {}", test.name, test.text);
        }
    }
}

//! What a run found out.

use serde::Serialize;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The promise holds.
    Passed,
    /// The device does not claim what the test is about, and says so when asked.
    Unsupported,
    /// The run left it out.
    Skipped,
    /// It failed, as the list of expected failures says.
    ExpectedFailure,
    /// It passed, although the list of expected failures says that it would not; take it off the list.
    UnexpectedPass,
    /// The promise is broken.
    Failed,
}

impl Verdict {
    /// Whether the run fails because of it.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Failed | Self::UnexpectedPass)
    }
}

/// A test's outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TestResult {
    /// `group/test`.
    pub name: String,
    /// What is promised.
    pub text: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it did not pass; empty if it did.
    pub reason: String,
    /// Time that it took.
    pub seconds: f64,
}

/// How many tests ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Promises that hold.
    pub passed: usize,
    /// What the device does not claim.
    pub unsupported: usize,
    /// What the run left out.
    pub skipped: usize,
    /// Failures that were expected.
    pub expected_failures: usize,
    /// Broken promises, and expected failures that passed.
    pub failed: usize,
}

impl Counts {
    /// Tests in all.
    pub fn total(&self) -> usize {
        self.passed + self.unsupported + self.skipped + self.expected_failures + self.failed
    }

    fn add(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Passed => &mut self.passed,
            Verdict::Unsupported => &mut self.unsupported,
            Verdict::Skipped => &mut self.skipped,
            Verdict::ExpectedFailure => &mut self.expected_failures,
            Verdict::UnexpectedPass | Verdict::Failed => &mut self.failed,
        } += 1;
    }
}

/// A group's outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupResult {
    /// Its name.
    pub group: String,
    /// How its tests ended.
    #[serde(flatten)]
    pub counts: Counts,
    /// Time that they took.
    pub seconds: f64,
}

/// What was found out about a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The device, such as `npu:0`.
    pub device: String,
    /// The product's name.
    pub name: String,
    /// The driver's or plugin's version.
    pub driver: String,
    /// What random tests started from.
    pub seed: u64,
    /// Every test that ran, in order.
    pub tests: Vec<TestResult>,
}

impl Report {
    /// How the tests ended, all together.
    pub fn counts(&self) -> Counts {
        count(self.tests.iter())
    }

    /// Every group that ran, in order.
    pub fn groups(&self) -> Vec<GroupResult> {
        let group_of = |test: &TestResult| test.name.split('/').next().unwrap_or_default().to_owned();
        let mut names: Vec<String> = self.tests.iter().map(group_of).collect();
        names.dedup();
        let result = |group: String| {
            let tests = || self.tests.iter().filter(|test| group_of(test) == group);
            let seconds = tests().map(|test| test.seconds).sum();
            GroupResult { counts: count(tests()), seconds, group }
        };
        names.into_iter().map(result).collect()
    }

    /// The tests because of which the run fails.
    pub fn failures(&self) -> impl Iterator<Item = &TestResult> {
        self.tests.iter().filter(|test| test.verdict.is_bad())
    }

    /// Whether every promise that the device makes is kept.
    pub fn succeeded(&self) -> bool {
        self.failures().next().is_none()
    }

    /// One JSON object in one line: the device, `counts`, `groups` and `tests`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.to_value()).expect("strings, numbers and lists of them always serialise")
    }

    /// The object of [`to_json`](Self::to_json).
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::json!({
            "device": self.device,
            "name": self.name,
            "driver": self.driver,
            "seed": self.seed,
            "succeeded": self.succeeded(),
            "counts": self.counts(),
            "groups": self.groups(),
            "tests": self.tests,
        })
    }
}

fn count<'a>(tests: impl Iterator<Item = &'a TestResult>) -> Counts {
    let mut counts = Counts::default();
    tests.for_each(|test| counts.add(test.verdict));
    counts
}

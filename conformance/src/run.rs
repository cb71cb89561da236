//! Running tests: each on a thread of its own, with a time limit, and whatever it leaves behind noticed.

use crate::context::{Context, Shared};
use crate::expected::ExpectedFailures;
use crate::groups::{self, Test};
use crate::outcome::{Outcome, Stop};
use crate::report::{Report, TestResult, Verdict};
use crate::target::Target;
use halite_hal::{Device, Health, Result};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long what a test has freed may take to come back: backends give memory back when work is noticed to be over.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What a run does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Runs tests whose names contain one of these; all where there is none.
    pub filters: Vec<String>,
    /// Tests that are known to fail.
    pub expected: ExpectedFailures,
    /// What random tests start from.
    pub seed: u64,
    /// A test that takes longer has failed.
    pub time_limit: Duration,
    /// Fills a device whose memory has no more bytes; larger ones only where they can be opened smaller.
    pub fill_limit_bytes: u64,
}

impl Default for Options {
    /// Every test, none expected to fail, 60 seconds each, and devices of at most 1 GiB filled.
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            expected: ExpectedFailures::default(),
            seed: 1,
            time_limit: Duration::from_secs(60),
            fill_limit_bytes: 1 << 30,
        }
    }
}

/// A test of the suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `group/test`.
    pub name: String,
    /// What is promised.
    pub text: String,
}

/// Where a run is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The test that is about to run.
    pub test: &'a str,
    /// Tests before it.
    pub done: usize,
    /// Tests in all.
    pub total: usize,
}

/// Every test, in the order in which they run.
pub fn catalogue() -> Vec<Entry> {
    groups::all().into_iter().map(|test| Entry { name: test.name, text: test.text }).collect()
}

/// Runs the suite on a device. `progress` hears of each test before it runs.
///
/// # Errors
/// When the device does not open at all, or no test has a name that was asked for.
pub fn run(target: &Target, options: &Options, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Report> {
    let wanted = |name: &str| {
        options.filters.is_empty() || options.filters.iter().any(|part| name.contains(part.as_str()))
    };
    let tests: Vec<Arc<Test>> =
        groups::all().into_iter().filter(|test| wanted(&test.name)).map(Arc::new).collect();
    if tests.is_empty() {
        let filters = options.filters.join("', '");
        return Err(halite_hal::Error::invalid(format!(
            "no test's name contains '{filters}'; --list shows them all"
        )));
    }
    let device = target.open()?;
    let info = device.info().clone();
    let shared = Arc::new(Shared { spin: OnceLock::new(), fills: OnceLock::new() });
    let mut runner = Runner { target: Arc::new(target.clone()), options, shared, device: Some(device) };
    let mut results = Vec::with_capacity(tests.len());
    for (done, test) in tests.iter().enumerate() {
        progress(Progress { test: &test.name, done, total: tests.len() });
        let begin = Instant::now();
        let outcome = runner.run(test);
        results.push(judge(test, outcome, runner.expectation(&test.name), begin.elapsed()));
    }
    Ok(Report {
        device: info.id.to_string(),
        name: info.name,
        driver: info.driver_version,
        seed: options.seed,
        tests: results,
    })
}

fn judge(test: &Test, outcome: Outcome, expected: Option<String>, time: Duration) -> TestResult {
    let (verdict, reason) = match (outcome, expected) {
        (Ok(()), None) => (Verdict::Passed, String::new()),
        (Ok(()), Some(reason)) => (
            Verdict::UnexpectedPass,
            format!("passes, but was expected to fail ({reason}); take it off the list"),
        ),
        (Err(Stop::Failed(got)), Some(reason)) => (Verdict::ExpectedFailure, format!("{reason} ({got})")),
        (Err(Stop::Failed(reason)), None) => (Verdict::Failed, reason),
        (Err(Stop::Unsupported(reason)), _) => (Verdict::Unsupported, reason),
        (Err(Stop::Skipped(reason)), _) => (Verdict::Skipped, reason),
    };
    let (name, text) = (test.name.clone(), test.text.clone());
    TestResult { name, text, verdict, reason, seconds: time.as_secs_f64() }
}

struct Runner<'a> {
    target: Arc<Target>,
    options: &'a Options,
    shared: Arc<Shared>,
    /// Used by every test, until one leaves it in doubt.
    device: Option<Device>,
}

impl Runner<'_> {
    fn expectation(&self, test: &str) -> Option<String> {
        let lists = [&self.options.expected, &self.target.expected];
        lists.into_iter().find_map(|list| list.reason(test)).map(str::to_owned)
    }

    fn run(&mut self, test: &Arc<Test>) -> Outcome {
        let device = match &self.device {
            Some(device) => device.clone(),
            None => self.device.insert(guarded(|| Ok(self.target.open()?))?).clone(),
        };
        let before = guarded(|| Ok(device.memory()?.used_bytes))?;
        let context = Context {
            target: self.target.clone(),
            device: device.clone(),
            shared: self.shared.clone(),
            seed: self.options.seed,
            test: test.name.clone(),
            fill_limit_bytes: self.options.fill_limit_bytes,
            spin: OnceLock::new(),
        };
        let outcome = self.run_on_a_thread(test, context);
        if self.device.is_none() {
            // Whoever did not end may hold a lock that any call would wait for.
            return outcome;
        }
        if let Health::Lost { reason } = guarded(|| Ok(device.health()))? {
            // What was lost stays so; the next test gets another opening.
            self.device = None;
            return outcome.and(Err(Stop::Failed(format!("the device is lost after the test: {reason}"))));
        }
        let settled = guarded(|| settle(&device, before));
        if settled.is_err() {
            self.device = None;
        }
        outcome.and(settled)
    }

    fn run_on_a_thread(&mut self, test: &Arc<Test>, context: Context) -> Outcome {
        let (sender, receiver) = channel();
        let body = test.clone();
        let run = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| (body.run)(&context)))
                .unwrap_or_else(|panic| Err(Stop::Failed(format!("panic: {}", panic_text(&*panic)))));
            // Before the outcome is told, so that what the test held is gone by then.
            drop((context, body));
            let _ = sender.send(outcome);
        };
        let thread = thread::Builder::new().name(format!("conformance {}", test.name)).spawn(run);
        let thread = thread.map_err(|error| Stop::Skipped(format!("no thread to run on: {error}")))?;
        match receiver.recv_timeout(self.options.time_limit) {
            Ok(outcome) => {
                let _ = thread.join();
                outcome
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Stop::Failed("the test's thread ended without a word".into()))
            }
            Err(RecvTimeoutError::Timeout) => {
                // The thread stays behind with what it holds.
                self.device = None;
                let limit = self.options.time_limit.as_secs_f64();
                Err(Stop::Failed(format!("did not end within {limit} s")))
            }
        }
    }
}

/// What a call of the run's own gives; a driver's panic is a failure of the test that is about to run.
fn guarded<T>(call: impl FnOnce() -> std::result::Result<T, Stop>) -> std::result::Result<T, Stop> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Stop::Failed(format!("panic: {}", panic_text(&*panic)))))
}

/// Waits until what the test has freed is free again.
fn settle(device: &Device, before: u64) -> Outcome {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        let used = device.memory()?.used_bytes;
        if used <= before {
            return Ok(());
        }
        if begin.elapsed() > SETTLE_LIMIT {
            let more = used - before;
            return Err(Stop::Failed(format!("{more} bytes are still in use after everything was dropped")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "no text".into())
}

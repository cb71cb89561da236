//! PyTorch's side of a product: `benches/peers/matmul.py`, kept alive, asleep while the other sides run.

use crate::product::Product;
use crate::{Outcome, failure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// The process, which answers a line with a line.
pub(crate) struct Torch {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Its version and device.
    pub(crate) version: String,
}

impl Torch {
    /// Starts a command, whose words are separated by spaces.
    ///
    /// # Errors
    /// When it is not there, or has no PyTorch with CUDA; what it says about that stands on standard error.
    pub(crate) fn start(command: &str) -> Outcome<Self> {
        let mut words = command.split_whitespace();
        let program = words.next().ok_or_else(|| failure("--torch is empty"))?;
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failure(format!("--torch {program}: {error}")))?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| failure("the process has no output"))?);
        let mut torch = Self { child, requests, answers, version: String::new() };
        let first = torch.answer()?;
        torch.version = first["torch"].as_str().unwrap_or("of no version").to_owned();
        Ok(torch)
    }

    /// The time of `count` products, as its process measures it.
    pub(crate) fn run(&mut self, product: &Product, count: u64) -> Outcome<Duration> {
        let Product { m, n, k, dtype } = product;
        let request = json!({ "m": m, "n": n, "k": k, "dtype": dtype.to_string(), "count": count });
        let requests = self.requests.as_mut().ok_or_else(|| failure("the process has no input"))?;
        writeln!(requests, "{request}")?;
        requests.flush()?;
        let answer = self.answer()?;
        let seconds = answer["seconds"].as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        Ok(Duration::from_secs_f64(
            seconds.ok_or_else(|| failure(format!("PyTorch's side answers {answer}")))?,
        ))
    }

    fn answer(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(failure("PyTorch's side has ended; its message is above"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.requests.take());
        let _ = self.child.wait();
    }
}

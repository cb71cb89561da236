//! A device next to its vendor's own calls and libraries: `cargo bench --bench gpu -- --device opencl:0`.
//!
//! | part | what is timed | next to |
//! | --- | --- | --- |
//! | `matmul` | products in f32, as dispatched | CLBlast on the same OpenCL device; on CUDA cuBLASLt |
//! | `bandwidth` | copies, a copy kernel, fused chains of elementwise operations | the driver's own copy; the copy |
//! | `launch` | launches of a small kernel: in a row, one by one, recorded | the driver's own launches |
//! | `bf16` | CUDA: large products in bf16, as dispatched, and every own kernel | PyTorch (`--torch`), or cuBLASLt |
//! | `training` | the training step of `benches/peers`, recorded and replayed | |
//! | `layers` | launches and the training step inside of `trace` and `validate`; `cpu:0` too | the same without |
//!
//! The sides of a comparison take turns within one process, and a ratio is formed round by round; see `race.rs`. What the
//! machine lacks is skipped with a reason. The file that Cargo builds runs alone, on a machine without Rust: it opens
//! drivers and libraries at run time.

mod bandwidth;
mod bf16;
mod clblast;
#[path = "../common/mod.rs"]
mod common;
mod cuda;
mod graphs;
mod launch;
mod layers;
mod library;
mod matmul;
mod opencl;
mod product;
mod race;
mod report;
mod torch;
mod training;

use halite::hal::DeviceInfo;
use halite::{Engine, Session};
use race::Timing;
use report::Report;
use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

/// What a part comes to.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const USAGE: &str =
    "usage: gpu [--device NAME] [--part NAME]... [--rounds N] [--seconds S] [--torch COMMAND] [--json] \
                     [--require]

  --device NAME    opencl:0 (default), cuda:0, cpu:0, ...
  --part NAME      matmul, bandwidth, launch, bf16, training or layers; repeatable; all by default
  --rounds N       turns of every side of a comparison (9)
  --seconds S      length of one side's turn (0.15)
  --torch COMMAND  PyTorch's side of bf16 products, such as \"python3 benches/peers/matmul.py --on-request\"
  --json           one JSON object a line instead of the table
  --require        exit code 1 where a required ratio is missed";

type Bench = fn(&Subject, &mut Report) -> Outcome;

/// Every part, in the order of running.
const PARTS: [(&str, Bench); 6] = [
    ("matmul", matmul::bench),
    ("bandwidth", bandwidth::bench),
    ("launch", launch::bench),
    ("bf16", bf16::bench),
    ("training", training::bench),
    ("layers", layers::bench),
];

/// The device that is measured.
pub(crate) struct Subject {
    engine: Engine,
    info: DeviceInfo,
    timing: Timing,
    torch: Option<String>,
}

impl Subject {
    fn is_cuda(&self) -> bool {
        self.info.id.backend == "cuda"
    }

    fn is_opencl(&self) -> bool {
        self.info.id.backend == "opencl"
    }

    /// Whether it is PoCL on a processor, for which some ratios are required.
    fn is_pocl(&self) -> bool {
        self.is_opencl() && ["pthread", "cpu"].iter().any(|name| self.info.name.starts_with(name))
    }
}

struct Options {
    device: String,
    parts: Vec<String>,
    timing: Timing,
    torch: Option<String>,
    is_json: bool,
    is_required: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            device: "opencl:0".into(),
            parts: Vec::new(),
            timing: Timing { rounds: 9, seconds: 0.15 },
            torch: None,
            is_json: false,
            is_required: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                // Cargo says so to every benchmark.
                "--bench" => {}
                "--help" | "-h" => {
                    println!("{USAGE}");
                    std::process::exit(0);
                }
                "--device" => options.device = value()?,
                "--part" => {
                    let name = value()?;
                    if !PARTS.iter().any(|(known, _)| *known == name) {
                        let known = PARTS.map(|(known, _)| known).join(", ");
                        return Err(format!("there is no part '{name}'; use one of {known}"));
                    }
                    options.parts.push(name);
                }
                "--rounds" => options.timing.rounds = positive(&word, &value()?)?,
                "--seconds" => options.timing.seconds = positive(&word, &value()?)?,
                "--torch" => options.torch = Some(value()?),
                "--json" => options.is_json = true,
                "--require" => options.is_required = true,
                other => return Err(format!("unknown argument '{other}'\n{USAGE}")),
            }
        }
        Ok(options)
    }
}

fn positive<T: std::str::FromStr + PartialOrd + Default>(name: &str, text: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| *number > T::default());
    number.ok_or_else(|| format!("{name} is '{text}', which is no positive number\n{USAGE}"))
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(is_met) if is_met || !options.is_required => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every chosen part; whether every required ratio is reached.
fn run(options: &Options) -> Outcome<bool> {
    graphs::listen();
    let session = Session::new()?;
    let engine = session.open(&options.device)?;
    let info = engine.device().info().clone();
    let subject = Subject { engine, info, timing: options.timing, torch: options.torch.clone() };
    let mut report = Report::new(&subject);
    for (part, bench) in PARTS {
        if !options.parts.is_empty() && !options.parts.iter().any(|chosen| chosen == part) {
            continue;
        }
        eprintln!("{part} ...");
        report.begin(part);
        if let Err(error) = bench(&subject, &mut report) {
            report.fail(error);
        }
    }
    report.print(options.is_json)?;
    // A driver for processors may abort when the process ends while it works.
    subject.engine.synchronize()?;
    Ok(report.is_met())
}

/// An error that is a sentence.
fn failure(message: impl Display) -> Box<dyn Error> {
    message.to_string().into()
}

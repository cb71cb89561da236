//! The command line, `halite`: what may be written, what is refused, and how results are printed.
//!
//! It knows no device and no driver. `main` parses with [`parse`], fills the plain types of
//! [`devices`], [`profile`] and [`report`](crate::demo::report) from the library, and ends with one of
//! the exit codes below.

pub mod conformance;
pub mod demo;
pub mod devices;
pub mod output;
pub mod profile;
pub mod select;
pub mod selftest;
pub mod trace;
pub mod tune;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Exit code of a command that did what it was asked.
pub const EXIT_SUCCESS: u8 = 0;
/// Exit code of a command that failed while running.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code for wrong use or input: an unknown option or device, an absent plugin file.
pub const EXIT_USAGE: u8 = 2;

/// The whole command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "halite",
    version,
    about = "Uses every accelerator on this machine. Without a command it runs the demo.",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::DemoArgs,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Check that a device keeps the promises of the hardware abstraction layer
    Conformance(conformance::ConformanceArgs),
    /// Train a small network on handwritten digits on every device (the default)
    Demo(demo::DemoArgs),
    /// List every device, and why other backends are absent
    Devices(devices::DevicesArgs),
    /// Look at the profiles that choose kernels
    Profile(profile::ProfileArgs),
    /// Check that devices compute what they should
    Selftest(selftest::SelftestArgs),
    /// Add up what a file of the layer 'trace' says
    Trace(trace::TraceArgs),
    /// Find the fastest kernels of a device, and write a profile that chooses them
    Tune(tune::TuneArgs),
}

impl Cli {
    /// The command to run: without one, the demo.
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Demo(self.demo))
    }

    /// The plugin files that were named, in order.
    pub fn plugins(&self) -> &[PathBuf] {
        match &self.command {
            None => &self.demo.plugins,
            Some(Command::Conformance(conformance)) => &conformance.plugins,
            Some(Command::Demo(demo)) => &demo.plugins,
            Some(Command::Devices(devices)) => &devices.plugins,
            Some(Command::Profile(profile)) => profile.plugins(),
            Some(Command::Selftest(selftest)) => &selftest.plugins,
            Some(Command::Trace(_)) => &[],
            Some(Command::Tune(tune)) => &tune.plugins,
        }
    }
}

/// Input that a command refuses before it starts; ends the program with [`EXIT_USAGE`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// Nothing that was found has this name.
    #[error("unknown device '{requested}'{}; {}", did_you_mean(suggestion), use_one_of(found))]
    UnknownDevice {
        /// What was written.
        requested: String,
        /// The closest name that would work.
        suggestion: Option<String>,
        /// The names that would work.
        found: Vec<String>,
    },
    /// The name is right, but its backend has no device on this machine.
    #[error("device '{requested}' is absent: {reason}; {}", use_one_of(found))]
    AbsentDevice {
        /// What was written.
        requested: String,
        /// Why the backend has no device.
        reason: String,
        /// The names that would work.
        found: Vec<String>,
    },
    /// The report could not be written there.
    #[error("cannot write the report to '{}': {reason}", path.display())]
    Report {
        /// What was written.
        path: PathBuf,
        /// What is in the way and what to do.
        reason: String,
    },
}

/// The environment variable that says what of the log is shown: `debug`, `halite_npu=trace`.
pub const LOG_VARIABLE: &str = "HALITE_LOG";

/// Shows errors and warnings of backends and plugins on standard error, or what [`LOG_VARIABLE`] asks for. Once.
pub fn start_log() {
    let asked = env_logger::Env::new().filter_or(LOG_VARIABLE, "warn");
    // Somebody else's logger stays.
    let _ = env_logger::Builder::from_env(asked).format_target(false).try_init();
}

/// Reads this process's command line; prints help, version or a one-line error and ends the program
/// where there is nothing to run.
pub fn parse() -> Cli {
    match try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Stop { message, to_stdout: true, .. }) => {
            // Nobody is left to tell when standard output is closed.
            let _ = output::print(&message);
            std::process::exit(i32::from(EXIT_SUCCESS))
        }
        Err(Stop { message, .. }) => {
            output::tell(message);
            std::process::exit(i32::from(EXIT_USAGE))
        }
    }
}

/// Why there is no command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Help, version, or an error in one line.
    pub message: String,
    /// True for help and version, which were asked for.
    pub to_stdout: bool,
}

/// Reads a command line; the first argument is the program's name.
///
/// # Errors
/// [`Stop`] when help or version was asked for, or when the arguments are wrong.
pub fn try_parse_from(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, Stop> {
    Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let rendered = error.render();
            let color = console::colors_enabled();
            let message = if color { rendered.ansi().to_string() } else { rendered.to_string() };
            Stop { message, to_stdout: error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand }
        }
        _ => Stop { message: one_line(&error), to_stdout: false },
    })
}

/// An error of the parser as one line: what is wrong, the closest right thing, and where help is.
fn one_line(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let mut parts: Vec<String> = Vec::new();
    for line in rendered.lines().map(str::trim) {
        if line.starts_with("Usage:") {
            break;
        }
        let line = line.strip_prefix("tip: ").unwrap_or(line);
        if !line.is_empty() && !line.starts_with("For more information") {
            parts.push(line.to_owned());
        }
    }
    parts.push("see 'halite --help'".to_owned());
    parts.join("; ").replace(":; ", ": ")
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|name| format!(", did you mean '{name}'?")).unwrap_or_default()
}

fn use_one_of(found: &[String]) -> String {
    if found.is_empty() {
        "no device was found on this machine".to_owned()
    } else {
        format!("use one of {}", found.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Cli {
        try_parse_from(line.split(' ')).unwrap_or_else(|stop| panic!("{line}: {}", stop.message))
    }

    fn refused(line: &str) -> String {
        let stop = try_parse_from(line.split(' ')).expect_err(line);
        assert!(!stop.to_stdout && !stop.message.contains('\n'), "{}", stop.message);
        stop.message
    }

    #[test]
    fn the_definition_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_is_the_demo() {
        let Command::Demo(bare) = parsed("halite").into_command() else { panic!("not the demo") };
        let Command::Demo(named) = parsed("halite demo").into_command() else { panic!("not the demo") };
        assert_eq!(bare, named);
        let Command::Demo(with_options) = parsed("halite --epochs 3 --device cpu").into_command() else {
            panic!("not the demo")
        };
        assert_eq!((with_options.epochs, with_options.devices), (3, vec!["cpu".to_owned()]));
    }

    #[test]
    fn wrong_words_are_refused_in_one_line() {
        assert_eq!(
            refused("halite devics"),
            "error: unrecognized subcommand 'devics'; a similar subcommand exists: 'devices'; see 'halite --help'"
        );
        assert_eq!(
            refused("halite demo --epoch 3"),
            "error: unexpected argument '--epoch' found; a similar argument exists: '--epochs'; see 'halite --help'"
        );
        assert!(refused("halite demo --dtype f64").contains("possible values: f32, f16"));
        assert!(refused("halite demo --epochs").contains("--epochs"));
        assert!(refused("halite demo stray").contains("stray"));
    }

    #[test]
    fn help_and_version_go_to_standard_output() {
        for line in ["halite --help", "halite demo --help", "halite -h", "halite --version"] {
            assert!(try_parse_from(line.split(' ')).unwrap_err().to_stdout, "{line}");
        }
        assert!(!try_parse_from(["halite", "profile"]).unwrap_err().to_stdout);
    }

    #[test]
    fn plugins_are_taken_from_any_command() {
        for line in ["halite", "halite demo", "halite devices", "halite profile show"] {
            let cli = parsed(&format!("{line} --plugin a.so --plugin b.so"));
            assert_eq!(cli.plugins(), [PathBuf::from("a.so"), PathBuf::from("b.so")], "{line}");
        }
    }

    #[test]
    fn usage_errors_say_what_would_work() {
        let found = vec!["cpu:0".to_owned(), "npu:0".to_owned()];
        let error =
            UsageError::UnknownDevice { requested: "cup".into(), suggestion: Some("cpu".into()), found };
        assert_eq!(error.to_string(), "unknown device 'cup', did you mean 'cpu'?; use one of cpu:0, npu:0");
    }
}

//! The command line, `halite`.

#![forbid(unsafe_code)]

use halite::cli::conformance as cli_conformance;
use halite::cli::conformance::{ConformanceArgs, ConformanceProgress};
use halite::cli::demo::{DemoArgs, Dtype};
use halite::cli::devices::{DeviceEntry, DeviceList, DevicesArgs};
use halite::cli::profile;
use halite::cli::profile::{EffectiveProfile, ProfileArgs, ProfileCommand, ProfileValue, ShowArgs};
use halite::cli::select::{position_of, select_devices};
use halite::cli::selftest as cli_selftest;
use halite::cli::selftest::{SelftestArgs, SelftestProgress};
use halite::cli::trace::{self as cli_trace, ReadError, TraceArgs};
use halite::cli::tune as cli_tune;
use halite::cli::tune::{TuneArgs, TuneProgress};
use halite::cli::{Cli, Command, EXIT_FAILURE, EXIT_SUCCESS, EXIT_USAGE, UsageError, output};
use halite::demo::digits::Digits;
use halite::demo::network::{Cnn, CnnConfig};
use halite::demo::page;
use halite::demo::progress::Progress;
use halite::demo::report::UnavailableBackend;
use halite::demo::run::{Candidate, Options, run};
use halite::selftest::Report;
use halite::tune::SaveError;
use halite::{DType, Session};
use std::process::ExitCode;

/// What ends a command early, with its exit code.
struct Stop {
    message: String,
    code: u8,
}

impl From<UsageError> for Stop {
    fn from(error: UsageError) -> Self {
        Self { message: error.to_string(), code: EXIT_USAGE }
    }
}

impl From<halite::Error> for Stop {
    fn from(error: halite::Error) -> Self {
        Self { message: error.to_string(), code: if error.is_usage() { EXIT_USAGE } else { EXIT_FAILURE } }
    }
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self { message: error.to_string(), code: EXIT_USAGE }
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self { message: error.to_string(), code: EXIT_FAILURE }
    }
}

fn main() -> ExitCode {
    halite::cli::start_log();
    let cli = halite::cli::parse();
    let outcome = dispatch(cli);
    ExitCode::from(outcome.unwrap_or_else(|stop| {
        output::tell(format_args!("error: {}", stop.message));
        stop.code
    }))
}

fn dispatch(cli: Cli) -> Result<u8, Stop> {
    let plugins = cli.plugins().to_vec();
    let command = cli.into_command();
    // Needs no device, and must work whatever the environment says about devices.
    if let Command::Trace(args) = &command {
        return trace(args);
    }
    let session = Session::builder().plugins(plugins).build()?;
    match command {
        Command::Conformance(args) => conformance(&session, &args),
        Command::Demo(args) => demo(&session, &args),
        Command::Devices(args) => list_devices(&session, &args),
        Command::Profile(ProfileArgs { command: ProfileCommand::Show(args) }) => {
            show_profile(&session, &args)
        }
        Command::Selftest(args) => selftest(&session, &args),
        Command::Tune(args) => tune(&session, &args),
        _ => Err(Stop {
            message: "this build does not know the command; see 'halite --help'".into(),
            code: EXIT_USAGE,
        }),
    }
}

fn demo(session: &Session, args: &DemoArgs) -> Result<u8, Stop> {
    args.check()?;
    let found = session.discover();
    let unavailable = unavailable(&found);
    let ids: Vec<String> = found.devices.iter().map(|info| info.id.to_string()).collect();
    let requested = args.devices.iter().map(|name| resolve(session, name)).collect::<Result<Vec<_>, _>>()?;
    let selected = select_devices(&requested, &ids, &unavailable)?;
    let digits = match &args.data {
        Some(file) => Digits::from_file(file),
        None => Digits::builtin(),
    };
    let digits = digits.map_err(|error| Stop { message: error.to_string(), code: EXIT_USAGE })?;
    let storage = match args.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
    };
    let config = CnnConfig { storage, ..CnnConfig::DIGITS };
    for &position in &selected {
        // A wrong profile is the user's input: refused before anything trains.
        session.profile_of(&found.devices[position])?;
    }
    let names: Vec<String> = selected.iter().map(|&position| ids[position].clone()).collect();
    let candidates = selected
        .iter()
        .map(|&position| {
            let id = ids[position].clone();
            Candidate {
                id: id.clone(),
                name: found.devices[position].name.clone(),
                open: Box::new(move || {
                    let engine = session.open(&id)?;
                    Ok(Box::new(Cnn::new(&engine, config, args.seed)?))
                }),
            }
        })
        .collect();
    let options = Options { epochs: args.epochs, batch: args.batch, seed: args.seed };
    let progress = Progress::new(&names, args.epochs, digits.train().steps_per_epoch(args.batch));
    let report = run(options, &digits, candidates, unavailable, &progress);
    if args.json {
        output::print(&format!("{}\n", report.to_json()))?;
    } else {
        output::print(&report.to_table(output::columns()))?;
    }
    if let Some(path) = &args.report {
        let page = page::html(&report, &digits, &args.settings());
        std::fs::write(path, page).map_err(|error| Stop {
            message: format!("cannot write the report to '{}': {error}", path.display()),
            code: EXIT_FAILURE,
        })?;
        output::tell(format_args!("report written to {}", path.display()));
    }
    Ok(match report.succeeded() {
        true => EXIT_SUCCESS,
        false if report.has_wrong_input() => EXIT_USAGE,
        false => EXIT_FAILURE,
    })
}

fn list_devices(session: &Session, args: &DevicesArgs) -> Result<u8, Stop> {
    let found = session.discover();
    let devices = found
        .devices
        .iter()
        .map(|info| {
            Ok(DeviceEntry {
                id: info.id.to_string(),
                backend: info.id.backend.clone(),
                name: info.name.clone(),
                memory_bytes: info.memory_bytes,
                compute_units: info.compute_units,
                dtypes: info.dtypes.iter().map(ToString::to_string).collect(),
                kernel_formats: info.kernel_formats.clone(),
                profile: session.profile_of(info)?.name().to_owned(),
                notes: info.notes.clone(),
            })
        })
        .collect::<Result<_, Stop>>()?;
    let list = DeviceList { devices, unavailable: unavailable(&found) };
    let text = if args.json { format!("{}\n", list.to_json()) } else { list.to_table(output::columns()) };
    output::print(&text)?;
    Ok(EXIT_SUCCESS)
}

fn show_profile(session: &Session, args: &ShowArgs) -> Result<u8, Stop> {
    let found = session.discover();
    let ids: Vec<String> = found.devices.iter().map(|info| info.id.to_string()).collect();
    let positions = match &args.device {
        Some(name) => vec![position_of(&resolve(session, name)?, &ids, &unavailable(&found))?],
        None => (0..ids.len()).collect(),
    };
    let effective = positions
        .into_iter()
        .map(|position| {
            let profile = session.profile_of(&found.devices[position])?;
            let values = profile.values().into_iter().map(|value| ProfileValue {
                key: value.path,
                value: value.text,
                source: value.origin.to_string(),
            });
            Ok(EffectiveProfile {
                device: ids[position].clone(),
                profile: profile.name().to_owned(),
                values: values.collect(),
            })
        })
        .collect::<Result<Vec<_>, Stop>>()?;
    let text = if args.json {
        format!("{}\n", profile::to_json(&effective))
    } else {
        profile::to_table(&effective, output::columns())
    };
    output::print(&text)?;
    Ok(EXIT_SUCCESS)
}

fn selftest(session: &Session, args: &SelftestArgs) -> Result<u8, Stop> {
    let found = session.discover();
    let ids: Vec<String> = found.devices.iter().map(|info| info.id.to_string()).collect();
    let requested = args.devices.iter().map(|name| resolve(session, name)).collect::<Result<Vec<_>, _>>()?;
    let mut progress = SelftestProgress::new();
    let mut reports = Vec::new();
    for position in select_devices(&requested, &ids, &unavailable(&found))? {
        let id = &ids[position];
        let mut show = |suite: &str, case: &str| progress.show(id, suite, case);
        reports.push(halite::selftest::run(session, id, &args.suites, &mut show)?);
    }
    progress.finish();
    let text = if args.json {
        format!("{}\n", cli_selftest::to_json(&reports))
    } else {
        cli_selftest::to_table(&reports, output::columns())
    };
    output::print(&text)?;
    Ok(if reports.iter().all(Report::succeeded) { EXIT_SUCCESS } else { EXIT_FAILURE })
}

fn conformance(session: &Session, args: &ConformanceArgs) -> Result<u8, Stop> {
    if args.list {
        output::print(&cli_conformance::listing(&args.filters))?;
        return Ok(EXIT_SUCCESS);
    }
    let options = args.options().map_err(|message| Stop { message, code: EXIT_USAGE })?;
    let found = session.discover();
    let ids: Vec<String> = found.devices.iter().map(|info| info.id.to_string()).collect();
    let mut requested =
        args.devices.iter().map(|name| resolve(session, name)).collect::<Result<Vec<_>, _>>()?;
    if requested.is_empty() && !args.plugins.is_empty() {
        // A plugin that was named is what is to be tested.
        requested = ids.iter().filter(|id| id.starts_with("npu:")).cloned().collect();
    }
    let mut progress = ConformanceProgress::new(args.verbose);
    let mut reports = Vec::new();
    for position in select_devices(&requested, &ids, &unavailable(&found))? {
        let target = halite::conformance::target(session, &ids[position], args.program.as_deref())?;
        let mut show = |at: halite::conformance::Progress<'_>| progress.show(&ids[position], at);
        let report = halite::conformance::run(&target, &options, &mut show).map_err(halite::Error::from)?;
        progress.end(&report);
        reports.push(report);
    }
    let text = if args.json {
        format!("{}\n", cli_conformance::to_json(&reports))
    } else {
        cli_conformance::to_table(&reports, output::columns())
    };
    output::print(&text)?;
    let succeeded = reports.iter().all(halite::conformance::Report::succeeded);
    Ok(if succeeded { EXIT_SUCCESS } else { EXIT_FAILURE })
}

fn trace(args: &TraceArgs) -> Result<u8, Stop> {
    let summary = cli_trace::summarize(&args.file)?;
    let text = if args.json {
        format!("{}\n", summary.to_json())
    } else {
        summary.to_table(args.top, output::columns())
    };
    output::print(&text)?;
    if let Some(path) = &args.report {
        let page = cli_trace::page(&args.file, &summary)?;
        std::fs::write(path, page).map_err(|error| Stop {
            message: format!("cannot write the report to '{}': {error}", path.display()),
            code: EXIT_FAILURE,
        })?;
        output::tell(format_args!("report written to {}", path.display()));
    }
    Ok(EXIT_SUCCESS)
}

fn tune(session: &Session, args: &TuneArgs) -> Result<u8, Stop> {
    let found = session.discover();
    let ids: Vec<String> = found.devices.iter().map(|info| info.id.to_string()).collect();
    let position = position_of(&resolve(session, &args.device)?, &ids, &unavailable(&found))?;
    let options = halite::tune::Options { op: args.op.clone(), budget: args.budget };
    let progress = TuneProgress::new();
    let tuning = halite::tune::tune(session, &ids[position], &options, &mut |step| progress.show(step))?;
    progress.finish();
    let saved = if args.dry_run {
        None
    } else {
        let path = tuning.save(session.profile_folder(), args.output.as_deref());
        let code = |error: &SaveError| if error.is_usage() { EXIT_USAGE } else { EXIT_FAILURE };
        Some(path.map_err(|error| Stop { message: error.to_string(), code: code(&error) })?)
    };
    let text = if args.json {
        format!("{}\n", cli_tune::to_json(&tuning, saved.as_deref()))
    } else {
        cli_tune::to_table(&tuning, output::columns())
    };
    output::print(&text)?;
    match &saved {
        Some(path) => output::tell(format_args!("profile written to {}", path.display())),
        None if !args.json => output::print(&format!("\n{}", tuning.profile_text()))?,
        None => {}
    }
    Ok(EXIT_SUCCESS)
}

/// The name to look for: for `auto`, the identifier of the device that it stands for.
fn resolve(session: &Session, name: &str) -> Result<String, Stop> {
    if name.eq_ignore_ascii_case("auto") {
        return Ok(session.open_device("auto")?.id().to_string());
    }
    Ok(name.to_owned())
}

fn unavailable(found: &halite::hal::Discovery) -> Vec<UnavailableBackend> {
    found
        .absent
        .iter()
        .map(|absence| UnavailableBackend {
            backend: absence.backend.clone(),
            reason: absence.reason.clone(),
        })
        .collect()
}

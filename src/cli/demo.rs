//! `halite demo`: its options, and the checks that need no device.

use super::UsageError;
use crate::demo::digits::TRAIN_IMAGES;
use clap::{Args, ValueEnum};
use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

const DEFAULT_EPOCHS: u32 = 20;
const DEFAULT_BATCH: usize = 32;
const DEFAULT_SEED: u64 = 0;
const MAX_EPOCHS: i64 = 100_000;

/// Options of `halite demo`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct DemoArgs {
    /// Train on this device: cpu, npu:0; repeatable, or a list with commas [default: every device found]
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',', value_parser = device_name)]
    pub devices: Vec<String>,

    /// How often to go through the training images
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EPOCHS, value_parser = clap::value_parser!(u32).range(1..=MAX_EPOCHS))]
    pub epochs: u32,

    /// Images per training step, 1 to 1437
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BATCH, value_parser = batch)]
    pub batch: usize,

    /// Seed of the initial weights and of the order of the images
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    pub seed: u64,

    /// Type that weights and images are stored in
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    pub dtype: Dtype,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,

    /// Also write a page with loss curves and the table
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Learn the digits of this file instead of the built-in ones (format: data/README.md)
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,

    /// Load this NPU plugin; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

/// Type that weights and images are stored in; sums are kept in f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Dtype {
    // Without help texts of their own the values fit into one line of `--help`.
    /// 32 bits.
    #[default]
    #[value(help = None::<&str>)]
    F32,
    /// 16 bits.
    #[value(help = None::<&str>)]
    F16,
}

impl DemoArgs {
    /// Refuses what is certain to fail later, before any device spends time on training.
    ///
    /// # Errors
    /// [`UsageError::Report`] when the report could not be written.
    pub fn check(&self) -> Result<(), UsageError> {
        self.report.as_deref().map_or(Ok(()), check_report_path)
    }

    /// Name and value of what the training depends on, for the report's page.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        [
            ("epochs", self.epochs.to_string()),
            ("batch", self.batch.to_string()),
            ("seed", self.seed.to_string()),
            ("dtype", self.dtype.to_string()),
        ]
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

/// Whether a file could be written at `path`, found out by opening it, without changing what is there.
fn check_report_path(path: &Path) -> Result<(), UsageError> {
    let refuse = |reason: String| Err(UsageError::Report { path: path.to_owned(), reason });
    if path.is_dir() {
        return refuse("it is a folder; add a file name, such as report.html".to_owned());
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return refuse(format!("there is no folder '{}'; create it first", folder.display()));
    }
    let existed = path.exists();
    match OpenOptions::new().append(true).create(true).open(path) {
        Ok(_) if existed => Ok(()),
        Ok(_) => {
            // The probe leaves nothing behind; if it cannot be removed, the report overwrites it.
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        Err(error) => refuse(format!("{error}; choose a place that you may write to")),
    }
}

fn batch(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|batch| (1..=TRAIN_IMAGES).contains(batch))
        .ok_or_else(|| format!("a batch has 1 to {TRAIN_IMAGES} images"))
}

/// Accepts `name` and `name:index`; whether such a device is there is a later question.
fn device_name(text: &str) -> Result<String, String> {
    let (backend, index) = text.split_once(':').unwrap_or((text, "0"));
    let well_formed = !backend.is_empty()
        && backend.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        && index.parse::<u32>().is_ok();
    if well_formed {
        Ok(text.to_owned())
    } else {
        Err("write a backend and an index, such as cpu:0".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, try_parse_from};

    fn demo(line: &str) -> Result<DemoArgs, String> {
        let cli = try_parse_from(line.split(' ')).map_err(|stop| stop.message)?;
        match cli.into_command() {
            Command::Demo(arguments) => Ok(arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_option_is_read() {
        let all = demo(
            "halite demo --device cpu --device npu:1,cuda --epochs 3 --batch 256 --seed 9 --dtype f16 --json \
             --report out.html --plugin libnpu.so",
        )
        .unwrap();
        let expected = DemoArgs {
            devices: vec!["cpu".into(), "npu:1".into(), "cuda".into()],
            epochs: 3,
            batch: 256,
            seed: 9,
            dtype: Dtype::F16,
            json: true,
            report: Some("out.html".into()),
            data: None,
            plugins: vec!["libnpu.so".into()],
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn numbers_out_of_range_are_refused_with_the_range() {
        for (line, part) in [
            ("halite demo --epochs 0", "0 is not in 1..=100000"),
            ("halite demo --epochs many", "'many'"),
            ("halite demo --batch 0", "a batch has 1 to 1437 images"),
            ("halite demo --batch 1438", "a batch has 1 to 1437 images"),
            ("halite demo --batch -3", "-3"),
            ("halite demo --seed -1", "-1"),
            ("halite demo --device cpu:x", "write a backend and an index, such as cpu:0"),
            ("halite demo --device cpu,,npu", "write a backend and an index, such as cpu:0"),
        ] {
            let message = demo(line).expect_err(line);
            assert!(message.contains(part) && !message.contains('\n'), "{line}: {message}");
        }
        assert_eq!(demo("halite demo --batch 1437").unwrap().batch, 1437);
    }

    fn report_refusal(path: &Path) -> String {
        check_report_path(path).unwrap_err().to_string()
    }

    #[test]
    fn a_report_is_refused_where_it_could_not_be_written() {
        let folder = std::env::temp_dir().join(format!("halite-cli-report-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(report_refusal(&folder).contains("is a folder; add a file name"));
        assert!(report_refusal(&folder.join("absent/report.html")).contains("there is no folder"));

        let file = folder.join("report.html");
        check_report_path(&file).unwrap();
        assert!(!file.exists(), "the check leaves a file behind");
        std::fs::write(&file, "kept").unwrap();
        check_report_path(&file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
        assert!(report_refusal(&file.join("below-a-file.html")).contains("there is no folder"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

//! `halite profile show`: the profile in force, and where each of its values comes from.

use super::output;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// Options of `halite profile`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ProfileArgs {
    /// What to do with profiles.
    #[command(subcommand)]
    pub command: ProfileCommand,
}

/// What to do with profiles.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
#[non_exhaustive]
pub enum ProfileCommand {
    /// Show the profile in force, with the file that each value comes from
    Show(ShowArgs),
}

/// Options of `halite profile show`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ShowArgs {
    /// The device, such as npu:0 [default: every device found]
    #[arg(value_name = "DEVICE")]
    pub device: Option<String>,

    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,

    /// Load this NPU plugin; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

impl ProfileArgs {
    pub(super) fn plugins(&self) -> &[PathBuf] {
        let ProfileCommand::Show(show) = &self.command;
        &show.plugins
    }
}

/// The effective profile of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EffectiveProfile {
    /// The device that it was matched to, such as `cpu:0`.
    pub device: String,
    /// Its name, such as `cpu-avx2`.
    pub profile: String,
    /// Every value, with what it inherited.
    pub values: Vec<ProfileValue>,
}

/// One value of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProfileValue {
    /// Its path, such as `kernels.matmul[0].tile`.
    pub key: String,
    /// Its value as the file writes it.
    pub value: String,
    /// The file it comes from, with the line where known, such as `built-in cpu-avx2`.
    pub source: String,
}

/// One JSON object in one line, `{"profiles":[…]}`.
pub fn to_json(profiles: &[EffectiveProfile]) -> String {
    #[derive(Serialize)]
    struct Profiles<'a> {
        profiles: &'a [EffectiveProfile],
    }
    serde_json::to_string(&Profiles { profiles }).expect("strings and lists of them always serialise")
}

/// One table per device for a terminal of `columns`.
pub fn to_table(profiles: &[EffectiveProfile], columns: u16) -> String {
    let mut text = String::new();
    for (number, profile) in profiles.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        let _ = writeln!(text, "{} uses profile {}", profile.device, profile.profile);
        let mut table = output::table(&["key", "value", "from"], &[], columns);
        for value in &profile.values {
            table.add_row([&value.key, &value.value, &value.source]);
        }
        let _ = writeln!(text, "{table}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles() -> Vec<EffectiveProfile> {
        vec![EffectiveProfile {
            device: "cpu:0".into(),
            profile: "mine".into(),
            values: vec![ProfileValue {
                key: "kernels.matmul[0].tile".into(),
                value: "[64, 64]".into(),
                source: "mine.yaml:7".into(),
            }],
        }]
    }

    #[test]
    fn json_has_every_value_with_its_source() {
        assert_eq!(
            to_json(&profiles()),
            r#"{"profiles":[{"device":"cpu:0","profile":"mine","values":[{"key":"kernels.matmul[0].tile","value":"[64, 64]","source":"mine.yaml:7"}]}]}"#
        );
    }

    #[test]
    fn the_table_shows_every_value_with_its_source() {
        let table = to_table(&profiles(), 80);
        for part in ["cpu:0 uses profile mine", "kernels.matmul[0].tile", "[64, 64]", "mine.yaml:7"] {
            assert!(table.contains(part), "{part} is missing:\n{table}");
        }
    }

    #[test]
    fn the_device_is_optional() {
        use crate::cli::{Command, try_parse_from};
        let show = |line: &str| match try_parse_from(line.split(' ')).unwrap().into_command() {
            Command::Profile(ProfileArgs { command: ProfileCommand::Show(show) }) => show,
            other => panic!("{other:?}"),
        };
        assert_eq!(show("halite profile show").device, None);
        let named = show("halite profile show npu:0 --json");
        assert_eq!((named.device.as_deref(), named.json), (Some("npu:0"), true));
    }
}

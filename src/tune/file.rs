//! The profile that tuning writes: where it lies, what stands in it, and what it never overwrites.

use super::Tuning;
use crate::{Error, Session};
use halite_hal::DeviceInfo;
use halite_profiles::{KernelEntry, Profile};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The first line of every file that tuning writes, and the licence to replace it.
const MARK: &str = "# Written by 'halite tune'; the next tuning of this device replaces it.";

/// Why a tuned profile was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The platform names no configuration folder, and the caller none either.
    #[error("this user has no configuration folder; name a file for the profile")]
    NoFolder,
    /// A file of that name is there that tuning did not write.
    #[error("'{}' was not written by tuning; move it away, or name another file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refuses.
    #[error("cannot write the profile to '{}': {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The text is no profile; nothing was written.
    #[error("the tuned profile is not valid: {0}")]
    Profile(#[from] Box<halite_profiles::Error>),
}

impl SaveError {
    /// Whether the caller's choice of a file is at fault, rather than the system.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NoFolder | Self::Foreign { .. })
    }
}

/// The profile's name for a device: `tuned-cpu-amd-epyc`.
fn tuned_name(info: &DeviceInfo) -> String {
    let mut slug = String::new();
    for part in info.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        slug.push('-');
        slug.push_str(&part.to_ascii_lowercase());
    }
    format!("tuned-{}{slug}", info.id.backend)
}

/// The device's profile without what tuning added, and the one that tuning wrote, if it is in force.
pub(super) fn profiles_of(
    session: &Session,
    info: &DeviceInfo,
) -> Result<(Arc<Profile>, Option<Arc<Profile>>), Error> {
    let current = session.profile_of(info)?;
    if current.name() != tuned_name(info) {
        return Ok((current, None));
    }
    match current.ancestors().first() {
        Some(base) => Ok((session.profiles().by_name(base)?, Some(current))),
        None => Ok((current, None)),
    }
}

/// The entries that a tuned profile's own file holds, for the ops that are `wanted`.
pub(super) fn entries_of(
    profile: &Profile,
    wanted: impl Fn(&str) -> bool,
) -> Vec<(String, Vec<KernelEntry>)> {
    let file = profile.origin().file();
    let own = profile.kernels().filter(|(op, entries)| {
        wanted(op) && entries.first().is_some_and(|entry| entry.origin().file() == file)
    });
    own.map(|(op, entries)| (op.to_owned(), entries.to_vec())).collect()
}

impl Tuning {
    /// The tuned profile: for every op one entry per case, then what the base has, for all other sizes.
    ///
    /// It matches this device's name and driver version alone, and wins over the profile that it extends.
    pub fn profile_text(&self) -> String {
        let info = &self.device;
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let mut text = format!("{MARK}\nname: {}\nextends: {}\n", tuned_name(info), self.base.name());
        let _ = writeln!(text, "match:\n  backend: {}", info.id.backend);
        let _ = writeln!(text, "  device: {}", quoted(&format!("^{}$", escape(&info.name))));
        let _ = writeln!(text, "  driver: {}", quoted(&info.driver_version));
        if self.base.priority() != 0 {
            let _ = writeln!(text, "  priority: {}", self.base.priority());
        }
        let _ = writeln!(text, "kernels:");
        let mut ops: Vec<&str> = self.cases.iter().map(|case| case.op).collect();
        ops.dedup();
        for op in ops {
            let _ = writeln!(text, "  {op}:");
            for case in self.cases.iter().filter(|case| case.op == op) {
                let (best, time) = &case.best;
                let _ = write!(text, "    - {{ variant: {}, when: \"{}\"", best.variant, case.when);
                if !best.parameters.is_empty() {
                    let _ = write!(text, ", {}", best.parameters);
                }
                let microseconds = time.as_secs_f64() * 1e6;
                let gain = case.speedup();
                let _ = writeln!(
                    text,
                    " }} # {}: {microseconds:.1} us, {gain:.2} times as fast as before",
                    case.case
                );
            }
            for entry in self.base.kernel_entries(op) {
                let _ = writeln!(text, "    - {entry}");
            }
        }
        for (op, entries) in &self.kept {
            let _ = writeln!(text, "  {op}:");
            for entry in entries {
                let _ = writeln!(text, "    - {entry}");
            }
        }
        text
    }

    /// Writes the profile to `file`, or without one into the user's configuration folder, where later runs find it.
    /// Returns the path. What another hand wrote is not replaced; a failure leaves the old file as it was.
    ///
    /// # Errors
    /// Nothing is written then, and the error says why.
    pub fn save(&self, folder: Option<&Path>, file: Option<&Path>) -> Result<PathBuf, SaveError> {
        let path = match (file, folder) {
            (Some(file), _) => file.to_owned(),
            (None, Some(folder)) => folder.join(format!("{}.yaml", tuned_name(&self.device))),
            (None, None) => return Err(SaveError::NoFolder),
        };
        let text = self.profile_text();
        self.base.extended_by(&text, &path.display().to_string()).map_err(Box::new)?;
        let io = |source| SaveError::Io { path: path.clone(), source };
        let mut begin = Vec::new();
        let most = MARK.len() as u64;
        match File::open(&path).and_then(|old| old.take(most).read_to_end(&mut begin)) {
            Ok(_) if begin != MARK.as_bytes() => return Err(SaveError::Foreign { path }),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        // Not a name that profiles are read from: a run at this moment sees the old file or the new one.
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&partial);
            io(error)
        })?;
        Ok(path)
    }
}

/// The regular expression that matches `text` alone.
fn escape(text: &str) -> String {
    // '\\<' and '\\>' would be borders of words.
    let special = |c: char| c.is_ascii_punctuation() && !matches!(c, '_' | '<' | '>');
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::{Candidate, CaseResult};
    use halite_hal::DeviceId;
    use halite_profiles::{DeviceFacts, Parameters, ProfileSet};
    use std::time::Duration;

    fn tuning(name: &str) -> Tuning {
        let mut device = DeviceInfo::new(DeviceId::new("cpu", 0), name);
        device.driver_version = "it's 1.0".to_owned();
        let candidate = |tile: [u32; 3]| Candidate {
            variant: "portable".to_owned(),
            parameters: Parameters::default().with_tile(tile),
        };
        let case = CaseResult {
            op: "dot_general",
            case: "64 x 64 x 64",
            when: "m >= 64 and n % 4 == 0",
            current: (candidate([64, 256, 256]), Duration::from_micros(30)),
            best: (candidate([8, 8, 8]), Duration::from_micros(20)),
            tried: Vec::new(),
        };
        let base = ProfileSet::builtin().by_name("cpu").unwrap();
        Tuning { device, base, cases: vec![case], kept: Vec::new() }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("halite-tune-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn the_written_profile_is_chosen_for_this_device_and_driver_alone() {
        let tuning = tuning("ACME (R) X.1 \"fast\" +");
        let folder = folder("chosen");
        let path = tuning.save(Some(&folder), None).unwrap();
        assert_eq!(path, folder.join("tuned-cpu-acme-r-x-1-fast.yaml"));
        let set = ProfileSet::load(&halite_profiles::SearchPath::new(Some(folder.clone()), [])).unwrap();
        let mut facts = DeviceFacts::from(&tuning.device);
        let tuned = set.select(&facts).unwrap();
        assert_eq!(tuned.name(), "tuned-cpu-acme-r-x-1-fast");
        let entries = tuned.kernel_entries("dot_general");
        assert_eq!(entries[0].parameters().tile(), Some([8, 8, 8].as_slice()));
        assert_eq!(entries[1..].len(), tuning.base.kernel_entries("dot_general").len());
        facts.driver_version.push('1');
        assert_eq!(set.select(&facts).unwrap().name(), "cpu");
        facts = DeviceFacts::from(&tuning.device);
        facts.device_name.push('+');
        assert_eq!(set.select(&facts).unwrap().name(), "cpu");
        // A second tuning replaces its own file and leaves nothing else behind.
        tuning.save(Some(&folder), None).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_another_hand_wrote_is_not_replaced() {
        let folder = folder("foreign");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("mine.yaml");
        std::fs::write(&path, "name: mine\n").unwrap();
        let error = tuning("x").save(None, Some(&path)).unwrap_err();
        assert!(error.to_string().contains("was not written by tuning; move it away"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "name: mine\n");
        assert!(matches!(tuning("x").save(None, None), Err(SaveError::NoFolder)));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

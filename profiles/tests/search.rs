//! Profiles in files: folders, `HALITE_PROFILE_PATH` and what can be wrong with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use halite_profiles::{DeviceFacts, Machine, ProfileSet, SearchPath};

/// A folder of files that is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("halite-profiles-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).expect("the temporary folder is writable");
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("the temporary folder is writable");
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn load(user_folder: Option<&Path>, paths: &[PathBuf]) -> Result<ProfileSet, String> {
    let path = SearchPath::new(user_folder.map(Path::to_owned), paths.iter().cloned());
    ProfileSet::load(&path).map_err(|error| error.to_string())
}

fn cpu() -> DeviceFacts {
    DeviceFacts { backend: "cpu".into(), device_name: "a CPU".into(), ..DeviceFacts::default() }
}

fn selected(set: &ProfileSet) -> String {
    set.select(&cpu()).map_or_else(|error| error.to_string(), |profile| profile.origin().to_string())
}

#[test]
fn a_later_place_wins_over_an_earlier_one() {
    const MINE: &[u8] = b"name: mine\nmatch: { backend: cpu }\n";
    let user =
        Folder::new(&[("mine.yaml", MINE), ("notes.txt", b"not a profile"), (".#mine.yaml", b"an editor's")]);
    let listed = Folder::new(&[("other.yml", MINE)]);
    let file = Folder::new(&[("any.name", MINE)]);
    for (folder, paths, expected) in [
        (None, vec![], "builtin:cpu.yaml:5".to_owned()),
        (Some(user.0.as_path()), vec![], format!("{}:1", user.path("mine.yaml").display())),
        (Some(user.0.as_path()), vec![listed.0.clone()], format!("{}:1", listed.path("other.yml").display())),
        (
            None,
            vec![file.path("any.name"), listed.0.clone()],
            format!("{}:1", listed.path("other.yml").display()),
        ),
        (
            None,
            vec![listed.0.clone(), file.path("any.name")],
            format!("{}:1", file.path("any.name").display()),
        ),
    ] {
        let set = load(folder, &paths).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(selected(&set), expected);
    }
}

#[test]
fn a_user_folder_that_does_not_exist_is_empty() {
    let folder = Folder::new(&[]);
    let set = load(Some(&folder.path("absent")), &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(set.iter().count(), ProfileSet::builtin().iter().count());
    assert!(load(Some(&folder.0), &[]).is_ok());
}

#[test]
fn a_listed_path_must_exist() {
    let folder = Folder::new(&[]);
    let absent = folder.path("absent.yaml");
    let message = load(None, std::slice::from_ref(&absent)).expect_err("the file is absent");
    let begin = format!("{}: cannot read: ", absent.display());
    let end = "; correct HALITE_PROFILE_PATH or the file's permissions";
    assert!(message.starts_with(&begin) && message.ends_with(end) && !message.contains('\n'), "{message}");
}

#[test]
fn wrong_files_are_named_with_their_line_wherever_they_lie() {
    let large = vec![b'#'; (1 << 20) + 1];
    let files: [(&str, &[u8], &str); 6] = [
        ("key.yaml", b"name: a\nmach: {}\n", ":2: unknown key 'mach' in the profile; did you mean 'match'?"),
        ("empty.yaml", b"", ":1: the file is empty; write at least 'name: NAME'"),
        (
            "bytes.yaml",
            b"name: a\n# \xff\n",
            ":2: damaged YAML: the text is not UTF-8; correct the text at or just before this line",
        ),
        (
            "binary.yaml",
            b"\x7fELF\x02\x01\x01\0\0\0",
            ":1: damaged YAML: unexpected character: `\\u{7f}'; correct the text at or just before this line",
        ),
        (
            "windows.yaml",
            b"\xef\xbb\xbfname: a\r\nextends: cpuu\r\n",
            ":2: profile 'a' extends 'cpuu', which is unknown; did you mean 'cpu'?",
        ),
        ("large.yaml", &large, ": cannot read: it is larger than 1 MiB; name a YAML file"),
    ];
    for (name, text, expected) in files {
        let folder = Folder::new(&[(name, text)]);
        let expected = format!("{}{expected}", folder.path(name).display());
        assert_eq!(load(Some(&folder.0), &[]).map(|_| ()), Err(expected.clone()));
        assert_eq!(load(None, std::slice::from_ref(&folder.0)).map(|_| ()), Err(expected.clone()));
        assert_eq!(load(None, &[folder.path(name)]).map(|_| ()), Err(expected));
    }
}

#[test]
fn two_profiles_of_one_name_in_one_folder_are_an_error() {
    let folder = Folder::new(&[("a.yaml", b"name: x\n"), ("b.yaml", b"name: x\n")]);
    assert_eq!(
        load(Some(&folder.0), &[]).map(|_| ()),
        Err(format!(
            "{}:1: profile 'x' is already defined at {}:1; rename or remove one of the two",
            folder.path("b.yaml").display(),
            folder.path("a.yaml").display()
        ))
    );
    // In two places the later one wins.
    assert!(load(None, &[folder.path("a.yaml"), folder.path("b.yaml")]).is_ok());
}

#[test]
fn a_machine_is_read_from_a_file() {
    let text =
        Machine::builtin_yaml().replace("name: davinci-like", "name: small").replace("cube: 24", "cube: 2");
    let folder = Folder::new(&[("small.yaml", text.as_bytes())]);
    let machine = Machine::from_file(&folder.path("small.yaml")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((machine.name.as_str(), machine.cores.cube), ("small", 2));
    assert!(Machine::from_file(&folder.path("absent.yaml")).is_err());
}

/// Deterministic pseudo-random numbers (Knuth's MMIX constants; the high bits are good enough for edits).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn damaged_text_is_a_one_line_error_and_never_a_panic() {
    const PROFILE: &str = "name: a\nextends: cpu\nmatch: { backend: cpu, device: \"x.*\", features: [avx2] }\n\
                           peak: { f32: 2.77 TFLOP/s }\nkernels:\n  matmul:\n    \
                           - { variant: x, when: \"m >= 64 and n % 2 == 0\", tile: [64, 64], threads: 2 }\n\
                           memory: { pool_limit: 60% }\nfallback: { unsupported: cpu }\n";
    const PIECES: [&str; 16] =
        [":", "- ", "{", "}", "[", "]", "\n", "  ", "\"", "&a ", "*a", "!", "#", "9", "\u{0}", "é"];
    let mut random = Random(7);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..2000 {
        let mut text: Vec<char> = PROFILE.chars().collect();
        for _ in 0..=random.below(4) {
            let at = random.below(text.len());
            if random.below(2) == 0 {
                text.remove(at);
            } else {
                let piece = PIECES[random.below(PIECES.len())];
                text.splice(at..at, piece.chars());
            }
        }
        let text: String = text.into_iter().collect();
        match ProfileSet::from_texts([("a.yaml", text.as_str())]) {
            Ok(_) => accepted += 1,
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with("a.yaml:") && !message.contains(char::is_control), "{message}");
                assert!(message.contains("; ") || message.ends_with('?'), "{message}");
                refused += 1;
            }
        }
        let _ = Machine::from_yaml(&text, "a.yaml");
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
}

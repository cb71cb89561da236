//! The language of fault scripts: rules, settings, and what is wrong with a text that is neither.

use super::random;
use halite_hal::{DeviceId, Error, Result};
use std::ops::Range;
use std::time::Duration;

/// A parsed script.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Script {
    /// Decides what is drawn: which calls a probability hits, which bit is flipped.
    pub(crate) seed: u64,
    /// The devices that are affected, `None` for all: a backend, or a backend and an index.
    pub(crate) on: Option<(String, Option<u32>)>,
    /// How many openings of each device are affected, `None` for all.
    pub(crate) openings: Option<u64>,
    pub(crate) rules: Vec<Rule>,
}

/// One rule: at which calls, and what happens there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    /// As the user wrote it.
    pub(crate) text: String,
    pub(crate) point: Point,
    pub(crate) condition: Condition,
    /// How often it strikes at most.
    pub(crate) times: Option<u64>,
    pub(crate) action: Action,
}

/// A call that faults are injected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Allocate,
    CreateStream,
    Load,
    Write,
    Read,
    Copy,
    Fill,
    Launch,
    Record,
    Wait,
    Synchronize,
    /// Waiting for an event on the host. How often that happens depends on timing, so `device` leaves it out.
    Event,
    /// A call that only the loss of the device can hit.
    Other,
}

/// A name for calls in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) name: &'static str,
    calls: &'static [Call],
}

impl Point {
    pub(crate) fn contains(self, call: Call) -> bool {
        self.calls.contains(&call)
    }
}

/// Which of the calls of a point are hit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Condition {
    /// The n-th, and those behind it as often as the rule strikes.
    Nth(u64),
    /// Every n-th.
    Every(u64),
    /// Of allocations, those that would bring the device's memory in use above this; of copies, those of more bytes.
    Above(u64),
    /// Each with this probability.
    Probability(f64),
}

/// What happens to a call that is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The driver refuses the call.
    Fail,
    OutOfMemory,
    BuildError,
    /// The link refuses a copy.
    Link,
    /// The call is accepted; its work fails, and poisons the stream.
    Fault,
    /// The end of the work is reported later.
    Slow(Duration),
    /// Some of the bytes arrive changed.
    Corrupt,
    /// A wait ends before the work does.
    Timeout,
    /// The device is gone, for good.
    Lost,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::OutOfMemory => "out-of-memory",
            Self::BuildError => "build-error",
            Self::Link => "link",
            Self::Fault => "fault",
            Self::Slow(_) => "slow",
            Self::Corrupt => "corrupt",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
        }
    }

    /// Whether the contract of `call` knows this outcome.
    fn befalls(self, call: Call) -> bool {
        use Call::*;
        match self {
            Self::Fail => !matches!(call, Synchronize | Event | Other),
            Self::OutOfMemory => matches!(call, Allocate | CreateStream | Load | Record),
            Self::BuildError => call == Load,
            Self::Fault | Self::Slow(_) => matches!(call, Write | Read | Copy | Fill | Launch),
            Self::Link | Self::Corrupt => matches!(call, Write | Read | Copy),
            Self::Timeout => matches!(call, Synchronize | Event),
            Self::Lost => true,
        }
    }
}

const POINTS: [Point; 15] = {
    use Call::*;
    const fn point(name: &'static str, calls: &'static [Call]) -> Point {
        Point { name, calls }
    }
    [
        point("allocate", &[Allocate]),
        point("create-stream", &[CreateStream]),
        point("load", &[Load]),
        point("write", &[Write]),
        point("read", &[Read]),
        point("copy", &[Copy]),
        point("fill", &[Fill]),
        point("launch", &[Launch]),
        point("record", &[Record]),
        point("wait", &[Wait]),
        point("synchronize", &[Synchronize]),
        point("event", &[Event]),
        point("transfer", &[Write, Read, Copy]),
        point("stream", &[Write, Read, Copy, Fill, Launch]),
        point(
            "device",
            &[
                Allocate,
                CreateStream,
                Load,
                Write,
                Read,
                Copy,
                Fill,
                Launch,
                Record,
                Wait,
                Synchronize,
                Other,
            ],
        ),
    ]
};

const ACTIONS: [Action; 9] = [
    Action::Fail,
    Action::OutOfMemory,
    Action::BuildError,
    Action::Link,
    Action::Fault,
    Action::Slow(Duration::ZERO),
    Action::Corrupt,
    Action::Timeout,
    Action::Lost,
];

const SETTINGS: [&str; 4] = ["seed", "on", "openings", "random"];

/// Bytes of each unit.
const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Nanoseconds of each unit.
const DURATIONS: [(&str, u64); 3] = [("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

impl Script {
    /// Reads a script. Entries are separated by semicolons or line breaks; `#` starts a comment.
    ///
    /// # Errors
    /// `InvalidArgument` with line and column, what was expected there and what came.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut script = Self::default();
        let mut cursor = Cursor { text, at: 0 };
        let mut has_seed = false;
        loop {
            cursor.skip(|c| c.is_whitespace() || c == ';');
            match cursor.peek() {
                None => break,
                Some('#') => cursor.skip(|c| c != '\n'),
                Some(_) => script.entry(&mut cursor, &mut has_seed)?,
            }
        }
        if script.rules.is_empty() {
            return Err(cursor.mistake(cursor.here(), "a rule, such as launch@3=fail"));
        }
        Ok(script)
    }

    /// Whether the opening of `device` that is number `opening`, from 1, is affected.
    pub(crate) fn affects(&self, device: &DeviceId, opening: u64) -> bool {
        let on = self.on.as_ref().is_none_or(|(backend, index)| {
            *backend == device.backend && index.is_none_or(|index| index == device.index)
        });
        on && self.openings.is_none_or(|openings| opening <= openings)
    }

    fn entry(&mut self, cursor: &mut Cursor<'_>, has_seed: &mut bool) -> Result<()> {
        let start = cursor.at;
        let name = cursor.word();
        match &cursor.text[name.clone()] {
            "seed" => {
                cursor.expect("=")?;
                (self.seed, *has_seed) = (cursor.number("a seed", 0)?, true);
            }
            "openings" => {
                cursor.expect("=")?;
                self.openings = Some(cursor.number("a number of openings", 1)?);
            }
            "on" => {
                cursor.expect("=")?;
                self.on = Some(cursor.device()?);
            }
            "random" => {
                cursor.expect("=")?;
                let seed = cursor.number("a seed", 0)?;
                if !*has_seed {
                    self.seed = seed;
                }
                let drawn = Self::parse(&random::script(seed))?;
                self.rules.extend(drawn.rules);
            }
            word => {
                let Some(point) = POINTS.iter().find(|point| point.name == word) else {
                    let names = POINTS.iter().map(|point| point.name);
                    let expected =
                        format!("a call ({}) or a setting ({})", list(names), list(SETTINGS.into_iter()));
                    return Err(cursor.mistake(name, &expected));
                };
                let rule = Self::rule(cursor, start, *point)?;
                self.rules.push(rule);
            }
        }
        cursor.skip_blanks();
        match cursor.peek() {
            None | Some(';' | '\n' | '\r' | '#') => Ok(()),
            Some(_) => Err(cursor.mistake(cursor.here(), "';' or the end")),
        }
    }

    fn rule(cursor: &mut Cursor<'_>, start: usize, point: Point) -> Result<Rule> {
        cursor.skip_blanks();
        let sign = cursor.here();
        let condition = match cursor.next() {
            Some('@') => Condition::Nth(cursor.number("the number of a call", 1)?),
            Some('%') => Condition::Every(cursor.number("a number of calls", 1)?),
            Some('~') => Condition::Probability(cursor.probability()?),
            Some('>') if point.name == "allocate" || point.calls.iter().all(|call| has_bytes(*call)) => {
                Condition::Above(cursor.size()?)
            }
            Some('>') => {
                let expected = format!("'@', '%' or '~': a call of {} has no bytes", point.name);
                return Err(cursor.mistake(sign, &expected));
            }
            _ => {
                let expected =
                    "'@' (the n-th call), '%' (every n-th), '>' (above so many bytes) or '~' (a probability)";
                return Err(cursor.mistake(sign, expected));
            }
        };
        cursor.expect("=")?;
        cursor.skip_blanks();
        let name = cursor.word();
        let known = ACTIONS.into_iter().find(|action| action.name() == &cursor.text[name.clone()]);
        let Some(mut action) = known else {
            let names = ACTIONS.into_iter().filter(|action| fits(*action, point)).map(Action::name);
            return Err(cursor.mistake(name, &format!("what happens ({})", list(names))));
        };
        if !fits(action, point) {
            let names = ACTIONS.into_iter().filter(|action| fits(*action, point)).map(Action::name);
            let points = POINTS.iter().filter(|point| fits(action, **point)).map(|point| point.name);
            let expected = format!(
                "what can happen to every call of {} ({}); {} is for {}",
                point.name,
                list(names),
                action.name(),
                list(points)
            );
            return Err(cursor.mistake(name, &expected));
        }
        if let Action::Slow(duration) = &mut action {
            cursor.expect(":")?;
            *duration = Duration::from_nanos(cursor.quantity("a time", &DURATIONS)?);
        }
        let times = cursor.times()?.unwrap_or(match condition {
            Condition::Nth(_) => Some(1),
            _ => None,
        });
        let text = cursor.text[start..cursor.at].trim_end().to_owned();
        Ok(Rule { text, point, condition, times, action })
    }
}

fn has_bytes(call: Call) -> bool {
    matches!(call, Call::Write | Call::Read | Call::Copy | Call::Fill)
}

fn fits(action: Action, point: Point) -> bool {
    point.calls.iter().all(|call| action.befalls(*call))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl Cursor<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&skipped) {
            self.next();
        }
    }

    fn skip_blanks(&mut self) {
        self.skip(|c| c == ' ' || c == '\t');
    }

    fn take(&mut self, taken: impl Fn(char) -> bool) -> Range<usize> {
        let start = self.at;
        self.skip(taken);
        start..self.at
    }

    fn word(&mut self) -> Range<usize> {
        self.take(|c| c.is_ascii_alphabetic() || c == '-' || c == '_')
    }

    /// The next word, for messages: nothing at the end.
    fn here(&self) -> Range<usize> {
        let length = self.rest().find(|c: char| c.is_whitespace() || c == ';').unwrap_or(self.rest().len());
        let next = self.peek().map_or(0, char::len_utf8);
        self.at..self.at + length.max(next)
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        self.skip_blanks();
        if !self.rest().starts_with(sign) {
            return Err(self.mistake(self.here(), &format!("'{sign}'")));
        }
        self.at += sign.len();
        Ok(())
    }

    fn number(&mut self, what: &str, least: u64) -> Result<u64> {
        self.skip_blanks();
        let place = self.here();
        let digits = self.take(|c| c.is_ascii_digit());
        let number = self.text[digits].parse().ok().filter(|number| *number >= least);
        number.ok_or_else(|| self.mistake(place, &format!("{what}, from {least} on")))
    }

    fn probability(&mut self) -> Result<f64> {
        self.skip_blanks();
        let place = self.here();
        let digits = self.take(|c| c.is_ascii_digit() || c == '.');
        let number = self.text[digits].parse().ok().filter(|number| (0.0..=1.0).contains(number));
        number.ok_or_else(|| self.mistake(place, "a probability from 0 to 1, such as 0.01"))
    }

    fn size(&mut self) -> Result<u64> {
        self.quantity("a size", &SIZES)
    }

    fn quantity(&mut self, what: &str, units: &[(&str, u64)]) -> Result<u64> {
        self.skip_blanks();
        let place = self.here();
        let digits = self.take(|c| c.is_ascii_digit());
        let number = self.text[digits].parse::<u64>();
        let unit = self.take(|c| c.is_ascii_alphabetic());
        let unit = units.iter().find(|(name, _)| *name == &self.text[unit.clone()]);
        let value = number.ok().zip(unit).and_then(|(number, (_, unit))| number.checked_mul(*unit));
        value.ok_or_else(|| {
            let names = list(units.iter().map(|(name, _)| *name));
            self.mistake(place, &format!("{what}: a number with one of the units {names}"))
        })
    }

    fn device(&mut self) -> Result<(String, Option<u32>)> {
        self.skip_blanks();
        let place = self.here();
        let name = self.take(|c| !c.is_whitespace() && c != ';' && c != '#');
        let (backend, index) = match self.text[name.clone()].split_once(':') {
            Some((backend, index)) => (backend, index.parse().map(Some)),
            None => (&self.text[name], Ok(None)),
        };
        match index {
            Ok(index) if !backend.is_empty() => Ok((backend.to_owned(), index)),
            _ => Err(self.mistake(place, "a backend or a device, such as npu or npu:0")),
        }
    }

    /// How often a rule strikes; the outer `None` where nothing is said, the inner one for always.
    fn times(&mut self) -> Result<Option<Option<u64>>> {
        self.skip_blanks();
        let place = self.here();
        if self.peek().is_some_and(|c| c.is_ascii_digit()) {
            let times = self.number("a number of times", 1)?;
            self.skip_blanks();
            let word = self.word();
            return match &self.text[word] {
                "times" | "time" => Ok(Some(Some(times))),
                _ => Err(self.mistake(place, "how often: 'once', 'always' or '3 times'")),
            };
        }
        let word = self.word();
        match &self.text[word] {
            "" => Ok(None),
            "once" => Ok(Some(Some(1))),
            "always" => Ok(Some(None)),
            _ => Err(self.mistake(place, "how often: 'once', 'always' or '3 times'")),
        }
    }

    fn mistake(&self, place: Range<usize>, expected: &str) -> Error {
        let before = &self.text[..place.start];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let position = match self.text.trim_end().contains('\n') {
            true => format!("line {line}, column {column}"),
            false => format!("column {column}"),
        };
        let got = match self.text[place].trim() {
            "" => "the end".to_owned(),
            got => format!("'{got}'"),
        };
        Error::invalid(format!(
            "the script of the layer 'fault' in HALITE_LAYERS, {position}: expected {expected}, got {got}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Rule {
        let mut script = Script::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(script.rules.len(), 1, "{text}");
        script.rules.remove(0)
    }

    #[test]
    fn every_condition_and_action_is_read() {
        let rule = one("allocate@3=out-of-memory");
        assert_eq!(
            (rule.condition, rule.times, rule.action),
            (Condition::Nth(3), Some(1), Action::OutOfMemory)
        );
        let rule = one("allocate > 64MiB = out-of-memory");
        assert_eq!((rule.condition, rule.times), (Condition::Above(64 << 20), None));
        let rule = one("launch%5=fail 3 times");
        assert_eq!((rule.condition, rule.times, rule.action), (Condition::Every(5), Some(3), Action::Fail));
        let rule = one(" launch@10=slow:50ms always ");
        assert_eq!((rule.times, rule.action), (None, Action::Slow(Duration::from_millis(50))));
        assert_eq!(rule.text, "launch@10=slow:50ms always");
        let rule = one("read~0.01=link once");
        assert_eq!(
            (rule.condition, rule.times, rule.action),
            (Condition::Probability(0.01), Some(1), Action::Link)
        );
        for (text, action) in [
            ("load@1=build-error", Action::BuildError),
            ("copy@2=corrupt", Action::Corrupt),
            ("device@100=lost", Action::Lost),
            ("event@1=lost", Action::Lost),
            ("synchronize@2=timeout", Action::Timeout),
            ("stream@4=fault", Action::Fault),
            ("transfer>4KiB=corrupt", Action::Corrupt),
        ] {
            assert_eq!(one(text).action, action, "{text}");
        }
    }

    #[test]
    fn settings_lines_and_comments_are_read() {
        let script = Script::parse(
            "# what the second opening survives\nseed=7; on=npu:0\nopenings=1 # the first\n\nfill@1=fail;;launch@2=fault\n",
        )
        .unwrap();
        assert_eq!((script.seed, script.openings, script.rules.len()), (7, Some(1), 2));
        let npu = |index| DeviceId::new("npu", index);
        assert!(script.affects(&npu(0), 1));
        assert!(!script.affects(&npu(0), 2) && !script.affects(&npu(1), 1));
        assert!(!script.affects(&DeviceId::new("cpu", 0), 1));
        assert!(Script::parse("on=npu; fill@1=fail").unwrap().affects(&npu(3), 9));
    }

    #[test]
    fn mistakes_name_the_place_and_what_was_expected() {
        for (text, parts) in [
            ("", &["column 1: expected a rule, such as launch@3=fail, got the end"][..]),
            ("seed=7", &["column 7: expected a rule"]),
            (
                "lunch@3=fail",
                &[
                    "column 1",
                    "a call (allocate, create-stream,",
                    "(seed, on, openings, random), got 'lunch'",
                ],
            ),
            ("seed=1; launch=fail", &["column 15: expected '@' (the n-th call)", "got '=fail'"]),
            ("launch@0=fail", &["column 8: expected the number of a call, from 1 on, got '0=fail'"]),
            ("launch@x=fail", &["column 8", "got 'x=fail'"]),
            ("launch@3 fail", &["column 10: expected '=', got 'fail'"]),
            (
                "launch@3=explode",
                &["column 10: expected what happens (fail, fault, slow, lost), got 'explode'"],
            ),
            ("launch@3=corrupt", &["corrupt is for write, read, copy, transfer, got 'corrupt'"]),
            ("load@1=timeout", &["column 8", "timeout is for synchronize, event"]),
            ("stream@1=link", &["every call of stream (fail, fault, slow, lost); link is for"]),
            ("launch@3=slow", &["column 14: expected ':', got the end"]),
            (
                "launch@3=slow:50",
                &["column 15: expected a time: a number with one of the units us, ms, s, got '50'"],
            ),
            (
                "allocate>64=out-of-memory",
                &["column 10: expected a size: a number with one of the units GiB, MiB, KiB, B"],
            ),
            ("launch>4B=fail", &["column 7", "a call of launch has no bytes"]),
            ("read~1.5=fail", &["column 6: expected a probability from 0 to 1"]),
            ("read~.=fail", &["column 6"]),
            (
                "read@1=fail twice",
                &["column 13: expected how often: 'once', 'always' or '3 times', got 'twice'"],
            ),
            ("read@1=fail 0 times", &["column 13: expected a number of times, from 1 on"]),
            ("read@1=fail once more", &["column 18: expected ';' or the end, got 'more'"]),
            ("seed=-1; read@1=fail", &["column 6: expected a seed, from 0 on, got '-1'"]),
            ("on=:3; read@1=fail", &["column 4: expected a backend or a device"]),
            ("on=npu:x; read@1=fail", &["column 4"]),
            ("read@1=fail\nread@é=fail\n", &["line 2, column 6", "got 'é=fail'"]),
            ("read@99999999999999999999=fail", &["column 6"]),
            ("allocate>99999999999GiB=out-of-memory", &["column 10"]),
        ] {
            let error = Script::parse(text).expect_err(text);
            assert_eq!(error.kind(), &halite_hal::ErrorKind::InvalidArgument, "{text}");
            for part in parts {
                assert!(error.message().contains(part), "{text}: '{part}' is missing in '{error}'");
            }
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn drawn_schedules_are_scripts_that_depend_on_the_seed_alone() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let text = random::script(seed);
            assert_eq!(text, random::script(seed));
            let script = Script::parse(&format!("random={seed}")).unwrap();
            assert_eq!(script.rules, Script::parse(&text).unwrap().rules);
            assert_eq!(script.seed, seed);
            assert!(!text.contains("corrupt"), "what nobody would notice is not drawn: {text}");
            seen.insert(text);
        }
        assert!(seen.len() > 190, "{} of 200 seeds give schedules of their own", seen.len());
        assert_eq!(Script::parse("seed=3; random=9").unwrap().seed, 3);
    }
}

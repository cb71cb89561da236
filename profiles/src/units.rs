//! Quantities with units: `2.77 TFLOP/s`, `77 GB/s`, `512 KiB`, `60%`, `1.85 GHz`.
//!
//! A quantity is a decimal number, an optional space and a unit. Decimal prefixes (`KB`, `MB`) count in
//! thousands, binary ones (`KiB`, `MiB`) in 1024s. Case matters: `Mb` is not `MB`.

use std::fmt;

use crate::suggest;
use crate::yaml::quote;

/// What a quantity measures; [`Unit::parse`] returns it in the base unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Floating-point operations per second; base `FLOP/s`.
    Flops,
    /// Integer operations per second; base `OP/s`.
    Ops,
    /// Bytes per second; base `B/s`.
    Bandwidth,
    /// Bytes; base `B`.
    Bytes,
    /// A share of a whole; base 1, so `60%` is 0.6.
    Percent,
    /// Time; base `s`.
    Seconds,
    /// Frequency; base `Hz`.
    Hertz,
    /// Bytes per clock cycle.
    BytesPerCycle,
    /// Clock cycles.
    Cycles,
}

/// Why a text is not a quantity of the expected unit. Prints as `'TEXT' is wrong so; do this`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// The text does not start with a number.
    #[error("'{}' does not start with a number; write {expected}", quote(.text))]
    NotANumber {
        /// The whole text.
        text: String,
        /// The unit that the place calls for.
        expected: Unit,
    },
    /// A bare number.
    #[error("'{}' has no unit; write {expected}", quote(.text))]
    NoUnit {
        /// The whole text.
        text: String,
        /// The unit that the place calls for.
        expected: Unit,
    },
    /// A unit that this place does not take.
    #[error(
        "'{}' has the unit '{}', which is not a {}; {}",
        quote(.text),
        quote(.unit),
        .expected.noun(),
        suggest::advice(.unit, &.expected.names())
    )]
    WrongUnit {
        /// The whole text.
        text: String,
        /// What follows the number.
        unit: String,
        /// The unit that the place calls for.
        expected: Unit,
    },
    /// A number that the place does not take: negative, too large, a fraction of a byte, ...
    #[error("'{}' {reason}; write {expected}", quote(.text))]
    OutOfRange {
        /// The whole text.
        text: String,
        /// What is wrong with the number.
        reason: &'static str,
        /// The unit that the place calls for.
        expected: Unit,
    },
}

impl Unit {
    /// Parses `text` into the base unit: finite and not negative; a percentage is at most 1.
    ///
    /// # Errors
    ///
    /// [`UnitError`] says what is wrong with the number or which units are accepted.
    pub fn parse(self, text: &str) -> Result<f64, UnitError> {
        let (value, scale) = self.split(text)?;
        let value = value * scale;
        if !value.is_finite() {
            return Err(self.out_of_range(text, "is too large"));
        }
        if value < 0.0 {
            return Err(self.out_of_range(text, "is negative"));
        }
        if self == Self::Percent && value > 1.0 {
            return Err(self.out_of_range(text, "is more than 100%"));
        }
        Ok(value)
    }

    pub(crate) fn parse_positive(self, text: &str) -> Result<f64, UnitError> {
        let value = self.parse(text)?;
        if value > 0.0 { Ok(value) } else { Err(self.out_of_range(text, "is zero")) }
    }

    /// The accepted spellings, base unit first.
    pub fn names(self) -> Vec<&'static str> {
        self.table().iter().map(|(name, _)| *name).collect()
    }

    fn split(self, text: &str) -> Result<(f64, f64), UnitError> {
        let trimmed = text.trim();
        let end = number_end(trimmed);
        let Ok(number) = trimmed[..end].parse::<f64>() else {
            return Err(UnitError::NotANumber { text: text.to_owned(), expected: self });
        };
        let unit = trimmed[end..].trim_start();
        if unit.is_empty() {
            return Err(UnitError::NoUnit { text: text.to_owned(), expected: self });
        }
        let scale = self.table().iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        match scale {
            Some(scale) => Ok((number, scale)),
            None => {
                Err(UnitError::WrongUnit { text: text.to_owned(), unit: unit.to_owned(), expected: self })
            }
        }
    }

    fn out_of_range(self, text: &str, reason: &'static str) -> UnitError {
        UnitError::OutOfRange { text: text.to_owned(), reason, expected: self }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Flops => "rate of floating-point operations",
            Self::Ops => "rate of integer operations",
            Self::Bandwidth => "bandwidth",
            Self::Bytes => "number of bytes",
            Self::Percent => "percentage",
            Self::Seconds => "time",
            Self::Hertz => "frequency",
            Self::BytesPerCycle => "number of bytes per cycle",
            Self::Cycles => "number of cycles",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Flops => "2.77 TFLOP/s",
            Self::Ops => "11 TOP/s",
            Self::Bandwidth => "77 GB/s",
            Self::Bytes => "512 KiB",
            Self::Percent => "60%",
            Self::Seconds => "5 us",
            Self::Hertz => "1.85 GHz",
            Self::BytesPerCycle => "128 B/cycle",
            Self::Cycles => "45 cycles",
        }
    }

    fn table(self) -> &'static [(&'static str, f64)] {
        const KIB: f64 = 1024.0;
        match self {
            Self::Flops => &[
                ("FLOP/s", 1.0),
                ("KFLOP/s", 1e3),
                ("MFLOP/s", 1e6),
                ("GFLOP/s", 1e9),
                ("TFLOP/s", 1e12),
                ("PFLOP/s", 1e15),
            ],
            Self::Ops => &[
                ("OP/s", 1.0),
                ("KOP/s", 1e3),
                ("MOP/s", 1e6),
                ("GOP/s", 1e9),
                ("TOP/s", 1e12),
                ("POP/s", 1e15),
            ],
            Self::Bandwidth => &[
                ("B/s", 1.0),
                ("KB/s", 1e3),
                ("MB/s", 1e6),
                ("GB/s", 1e9),
                ("TB/s", 1e12),
                ("KiB/s", KIB),
                ("MiB/s", KIB * KIB),
                ("GiB/s", KIB * KIB * KIB),
                ("TiB/s", KIB * KIB * KIB * KIB),
            ],
            Self::Bytes => &[
                ("B", 1.0),
                ("KB", 1e3),
                ("MB", 1e6),
                ("GB", 1e9),
                ("TB", 1e12),
                ("KiB", KIB),
                ("MiB", KIB * KIB),
                ("GiB", KIB * KIB * KIB),
                ("TiB", KIB * KIB * KIB * KIB),
            ],
            Self::Percent => &[("%", 0.01)],
            Self::Seconds => &[("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)],
            Self::Hertz => &[("Hz", 1.0), ("kHz", 1e3), ("MHz", 1e6), ("GHz", 1e9)],
            Self::BytesPerCycle => &[("B/cycle", 1.0)],
            Self::Cycles => &[("cycles", 1.0), ("cycle", 1.0)],
        }
    }
}

/// What to write: an example and the accepted spellings.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} such as '{}' (units: {})", self.noun(), self.example(), suggest::list(self.names()))
    }
}

/// Parses a number of bytes exactly: `512 KiB`, `1.5 GB`, `64 B`.
///
/// # Errors
///
/// Like [`Unit::parse`]; also for a fraction of a byte and for more than 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let bytes = Unit::Bytes.parse(text)?;
    // Beyond 2^53 an f64 no longer holds every integer, so nothing there can be called exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if bytes > EXACT {
        return Err(Unit::Bytes.out_of_range(text, "is more than 8 PiB"));
    }
    if bytes.fract() != 0.0 {
        return Err(Unit::Bytes.out_of_range(text, "is not a whole number of bytes"));
    }
    Ok(bytes as u64)
}

pub(crate) fn parse_positive_bytes(text: &str) -> Result<u64, UnitError> {
    match parse_bytes(text)? {
        0 => Err(Unit::Bytes.out_of_range(text, "is zero")),
        bytes => Ok(bytes),
    }
}

pub(crate) fn parse_alignment(text: &str) -> Result<u64, UnitError> {
    let bytes = parse_positive_bytes(text)?;
    if !bytes.is_power_of_two() {
        return Err(Unit::Bytes.out_of_range(text, "is not a power of two"));
    }
    if bytes > 1 << 20 {
        return Err(Unit::Bytes.out_of_range(text, "is more than 1 MiB, the most that an alignment may be"));
    }
    Ok(bytes)
}

/// A size of an on-chip memory: bounded, for whoever emulates the machine holds one for each core in use.
pub(crate) fn parse_on_chip_bytes(text: &str) -> Result<u64, UnitError> {
    let bytes = parse_positive_bytes(text)?;
    if bytes <= 64 << 20 {
        return Ok(bytes);
    }
    Err(Unit::Bytes.out_of_range(text, "is more than 64 MiB, the most that an on-chip memory may have"))
}

/// The end of the number at the start of `text`: sign, digits, fraction, exponent.
fn number_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let sign = |at: usize| at + usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
    let mut end = digits(sign(0));
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let exponent = sign(end + 1);
        if digits(exponent) > exponent {
            end = digits(exponent);
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_scaled_to_the_base_unit() {
        for (unit, text, expected) in [
            (Unit::Flops, "2.77 TFLOP/s", 2.77e12),
            (Unit::Flops, "5GFLOP/s", 5e9),
            (Unit::Flops, "1e3 MFLOP/s", 1e9),
            (Unit::Ops, "11 TOP/s", 11e12),
            (Unit::Bandwidth, "77 GB/s", 77e9),
            (Unit::Bandwidth, "1 GiB/s", 1073741824.0),
            (Unit::Bytes, "1 KB", 1000.0),
            (Unit::Bytes, "1 KiB", 1024.0),
            (Unit::Percent, "60%", 0.6),
            (Unit::Percent, "0 %", 0.0),
            (Unit::Seconds, "5 us", 5e-6),
            (Unit::Seconds, "2 ms", 2e-3),
            (Unit::Hertz, "1.85 GHz", 1.85e9),
            (Unit::Hertz, "3e+2 kHz", 3e5),
            (Unit::BytesPerCycle, "128 B/cycle", 128.0),
            (Unit::Cycles, "12.5 cycles", 12.5),
        ] {
            let got = unit.parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            // Scaling is one multiplication: half a unit in the last place, and as much in the expectation.
            assert!((got - expected).abs() <= 2.0 * f64::EPSILON * expected, "{text}: {got} {expected}");
        }
    }

    #[test]
    fn bytes_are_exact() {
        for (text, expected) in [
            ("0 B", 0),
            ("512 KiB", 524_288),
            ("1.5 GB", 1_500_000_000),
            ("192 MiB", 201_326_592),
            ("8 GiB", 8_589_934_592),
        ] {
            assert_eq!(parse_bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_quantities_say_what_to_write() {
        const BYTES: &str = "write a number of bytes such as '512 KiB' \
                             (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)";
        for (unit, text, expected) in [
            (
                Unit::Flops,
                "2.77 TFLOP",
                "'2.77 TFLOP' has the unit 'TFLOP', which is not a rate of floating-point operations; \
                 did you mean 'TFLOP/s'?"
                    .to_owned(),
            ),
            (
                Unit::Bandwidth,
                "77 gb/s",
                "'77 gb/s' has the unit 'gb/s', which is not a bandwidth; did you mean 'GB/s'?".to_owned(),
            ),
            (
                Unit::Percent,
                "60 apples",
                "'60 apples' has the unit 'apples', which is not a percentage; use one of %".to_owned(),
            ),
            (
                Unit::Hertz,
                "1.85",
                "'1.85' has no unit; write a frequency such as '1.85 GHz' (units: Hz, kHz, MHz, GHz)"
                    .to_owned(),
            ),
            (Unit::Bytes, "KiB", format!("'KiB' does not start with a number; {BYTES}")),
            (Unit::Bytes, "", format!("'' does not start with a number; {BYTES}")),
            (Unit::Bytes, "-1 KiB", format!("'-1 KiB' is negative; {BYTES}")),
            (Unit::Bytes, "1e400 B", format!("'1e400 B' is too large; {BYTES}")),
            (
                Unit::Percent,
                "101%",
                "'101%' is more than 100%; write a percentage such as '60%' (units: %)".to_owned(),
            ),
        ] {
            assert_eq!(unit.parse(text).map_err(|error| error.to_string()), Err(expected), "{text}");
        }
        for (text, reason) in
            [("0.5 B", "is not a whole number of bytes"), ("10000 TiB", "is more than 8 PiB")]
        {
            assert_eq!(
                parse_bytes(text).map_err(|error| error.to_string()),
                Err(format!("'{text}' {reason}; {BYTES}"))
            );
        }
    }
}

//! Printing: to standard output without panics, and tables that fit the terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Width of a table where no terminal says another.
const DEFAULT_COLUMNS: u16 = 110;

/// Writes `text` and a line end to standard output.
///
/// A reader that has gone away (`halite demo --json | head -1`) is no failure.
///
/// # Errors
/// What the operating system says, such as a full disk behind a redirection.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.trim_end_matches('\n').as_bytes()).and_then(|()| {
        stdout.write_all(b"\n")?;
        stdout.flush()
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes `text` and a line end to standard error. Nobody is left to tell where that is closed or full.
pub fn tell(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A file of text of at most 1 MiB.
///
/// # Errors
/// What the operating system says, and `InvalidData` for a file that is larger or no UTF-8.
pub fn read_small(path: &Path) -> io::Result<String> {
    const MOST_BYTES: u64 = 1 << 20;
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB"));
    }
    Ok(text)
}

/// Columns of the terminal behind standard output, or a usual number for files and pipes.
pub fn columns() -> u16 {
    match console::Term::stdout().size_checked() {
        Some((_, columns)) => columns.max(40),
        None => DEFAULT_COLUMNS,
    }
}

/// A table with these column names that wraps its cells to `columns`; `right` are columns of numbers.
pub fn table(names: &[&str], right: &[usize], columns: u16) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    table.set_header(names.iter().map(Cell::new));
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Bytes as people read them: `640 B`, `1.5 MiB`, `23.4 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        value /= 1024.0;
        unit = next;
        // 1023.95 would be printed as 1024.0 of the smaller unit.
        if value < 1023.95 {
            break;
        }
    }
    format!("{value:.1} {unit}")
}

/// A whole number with its thousands apart: `12,345`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_use_the_unit_that_keeps_them_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (1_048_575, "1.0 MiB"),
            (25_125_558_681, "23.4 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            [0, 999, 1000, 12_345, 1_234_567].map(grouped),
            ["0", "999", "1,000", "12,345", "1,234,567"]
        );
    }

    #[test]
    fn a_table_keeps_to_its_width() {
        let mut table = table(&["name", "text"], &[0], 40);
        table.add_row(["a", &"words and more words ".repeat(10)]);
        assert!(table.lines().all(|line| line.chars().count() <= 40));
    }
}

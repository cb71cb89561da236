//! Assembler and disassembler: a program as text and back.
//!
//! ```text
//! .kernel double vector        ; name and kind of core
//! .arg buffer:read
//! .arg u32
//!     arg dst=r0 index=0
//! again:                       ; a label, for branches: target=@again
//!     jump target=@again
//! .end
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use crate::error::ProgramError;
use crate::inst::Inst;
use crate::program::{ArgType, Kernel, Program};
use crate::types::CoreKind;

/// The text of a program; [`assemble`] makes the same program of it.
#[must_use]
pub fn disassemble(program: &Program) -> String {
    let mut text = String::new();
    for kernel in program.kernels() {
        let _ = writeln!(text, ".kernel {} {}", kernel.name(), kernel.core());
        for arg in kernel.args() {
            let _ = writeln!(text, ".arg {}", arg.name());
        }
        let targets: BTreeSet<usize> = kernel.code().iter().filter_map(target_of).collect();
        let mut depth = 1;
        for (index, inst) in kernel.code().iter().enumerate() {
            if targets.contains(&index) {
                let _ = writeln!(text, "{index}:");
            }
            if matches!(inst, Inst::EndLoop {}) {
                depth -= 1;
            }
            text.extend(std::iter::repeat_n("    ", depth));
            inst.print(&mut text);
            text.push('\n');
            if matches!(inst, Inst::Loop { .. }) {
                depth += 1;
            }
        }
        text.push_str(".end\n");
    }
    text
}

fn target_of(inst: &Inst) -> Option<usize> {
    match inst {
        Inst::Branch { target, .. } | Inst::Jump { target } => Some(target.0 as usize),
        _ => None,
    }
}

/// A kernel whose lines are being read.
struct Open<'a> {
    name: &'a str,
    core: CoreKind,
    args: Vec<ArgType>,
    lines: Vec<(usize, &'a str)>,
    labels: HashMap<&'a str, usize>,
}

/// Reads a program from text; labels may be any word.
///
/// # Errors
/// The first line that cannot be read, or the first rule that the code breaks.
pub fn assemble(text: &str) -> Result<Program, ProgramError> {
    let mut kernels = Vec::new();
    let mut open: Option<Open<'_>> = None;
    let mut last = 0;
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
        last = number;
        let line = line.split(';').next().unwrap_or_default().trim();
        let fault = |reason: String| Err(ProgramError::Text { line: number, reason });
        let mut words = line.split_whitespace();
        match (words.next(), &mut open) {
            (None, _) => {}
            (Some(".kernel"), None) => {
                let (Some(name), Some(core), None) = (words.next(), words.next(), words.next()) else {
                    return fault("expected '.kernel NAME cube|vector'".to_owned());
                };
                let Some(core) = CoreKind::from_name(core) else {
                    return fault(format!("'{core}' is no kind of core (cube, vector)"));
                };
                open = Some(Open { name, core, args: Vec::new(), lines: Vec::new(), labels: HashMap::new() });
            }
            (Some(".kernel"), Some(kernel)) => {
                return fault(format!("kernel '{}' has no .end", kernel.name));
            }
            (Some(_), None) => return fault("expected '.kernel NAME cube|vector'".to_owned()),
            (Some(".arg"), Some(kernel)) => match words.next().and_then(ArgType::from_name) {
                Some(arg) => kernel.args.push(arg),
                None => {
                    return fault(
                        "expected '.arg buffer:read|buffer:write|buffer:readwrite|u32|i32|f32|i64'"
                            .to_owned(),
                    );
                }
            },
            (Some(".end"), Some(_)) => kernels.extend(open.take().map(close).transpose()?),
            (Some(word), Some(kernel)) => match word.strip_suffix(':') {
                Some(label) => {
                    if kernel.labels.insert(label, kernel.lines.len()).is_some() {
                        return fault(format!("label '{label}' stands twice"));
                    }
                }
                None => kernel.lines.push((number, line)),
            },
        }
    }
    if let Some(kernel) = open {
        return Err(ProgramError::Text {
            line: last,
            reason: format!("kernel '{}' has no .end", kernel.name),
        });
    }
    Program::new(kernels)
}

fn close(open: Open<'_>) -> Result<Kernel, ProgramError> {
    let mut code = Vec::with_capacity(open.lines.len());
    for (line, text) in open.lines {
        let inst = resolve_label(text, &open.labels).and_then(|text| Inst::parse(&text));
        code.push(inst.map_err(|reason| ProgramError::Text { line, reason })?);
    }
    Kernel::new(open.name, open.core, open.args, code)
}

/// Replaces `@label` by the index of its instruction.
fn resolve_label(text: &str, labels: &HashMap<&str, usize>) -> Result<String, String> {
    let Some((before, after)) = text.split_once('@') else {
        return Ok(text.to_owned());
    };
    let (label, rest) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
    match labels.get(label) {
        Some(index) => Ok(format!("{before}@{index} {rest}")),
        None => Err(format!("label '{label}' does not exist")),
    }
}

//! Padding: `pad.cl` gathers, elements move as bits. Profile: `threads: [t]` (default 64).

use super::elementwise;
use super::source::{KernelText, Language, bits_dtype, literal, threads};
use crate::lower::{LaunchArg, LowerRequest, Lowered, Pad, Unservable};
use halite_hal::Access;

/// Threads of a workgroup, and axes, in the text that serves all sizes.
const GENERAL_THREADS: usize = 128;
const GENERAL_AXES: usize = 6;

/// The launch of a padding.
pub(super) fn lower(
    language: Language,
    request: &LowerRequest<'_>,
    pad: &Pad,
) -> Result<Lowered, Unservable> {
    let rank = pad.input.len();
    if [pad.output.len(), pad.low.len(), pad.interior.len()].iter().any(|&len| len != rank) {
        return Err(Unservable::new(format!("the padding's lists do not have {rank} axes")));
    }
    let (elements, points) = (pad.input.iter().product::<usize>(), pad.output.iter().product::<usize>());
    let held = request.inputs.first().map_or(0, |input| input.elements());
    if held != elements {
        return Err(Unservable::new(format!("x has {held} elements instead of {elements}")));
    }
    if elements == 0 {
        return elementwise::fill(language, request, points, pad.value);
    }
    let dtype = bits_dtype(pad.value.dtype);
    let threads = if language.is_general() { GENERAL_THREADS } else { threads(request) };
    let mut text = KernelText::new(language, request, format!("pad_{dtype}_plain"));
    // Places in x are computed before they are known to lie inside.
    let farthest = (0..rank).map(|axis| pad.low[axis].unsigned_abs().saturating_add(pad.output[axis] as u64));
    let stride = elements as u64;
    let reach = farthest.fold(points as u64, |reach, far| reach.saturating_add(far.saturating_mul(stride)));
    text.reaches(i64::try_from(reach).unwrap_or(i64::MAX));
    text.buffer("x", LaunchArg::Input(0), dtype, Access::Read);
    text.buffer("out", LaunchArg::Output(0), dtype, Access::Write);
    if language.is_general() {
        text.check_axes(rank, GENERAL_AXES)?;
        let mut axes = String::new();
        // Counted from the innermost axis, so that outer ones may be missing.
        for axis in 0..GENERAL_AXES {
            let at = rank.checked_sub(axis + 1);
            text.size(&format!("input{axis}"), at.map_or(1, |at| pad.input[at]))?;
            text.size(&format!("output{axis}"), at.map_or(1, |at| pad.output[at]))?;
            text.number(&format!("low{axis}"), at.map_or(0, |at| pad.low[at]))?;
            text.size(&format!("step{axis}"), at.map_or(1, |at| pad.interior[at] + 1))?;
            axes.push_str(&format!("AXIS(input{axis}, output{axis}, low{axis}, step{axis}) "));
        }
        text.define("AXES(AXIS)", axes);
        text.word("fill", pad.value.bits);
        text.define("FILL", format!("(({})fill)", dtype.name()));
        text.size("POINTS", points)?;
        text.push(include_str!("pad.cl"));
        return Ok(Lowered::single(text.launch(points.div_ceil(threads), [threads, 1])?));
    }
    let axes: Vec<String> = (0..rank)
        .rev()
        .map(|axis| {
            let (input, output) = (pad.input[axis], pad.output[axis]);
            format!("AXIS({input}, {output}, ({}), {})", pad.low[axis], pad.interior[axis] + 1)
        })
        .collect();
    text.define("AXES(AXIS)", axes.join(" "));
    text.define("POINTS", points);
    text.define("FILL", literal(dtype, pad.value.bits));
    text.push(include_str!("pad.cl"));
    Ok(Lowered::single(text.launch(points.div_ceil(threads), [threads, 1])?))
}

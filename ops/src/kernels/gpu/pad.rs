//! Padding: `pad.cl` gathers, elements move as bits. Profile: `threads: [t]` (default 64).

use super::elementwise;
use super::source::{KernelText, Language, bits_dtype, literal, threads};
use crate::lower::{LaunchArg, LowerRequest, Lowered, Pad, Unservable};
use halite_hal::Access;

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
    let threads = threads(request);
    let mut text = KernelText::new(language, request, format!("pad_{dtype}_plain"));
    // Places in x are computed before they are known to lie inside.
    let farthest = (0..rank).map(|axis| pad.low[axis].unsigned_abs().saturating_add(pad.output[axis] as u64));
    let stride = elements as u64;
    let reach = farthest.fold(points as u64, |reach, far| reach.saturating_add(far.saturating_mul(stride)));
    text.reaches(i64::try_from(reach).unwrap_or(i64::MAX));
    text.buffer("x", LaunchArg::Input(0), dtype, Access::Read);
    text.buffer("out", LaunchArg::Output(0), dtype, Access::Write);
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

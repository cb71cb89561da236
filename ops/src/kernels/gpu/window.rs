//! Sliding windows: pooling and its derivatives, in `window.cl`. Profile: `threads: [t]` (default 64).

use super::source::{KernelText, Language, accumulator, register, threads};
use crate::lower::{LaunchArg, LowerRequest, Lowered, Unservable, Window, WindowKind};
use halite_hal::Access;

/// Threads of a workgroup in the text that serves all sizes.
const GENERAL_THREADS: usize = 128;

/// The launch of a sliding window.
pub(super) fn lower(
    language: Language,
    request: &LowerRequest<'_>,
    window: &Window,
) -> Result<Lowered, Unservable> {
    let axes = window.input.len();
    let lists = [&window.output, &window.window, &window.stride, &window.pad_low];
    if lists.iter().any(|list| list.len() != axes) {
        return Err(Unservable::new(format!("the window's lists do not have {axes} axes")));
    }
    for axis in 0..axes {
        let last = window.output[axis].saturating_sub(1) * window.stride[axis];
        let (low, extent) = (window.pad_low[axis], window.input[axis]);
        if low >= window.window[axis] || last >= low + extent {
            return Err(Unservable::new(format!("a window along axis {axis} lies over padding alone")));
        }
    }
    let [inputs, outputs, taps] =
        [&window.input, &window.output, &window.window].map(|extents| extents.iter().product::<usize>());
    // (define, whether x is read, whether values are read and how many belong to an outer index)
    let (define, reads_x, values) = match window.kind {
        WindowKind::Max => ("MAX", true, None),
        WindowKind::Sum => ("SUM", true, None),
        WindowKind::ScatterToMax => ("SCATTER_TO_MAX", true, Some(outputs)),
        WindowKind::GatherAtMax => ("GATHER_AT_MAX", true, Some(inputs)),
        WindowKind::Spread => ("SPREAD", false, Some(outputs)),
    };
    let expected = [reads_x.then_some(inputs), values].into_iter().flatten();
    for (n, of_outer) in expected.enumerate() {
        let (held, wanted) =
            (request.inputs.get(n).map_or(0, |input| input.elements()), window.outer * of_outer);
        if held != wanted {
            return Err(Unservable::new(format!("operand {n} has {held} elements instead of {wanted}")));
        }
    }
    let points = match window.kind {
        WindowKind::ScatterToMax | WindowKind::Spread => window.outer * inputs,
        WindowKind::Max | WindowKind::Sum | WindowKind::GatherAtMax => window.outer * outputs,
    };
    let dtype = window.dtype;
    let threads = if language.is_general() { GENERAL_THREADS } else { threads(request) };
    let mut text = KernelText::new(language, request, format!("{}_{dtype}_plain", window.kind.name()));
    text.reaches((window.outer * inputs.max(outputs)) as i64);
    let mut next = 0;
    let mut operand = |text: &mut KernelText<'_>, name: &str, buffer: &str| {
        text.buffer(buffer, LaunchArg::Input(next), dtype, Access::Read);
        text.define_element(name, dtype, Access::Read);
        next += 1;
    };
    if reads_x {
        operand(&mut text, "X", "x");
    }
    if values.is_some() {
        operand(&mut text, "VALUES", "values");
    }
    text.buffer("out", LaunchArg::Output(0), dtype, Access::Write);
    text.define_element("OUT", dtype, Access::Write);
    text.define(define, "");
    text.define("ELEMENT", register(dtype));
    text.define("ACC", register(accumulator(dtype)));
    for (name, value) in [("OUTER", window.outer), ("INPUTS", inputs), ("OUTPUTS", outputs), ("TAPS", taps)] {
        text.size(name, value)?;
    }
    let ones = vec![1; axes];
    text.define_axes(&window.input, &window.output, &window.window, &window.stride, &ones, &window.pad_low)?;
    text.push(include_str!("places.cl"));
    text.push(include_str!("window.cl"));
    Ok(Lowered::single(text.launch(points.div_ceil(threads), [threads, 1])?))
}

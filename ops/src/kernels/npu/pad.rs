//! Padding: the output is filled with the constant, then the input is stored into it with strides.
//!
//! `out[low + i * (interior + 1)] = x[i]`; what would lie outside is not read. Two launches, or one where the input
//! covers everything.

use crate::cluster::{Cluster, Step, StepOp, View, contiguous_strides};
use crate::lower::{LowerRequest, Lowered, Pad, Unservable};

use super::elementwise::{self, OutputView};

/// The launches of a padding.
pub(super) fn lower(request: &LowerRequest<'_>, pad: &Pad) -> Result<Lowered, Unservable> {
    let (in_strides, out_strides) = (contiguous_strides(&pad.input), contiguous_strides(&pad.output));
    let mut shape = Vec::new();
    let (mut from, mut to) = (0, 0);
    let (mut from_strides, mut to_strides) = (Vec::new(), Vec::new());
    for axis in 0..pad.input.len() {
        let step = pad.interior[axis] as i64 + 1;
        let (low, extent) = (pad.low[axis], pad.output[axis] as i64);
        // The first and the last index whose place is inside.
        let first = (-low).max(0).div_euclid(step) + i64::from((-low).max(0).rem_euclid(step) != 0);
        let last = (extent - 1 - low).div_euclid(step).min(pad.input[axis] as i64 - 1);
        shape.push(usize::try_from(last - first + 1).unwrap_or(0));
        from += first * in_strides[axis];
        to += (low + first * step) * out_strides[axis];
        from_strides.push(in_strides[axis]);
        to_strides.push(step * out_strides[axis]);
    }
    let points: usize = shape.iter().product();
    let mut launches = Vec::new();
    if points != pad.output.iter().product() {
        let constant = Step { op: StepOp::Constant(pad.value), dtype: pad.value.dtype };
        let fill = Cluster {
            shape: pad.output.clone(),
            inputs: Vec::new(),
            scalars: Vec::new(),
            steps: vec![constant],
            outputs: vec![0],
        };
        launches.push(elementwise::launch(request, &fill, None)?);
    }
    if points > 0 {
        // The output's strides ride along as a second input, so that axes merge only where both sides allow it.
        let dtype = pad.value.dtype;
        let mut copy = Cluster::copy(&shape, View { dtype, offset: from, strides: from_strides });
        copy.inputs.push(View { dtype, offset: to, strides: to_strides });
        copy.collapse(None);
        let view = copy.inputs.pop().expect("it was pushed above");
        let view = OutputView { offset: view.offset, strides: view.strides };
        launches.push(elementwise::launch(request, &copy, Some(&view))?);
    }
    Ok(Lowered { launches, workspace_bytes: 0 })
}

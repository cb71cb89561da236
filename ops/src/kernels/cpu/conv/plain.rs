//! Convolutions in f64, for references and gradient checks: plain loops over the definition.

use super::{ConvOp, ConvSpec};

/// Computes output planes `planes` (of the output tensor flattened to planes; output channels for a
/// weight gradient).
///
/// # Safety
/// `lhs`, `rhs`, `out` and a `bias` that is not null are valid for the sizes of `spec`.
pub(super) unsafe fn run(
    op: ConvOp,
    spec: &ConvSpec,
    planes: std::ops::Range<usize>,
    [lhs, rhs, bias]: [*const f64; 3],
    out: *mut f64,
) {
    let [out_h, out_w] = spec.output();
    let ([in_h, in_w], [k_h, k_w]) = (spec.input, spec.kernel);
    let (c_group, o_group) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    // The input position of an output position and a kernel element, if it is not padding.
    let at = |axis: usize, out: usize, k: usize, size: usize| {
        let at = (out * spec.stride[axis] + k * spec.dilation[axis]).checked_sub(spec.pad_low[axis])?;
        (at < size).then_some(at)
    };
    let x_index = |n: usize, c: usize, y: usize, x: usize| ((n * spec.in_channels + c) * in_h + y) * in_w + x;
    let y_index =
        |n: usize, o: usize, p: usize, q: usize| ((n * spec.out_channels + o) * out_h + p) * out_w + q;
    let w_index = |o: usize, c: usize, i: usize, j: usize| ((o * c_group + c) * k_h + i) * k_w + j;
    for plane in planes {
        // SAFETY: all indices are inside the tensors: positions by `at`, the others by their loops.
        unsafe {
            match op {
                ConvOp::Forward => {
                    let (n, o) = (plane / spec.out_channels, plane % spec.out_channels);
                    for p in 0..out_h {
                        for q in 0..out_w {
                            let mut sum = 0.0;
                            for c in 0..c_group {
                                for i in 0..k_h {
                                    let Some(y) = at(0, p, i, in_h) else { continue };
                                    for j in 0..k_w {
                                        let Some(x) = at(1, q, j, in_w) else { continue };
                                        let channel = o / o_group * c_group + c;
                                        sum += *lhs.add(x_index(n, channel, y, x))
                                            * *rhs.add(w_index(o, c, i, j));
                                    }
                                }
                            }
                            if !bias.is_null() {
                                sum += *bias.add(o);
                            }
                            if spec.relu && sum < 0.0 {
                                sum = 0.0;
                            }
                            *out.add(y_index(n, o, p, q)) = sum;
                        }
                    }
                }
                ConvOp::InputGradient => {
                    let (n, channel) = (plane / spec.in_channels, plane % spec.in_channels);
                    std::slice::from_raw_parts_mut(out.add(x_index(n, channel, 0, 0)), in_h * in_w).fill(0.0);
                    for o in 0..o_group {
                        let o = channel / c_group * o_group + o;
                        for p in 0..out_h {
                            for q in 0..out_w {
                                let dy = *lhs.add(y_index(n, o, p, q));
                                for i in 0..k_h {
                                    let Some(y) = at(0, p, i, in_h) else { continue };
                                    for j in 0..k_w {
                                        let Some(x) = at(1, q, j, in_w) else { continue };
                                        let w = *rhs.add(w_index(o, channel % c_group, i, j));
                                        *out.add(x_index(n, channel, y, x)) += dy * w;
                                    }
                                }
                            }
                        }
                    }
                }
                ConvOp::WeightGradient => {
                    let o = plane;
                    for c in 0..c_group {
                        for i in 0..k_h {
                            for j in 0..k_w {
                                let mut sum = 0.0;
                                for n in 0..spec.batch {
                                    for p in 0..out_h {
                                        let Some(y) = at(0, p, i, in_h) else { continue };
                                        for q in 0..out_w {
                                            let Some(x) = at(1, q, j, in_w) else { continue };
                                            let channel = o / o_group * c_group + c;
                                            sum += *lhs.add(x_index(n, channel, y, x))
                                                * *rhs.add(y_index(n, o, p, q));
                                        }
                                    }
                                }
                                *out.add(w_index(o, c, i, j)) = sum;
                            }
                        }
                    }
                }
            }
        }
    }
}

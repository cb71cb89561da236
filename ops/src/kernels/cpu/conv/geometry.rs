//! A convolution and its input gradient as one thing: a sum over taps of a padded image.
//!
//! Along one axis, output `u` of a phase reads source element `u * step + offset` for each of its taps.
//! The forward pass has one phase and a step of its stride. The input gradient of a stride `s` has `s`
//! phases (outputs `start, start + s, ...`), each with the taps that meet its residue, and a step of 1.

/// One spatial axis.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// Source elements along the axis.
    pub(super) src: usize,
    /// Source elements between neighbouring outputs of a phase.
    pub(super) step: usize,
    /// Output elements along the axis, over all phases.
    pub(super) out: usize,
    /// Elements between neighbouring outputs of a phase in the output tensor.
    pub(super) out_stride: usize,
    pub(super) phases: Vec<AxisPhase>,
}

/// The outputs of an axis that share their taps.
#[derive(Debug, Clone)]
pub(super) struct AxisPhase {
    /// First output, in the output tensor.
    pub(super) start: usize,
    /// Number of outputs.
    pub(super) len: usize,
    pub(super) taps: Vec<AxisTap>,
    /// Smallest and largest offset of the taps; 0 if there are none.
    pub(super) low: isize,
    pub(super) high: isize,
}

/// One kernel element along an axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct AxisTap {
    /// Its index in the kernel.
    pub(super) index: usize,
    /// Where it reads, relative to `output * step`; the padding makes it negative.
    pub(super) offset: isize,
}

/// One kernel element of a pair of phases.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap {
    /// Its index in the kernel.
    pub(super) index: usize,
    /// Where it reads in a window, relative to the output's row and column.
    pub(super) window: usize,
    /// Where it reads along x in the source, relative to `output * step`.
    pub(super) x: isize,
}

impl AxisPhase {
    fn new(start: usize, len: usize, taps: Vec<AxisTap>) -> Self {
        let low = taps.iter().map(|tap| tap.offset).min().unwrap_or(0);
        let high = taps.iter().map(|tap| tap.offset).max().unwrap_or(0);
        Self { start, len, taps, low, high }
    }
}

impl Axis {
    /// The axis of a forward pass.
    pub(super) fn forward(
        src: usize,
        out: usize,
        kernel: usize,
        stride: usize,
        dilation: usize,
        pad: usize,
    ) -> Self {
        let taps = (0..kernel)
            .map(|index| AxisTap { index, offset: (index * dilation) as isize - pad as isize })
            .collect();
        Self { src, step: stride, out, out_stride: 1, phases: vec![AxisPhase::new(0, out, taps)] }
    }

    /// The axis of the input gradient of that forward pass: its `out` elements are the source here.
    pub(super) fn input_gradient(
        src: usize,
        out: usize,
        kernel: usize,
        stride: usize,
        dilation: usize,
        pad: usize,
    ) -> Self {
        let phases = (0..stride.min(src))
            .map(|start| {
                let taps = (0..kernel)
                    .filter_map(|index| {
                        let at = (start + pad) as isize - (index * dilation) as isize;
                        (at.rem_euclid(stride as isize) == 0)
                            .then_some(AxisTap { index, offset: at.div_euclid(stride as isize) })
                    })
                    .collect();
                AxisPhase::new(start, (src - start).div_ceil(stride), taps)
            })
            .collect();
        Self { src: out, step: 1, out: src, out_stride: stride, phases }
    }

    /// The taps that read inside the source for output `at` of a phase, which follow one another since
    /// offsets rise or fall with the kernel index.
    pub(super) fn inside(&self, phase: &AxisPhase, at: usize) -> std::ops::Range<usize> {
        let reads = |tap: &AxisTap| {
            let source = (at * self.step) as isize + tap.offset;
            source >= 0 && source < self.src as isize
        };
        let first = phase.taps.iter().position(reads).unwrap_or(0);
        let end = phase.taps.iter().rposition(reads).map_or(first, |last| last + 1);
        first..end
    }

    /// Source elements that `len` neighbouring outputs of a phase span.
    pub(super) fn span(&self, phase: &AxisPhase, len: usize) -> usize {
        len.saturating_sub(1) * self.step + (phase.high - phase.low) as usize + 1
    }
}

/// A sum over taps in every group of channels.
#[derive(Debug, Clone)]
pub(super) struct Correlation {
    pub(super) batch: usize,
    pub(super) channel_groups: usize,
    /// Source and output planes of one group of channels.
    pub(super) src_planes: usize,
    pub(super) out_planes: usize,
    pub(super) y: Axis,
    pub(super) x: Axis,
    /// Weight strides: from one output plane, and from one source plane, to the next.
    pub(super) w_out: usize,
    pub(super) w_src: usize,
    /// Elements of the kernel along x, and in all.
    pub(super) kernel_x: usize,
    pub(super) kernel: usize,
}

impl Correlation {
    /// Elements of a source plane.
    pub(super) fn src_plane(&self) -> usize {
        self.y.src * self.x.src
    }

    /// Elements of an output plane.
    pub(super) fn out_plane(&self) -> usize {
        self.y.out * self.x.out
    }

    /// Weights of one group of channels.
    pub(super) fn weights(&self) -> usize {
        self.src_planes * self.out_planes * self.kernel
    }
}

/// Rounds `len / parts` up, and at least 1.
pub(super) fn share(len: usize, parts: usize) -> usize {
    len.div_ceil(parts.max(1)).max(1)
}

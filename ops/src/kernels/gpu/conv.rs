//! Convolutions and both their gradients as products of matrices: the operands, in `conv.cl`; the strategies are those of
//! `contraction.rs`. The plain one is the direct convolution, with k numbered (channel, tap) or (image, output).

use super::contraction::{Matrices, Product, Side, sizes};
use super::source::{KernelText, from_storage, storage};
use crate::lower::{Conv, ConvOperand, LaunchArg, LowerRequest, Unservable};
use halite_hal::Access;

/// The operands of a [`Conv`].
pub(super) struct ConvMatrices<'a> {
    conv: &'a Conv,
}

/// An operand of the trilinear form.
#[derive(Clone, Copy)]
struct Operand {
    buffer: &'static str,
    name: &'static str,
    input: usize,
}

impl<'a> ConvMatrices<'a> {
    /// Of `conv`, if its buffers hold what its geometry says.
    pub(super) fn new(request: &LowerRequest<'_>, conv: &'a Conv) -> Result<Self, Unservable> {
        let g = &conv.geometry;
        let axes = g.input.len();
        let lists = [&g.kernel, &g.output, &g.stride, &g.dilation, &g.pad_low, &g.pad_high];
        if lists.iter().any(|list| list.len() != axes) || g.groups == 0 {
            return Err(Unservable::new("the convolution's lists differ in length, or it has no groups"));
        }
        let (spatial, taps, outputs) = spatial(conv);
        let input = g.batch * g.in_channels * spatial;
        let filter = g.out_channels * (g.in_channels / g.groups) * taps;
        let output = g.batch * g.out_channels * outputs;
        let expected = match conv.operand {
            ConvOperand::Output => [input, filter],
            ConvOperand::Input => [output, filter],
            ConvOperand::Filter => [output, input],
        };
        for (n, &expected) in expected.iter().enumerate() {
            let elements = request.inputs.get(n).map_or(0, |input| input.elements());
            if elements != expected {
                return Err(Unservable::new(format!(
                    "operand {n} has {elements} elements instead of {expected}"
                )));
            }
        }
        Ok(Self { conv })
    }

    fn operand(&self, side: Side) -> Operand {
        let of = |name, buffer, input| Operand { buffer, name, input };
        match (self.conv.operand, side) {
            (ConvOperand::Output, Side::Lhs) | (ConvOperand::Input, Side::Lhs) => of("FILTER", "filter", 1),
            (ConvOperand::Output, Side::Rhs) => of("INPUT", "input", 0),
            (ConvOperand::Input, Side::Rhs) | (ConvOperand::Filter, Side::Lhs) => of("OUTPUT", "output", 0),
            (ConvOperand::Filter, Side::Rhs) => of("INPUT", "input", 1),
        }
    }
}

/// Products of the spatial extents: input, filter, output.
fn spatial(conv: &Conv) -> (usize, usize, usize) {
    let g = &conv.geometry;
    (g.input.iter().product(), g.kernel.iter().product(), g.output.iter().product())
}

impl Matrices for ConvMatrices<'_> {
    fn product(&self) -> Product {
        let (conv, g) = (self.conv, &self.conv.geometry);
        let (inputs, taps, outputs) = spatial(conv);
        let (group_in, group_out) = (g.in_channels / g.groups, g.out_channels / g.groups);
        let (name, m, n, k_outer, k_inner, k_innermost) = match conv.operand {
            ConvOperand::Output => {
                ("conv_output", group_out, g.batch * outputs, group_in, taps, [true, false])
            }
            ConvOperand::Input => ("conv_input", group_in, g.batch * inputs, group_out, taps, [false, false]),
            ConvOperand::Filter => {
                ("conv_filter", group_out, group_in * taps, g.batch, outputs, [true, true])
            }
        };
        Product {
            name: name.to_owned(),
            batch: g.groups,
            m,
            n,
            k_outer,
            k_inner,
            dtype: conv.dtype,
            out_dtype: conv.out_dtype,
            epilogue: conv.epilogue,
            bias_place: "(batch) * GROUP_OUT + (row)",
            k_innermost,
            has_free_sizes: false,
            has_dense_out: false,
        }
    }

    fn read(&self, text: &mut KernelText<'_>, side: Side) -> Result<(), Unservable> {
        let Operand { buffer, name, input } = self.operand(side);
        let dtype = self.conv.dtype;
        text.buffer(buffer, LaunchArg::Input(input), dtype, Access::Read);
        text.define(&format!("{name}_T"), storage(dtype));
        text.define(&format!("LOAD_{name}(p, i)"), from_storage(dtype, "(p)[i]"));
        Ok(())
    }

    fn describe(&self, text: &mut KernelText<'_>) -> Result<(), Unservable> {
        let (conv, g) = (self.conv, &self.conv.geometry);
        sizes(text, &self.product())?;
        text.define(
            match conv.operand {
                ConvOperand::Output => "FOR_OUTPUT",
                ConvOperand::Input => "FOR_INPUT",
                ConvOperand::Filter => "FOR_FILTER",
            },
            "",
        );
        let (inputs, taps, outputs) = spatial(conv);
        for (name, value) in [
            ("GROUPS", g.groups),
            ("GROUP_IN", g.in_channels / g.groups),
            ("GROUP_OUT", g.out_channels / g.groups),
            ("INPUTS", inputs),
            ("TAPS", taps),
            ("OUTPUTS", outputs),
        ] {
            text.size(name, value)?;
        }
        text.define_axes(&g.input, &g.output, &g.kernel, &g.stride, &g.dilation, &g.pad_low)
    }

    fn text(&self) -> &'static str {
        concat!(include_str!("places.cl"), include_str!("conv.cl"))
    }
}

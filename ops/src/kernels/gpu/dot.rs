//! Batched products of strided matrices: the operands, in `dot.cl`; the strategies are those of `contraction.rs`.

use super::contraction::{Matrices, Product, Side, sizes};
use super::source::KernelText;
use crate::cluster::contiguous_strides;
use crate::lower::{BiasAxis, Dot, LaunchArg, LowerRequest, MatrixView, Unservable};
use halite_hal::Access;

/// The matrices of a [`Dot`].
pub(super) struct DotMatrices<'a> {
    dot: &'a Dot,
}

impl<'a> DotMatrices<'a> {
    /// Of `dot`, if its views stay inside their buffers.
    pub(super) fn new(request: &LowerRequest<'_>, dot: &'a Dot) -> Result<Self, Unservable> {
        let extents = [[dot.m, dot.k], [dot.k, dot.n]];
        for (n, (view, [rows, columns])) in [&dot.lhs, &dot.rhs].into_iter().zip(extents).enumerate() {
            if view.batch_strides.len() != dot.batch.len() {
                let (strides, axes) = (view.batch_strides.len(), dot.batch.len());
                return Err(Unservable::new(format!(
                    "operand {n} has {strides} batch strides over {axes} axes"
                )));
            }
            let axes = dot.batch.iter().zip(&view.batch_strides).map(|(&extent, &stride)| (extent, stride));
            let axes = axes.chain([(rows, view.row_stride), (columns, view.col_stride)]);
            let (mut first, mut last) = (i128::from(view.offset), i128::from(view.offset));
            for (extent, stride) in axes {
                let reach = i128::from(stride) * (extent as i128 - 1);
                first += reach.min(0);
                last += reach.max(0);
            }
            let elements = request.inputs.get(n).map_or(0, |input| input.elements());
            if dot.k > 0 && (first < 0 || last >= elements as i128) {
                return Err(Unservable::new(format!(
                    "operand {n} reads elements {first} to {last} of a buffer of {elements}"
                )));
            }
        }
        Ok(Self { dot })
    }

    fn view(&self, side: Side) -> &MatrixView {
        match side {
            Side::Lhs => &self.dot.lhs,
            Side::Rhs => &self.dot.rhs,
        }
    }
}

/// Axes of batches in the text that serves all sizes.
const GENERAL_AXES: usize = 3;

impl DotMatrices<'_> {
    /// What serves every batch and bias.
    fn describe_any(&self, text: &mut KernelText<'_>) -> Result<(), Unservable> {
        let dot = self.dot;
        text.check_axes(dot.batch.len(), GENERAL_AXES)?;
        let natural = contiguous_strides(&dot.batch);
        let mut bases =
            ["const INDEX lhs_base = lhs_offset", "const INDEX rhs_base = rhs_offset"].map(String::from);
        for axis in 0..GENERAL_AXES {
            let at = dot.batch.len().checked_sub(axis + 1);
            text.number(&format!("batch_step{axis}"), at.map_or(1, |at| natural[at].max(1)))?;
            text.size(&format!("batch_extent{axis}"), at.map_or(1, |at| dot.batch[at]))?;
            for (base, (side, view)) in bases.iter_mut().zip([("lhs", &dot.lhs), ("rhs", &dot.rhs)]) {
                let stride = at.map_or(0, |at| view.batch_strides[at]);
                text.number(&format!("{side}_batch{axis}"), stride)?;
                base.push_str(&format!(
                    " + batch / batch_step{axis} % batch_extent{axis} * {side}_batch{axis}"
                ));
            }
        }
        text.define("BASES", format!("{}; {};", bases[0], bases[1]));
        text.number("bias_by_row", i64::from(dot.epilogue.bias == Some(BiasAxis::Row)))
    }
}

impl Matrices for DotMatrices<'_> {
    fn product(&self) -> Product {
        let dot = self.dot;
        let bias_place = match dot.epilogue.bias {
            Some(BiasAxis::Row) => "row",
            _ => "column",
        };
        Product {
            name: "dot_general".to_owned(),
            batch: dot.batch.iter().product(),
            m: dot.m,
            n: dot.n,
            k_outer: 1,
            k_inner: dot.k,
            dtype: dot.dtype,
            out_dtype: dot.out_dtype,
            epilogue: dot.epilogue,
            bias_place,
            k_innermost: [
                dot.lhs.col_stride.abs() == 1 || dot.m == 1,
                dot.rhs.row_stride.abs() == 1 && dot.rhs.col_stride.abs() != 1,
            ],
            has_free_sizes: true,
            has_dense_out: true,
        }
    }

    fn read(&self, text: &mut KernelText<'_>, side: Side) -> Result<(), Unservable> {
        let (name, buffer, arg) = match side {
            Side::Lhs => ("LHS", "lhs", LaunchArg::Input(0)),
            Side::Rhs => ("RHS", "rhs", LaunchArg::Input(1)),
        };
        let view = self.view(side);
        text.buffer(buffer, arg, self.dot.dtype, Access::Read);
        text.define_element(name, self.dot.dtype, Access::Read);
        let strides = [(format!("{name}_ROW"), view.row_stride), (format!("{name}_COLUMN"), view.col_stride)];
        for (name, stride) in strides {
            // The compiler is to see what lies together.
            if stride.abs() <= 1 && !text.language.is_general() {
                text.define(&name, format!("({stride})"));
            } else {
                text.number(&name, stride)?;
            }
        }
        text.number(&format!("{buffer}_offset"), view.offset)
    }

    fn describe(&self, text: &mut KernelText<'_>) -> Result<(), Unservable> {
        sizes(text, &self.product())?;
        if text.language.is_general() {
            return self.describe_any(text);
        }
        let natural = contiguous_strides(&self.dot.batch);
        let mut bases = String::new();
        for (side, buffer) in [(Side::Lhs, "lhs"), (Side::Rhs, "rhs")] {
            if !text.has_parameter(buffer) {
                continue;
            }
            let mut base = format!("{buffer}_offset");
            for (axis, &stride) in self.view(side).batch_strides.iter().enumerate() {
                if stride != 0 && self.dot.batch[axis] > 1 {
                    let (step, extent) = (natural[axis], self.dot.batch[axis]);
                    base.push_str(&format!(" + batch / {step} % {extent} * ({stride})"));
                }
            }
            bases.push_str(&format!("const INDEX {buffer}_base = {base}; "));
        }
        text.define("BASES", bases);
        Ok(())
    }

    fn text(&self) -> &'static str {
        include_str!("dot.cl")
    }

    fn aligned_elements(&self, side: Side) -> usize {
        let (dot, view) = (self.dot, self.view(side));
        let is_k_innermost = self.product().k_innermost[side as usize];
        let (rows, columns) = if side == Side::Lhs { (dot.m, dot.k) } else { (dot.k, dot.n) };
        let (rows, columns) = ((rows, view.row_stride), (columns, view.col_stride));
        let (line, inner) =
            if is_k_innermost == (side == Side::Lhs) { (rows, columns) } else { (columns, rows) };
        if inner.0 > 1 && inner.1 != 1 {
            return 0;
        }
        let axes = dot.batch.iter().copied().zip(view.batch_strides.iter().copied()).chain([line]);
        let strides = axes.filter(|(extent, _)| *extent > 1).map(|(_, stride)| stride);
        let all = strides.chain([view.offset]).fold(8, |all, stride| all | stride);
        // The lowest bit that any of them has is the largest power of two that divides all.
        match 1 << all.trailing_zeros() {
            1 => 0,
            elements => elements,
        }
    }
}

//! Copies whose innermost axis is not innermost in memory: permuted tensors.
//!
//! Square blocks are read along the axis that is dense in memory and written along the axis that is dense in the
//! result, so that both sides use whole cache lines.

use super::machine::argument;
use super::{requirements, shares, well_shaped};
use crate::cluster::{Cluster, StepOp, View, contiguous_strides};
use crate::kernels::cpu::simd::Isa;
use crate::lower::{Launch, LaunchArg};
use halite_hal::{Access, ArgType, KernelSource, NativeKernel, Signature, Workgroup};

/// Elements of a block along either axis; a row of f32 is a cache line.
const BLOCK: usize = 16;

/// A copy between two layouts of which no axis is dense in both.
#[derive(Debug, Clone)]
pub(super) struct Transpose {
    shape: Vec<usize>,
    view: View,
    /// Strides of the result.
    natural: Vec<i64>,
    /// The axis that is dense in memory; the last one is dense in the result.
    dense: usize,
    points: usize,
}

impl Transpose {
    /// The transposition that `cluster` is, if it is one and blocks pay. Its view must have been checked.
    pub(super) fn find(cluster: &Cluster) -> Option<Self> {
        let ([view], [output]) = (&cluster.inputs[..], &cluster.outputs[..]) else { return None };
        if cluster.steps.get(*output as usize)?.op != StepOp::Load(0) || well_shaped(cluster).is_err() {
            return None;
        }
        let mut copy = Cluster::copy(&cluster.shape, view.clone());
        copy.collapse(None);
        let view = copy.inputs.pop()?;
        let last = copy.shape.len().checked_sub(1)?;
        let dense = (0..last).find(|axis| view.strides[*axis] == 1 && copy.shape[*axis] >= BLOCK / 2)?;
        if view.strides[last].unsigned_abs() < 2 || copy.shape[last] < BLOCK / 2 {
            return None;
        }
        let (points, natural) = (copy.points(), contiguous_strides(&copy.shape));
        Some(Self { shape: copy.shape, view, natural, dense, points })
    }

    /// The launch for a buffer of `elements`.
    pub(super) fn launch(self, isa: Isa, elements: usize, cores: usize) -> Launch {
        let dtype = self.view.dtype;
        let buffer = |access| ArgType::Buffer { dtype, access };
        let signature = Signature::new(vec![buffer(Access::Read), buffer(Access::Write)]);
        // A strip is one block wide along the dense axis, and whole along the last one.
        let strips = self.strips();
        let (groups, _) = shares(self.points, 2, cores);
        let share = strips.div_ceil(groups.max(1) as usize);
        let groups = strips.div_ceil(share) as u32;
        let name = format!("transpose_{dtype}_{}", isa.name());
        let run = move |group: &mut Workgroup<'_>| {
            let from = argument(group, 0, dtype, elements)?.cast_const();
            let to = argument(group, 1, dtype, self.points)?;
            let first = group.index()[0] as usize * share;
            for strip in first..(first + share).min(strips) {
                // SAFETY: compiling the cluster checked every offset of the view against `elements`; strips do not
                // overlap, and each belongs to one workgroup.
                unsafe {
                    match dtype.size() {
                        1 => self.copy_strip::<u8>(from, to, strip),
                        2 => self.copy_strip::<u16>(from.cast(), to.cast(), strip),
                        4 => self.copy_strip::<u32>(from.cast(), to.cast(), strip),
                        _ => self.copy_strip::<u64>(from.cast(), to.cast(), strip),
                    }
                }
            }
            Ok(())
        };
        let mut kernel = NativeKernel::new(name, signature, run);
        kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
        let args = vec![LaunchArg::Input(0), LaunchArg::Output(0)];
        Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args }
    }

    fn strips(&self) -> usize {
        let last = self.shape.len() - 1;
        self.points / self.shape[last] / self.shape[self.dense] * self.shape[self.dense].div_ceil(BLOCK)
    }

    /// Copies one strip.
    ///
    /// # Safety
    /// Both buffers hold the elements of their layout, and nobody else accesses this strip of the result.
    unsafe fn copy_strip<T: Copy + Default>(&self, from: *const T, to: *mut T, strip: usize) {
        let last = self.shape.len() - 1;
        let blocks = self.shape[self.dense].div_ceil(BLOCK);
        let (mut rest, start) = (strip / blocks, strip % blocks * BLOCK);
        let (mut source, mut target) =
            (self.view.offset as isize + start as isize, start as isize * self.natural[self.dense] as isize);
        for axis in (0..last).rev().filter(|axis| *axis != self.dense) {
            let index = (rest % self.shape[axis]) as isize;
            rest /= self.shape[axis];
            source += index * self.view.strides[axis] as isize;
            target += index * self.natural[axis] as isize;
        }
        let height = BLOCK.min(self.shape[self.dense] - start);
        let (column, row) = (self.view.strides[last] as isize, self.natural[self.dense] as isize);
        let mut block = [[T::default(); BLOCK]; BLOCK];
        for at in (0..self.shape[last]).step_by(BLOCK) {
            let width = BLOCK.min(self.shape[last] - at);
            // SAFETY: all indices are below the extents, so that the caller's promise covers every access.
            unsafe {
                let source = from.offset(source + at as isize * column);
                let target = to.offset(target + at as isize);
                if height == BLOCK && width == BLOCK {
                    for (x, line) in block.iter_mut().enumerate() {
                        *line = source.offset(x as isize * column).cast::<[T; BLOCK]>().read_unaligned();
                    }
                    for y in 0..BLOCK {
                        let mut line = [T::default(); BLOCK];
                        for (to, from) in line.iter_mut().zip(&block) {
                            *to = from[y];
                        }
                        target.offset(y as isize * row).cast::<[T; BLOCK]>().write_unaligned(line);
                    }
                    continue;
                }
                for y in 0..height as isize {
                    for x in 0..width as isize {
                        let element = source.offset(x * column + y).read_unaligned();
                        target.offset(y * row + x).write_unaligned(element);
                    }
                }
            }
        }
    }
}

//! What the builders for the cube share: double buffers with their flags, loads, products and stores.
//!
//! | flag | from | to | says |
//! | --- | --- | --- | --- |
//! | 0, 1 | MTE1 | MTE2 | a half of L1 is free |
//! | 0, 1 | MTE2 | MTE1 | a half of L1 is loaded |
//! | 0, 1 | M | MTE1 | a half of L0A (and of L0B, if they go together) is free |
//! | 0, 1 | MTE1 | M | it is loaded |
//! | 2, 3 | M, MTE1 | MTE1, M | the same for L0B where it runs ahead of L0A |
//! | 4 | all pairs | | the bias table, or an operand that stays |
//! | 0 | M | FIX | the accumulators are complete |
//! | 0 | FIX | M | they are stored |

use halite_npu_isa::{AluOp, DType, Inst, MmadMode, Operand, Pipe, Reg, StoreMode};

use super::emit::{BLOCK, Emitter, ON_CHIP, imm};

/// Rows and columns of a tile of accumulators.
pub(super) const TILE: usize = 16;
/// The flag of the bias table and of operands that stay.
pub(super) const RESIDENT_FLAG: i32 = 4;
/// L1 that holds the bias vector on its way to the table.
pub(super) const BIAS_AT: usize = ON_CHIP.l1 - ON_CHIP.bias;
/// Half of the rest of L1.
pub(super) const L1_HALF: usize = BIAS_AT / 2 / BLOCK * BLOCK;

/// Rows or columns of a matrix in global memory; strides in bytes.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) count: Operand,
    pub(super) stride: Operand,
    pub(super) group: Operand,
    pub(super) valid: Operand,
    pub(super) group_stride: Operand,
}

impl Lines {
    pub(super) fn new(count: Operand, stride: Operand) -> Self {
        Self { count, stride, group: Operand::ZERO, valid: Operand::ZERO, group_stride: Operand::ZERO }
    }
}

/// A number that alternates between 0 and 1, for halves and flags.
#[derive(Clone, Copy)]
pub(super) struct Parity(Reg);

impl Parity {
    pub(super) fn new(e: &mut Emitter) -> Self {
        Self(e.k.variable(0))
    }

    pub(super) fn id(self) -> Operand {
        self.0.into()
    }

    /// `base`, or `base + half`.
    pub(super) fn at(self, e: &mut Emitter, base: usize, half: usize) -> Operand {
        let offset = e.k.mul(self.0, imm(half));
        e.k.add(offset, imm(base))
    }

    pub(super) fn flip(self, e: &mut Emitter) {
        e.k.push(Inst::Alu { op: AluOp::Xor, dst: self.0, lhs: self.0.into(), rhs: imm(1) });
    }
}

/// Gives out the permissions that a pipeline starts with: all halves are free.
pub(super) fn open(e: &mut Emitter, l0b_apart: bool) {
    permissions(l0b_apart, |from, to, id| e.k.set(from, to, id));
}

/// Takes them back, so that every flag is down when the kernel ends.
pub(super) fn close(e: &mut Emitter, l0b_apart: bool) {
    permissions(l0b_apart, |from, to, id| e.k.wait(from, to, id));
}

fn permissions(l0b_apart: bool, mut each: impl FnMut(Pipe, Pipe, i32)) {
    for id in 0..2 {
        each(Pipe::Mte1, Pipe::Mte2, id);
        each(Pipe::M, Pipe::Mte1, id);
        if l0b_apart {
            each(Pipe::M, Pipe::Mte1, 2 + id);
        }
    }
    each(Pipe::Fix, Pipe::M, 0);
}

/// Loads a matrix into L1 in column blocks of `pitch` rows, padded to `pad` rows and columns.
pub(super) fn load_nz(
    e: &mut Emitter,
    dtype: DType,
    (dst, src): (Operand, Operand),
    (rows, cols): (Lines, Lines),
    pitch: Operand,
    pad: [Operand; 2],
) {
    e.k.push(Inst::LoadNz {
        dtype,
        dst,
        src,
        rows: rows.count,
        cols: cols.count,
        row_stride: rows.stride,
        col_stride: cols.stride,
        row_group: rows.group,
        row_group_stride: rows.group_stride,
        col_group: cols.group,
        col_valid: cols.valid,
        col_group_stride: cols.group_stride,
        pitch,
        pad_rows: pad[0],
        pad_cols: pad[1],
    });
}

/// Adds a product to the accumulators.
pub(super) fn multiply(
    e: &mut Emitter,
    dtype: DType,
    [dst, lhs, rhs]: [Operand; 3],
    [m, k, n]: [Operand; 3],
) {
    let mode = MmadMode::Accumulate;
    e.k.push(Inst::Mmad { dtype, mode, dst, lhs, rhs, m, k, n, bias: Operand::ZERO });
}

/// Sets the accumulators to zero, by a product over nothing.
pub(super) fn clear(e: &mut Emitter, dst: Operand, [m, n]: [Operand; 2]) {
    start(e, MmadMode::Init, dst, [m, n]);
}

fn start(e: &mut Emitter, mode: MmadMode, dst: Operand, [m, n]: [Operand; 2]) {
    let zero = Operand::ZERO;
    let dtype = DType::F32;
    e.k.push(Inst::Mmad { dtype, mode, dst, lhs: zero, rhs: zero, m, k: zero, n, bias: zero });
}

/// Sets each column of the accumulators to its element of a f32 vector at `src`.
pub(super) fn spread_bias(e: &mut Emitter, src: Operand, [m, n]: [Operand; 2]) {
    let (at, zero) = (imm(BIAS_AT), Operand::ZERO);
    let bytes = e.k.mul(n, 4);
    e.k.push(Inst::LoadL1 { dst: at, src, bytes, bursts: imm(1), src_stride: zero, dst_stride: zero });
    e.k.sync(Pipe::Mte2, Pipe::Mte1, RESIDENT_FLAG);
    e.k.push(Inst::LoadBias { dst: zero, src: at, count: n });
    e.k.sync(Pipe::Mte1, Pipe::M, RESIDENT_FLAG);
    start(e, MmadMode::Bias, zero, [m, n]);
    // The next vector may come when this one has been used.
    e.k.sync(Pipe::M, Pipe::Mte1, RESIDENT_FLAG);
    e.k.sync(Pipe::Mte1, Pipe::Mte2, RESIDENT_FLAG);
}

/// Stores accumulators from L0C.
pub(super) fn store(
    e: &mut Emitter,
    dtype: DType,
    relu: bool,
    (dst, src): (Operand, Operand),
    (rows, cols): (Lines, Lines),
) {
    let pitch = e.k.round_up(rows.count, imm(TILE));
    e.k.push(Inst::StoreL0c {
        dtype,
        mode: StoreMode::Plain,
        relu,
        dst,
        src,
        rows: rows.count,
        cols: cols.count,
        pitch,
        row_stride: rows.stride,
        col_stride: cols.stride,
        row_group: rows.group,
        row_group_stride: rows.group_stride,
        col_group: cols.group,
        col_valid: cols.valid,
        col_group_stride: cols.group_stride,
        scale: Operand::f32(1.0),
    });
}

/// Tile sizes of a profile: \[m, n, k\], or the default.
pub(super) fn tile_sizes(parameters: &halite_profiles::Parameters) -> [usize; 3] {
    match parameters.tile() {
        Some(&[m, n, k]) => [m, n, k].map(|size| (size as usize).max(1).next_multiple_of(TILE).min(512)),
        _ => [128, 256, 64],
    }
}

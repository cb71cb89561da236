//! The instruction set, as one table.
//!
//! Each entry gives the operation code, the name in text, the pipe, and the fields in the order
//! in which they stand in a record. Encoding, decoding, printing and parsing follow from it.
//!
//! # Layouts of a core's memories
//!
//! A *block* is 32 bytes: C0 elements (16 of f16 and bf16, 8 of f32). A *fractal* is 16 rows of one
//! block, 512 bytes.
//!
//! | memory | layout of a matrix | element (row, col) |
//! | --- | --- | --- |
//! | L1 "NZ" | \[cols/C0\]\[pitch\]\[C0\] | byte `(col/C0 * pitch + row) * 32 + col%C0 * size` |
//! | L1 image | \[channels/C0\]\[height * width\]\[C0\] | the same, with a row for each pixel |
//! | L0A "ZZ" | \[m/16\]\[k/C0\]\[16\]\[C0\] | fractals row by row, rows of k inside |
//! | L0B "ZN" | \[k/C0\]\[n/16\]\[16\]\[C0\] | fractals row by row, a row of k for each n inside |
//! | L0C "NZ" | \[n/16\]\[pitch\]\[16\] of f32 | byte `(col/16 * pitch + row) * 64 + col%16 * 4` |
//! | UB | whatever the program wants; vector operands start at multiples of 32 bytes | |
//!
//! # Grouped strides
//!
//! `load.nz` and `store.l0c` walk rows and columns in groups: row r lies at
//! `r / row_group * row_group_stride + r % row_group * row_stride` bytes, and columns likewise. A group
//! of 0 means one group of all. Of each column group only the first `col_valid` columns exist in global
//! memory (0: all); the others are zero when loaded and skipped when stored.

use crate::record::{Field, RECORD_BYTES, RecordFault, RecordReader, RecordWriter};
use crate::types::{
    AluOp, BinaryOp, CompareOp, CoreKind, CubeOperand, DType, Dim, MmadMode, Operand, Pipe, ReduceOp, Reg,
    StoreMode, Target, UnaryOp,
};

macro_rules! instructions {
    ($($(#[$doc:meta])* $code:literal $variant:ident $name:literal $pipe:ident { $($field:ident: $ty:ty),* $(,)? })*) => {
        /// An instruction. Addresses, counts and strides are in bytes, elements and bytes unless said otherwise.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant explains its fields")]
        pub enum Inst {
            $($(#[$doc])* $variant { $($field: $ty),* },)*
        }

        impl Inst {
            /// The names of all instructions in assembler text.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];

            /// The name in assembler text.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $name,)*
                }
            }

            /// The pipe that executes it. A flag or barrier belongs to the pipe that sets or waits.
            #[must_use]
            #[allow(unreachable_patterns, reason = "flags and barriers are answered first")]
            pub const fn pipe(&self) -> Pipe {
                match self {
                    Self::SetFlag { from, .. } => *from,
                    Self::WaitFlag { to, .. } => *to,
                    Self::Barrier { pipe } => *pipe,
                    $(Self::$variant { .. } => Pipe::$pipe,)*
                }
            }

            /// The record.
            #[must_use]
            pub fn encode(&self) -> [u8; RECORD_BYTES] {
                match self {
                    $(Self::$variant { $($field),* } => {
                        #[allow(unused_mut, reason = "an instruction may have no field")]
                        let mut record = RecordWriter::new($code);
                        $(Field::write($field, &mut record);)*
                        record.finish()
                    })*
                }
            }

            /// Reads a record.
            ///
            /// # Errors
            /// If the code is unknown, a field holds no legal value, or an unused byte is not zero.
            pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, RecordFault> {
                let mut record = RecordReader::new(bytes);
                let inst = match bytes[0] {
                    $($code => Self::$variant { $($field: <$ty as Field>::read(&mut record)?),* },)*
                    code => return Err(RecordFault::new(0, format!("unknown operation code {code:#04x}"))),
                };
                record.finish()?;
                Ok(inst)
            }

            /// Appends the text: the name and `field=value` pairs.
            pub fn print(&self, text: &mut String) {
                text.push_str(self.name());
                match self {
                    $(Self::$variant { $($field),* } => {
                        $(
                            text.push(' ');
                            text.push_str(stringify!($field));
                            text.push('=');
                            Field::print($field, text);
                        )*
                    })*
                }
            }

            /// Reads the text that [`Inst::print`] writes; the fields may stand in any order.
            ///
            /// # Errors
            /// If the name is unknown, or a field is missing, unknown, given twice or not legal.
            pub fn parse(text: &str) -> Result<Self, String> {
                let mut words = text.split_whitespace();
                let name = words.next().unwrap_or_default();
                let mut pairs = Pairs::new(words)?;
                let inst = match name {
                    $($name => Self::$variant { $($field: pairs.take(stringify!($field))?),* },)*
                    _ => return Err(format!("unknown instruction '{name}'")),
                };
                pairs.finish()?;
                Ok(inst)
            }
        }
    };
}

instructions! {
    // Scalar unit.

    /// Loads argument `index` of the launch: a buffer's base address, or a scalar (integers extended, f32 as bits).
    0x01 Arg "arg" S { dst: Reg, index: u32 }
    /// Loads a 64-bit constant.
    0x02 Const "const" S { dst: Reg, value: i64 }
    /// Copies a value.
    0x03 Move "move" S { dst: Reg, src: Operand }
    /// Scalar arithmetic.
    0x04 Alu "alu" S { op: AluOp, dst: Reg, lhs: Operand, rhs: Operand }
    /// Repeats up to the matching `endloop` for `counter = start, start + step, ...` below `end`; `step` must be positive.
    0x05 Loop "loop" S { counter: Reg, start: Operand, end: Operand, step: Operand }
    /// Closes the innermost loop.
    0x06 EndLoop "endloop" S {}
    /// Goes to `target`, in the same loop, if the signed comparison holds.
    0x07 Branch "branch" S { cond: CompareOp, lhs: Operand, rhs: Operand, target: Target }
    /// Goes to `target`, in the same loop.
    0x08 Jump "jump" S { target: Target }
    /// The block's index within the launch.
    0x09 BlockIndex "block.index" S { dst: Reg }
    /// The launch's number of blocks.
    0x0A BlockCount "block.count" S { dst: Reg }
    /// Reads one element of UB into a register (integers extended, floats as bits).
    0x0B LoadScalar "load.scalar" S { dtype: DType, dst: Reg, src: Operand }
    /// Ends the block.
    0x0C Halt "halt" S {}
    /// Ends the launch with an error that carries `code`.
    0x0D Trap "trap" S { code: u32 }
    /// Does nothing; a name for timelines.
    0x0E Mark "mark" S { id: u32 }

    // Synchronisation.

    /// Raises flag `id` (0 to 7) from one pipe to another after all earlier instructions of `from`.
    0x10 SetFlag "set" S { from: Pipe, to: Pipe, id: Operand }
    /// Holds `to` until the flag is raised, then clears it.
    0x11 WaitFlag "wait" S { from: Pipe, to: Pipe, id: Operand }
    /// Holds later instructions of `pipe` until its earlier ones are complete.
    0x12 Barrier "barrier" S { pipe: Pipe }
    /// Holds all pipes of the core until all earlier instructions are complete.
    0x13 BarrierAll "barrier.all" S {}
    /// Raises flag `id` (0 to 7) of another block.
    0x14 CrossSet "cross.set" S { block: Operand, id: Operand }
    /// Waits until flag `id` of this block is raised by another, then lowers it by one.
    0x15 CrossWait "cross.wait" S { id: Operand }
    /// Waits until all blocks of the launch are here.
    0x16 SyncAll "sync.all" S {}

    // MTE2: global memory to the core.

    /// Gathers elements from global memory into UB along up to four dimensions, `d0` the outermost.
    0x20 LoadUb "load.ub" Mte2 { dtype: DType, dst: Operand, src: Operand, d0: Dim, d1: Dim, d2: Dim, d3: Dim }
    /// Copies `bursts` runs of `bytes` from global memory to L1.
    0x21 LoadL1 "load.l1" Mte2 { dst: Operand, src: Operand, bytes: Operand, bursts: Operand, src_stride: Operand, dst_stride: Operand }
    /// Loads a matrix or an image into L1 with ND to NZ conversion and grouped strides, and fills up to
    /// `pad_rows` x `pad_cols` (rounded up to whole blocks) with zeros. `pitch` is in rows.
    0x22 LoadNz "load.nz" Mte2 {
        dtype: DType, dst: Operand, src: Operand, rows: Operand, cols: Operand, row_stride: Operand, col_stride: Operand,
        row_group: Operand, row_group_stride: Operand, col_group: Operand, col_valid: Operand, col_group_stride: Operand,
        pitch: Operand, pad_rows: Operand, pad_cols: Operand,
    }

    // MTE1: L1 to the cube's operands.

    /// Loads the left matrix, m x k, from L1 where it stands as m x k, or as k x m if `transpose`. `pitch` is in rows.
    0x30 LoadA "load.a" Mte1 { dtype: DType, transpose: bool, dst: Operand, src: Operand, m: Operand, k: Operand, pitch: Operand }
    /// Loads the right matrix, k x n, from L1 where it stands as n x k, or as k x n if `transpose`. `pitch` is in rows.
    0x31 LoadB "load.b" Mte1 { dtype: DType, transpose: bool, dst: Operand, src: Operand, k: Operand, n: Operand, pitch: Operand }
    /// Copies `count` values of f32 from L1 to the bias table.
    0x32 LoadBias "load.bias" Mte1 { dst: Operand, src: Operand, count: Operand }
    /// Describes the image for the next `im2col`: its size in pixels and channel blocks, and how a window moves over it.
    /// `up_h` and `up_w` place the pixels that far apart with zeros between (1: densely), as input gradients need.
    0x33 SetImage "set.image" Mte1 {
        height: Operand, width: Operand, channel_blocks: Operand, kernel_h: Operand, kernel_w: Operand,
        stride_h: Operand, stride_w: Operand, dilation_h: Operand, dilation_w: Operand,
        pad_top: Operand, pad_left: Operand, out_width: Operand, up_h: Operand, up_w: Operand,
    }
    /// Loads a part of the image's column matrix P: a row for each position of the window, and for each channel block,
    /// kernel row and kernel column (in this order) one block of C0 columns. Takes `positions` rows from `position` on and
    /// `blocks` column blocks from `block` on. As operand A it is m = positions, k = columns; as operand B it is
    /// k = positions, n = columns; `transpose` swaps the two. Outside the image P is zero.
    0x34 Im2col "im2col" Mte1 {
        dtype: DType, operand: CubeOperand, transpose: bool, dst: Operand, src: Operand,
        position: Operand, positions: Operand, block: Operand, blocks: Operand,
    }

    // Cube.

    /// `L0C = start + A B`, each element in ascending order of k with one rounding for each product and each sum in f32.
    /// L0C's pitch is m rounded up to 16. Inputs are f16, bf16 or f32.
    0x40 Mmad "mmad" M { dtype: DType, mode: MmadMode, dst: Operand, lhs: Operand, rhs: Operand, m: Operand, k: Operand, n: Operand, bias: Operand }

    // FIX: accumulators to global memory.

    /// Stores `rows` x `cols` accumulators with NZ to ND conversion and grouped strides: times `scale` (f32 bits), then relu,
    /// then rounded to `dtype` (f32, f16 or bf16). `pitch` is in rows.
    0x50 StoreL0c "store.l0c" Fix {
        dtype: DType, mode: StoreMode, relu: bool, dst: Operand, src: Operand, rows: Operand, cols: Operand, pitch: Operand,
        row_stride: Operand, col_stride: Operand, row_group: Operand, row_group_stride: Operand,
        col_group: Operand, col_valid: Operand, col_group_stride: Operand, scale: Operand,
    }

    // Vector unit, on UB. Operands are equal to the result's place or do not overlap it.

    /// `dst = lhs op rhs` on `rows` rows of `cols` elements; a stride of 0 repeats an operand's row.
    0x60 Binary "v.binary" V {
        op: BinaryOp, dtype: DType, dst: Operand, lhs: Operand, rhs: Operand, cols: Operand, rows: Operand,
        dst_stride: Operand, lhs_stride: Operand, rhs_stride: Operand,
    }
    /// `dst = src op scalar`, or `scalar op src` if `reverse`; the scalar holds the bits of one element.
    0x61 BinaryScalar "v.binary.scalar" V { op: BinaryOp, dtype: DType, reverse: bool, dst: Operand, src: Operand, scalar: Operand, count: Operand }
    /// `dst = op src`
    0x62 Unary "v.unary" V { op: UnaryOp, dtype: DType, dst: Operand, src: Operand, count: Operand }
    /// `dst = lhs op rhs` as u8, 0 or 1.
    0x63 Compare "v.compare" V { op: CompareOp, dtype: DType, dst: Operand, lhs: Operand, rhs: Operand, count: Operand }
    /// `dst = src op scalar` as u8, 0 or 1.
    0x64 CompareScalar "v.compare.scalar" V { op: CompareOp, dtype: DType, dst: Operand, src: Operand, scalar: Operand, count: Operand }
    /// `dst = mask ? lhs : rhs` with a u8 mask (not 0 is true).
    0x65 Select "v.select" V { dtype: DType, dst: Operand, mask: Operand, lhs: Operand, rhs: Operand, count: Operand }
    /// Converts; floats to integers truncate and saturate, NaN becomes 0; to u8 they saturate too; integers narrow by wrapping.
    0x66 Convert "v.convert" V { from: DType, to: DType, dst: Operand, src: Operand, count: Operand }
    /// Fills with one value; the scalar holds its bits.
    0x67 Duplicate "v.duplicate" V { dtype: DType, dst: Operand, scalar: Operand, count: Operand }
    /// `dst[i] = start + i * step` in integers, converted to `dtype` (integers wrap).
    0x68 Iota "v.iota" V { dtype: DType, dst: Operand, start: Operand, step: Operand, count: Operand }
    /// Reduces each of `rows` rows of `cols` elements to one; the results lie side by side.
    0x69 Reduce "v.reduce" V { op: ReduceOp, dtype: DType, dst: Operand, src: Operand, cols: Operand, rows: Operand, row_stride: Operand }
    /// `dst[r][c] = src[r]`
    0x6A Broadcast "v.broadcast" V { dtype: DType, dst: Operand, src: Operand, cols: Operand, rows: Operand, dst_stride: Operand }
    /// `dst[i] = src[index[i]]` with u32 indices below `limit`.
    0x6B Gather "v.gather" V { dtype: DType, dst: Operand, src: Operand, index: Operand, count: Operand, limit: Operand }
    /// `dst[c][r] = src[r][c]`, both dense.
    0x6C Transpose "v.transpose" V { dtype: DType, dst: Operand, src: Operand, rows: Operand, cols: Operand }

    // MTE3: the core to global memory.

    /// Scatters elements of UB to global memory along up to four dimensions, `d0` the outermost.
    0x70 StoreUb "store.ub" Mte3 { dtype: DType, mode: StoreMode, dst: Operand, src: Operand, d0: Dim, d1: Dim, d2: Dim, d3: Dim }
}

impl Inst {
    /// Whether cores of this kind can execute it.
    #[must_use]
    pub fn runs_on(&self, core: CoreKind) -> bool {
        match self {
            Self::LoadUb { .. } | Self::LoadScalar { .. } => core == CoreKind::Vector,
            Self::LoadL1 { .. } | Self::LoadNz { .. } => core == CoreKind::Cube,
            Self::SetFlag { from, to, .. } | Self::WaitFlag { from, to, .. } => {
                core.has(*from) && core.has(*to)
            }
            _ => core.has(self.pipe()),
        }
    }

    /// Whether it waits for other blocks.
    #[must_use]
    pub const fn crosses_blocks(&self) -> bool {
        matches!(self, Self::CrossSet { .. } | Self::CrossWait { .. } | Self::SyncAll {})
    }

    /// Whether its effect depends on the order of blocks.
    #[must_use]
    pub const fn is_atomic(&self) -> bool {
        matches!(
            self,
            Self::StoreUb { mode: StoreMode::AtomicAdd, .. }
                | Self::StoreL0c { mode: StoreMode::AtomicAdd, .. }
        )
    }
}

/// `field=value` words of an instruction's text.
struct Pairs<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Pairs<'a> {
    fn new(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for word in words {
            let pair = word.split_once('=').ok_or_else(|| format!("'{word}' is not field=value"))?;
            if pairs.iter().any(|(name, _)| *name == pair.0) {
                return Err(format!("field '{}' is given twice", pair.0));
            }
            pairs.push(pair);
        }
        Ok(Self(pairs))
    }

    fn take<T: Field>(&mut self, field: &str) -> Result<T, String> {
        let at = self.0.iter().position(|(name, _)| *name == field);
        let at = at.ok_or_else(|| format!("field '{field}' is missing"))?;
        T::parse(self.0.swap_remove(at).1).map_err(|reason| format!("field '{field}': {reason}"))
    }

    fn finish(self) -> Result<(), String> {
        match self.0.first() {
            Some((name, _)) => Err(format!("unknown field '{name}'")),
            None => Ok(()),
        }
    }
}

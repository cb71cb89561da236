//! The register tile: a few rows by a few vectors of C, held in registers along k.

use std::array::from_fn;

use crate::kernels::cpu::simd::{Simd, Task};

/// Operands of one register tile.
pub(in crate::kernels::cpu) struct MicroArgs {
    /// First row of A; element `(i, p)` lies at `i * a_row + p * a_k`, and one of the two is 1.
    pub(in crate::kernels::cpu) a: *const f32,
    pub(in crate::kernels::cpu) a_row: isize,
    pub(in crate::kernels::cpu) a_k: isize,
    /// First column of B, in whole vectors; row p lies at `p * b_k`.
    pub(in crate::kernels::cpu) b: *const f32,
    pub(in crate::kernels::cpu) b_k: isize,
    /// Length along k; 0 makes the tile zero.
    pub(in crate::kernels::cpu) depth: usize,
    pub(in crate::kernels::cpu) c: *mut f32,
    pub(in crate::kernels::cpu) c_row: usize,
    /// Columns of C in the tile; the last vector may be there in part.
    pub(in crate::kernels::cpu) cols: usize,
    /// Whether to continue the sums that are in C.
    pub(in crate::kernels::cpu) accumulate: bool,
    /// The first bias of the tile's rows or columns, or null.
    pub(in crate::kernels::cpu) bias: *const f32,
    pub(in crate::kernels::cpu) bias_per_row: bool,
    pub(in crate::kernels::cpu) relu: bool,
}

/// Multiplies one tile of `rows x cols`, at most `TILE_ROWS` by `TILE_VECTORS` vectors.
///
/// # Safety
/// The contract of [`Simd`]; the pointers of `args` cover the tile.
#[inline(always)]
pub(in crate::kernels::cpu) unsafe fn multiply<S: Simd>(rows: usize, cols: usize, args: &MicroArgs) {
    // SAFETY: passed on from the caller.
    unsafe {
        match cols.div_ceil(S::LANES) {
            1 => by_rows::<S, 1>(rows, args),
            2 => by_rows::<S, 2>(rows, args),
            3 => by_rows::<S, 3>(rows, args),
            vectors => unreachable!("a register tile has at most 3 vectors in a row, not {vectors}"),
        }
    }
}

#[inline(always)]
unsafe fn by_rows<S: Simd, const V: usize>(rows: usize, args: &MicroArgs) {
    // SAFETY: passed on from the caller.
    unsafe {
        match rows {
            1 => S::invoke(Tile::<1, V>(args)),
            2 => S::invoke(Tile::<2, V>(args)),
            3 => S::invoke(Tile::<3, V>(args)),
            4 => S::invoke(Tile::<4, V>(args)),
            5 => S::invoke(Tile::<5, V>(args)),
            6 => S::invoke(Tile::<6, V>(args)),
            7 => S::invoke(Tile::<7, V>(args)),
            8 => S::invoke(Tile::<8, V>(args)),
            _ => unreachable!("a register tile has at most 8 rows, not {rows}"),
        }
    }
}

/// `R` rows by `V` vectors.
struct Tile<'a, const R: usize, const V: usize>(&'a MicroArgs);

impl<const R: usize, const V: usize> Task for Tile<'_, R, V> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let args = self.0;
        // SAFETY: the caller's pointers cover `R` rows, `V` vectors of B and `cols` columns of C.
        unsafe {
            let mut acc = [[S::splat(0.0); V]; R];
            let last_len = args.cols - (V - 1) * S::LANES;
            let full = last_len == S::LANES;
            if args.accumulate {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let c = args.c.add(i * args.c_row);
                    for (v, acc) in acc.iter_mut().enumerate() {
                        let c = c.add(v * S::LANES);
                        *acc = if full || v + 1 < V { S::load(c) } else { S::load_first(c, last_len) };
                    }
                }
            }
            let mut b = args.b;
            if args.a_row == 1 {
                let mut a = args.a;
                for _ in 0..args.depth {
                    let b_row: [S::V; V] = from_fn(|v| S::load(b.add(v * S::LANES)));
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let x = S::splat(*a.add(i));
                        for v in 0..V {
                            acc[v] = S::mul_add(x, b_row[v], acc[v]);
                        }
                    }
                    a = a.wrapping_offset(args.a_k);
                    b = b.wrapping_offset(args.b_k);
                }
            } else {
                let a: [*const f32; R] = from_fn(|i| args.a.offset(i as isize * args.a_row));
                for p in 0..args.depth {
                    let b_row: [S::V; V] = from_fn(|v| S::load(b.add(v * S::LANES)));
                    for (acc, a) in acc.iter_mut().zip(&a) {
                        let x = S::splat(*a.add(p));
                        for v in 0..V {
                            acc[v] = S::mul_add(x, b_row[v], acc[v]);
                        }
                    }
                    b = b.wrapping_offset(args.b_k);
                }
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let c = args.c.add(i * args.c_row);
                for (v, acc) in acc.iter_mut().enumerate() {
                    let whole = full || v + 1 < V;
                    if !args.bias.is_null() {
                        let bias = if args.bias_per_row {
                            S::splat(*args.bias.add(i))
                        } else if whole {
                            S::load(args.bias.add(v * S::LANES))
                        } else {
                            S::load_first(args.bias.add(v * S::LANES), last_len)
                        };
                        *acc = S::add(*acc, bias);
                    }
                    if args.relu {
                        *acc = S::relu(*acc);
                    }
                    let c = c.add(v * S::LANES);
                    if whole { S::store(c, *acc) } else { S::store_first(c, *acc, last_len) }
                }
            }
        }
    }
}

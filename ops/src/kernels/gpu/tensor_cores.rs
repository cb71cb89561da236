//! Products of f16 and bf16 on NVIDIA's tensor cores; `tensor_cores.cu` does the work.
//!
//! Sums are f32, as everywhere. Elements of f32 would lose 13 bits there (TF32), which no program asks for, so they are
//! served by the other strategies.

use super::contraction::{
    MAX_SUMS, Matrices, Product, SPLIT_STEPS, Side, add_splits, begin, plain, read, store,
};
use super::source::{Language, Workspace, to_storage};
use crate::lower::{KernelVariant, LowerRequest, Lowered, Unservable};
use halite_hal::{Access, DType};
use halite_profiles::Parameters;

/// Extents of a warp's product: an instruction takes 16 rows and 8 columns, and operands are loaded 16 by 16.
const STEP: usize = 16;

/// Threads of a warp.
const WARP: usize = 32;

/// Threads of a group of warps that multiplies as one, its rows, and the columns that it may have.
const WARPGROUP: usize = 128;
const WARPGROUP_ROWS: usize = 64;
const WARPGROUP_COLUMNS: [usize; 2] = [128, 256];

/// Elements of a line in shared memory that groups of warps read, and the bytes that tiles then begin at multiples of.
const LINE: usize = 64;
const TILE_ALIGNMENT: usize = 1024;

/// Elements that are moved at once.
const CHUNK: usize = 8;

/// The feature of the one architecture whose groups of warps multiply.
const HOPPER: &str = "sm_90a";

/// What a profile that does not say gets: sizes for 48 KiB of shared memory.
const DEFAULT: Sizes = Sizes { m: 128, n: 128, k: 32, x: 64, y: 2, stages: 3, warpgroups: false };

/// The same for groups of warps.
const WARPGROUP_DEFAULT: Sizes = Sizes { m: 128, n: 256, k: 64, x: 128, y: 2, stages: 4, warpgroups: true };

/// Tiles for tuning to try; the larger ones need the shared memory of data centre GPUs.
pub(super) fn tiles() -> Vec<Parameters> {
    let shapes = [
        ([64, 64, 32], [64, 2], 3),
        ([64, 64, 64], [64, 2], 4),
        ([64, 128, 32], [64, 2], 4),
        ([64, 128, 64], [128, 1], 3),
        ([128, 64, 64], [64, 2], 3),
        ([128, 128, 32], [64, 2], 2),
        ([128, 128, 32], [64, 2], 4),
        ([128, 128, 64], [64, 2], 3),
        ([128, 128, 64], [128, 2], 3),
        ([256, 128, 32], [64, 4], 3),
        ([128, 256, 32], [128, 2], 4),
        ([128, 256, 64], [128, 2], 3),
        ([128, 256, 64], [128, 2], 4),
    ];
    let of = |(tile, threads, stages): ([u32; 3], [u32; 2], u32)| {
        Parameters::default().with_tile(tile).with_threads(threads).with_stages(stages).with_split_k(16)
    };
    shapes.into_iter().map(of).collect()
}

/// The same for groups of warps; the first one is that of large products.
pub(super) fn warpgroup_tiles() -> Vec<Parameters> {
    let shapes = [
        ([128, 256, 64], [128, 2], 4),
        ([128, 256, 64], [128, 2], 3),
        ([256, 128, 64], [128, 2], 4),
        ([128, 128, 64], [128, 2], 4),
    ];
    let of = |(tile, threads, stages): ([u32; 3], [u32; 2], u32)| {
        Parameters::default().with_tile(tile).with_threads(threads).with_stages(stages).with_split_k(16)
    };
    shapes.into_iter().map(of).collect()
}

/// A variant for groups of warps: an instruction of Hopper alone.
pub(super) fn requiring_hopper(mut variant: KernelVariant) -> KernelVariant {
    variant.requires = vec![HOPPER.to_owned()];
    variant
}

/// A variant of this strategy with what it needs: matrices that a warp loads and multiplies came with Turing.
pub(super) fn requiring(mut variant: KernelVariant) -> KernelVariant {
    variant.requires = ["tensor-cores", "sm_75"].map(str::to_owned).into();
    variant
}

/// Tiles that warps multiply. Profile: `tile: [m, n, k]` of a workgroup; `threads: [x, y]`, x being 32 for each warp along n
/// and y the warps along m; `stages`, steps of k in shared memory; `split_k`, the most cuts of k.
pub(super) fn tensor_cores(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
) -> Result<Lowered, Unservable> {
    lower(language, request, matrices, &DEFAULT, "tensor_cores")
}

/// As [`tensor_cores`], by groups of four warps: x is 128 for each group along n and y the groups along m.
pub(super) fn warpgroups(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
) -> Result<Lowered, Unservable> {
    lower(language, request, matrices, &WARPGROUP_DEFAULT, "warpgroups")
}

fn lower(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
    default: &Sizes,
    name: &str,
) -> Result<Lowered, Unservable> {
    let product = matrices.product();
    let needs = match product.dtype {
        DType::F16 => "tensor-cores",
        DType::BF16 => "bf16",
        other => return Err(Unservable::new(format!("{other} is no type of the tensor cores"))),
    };
    if !request.device.has_feature(needs) {
        let dtype = product.dtype;
        return Err(Unservable::new(format!("{dtype} needs the feature {needs}, which the device lacks")));
    }
    if product.k() == 0 {
        return plain(language, request, matrices);
    }
    let sizes = default.with(request.parameters);
    sizes.check(request)?;

    let tiles = product.batch * product.m.div_ceil(sizes.m) * product.n.div_ceil(sizes.n);
    let wanted = (request.device.compute_units as usize).div_ceil(tiles.max(1));
    let most = request.parameters.int("split_k").unwrap_or(1) as usize;
    let splits = wanted.min(most).min(product.k() / SPLIT_STEPS).max(1);
    let split_k = product.k().div_ceil(splits).next_multiple_of(sizes.k);
    let splits = product.k().div_ceil(split_k);

    let mut workspace = Workspace::default();
    let partial =
        (splits > 1).then(|| workspace.take(request.device, DType::F32, splits * product.elements()));
    let mut text = begin(language, request, &product, name);
    text.reaches((splits * product.elements()) as i64);
    for side in [Side::Lhs, Side::Rhs] {
        read(&mut text, matrices, &product, side)?;
    }
    match partial {
        Some(partial) => {
            text.buffer("partial", partial, DType::F32, Access::Write);
            matrices.describe(&mut text)?;
        }
        None => store(&mut text, request, matrices, &product)?,
    }
    sizes.define(&mut text, &product, matrices);
    text.define("SPLITS", splits);
    text.number("SPLIT_K", split_k as i64)?;
    text.define("MULTIPLY", format!("multiply_{}", product.dtype));
    if sizes.warpgroups {
        text.define("WARPGROUPS", "");
        text.define("MULTIPLY_WARPGROUP", format!("multiply_warpgroup_{}", product.dtype));
    }
    text.define("TO_BITS(x)", to_storage(product.dtype, "x"));
    text.dynamic_shared(sizes.shared_bytes());
    text.requires(if sizes.warpgroups { HOPPER } else { needs });
    text.push(include_str!("warp.cu"));
    text.push(matrices.text());
    text.push(include_str!("tensor_cores.cu"));
    let first = text.launch(tiles * splits, [sizes.x, sizes.y])?;
    let Some(partial) = partial else { return Ok(Lowered::single(first)) };
    let second = add_splits(language, request, matrices, partial, splits)?;
    Ok(Lowered { launches: vec![first, second], workspace_bytes: workspace.len_bytes })
}

/// Sizes of a workgroup.
#[derive(Clone, Copy)]
struct Sizes {
    /// Tile.
    m: usize,
    n: usize,
    k: usize,
    /// Threads.
    x: usize,
    y: usize,
    stages: usize,
    /// Whether four warps multiply as one.
    warpgroups: bool,
}

impl Sizes {
    /// These where `parameters` do not say.
    fn with(&self, parameters: &Parameters) -> Self {
        let mut sizes = *self;
        if let Some(&[m, n, k, ..]) = parameters.tile() {
            (sizes.m, sizes.n, sizes.k) = (m as usize, n as usize, k as usize);
        }
        if let Some(&[x, y, ..]) = parameters.threads() {
            (sizes.x, sizes.y) = (x as usize, y as usize);
        }
        if let Some(stages) = parameters.int("stages") {
            sizes.stages = stages as usize;
        }
        sizes
    }

    fn shared_bytes(&self) -> usize {
        let alignment = if self.warpgroups { TILE_ALIGNMENT } else { 0 };
        let elements = self.stages.saturating_mul(self.m + self.n).saturating_mul(self.k);
        elements.saturating_mul(2).saturating_add(alignment)
    }

    /// Whether a tile divides among groups of warps.
    fn fit_warpgroups(&self) -> bool {
        self.x > 0 && self.x.is_multiple_of(WARPGROUP) && self.y > 0 && {
            let groups = self.x / WARPGROUP;
            self.m.is_multiple_of(WARPGROUP_ROWS * self.y)
                && self.n.is_multiple_of(groups)
                && WARPGROUP_COLUMNS.contains(&(self.n / groups))
                && self.k > 0
                && self.k.is_multiple_of(LINE)
        }
    }

    fn check(&self, request: &LowerRequest<'_>) -> Result<(), Unservable> {
        let Self { m, n, k, x, y, stages, .. } = *self;
        if self.warpgroups && !self.fit_warpgroups() {
            return Err(Unservable::new(format!(
                "a tile of {m} x {n} x {k} does not divide among {y} x {x} threads, as groups of {WARPGROUP} for \
                 {WARPGROUP_ROWS} rows and {WARPGROUP_COLUMNS:?} columns, in lines of {LINE}"
            )));
        }
        let fits = x > 0 && y > 0 && x.is_multiple_of(WARP) && {
            let warps = x / WARP;
            m.is_multiple_of(STEP * y) && n.is_multiple_of(STEP * warps) && k.is_multiple_of(STEP)
        };
        if !fits {
            return Err(Unservable::new(format!(
                "a tile of {m} x {n} x {k} does not divide among {y} x {x} threads, as warps of {WARP} and pieces of {STEP}"
            )));
        }
        let sums = m * n / (x * y);
        if sums > MAX_SUMS {
            return Err(Unservable::new(format!("{sums} sums a thread, but at most {MAX_SUMS} are held")));
        }
        // Lines of a tile are along k or across it.
        for elements in [m, n, k] {
            let chunks = elements / CHUNK;
            let swaps = if chunks < 8 { chunks.is_power_of_two() } else { chunks.is_multiple_of(8) };
            if !swaps || !(x * y).is_multiple_of(chunks) {
                return Err(Unservable::new(format!(
                    "lines of {elements} elements; they are 16, 32, or a multiple of 64 that is shared among {} threads",
                    x * y
                )));
            }
        }
        let least = if self.warpgroups { 3 } else { 2 };
        if stages < least {
            return Err(Unservable::new(format!("stages: {stages}; at least {least} are needed")));
        }
        let (bytes, most) = (self.shared_bytes(), request.device.limits.local_memory_bytes);
        if bytes as u64 > most {
            return Err(Unservable::new(format!("{bytes} bytes of shared memory; the device has {most}")));
        }
        Ok(())
    }

    fn define(&self, text: &mut super::source::KernelText<'_>, product: &Product, matrices: &dyn Matrices) {
        for (name, value) in [
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("TILE_K", self.k),
            ("STAGES", self.stages),
            ("LHS_K_INNERMOST", usize::from(product.k_innermost[0])),
            ("RHS_K_INNERMOST", usize::from(product.k_innermost[1])),
            ("LHS_WIDTH", matrices.aligned_elements(Side::Lhs)),
            ("RHS_WIDTH", matrices.aligned_elements(Side::Rhs)),
        ] {
            text.define(name, value);
        }
    }
}

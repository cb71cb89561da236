//! Strategies for products of matrices, whatever the matrices are: `contraction.cl` and `panels.cl` do the work.
//!
//! *plain*: a thread for each element of the result. *tiled*: a workgroup for a tile, with operands through local memory
//! or straight from the caches; sums over a long k are cut where tiles alone would not fill the device. *packed*: for
//! CPUs; operands are copied into panels first, which vectors then read from beginning to end.

use super::source::{
    KernelText, Language, Workspace, accumulator, literal, register, storage, threads, to_storage,
};
use crate::lower::{Epilogue, Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite_hal::{Access, DType};
use halite_profiles::Parameters;

/// An operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Lhs,
    Rhs,
}

/// Two matrices that can be multiplied: what `dot.cl` and `conv.cl` read them from.
pub(super) trait Matrices {
    /// Sizes and types.
    fn product(&self) -> Product;

    /// Adds everything that reading one operand takes: its buffer, and what its text wants to be defined.
    fn read(&self, text: &mut KernelText<'_>, side: Side) -> Result<(), Unservable>;

    /// Defines what storing takes, and what `BASES` is. Called once for every kernel.
    fn describe(&self, text: &mut KernelText<'_>) -> Result<(), Unservable>;

    /// The text behind those definitions.
    fn text(&self) -> &'static str;

    /// The most elements, up to 8, that everything which leads to a line of this operand is a multiple of, where the
    /// elements of its lines are neighbours in memory; 0 if they are not. Lines run along k if that is [innermost
    /// ](Product::k_innermost), across it otherwise.
    fn aligned_elements(&self, _side: Side) -> usize {
        0
    }
}

/// A batch of products of `[m, k]` by `[k, n]`.
#[derive(Debug, Clone)]
pub(super) struct Product {
    pub(super) name: String,
    pub(super) batch: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k_outer: usize,
    pub(super) k_inner: usize,
    pub(super) dtype: DType,
    pub(super) out_dtype: DType,
    pub(super) epilogue: Epilogue,
    /// Which element of the bias belongs to `row` and `column` of `batch`.
    pub(super) bias_place: &'static str,
    /// Whether neighbours along k, rather than along rows or columns, lie together.
    pub(super) k_innermost: [bool; 2],
    /// Whether sizes are arguments, so that products of other sizes share the code.
    pub(super) has_free_sizes: bool,
    /// Whether the result is one dense array, `[batch, m, n]`.
    pub(super) has_dense_out: bool,
}

impl Product {
    pub(super) fn k(&self) -> usize {
        self.k_outer * self.k_inner
    }

    pub(super) fn elements(&self) -> usize {
        self.batch * self.m * self.n
    }
}

/// The input that holds the bias, where there is one.
const BIAS_INPUT: usize = 2;

/// Workgroups per compute unit below which long sums are cut.
const GROUPS_PER_UNIT: usize = 4;

/// Steps of k that are worth a cut.
pub(super) const SPLIT_STEPS: usize = 256;

/// Bytes of packed operands that a launch aims at: a share of the outer caches of CPUs.
const PANEL_BYTES: usize = 64 << 20;

/// Steps of k that a thread packs.
const PACK_DEPTH: usize = 16;

/// Sums and accumulators that a thread of a tiled kernel may hold.
pub(super) const MAX_SUMS: usize = 128;

/// Tiles for tuning to try, through local memory and without.
pub(super) fn tiles() -> Vec<Parameters> {
    let shapes = [
        ([16, 32, 8], [8, 8]),
        ([32, 32, 8], [8, 8]),
        ([32, 64, 16], [16, 8]),
        ([64, 64, 8], [8, 8]),
        ([64, 64, 16], [16, 16]),
        ([128, 64, 16], [16, 16]),
        ([128, 128, 8], [16, 16]),
    ];
    let of = |(tile, threads): ([u32; 3], [u32; 2])| {
        let sizes = Parameters::default().with_tile(tile).with_threads(threads).with_split_k(16);
        [sizes.clone().with_stages(1), sizes]
    };
    shapes.into_iter().flat_map(of).collect()
}

/// Tiles of packed products for tuning to try: as many sums as vector registers of 512 or 256 bits hold.
pub(super) fn panels() -> Vec<Parameters> {
    let tiles = [[4, 16], [6, 16], [4, 32], [6, 32], [8, 32], [12, 32], [16, 16], [24, 16], [4, 64], [6, 64]];
    tiles.map(|tile| Parameters::default().with_tile(tile).with_threads([1])).into()
}

/// A thread for each element of the result.
pub(super) fn plain(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
) -> Result<Lowered, Unservable> {
    let product = matrices.product();
    let threads = threads(request);
    let mut text = begin(language, request, &product, "plain");
    for side in [Side::Lhs, Side::Rhs] {
        read(&mut text, matrices, &product, side)?;
    }
    store(&mut text, request, matrices, &product)?;
    text.define("PLAIN", "");
    text.push(matrices.text());
    text.push(include_str!("contraction.cl"));
    Ok(Lowered::single(text.launch(product.elements().div_ceil(threads), [threads, 1])?))
}

/// Tiles of the result in registers. Profile: `tile: [m, n, k]`, `threads: [x, y]` (x along n), `stages` to pass operands
/// through local memory, `split_k`, the most cuts of k.
pub(super) fn tiled(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
) -> Result<Lowered, Unservable> {
    let product = matrices.product();
    let parameters = request.parameters;
    let (tile_m, tile_n, tile_k) = match parameters.tile() {
        Some(&[m, n, k, ..]) => (m as usize, n as usize, k as usize),
        _ => (32, 32, 8),
    };
    let (x, y) = match parameters.threads() {
        Some(&[x, y, ..]) => (x as usize, y as usize),
        _ => (8, 8),
    };
    if product.k() == 0 {
        return plain(language, request, matrices);
    }
    let is_staged = parameters.int("stages").is_some() && request.local_staging != Some(false);
    let acc = accumulator(product.dtype);
    if x == 0 || y == 0 || !tile_m.is_multiple_of(y) || !tile_n.is_multiple_of(x) || tile_k == 0 {
        return Err(Unservable::new(format!(
            "a tile of {tile_m} x {tile_n} x {tile_k} does not divide among {y} x {x} threads"
        )));
    }
    let (rows, columns) = (tile_m / y, tile_n / x);
    if rows * columns > MAX_SUMS {
        return Err(Unservable::new(format!(
            "{rows} x {columns} sums a thread, but at most {MAX_SUMS} are held"
        )));
    }
    let local_memory = request.device.limits.local_memory_bytes;
    let local_bytes = tile_k.saturating_mul(tile_m + 1 + tile_n).saturating_mul(acc.size());
    if is_staged && local_bytes as u64 > local_memory {
        return Err(Unservable::new(format!(
            "the tile takes {local_bytes} bytes of local memory of {local_memory}"
        )));
    }

    let tiles = product.batch * product.m.div_ceil(tile_m) * product.n.div_ceil(tile_n);
    let wanted = (request.device.compute_units as usize * GROUPS_PER_UNIT).div_ceil(tiles.max(1));
    let most = parameters.int("split_k").unwrap_or(1) as usize;
    let splits = wanted.min(most).min(product.k() / SPLIT_STEPS).max(1);
    let split_k = product.k().div_ceil(splits).next_multiple_of(tile_k);
    let splits = product.k().div_ceil(split_k).max(1);

    let mut workspace = Workspace::default();
    let partial = (splits > 1).then(|| workspace.take(request.device, acc, splits * product.elements()));
    let mut text = begin(language, request, &product, "tiled");
    text.reaches((splits * product.elements()) as i64);
    for side in [Side::Lhs, Side::Rhs] {
        read(&mut text, matrices, &product, side)?;
    }
    match partial {
        Some(partial) => {
            text.buffer("partial", partial, acc, Access::Write);
            matrices.describe(&mut text)?;
        }
        None => store(&mut text, request, matrices, &product)?,
    }
    let run = |count: usize| if count.is_multiple_of(4) { 4 } else { 1 };
    text.define("TILED", "");
    if is_staged {
        text.define("STAGED", "");
    }
    for (name, value) in [
        ("TILE_M", tile_m),
        ("TILE_N", tile_n),
        ("TILE_K", tile_k),
        ("ROWS", rows),
        ("COLUMNS", columns),
        ("ROW_RUN", run(rows)),
        ("COLUMN_RUN", run(columns)),
        ("SPLITS", splits),
        ("LHS_K_INNERMOST", usize::from(product.k_innermost[0])),
        ("RHS_K_INNERMOST", usize::from(product.k_innermost[1])),
    ] {
        text.define(name, value);
    }
    text.number("SPLIT_K", split_k as i64)?;
    text.push(matrices.text());
    text.push(include_str!("contraction.cl"));
    let first = text.launch(tiles * splits, [x, y])?;
    let Some(partial) = partial else { return Ok(Lowered::single(first)) };
    let second = add_splits(language, request, matrices, partial, splits)?;
    Ok(Lowered { launches: vec![first, second], workspace_bytes: workspace.len_bytes })
}

/// Tiles of one size, in a text that serves every product of its dtypes.
pub(super) fn general(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
) -> Result<Lowered, Unservable> {
    const TILE: usize = 64;
    const TILE_K: usize = 16;
    const THREADS: usize = 16;
    let product = matrices.product();
    let tiles = product.batch * product.m.div_ceil(TILE) * product.n.div_ceil(TILE);
    let mut text = begin(language, request, &product, &format!("{}_general", product.out_dtype));
    for side in [Side::Lhs, Side::Rhs] {
        matrices.read(&mut text, side)?;
    }
    store(&mut text, request, matrices, &product)?;
    text.define("TILED", "");
    text.define("STAGED", "");
    if product.has_free_sizes {
        text.define("K_IS_INNER", "");
    }
    for (name, value) in [
        ("TILE_M", TILE),
        ("TILE_N", TILE),
        ("TILE_K", TILE_K),
        ("ROWS", TILE / THREADS),
        ("COLUMNS", TILE / THREADS),
        ("ROW_RUN", TILE / THREADS),
        ("COLUMN_RUN", TILE / THREADS),
        ("SPLITS", 1),
    ] {
        text.define(name, value);
    }
    text.number("LHS_K_INNERMOST", i64::from(product.k_innermost[0]))?;
    text.number("RHS_K_INNERMOST", i64::from(product.k_innermost[1]))?;
    text.number("SPLIT_K", product.k() as i64)?;
    text.push(matrices.text());
    text.push(include_str!("contraction.cl"));
    Ok(Lowered::single(text.launch(tiles, [THREADS, THREADS])?))
}

/// Adds up the sums over ranges of k.
pub(super) fn add_splits(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
    partial: LaunchArg,
    splits: usize,
) -> Result<Launch, Unservable> {
    let product = matrices.product();
    let threads = threads(request);
    let mut text = begin(language, request, &product, "split_sum");
    text.reaches((splits * product.elements()) as i64);
    text.buffer("partial", partial, accumulator(product.dtype), Access::Read);
    store(&mut text, request, matrices, &product)?;
    text.define("SPLIT_SUM", "");
    text.number("SPLITS", splits as i64)?;
    text.push(matrices.text());
    text.push(include_str!("contraction.cl"));
    text.launch(product.elements().div_ceil(threads), [threads, 1])
}

/// Panels and vectors, for CPUs. Profile: `tile: [m, n]` of a thread; n is a multiple of a vector's width.
pub(super) fn packed(
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
) -> Result<Lowered, Unservable> {
    packed_within(PANEL_BYTES, language, request, matrices)
}

/// As [`packed`], in launches of about so many bytes of packed operands.
pub(super) fn packed_within(
    panel_bytes: usize,
    language: Language,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
) -> Result<Lowered, Unservable> {
    let (product, parameters) = (matrices.product(), request.parameters);
    let acc = accumulator(product.dtype);
    let (rows, columns) = match request.parameters.tile() {
        Some(&[rows, columns, ..]) => (rows as usize, columns as usize),
        _ => (8, 32),
    };
    let width =
        [16, 8, 4].into_iter().find(|&width| columns.is_multiple_of(width) && width * acc.size() <= 64);
    let width =
        width.ok_or_else(|| Unservable::new(format!("{columns} columns are no whole number of vectors")))?;
    if rows == 0 || rows * columns > 16 * MAX_SUMS {
        return Err(Unservable::new(format!("a thread does not hold {rows} x {columns} sums")));
    }
    let k = product.k();
    if k == 0 {
        return plain(language, request, matrices);
    }
    let threads = if parameters.threads().is_some() { threads(request) } else { 1 };
    let (panels_m, panels_n) = (product.m.div_ceil(rows), product.n.div_ceil(columns));
    let (lhs_len, rhs_len) = (panels_m * k * rows, k * columns);
    // What is packed at once: some batches as a whole, or some panels of one.
    let budget = panel_bytes / acc.size();
    let batches = (budget / (lhs_len + panels_n * rhs_len)).clamp(1, product.batch);
    let fit = budget.saturating_sub(lhs_len) / rhs_len;
    let panels = if batches > 1 { panels_n } else { fit.clamp(1, panels_n) };

    let mut workspace = Workspace::default();
    let packed_lhs = workspace.take(request.device, acc, batches * lhs_len);
    let packed_rhs = workspace.take(request.device, acc, batches * panels * rhs_len);
    let begin = |name: &str, first_batch: usize, batches: usize, first_panel: usize, panels: usize| {
        let mut text = begin(language, request, &product, name);
        text.reaches((batches * (lhs_len + panels * rhs_len)) as i64);
        for (name, value) in [
            ("first_batch", first_batch),
            ("batches", batches),
            ("first_panel", first_panel),
            ("panels", panels),
        ] {
            text.number(name, value as i64)?;
        }
        for (name, value) in [("ROWS", rows), ("COLUMNS", columns), ("DEPTH", PACK_DEPTH)] {
            text.define(name, value);
        }
        Ok(text)
    };
    let slices = k.div_ceil(PACK_DEPTH);
    let mut launches = Vec::new();
    for first_batch in (0..product.batch).step_by(batches) {
        let batches = batches.min(product.batch - first_batch);
        for first_panel in (0..panels_n).step_by(panels) {
            let panels = panels.min(panels_n - first_panel);
            let sides =
                [(Side::Lhs, "PACK_LHS", packed_lhs, panels_m), (Side::Rhs, "PACK_RHS", packed_rhs, panels)];
            for (side, define, packed, panels_here) in sides {
                if side == Side::Lhs && first_panel > 0 {
                    continue;
                }
                let mut text = begin(&define.to_lowercase(), first_batch, batches, first_panel, panels)?;
                read(&mut text, matrices, &product, side)?;
                matrices.describe(&mut text)?;
                text.buffer("packed", packed, acc, Access::Write);
                text.define(define, "");
                text.push(matrices.text());
                text.push(include_str!("panels.cl"));
                launches.push(text.launch((slices * panels_here * batches).div_ceil(threads), [threads, 1])?);
            }
            let mut text = begin("packed", first_batch, batches, first_panel, panels)?;
            text.buffer("packed_lhs", packed_lhs, acc, Access::Read);
            text.buffer("packed_rhs", packed_rhs, acc, Access::Read);
            store(&mut text, request, matrices, &product)?;
            text.define("MULTIPLY", "");
            text.define("VECTOR", format!("{acc}x{width}"));
            text.define("VECTORS", columns / width);
            text.push(matrices.text());
            text.push(include_str!("panels.cl"));
            launches.push(text.launch((panels_m * panels * batches).div_ceil(threads), [threads, 1])?);
        }
    }
    Ok(Lowered { launches, workspace_bytes: workspace.len_bytes })
}

/// A kernel with what all strategies define.
pub(super) fn begin<'a>(
    language: Language,
    request: &LowerRequest<'a>,
    product: &Product,
    variant: &str,
) -> KernelText<'a> {
    let name = format!("{}_{}_{variant}", product.name, product.dtype);
    let mut text = KernelText::new(language, request, name);
    text.contracts();
    let acc = accumulator(product.dtype);
    text.uses(acc);
    text.define("ACC", register(acc));
    let largest = request.inputs.iter().map(|input| input.elements()).max().unwrap_or(0);
    text.reaches(largest.max(product.elements()) as i64);
    text
}

/// Adds one operand; a sum over nothing reads none.
pub(super) fn read(
    text: &mut KernelText<'_>,
    matrices: &dyn Matrices,
    product: &Product,
    side: Side,
) -> Result<(), Unservable> {
    if product.k() > 0 {
        return matrices.read(text, side);
    }
    if side == Side::Lhs {
        text.define("NOTHING_TO_SUM", "");
    }
    Ok(())
}

/// Adds the result, the bias and what is done before the store.
pub(super) fn store(
    text: &mut KernelText<'_>,
    request: &LowerRequest<'_>,
    matrices: &dyn Matrices,
    product: &Product,
) -> Result<(), Unservable> {
    matrices.describe(text)?;
    let Product { out_dtype, epilogue, .. } = *product;
    let result = register(out_dtype);
    if text.language.is_general() {
        return store_any(text, request, product);
    }
    let mut sum = "(sum)".to_owned();
    if epilogue.bias.is_some() {
        let bias = request.inputs.get(BIAS_INPUT).ok_or_else(|| Unservable::new("the bias is missing"))?;
        text.define_element("BIAS", bias.dtype, Access::Read);
        text.buffer("bias", LaunchArg::Input(BIAS_INPUT), bias.dtype, Access::Read);
        sum = format!("((sum) + (ACC)BIAS_LOAD(bias, {}))", product.bias_place);
    }
    text.define_element("OUT", out_dtype, Access::Write);
    text.buffer("out", LaunchArg::Output(0), out_dtype, Access::Write);
    let zero = literal(out_dtype, 0);
    let relu =
        |x: &str| if epilogue.relu { format!(" if ({x} < {zero}) {x} = {zero};") } else { String::new() };
    text.define("VALUE(batch, row, column, sum)", format!("(({result}){sum})"));
    text.define(
        "FINISH(batch, row, column, sum)",
        format!(
            "{{ {result} x_ = VALUE(batch, row, column, sum);{} OUT_STORE(out, OUT_PLACE(batch, row, column), x_); }}",
            relu("x_")
        ),
    );
    if text.language == Language::CudaC && product.has_dense_out {
        let stored = |x: &str| format!("({})({})", storage(out_dtype), to_storage(out_dtype, x));
        text.define(
            "FINISH_PAIR(batch, row, column, left, right)",
            format!(
                "{{ {result} x_ = VALUE(batch, row, column, left), y_ = VALUE(batch, row, (column) + 1, right);{}{} \
                 *({}x2*)(out + OUT_PLACE(batch, row, column)) = {{{}, {}}}; }}",
                relu("x_"),
                relu("y_"),
                storage(out_dtype),
                stored("x_"),
                stored("y_")
            ),
        );
    }
    Ok(())
}

/// Adds the result, and arguments that say what is done before the store.
fn store_any(
    text: &mut KernelText<'_>,
    request: &LowerRequest<'_>,
    product: &Product,
) -> Result<(), Unservable> {
    let Product { dtype, out_dtype, epilogue, .. } = *product;
    let bias = if epilogue.bias.is_some() {
        let bias = request.inputs.get(BIAS_INPUT).ok_or_else(|| Unservable::new("the bias is missing"))?;
        if bias.dtype != dtype {
            return Err(Unservable::new(format!("a bias of {} beside operands of {dtype}", bias.dtype)));
        }
        BIAS_INPUT
    } else {
        // Any memory that is only read; it is not looked at.
        0
    };
    text.define_element("BIAS", dtype, Access::Read);
    text.buffer("bias", LaunchArg::Input(bias), dtype, Access::Read);
    text.define_element("OUT", out_dtype, Access::Write);
    text.buffer("out", LaunchArg::Output(0), out_dtype, Access::Write);
    text.number("has_bias", i64::from(epilogue.bias.is_some()))?;
    text.number("has_relu", i64::from(epilogue.relu))?;
    let place =
        if product.has_free_sizes { "(bias_by_row != 0 ? (row) : (column))" } else { product.bias_place };
    let (result, zero) = (register(out_dtype), literal(out_dtype, 0));
    text.define(
        "FINISH(batch, row, column, sum)",
        format!(
            "{{ {result} x_ = ({result})(has_bias != 0 ? (sum) + (ACC)BIAS_LOAD(bias, {place}) : (sum)); \
             if (has_relu != 0 && x_ < {zero}) x_ = {zero}; OUT_STORE(out, OUT_PLACE(batch, row, column), x_); }}"
        ),
    );
    Ok(())
}

/// Defines the sizes of a product, or passes them.
pub(super) fn sizes(text: &mut KernelText<'_>, product: &Product) -> Result<(), Unservable> {
    let sizes = [
        ("BATCH", product.batch),
        ("M", product.m),
        ("N", product.n),
        ("K_OUTER", product.k_outer),
        ("K_INNER", product.k_inner),
    ];
    for (name, value) in sizes {
        // A single step is known to the compiler, which then drops the division by it.
        if product.has_free_sizes && value != 1 || text.language.is_general() {
            text.number(name, value as i64)?;
        } else {
            text.define(name, value);
        }
    }
    Ok(())
}

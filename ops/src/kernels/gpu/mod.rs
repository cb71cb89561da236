//! Kernels for GPUs, as source text for OpenCL and CUDA.
//!
//! One family a file, in a common dialect: `prelude.cl` and `prelude.cu` define it in either language, `numeric.cl` adds
//! the numerics policy. Families that are written by hand stand in `.cl` files, and the Rust file of the same name chooses
//! sizes and defines what is fixed for a launch; elementwise programs are generated, and the others include them.
//!
//! f16 and bf16 are 16-bit storage and computed in f32, `bool` is a byte, f64 needs the device's feature `fp64`.

mod builtin;
mod contraction;
mod conv;
mod dot;
mod elementwise;
mod interpret;
mod pad;
mod precompiled;
mod program;
mod reduce;
mod source;
mod tensor_cores;
mod window;

#[cfg(test)]
mod tests;

use crate::lower::{KernelOp, KernelVariant, LowerRequest, Lowered, Unservable};
use contraction::Matrices;
use conv::ConvMatrices;
use dot::DotMatrices;
use halite_profiles::{Parameters, Size};
use source::Language;

/// Every variant: that of a vendor's library, those in both languages, the plainest of each op last, and those that ship
/// compiled.
pub fn variants() -> Vec<KernelVariant> {
    let compiled = Language::ALL.into_iter().flat_map(variants_in);
    let shipped = precompiled::variants_in(Language::Ptx);
    [builtin::variant()].into_iter().chain(compiled).chain(shipped).collect()
}

fn variants_in(language: Language) -> Vec<KernelVariant> {
    let variant = |op: &str, name: &str, lower: LowerIn| {
        KernelVariant::new(op, name, language.format(), &[], move |request| lower(language, request))
    };
    let groups = || [Size::Threads(1)];
    let mut variants = vec![
        variant("elementwise", "generated", |language, request| match request.op {
            KernelOp::Elementwise(program) => elementwise::lower(language, request, program),
            other => Err(not_this(other)),
        })
        .with_sizes([Size::Threads(1), Size::Chunk, Size::Unroll])
        .with_candidates(elementwise::candidates()),
        variant("reduce", "generated", |language, request| match request.op {
            KernelOp::Reduce(reduction) => reduce::lower(language, request, reduction),
            other => Err(not_this(other)),
        })
        .with_sizes([Size::Threads(1), Size::Chunk])
        .with_candidates(reduce::candidates()),
        variant("window_reduce", "plain", |language, request| match request.op {
            KernelOp::Window(window) => window::lower(language, request, window),
            other => Err(not_this(other)),
        })
        .with_sizes(groups())
        .with_candidates(groups_of_threads()),
        variant("pad", "plain", |language, request| match request.op {
            KernelOp::Pad(pad) => pad::lower(language, request, pad),
            other => Err(not_this(other)),
        })
        .with_sizes(groups())
        .with_candidates(groups_of_threads()),
    ];
    let tiled = || vec![Size::Tile(3), Size::Threads(2), Size::Stages, Size::SplitK];
    variants.extend(products(language, ["tiled"; 2], tiled(), contraction::tiles(), contraction::tiled));
    // CUDA C has no vectors of 16 elements, and its devices no use for them.
    if language == Language::OpenClC {
        let packed = vec![Size::Tile(2), Size::Threads(1)];
        variants.extend(products(
            language,
            ["packed"; 2],
            packed,
            contraction::panels(),
            contraction::packed,
        ));
    }
    if language == Language::CudaC {
        let sizes = || vec![Size::Tile(3), Size::Threads(2), Size::Stages, Size::SplitK];
        let of = |name, candidates, strategy| products(language, [name; 2], sizes(), candidates, strategy);
        let warps = of("tensor_cores", tensor_cores::tiles(), tensor_cores::tensor_cores);
        let groups = of("warpgroups", tensor_cores::warpgroup_tiles(), tensor_cores::warpgroups);
        variants.extend(warps.map(tensor_cores::requiring));
        variants.extend(groups.map(tensor_cores::requiring_hopper));
    }
    let plain = groups_of_threads().collect();
    variants.extend(products(language, ["plain", "direct"], groups().into(), plain, contraction::plain));
    variants
}

/// The variants of one strategy, for matrices and for convolutions, under these names.
fn products(
    language: Language,
    names: [&str; 2],
    sizes: Vec<Size>,
    candidates: Vec<Parameters>,
    strategy: Strategy,
) -> [KernelVariant; 2] {
    let format = language.format();
    let dot = KernelVariant::new("dot_general", names[0], format, &[], move |request| {
        let KernelOp::Dot(dot) = request.op else { return Err(not_this(request.op)) };
        strategy(language, request, &DotMatrices::new(request, dot)?)
    });
    let conv = KernelVariant::new("conv_general", names[1], format, &[], move |request| {
        let KernelOp::Conv(conv) = request.op else { return Err(not_this(request.op)) };
        strategy(language, request, &ConvMatrices::new(request, conv)?)
    });
    [dot, conv].map(|variant| variant.with_sizes(sizes.clone()).with_candidates(candidates.clone()))
}

/// Workgroups for tuning to try where a thread computes one element.
fn groups_of_threads() -> impl Iterator<Item = Parameters> {
    [32, 64, 128, 256].into_iter().map(|threads| Parameters::default().with_threads([threads]))
}

type Strategy = fn(Language, &LowerRequest<'_>, &dyn Matrices) -> Result<Lowered, Unservable>;

type LowerIn = fn(Language, &LowerRequest<'_>) -> Result<Lowered, Unservable>;

fn not_this(op: &KernelOp) -> Unservable {
    Unservable::new(format!("this variant does not compute '{}'", op.name()))
}

//! Kernels for GPUs, as source text for OpenCL and CUDA.
//!
//! One family a file, in a common dialect: `prelude.cl` and `prelude.cu` define it in either language, `numeric.cl` adds
//! the numerics policy. Families that are written by hand stand in `.cl` files, and the Rust file of the same name chooses
//! sizes and defines what is fixed for a launch; elementwise programs are generated, and the others include them.
//!
//! f16 and bf16 are 16-bit storage and computed in f32, `bool` is a byte, f64 needs the device's feature `fp64`.

mod contraction;
mod conv;
mod dot;
mod elementwise;
mod pad;
mod program;
mod reduce;
mod source;
mod window;

use crate::lower::{KernelOp, KernelVariant, LowerRequest, Lowered, Unservable};
use contraction::Matrices;
use conv::ConvMatrices;
use dot::DotMatrices;
use source::Language;

/// Every variant, in both languages, the plainest of each op last.
pub fn variants() -> Vec<KernelVariant> {
    Language::ALL.into_iter().flat_map(variants_in).collect()
}

fn variants_in(language: Language) -> Vec<KernelVariant> {
    let variant = |op: &str, name: &str, lower: LowerIn| {
        KernelVariant::new(op, name, language.format(), &[], move |request| lower(language, request))
    };
    let mut variants = vec![
        variant("elementwise", "generated", |language, request| match request.op {
            KernelOp::Elementwise(program) => elementwise::lower(language, request, program),
            other => Err(not_this(other)),
        }),
        variant("reduce", "generated", |language, request| match request.op {
            KernelOp::Reduce(reduction) => reduce::lower(language, request, reduction),
            other => Err(not_this(other)),
        }),
        variant("window_reduce", "plain", |language, request| match request.op {
            KernelOp::Window(window) => window::lower(language, request, window),
            other => Err(not_this(other)),
        }),
        variant("pad", "plain", |language, request| match request.op {
            KernelOp::Pad(pad) => pad::lower(language, request, pad),
            other => Err(not_this(other)),
        }),
    ];
    for (dot_name, conv_name, strategy) in STRATEGIES {
        if dot_name == "packed" && language != Language::OpenClC {
            continue;
        }
        variants.push(KernelVariant::new("dot_general", dot_name, language.format(), &[], move |request| {
            let KernelOp::Dot(dot) = request.op else { return Err(not_this(request.op)) };
            strategy(language, request, &DotMatrices::new(request, dot)?)
        }));
        variants.push(KernelVariant::new(
            "conv_general",
            conv_name,
            language.format(),
            &[],
            move |request| {
                let KernelOp::Conv(conv) = request.op else { return Err(not_this(request.op)) };
                strategy(language, request, &ConvMatrices::new(request, conv)?)
            },
        ));
    }
    variants
}

type Strategy = fn(Language, &LowerRequest<'_>, &dyn Matrices) -> Result<Lowered, Unservable>;

/// The variants of products: their names for matrices and for convolutions.
const STRATEGIES: [(&str, &str, Strategy); 3] = [
    ("tiled", "tiled", contraction::tiled),
    ("packed", "packed", contraction::packed),
    ("plain", "direct", contraction::plain),
];

type LowerIn = fn(Language, &LowerRequest<'_>) -> Result<Lowered, Unservable>;

fn not_this(op: &KernelOp) -> Unservable {
    Unservable::new(format!("this variant does not compute '{}'", op.name()))
}

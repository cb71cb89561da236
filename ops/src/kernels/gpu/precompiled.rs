//! Kernels that ship compiled: for CUDA devices whose machine has a driver and no compiler.
//!
//! One text serves every size of an operation, so that there are few: sizes, strides and what is fused are arguments,
//! indices have 32 bits, tiles one size. Elementwise programs are interpreted, and reductions go over what the
//! interpreter leaves in memory. The PTX is named by the kernel's function; a test compares each text with the hash that
//! its PTX was made of, and `tools/make_ptx.py` makes it anew.

use super::contraction;
use super::conv::ConvMatrices;
use super::dot::DotMatrices;
use super::source::Language;
use super::{LowerIn, interpret, not_this, pad, reduce, window};
use crate::lower::{KernelOp, KernelVariant, Unservable};
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, OnceLock};

/// Begins a kernel; its function's name and the hash of its text follow.
pub(super) const HEADING: &str = "//// ";

/// Made by `tools/make_ptx.py`.
pub(super) const PTX: &str = include_str!("precompiled.ptx");

/// What makes compiling possible.
const REMEDY: &str = "to have kernels compiled for the device, install NVRTC (a CUDA toolkit, or the Python wheel \
                      nvidia-cuda-nvrtc), or name it in HALITE_NVRTC_LIBRARY";

/// The variants, in a language that [is general](Language::is_general).
pub(super) fn variants_in(language: Language) -> Vec<KernelVariant> {
    let variant = |op: &str, name: &str, lower: LowerIn| {
        KernelVariant::new(op, name, language.format(), &[], move |request| lower(language, request))
            .with_sizes([])
    };
    vec![
        variant("elementwise", "interpreted", |language, request| match request.op {
            KernelOp::Elementwise(program) => interpret::lower(language, request, program),
            other => Err(not_this(other)),
        }),
        variant("reduce", "precompiled", |language, request| match request.op {
            KernelOp::Reduce(reduction) => reduce::lower(language, request, reduction),
            other => Err(not_this(other)),
        }),
        variant("dot_general", "precompiled", |language, request| match request.op {
            KernelOp::Dot(dot) => contraction::general(language, request, &DotMatrices::new(request, dot)?),
            other => Err(not_this(other)),
        }),
        variant("conv_general", "precompiled", |language, request| match request.op {
            KernelOp::Conv(conv) => {
                contraction::general(language, request, &ConvMatrices::new(request, conv)?)
            }
            other => Err(not_this(other)),
        }),
        variant("window_reduce", "precompiled", |language, request| match request.op {
            KernelOp::Window(window) => window::lower(language, request, window),
            other => Err(not_this(other)),
        }),
        variant("pad", "precompiled", |language, request| match request.op {
            KernelOp::Pad(pad) => pad::lower(language, request, pad),
            other => Err(not_this(other)),
        }),
    ]
}

/// The PTX of a kernel.
pub(super) fn ptx(name: &str) -> Result<Arc<[u8]>, Unservable> {
    static KERNELS: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| {
        log::warn!("kernels that ship compiled are used, which serve all sizes and are slower; {REMEDY}");
        kernels().map(|(name, _, ptx)| (name, ptx)).collect()
    });
    let ptx = kernels.get(name).ok_or_else(|| refusal(format!("no '{name}' ships compiled")))?;
    Ok(ptx.as_bytes().into())
}

/// What kernels that ship compiled do not serve, with what would.
pub(super) fn refusal(what: impl Display) -> Unservable {
    Unservable::new(format!("{what}; {REMEDY}"))
}

/// Name, hash of the text, and PTX of each kernel that ships.
pub(super) fn kernels() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    PTX.split(HEADING).skip(1).filter_map(|kernel| {
        let (heading, ptx) = kernel.split_once('\n')?;
        let (name, hash) = heading.split_once(' ')?;
        Some((name, hash.trim_end(), ptx))
    })
}

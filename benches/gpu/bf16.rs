//! Large products in bf16 on CUDA: as dispatched and with each kernel of Halite's own, next to PyTorch or cuBLASLt.

use crate::product::{Builtin, Product, multiply};
use crate::race::Side;
use crate::report::{Pair, Report};
use crate::torch::Torch;
use crate::{Outcome, Subject, failure};
use halite::ops::lower::KernelVariant;
use halite::{DType, Engine, Tensor, eval};
use std::sync::Arc;

const SIZES: [usize; 2] = [4096, 8192];
/// The size for which ratios are required.
const REQUIRED_SIZE: usize = 8192;
/// As dispatched, over PyTorch.
const REQUIRED_DISPATCHED: f64 = 0.97;
/// The kernel of our own for tensor cores, over PyTorch.
const REQUIRED_TENSOR_CORES: f64 = 0.75;
/// By how much results in bf16 may differ, relative to the largest: a rounding each, to 8 bits.
const RTOL: f64 = 1.0 / 128.0;

pub(crate) fn bench(subject: &Subject, report: &mut Report) -> Outcome {
    if !subject.is_cuda() {
        report.note("left out: products of this size and type are measured on CUDA alone");
        return Ok(());
    }
    let engine = &subject.engine;
    let mut torch = match &subject.torch {
        Some(command) => Torch::start(command).map_err(|error| report.note(format!("{error}"))).ok(),
        None => {
            report.note("no --torch: cuBLASLt, which PyTorch calls too, stands in for it");
            None
        }
    };
    if let Some(torch) = &torch {
        report.note(format!("PyTorch is {}", torch.version));
    }
    for size in SIZES {
        let product = Product { m: size, n: size, k: size, dtype: DType::BF16 };
        let operands = product.operands(engine)?;
        let is_required = size == REQUIRED_SIZE;
        let dispatched = chosen(engine, &operands)?;
        let name = format!("dispatched: {dispatched}");
        let mut sides = vec![Side::new(name, |count| multiply(engine, &operands, count))];
        let mut required = vec![is_required.then_some(REQUIRED_DISPATCHED)];

        let expected = first_row(&operands)?;
        let mut pinned = Vec::new();
        for variant in own_variants(engine).filter(|variant| variant.name != dispatched) {
            match pin(engine, &variant, &operands, &expected) {
                Ok(own) => pinned.push((variant.name.clone(), own)),
                Err(error) => report.note(format!("{product}, variant {}: {error}", variant.name)),
            }
        }
        let has_warpgroups = pinned.iter().any(|(name, _)| name.contains("warpgroups"));
        for (name, (engine, operands)) in pinned {
            // The requirement is for the fastest kind of kernel that the device can run.
            let is_for_tensor_cores =
                is_required && (name.contains("warpgroups") || (name.contains("tensor") && !has_warpgroups));
            required.push(is_for_tensor_cores.then_some(REQUIRED_TENSOR_CORES));
            sides
                .push(Side::new(format!("pinned: {name}"), move |count| multiply(&engine, &operands, count)));
        }
        let ours = sides.len();
        let library = match Builtin::new(engine.device(), &product, &operands) {
            Ok(library) => Some(library),
            Err(error) => {
                report.note(format!("no cuBLASLt: {error}"));
                None
            }
        };
        if let Some(torch) = &mut torch {
            sides.push(Side::new("PyTorch", |count| torch.run(&product, count)));
        }
        if let Some(library) = library {
            sides.push(Side::new("cuBLASLt", move |count| library.run(count)));
        }
        // Every kernel of ours next to PyTorch, or to what stands in for it; the library itself next to PyTorch.
        let peer = (sides.len() > ours).then_some(ours);
        let mut pairs: Vec<Pair> = required
            .into_iter()
            .enumerate()
            .map(|(ours, required)| Pair { ours, peer, required: required.filter(|_| peer.is_some()) })
            .collect();
        if sides.len() > ours + 1 {
            pairs.push(Pair { ours: ours + 1, peer, required: None });
        }
        let works = vec![product.work(); sides.len()];
        report.measure(&product.to_string(), sides, &works, &pairs)?;
    }
    Ok(())
}

/// The variant that the engine's profile chooses.
fn chosen(engine: &Engine, [lhs, rhs]: &[Tensor; 2]) -> Outcome<String> {
    let launches = engine.explain(&[&lhs.matmul(rhs)?])?;
    let own = launches.into_iter().find(|launch| launch.op == "dot_general");
    own.map(|launch| launch.variant).ok_or_else(|| failure("no launch of dot_general"))
}

/// The kernels of Halite's own that the device can run, without the plainest, which would take seconds a product.
fn own_variants(engine: &Engine) -> impl Iterator<Item = Arc<KernelVariant>> {
    let info = engine.device().info();
    let usable = engine.catalog().variants_of("dot_general").filter(|variant| {
        info.accepts(&variant.format)
            && variant.format != "builtin"
            && variant.name != "plain"
            && variant.requires.iter().all(|feature| info.has_feature(feature))
    });
    usable.cloned()
}

/// An engine whose profile names this variant alone, with the operands on it. Its sizes are those of the profile in force,
/// or else the variant's own.
fn pin(
    engine: &Engine,
    variant: &KernelVariant,
    operands: &[Tensor; 2],
    expected: &[f64],
) -> Outcome<(Engine, [Tensor; 2])> {
    let profile = engine.profile();
    let own = profile.kernel_entries("dot_general").iter().find(|entry| entry.variant() == variant.name);
    let parameters = own.map(|entry| entry.parameters().clone()).unwrap_or_default();
    let separator = if parameters.is_empty() { "" } else { ", " };
    let text = format!(
        "name: pinned\nextends: {}\nkernels:\n  dot_general:\n  - {{ variant: {}{separator}{parameters} }}\n",
        profile.name(),
        variant.name
    );
    let pinned = Arc::new(profile.extended_by(&text, "pinned")?);
    let pinned = Engine::new(engine.device().clone(), pinned, engine.catalog().clone(), None)?;
    let [lhs, rhs] = operands;
    let operands = [lhs.to(&pinned)?, rhs.to(&pinned)?];
    eval(&[&operands[0], &operands[1]])?;
    let chosen = chosen(&pinned, &operands)?;
    if chosen != variant.name {
        return Err(failure(format!("it does not serve this product; {chosen} would run")));
    }
    let scale = expected.iter().fold(0.0, |scale: f64, x| scale.max(x.abs()));
    for (column, (ours, expected)) in first_row(&operands)?.iter().zip(expected).enumerate() {
        // Written so that NaN differs.
        let agrees = (ours - expected).abs() <= RTOL * scale;
        if !agrees {
            return Err(failure(format!("element {column} is {ours}, as dispatched {expected}")));
        }
    }
    Ok((pinned, operands))
}

/// The first row of the product.
fn first_row([lhs, rhs]: &[Tensor; 2]) -> Outcome<Vec<f64>> {
    let product = lhs.matmul(rhs)?;
    eval(&[&product])?;
    Ok(product.narrow(0, 0, 1)?.to_f64()?)
}

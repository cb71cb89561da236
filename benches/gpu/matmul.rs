//! Products in f32 as the engine dispatches them, next to CLBlast's, or cuBLASLt's on CUDA.

use crate::clblast::{ClBlast, Gemm};
use crate::product::{Builtin, Product, multiply};
use crate::race::Side;
use crate::report::{Pair, Report};
use crate::{Outcome, Subject, failure};
use halite::{DType, Tensor, eval};

/// `[m, n, k]`: powers of two, a rectangle, a prime.
const SIZES: [[usize; 3]; 6] = [
    [256, 256, 256],
    [512, 512, 512],
    [1024, 1024, 1024],
    [2048, 2048, 2048],
    [512, 3072, 768],
    [1021, 1021, 1021],
];
/// The size for which a ratio is required.
const REQUIRED_SIZE: [usize; 3] = [1024; 3];
/// Speed over CLBlast's on PoCL.
const REQUIRED_OVER_CLBLAST: f64 = 2.0;
/// By how much two products of numbers below 1 may differ, relative to the largest element: sums of up to 2,048 in
/// different orders.
const RTOL: f32 = 1e-4;

pub(crate) fn bench(subject: &Subject, report: &mut Report) -> Outcome {
    let clblast = if subject.is_opencl() {
        ClBlast::open(&subject.info.name).map_err(|error| report.note(format!("{error}"))).ok()
    } else {
        None
    };
    for size in SIZES {
        let [m, n, k] = size;
        let product = Product { m, n, k, dtype: DType::F32 };
        let engine = &subject.engine;
        let operands = product.operands(engine)?;
        let mut sides = vec![Side::new("Halite", |count| multiply(engine, &operands, count))];
        let mut required = None;
        if let Some(clblast) = &clblast {
            let [lhs, rhs] = &operands;
            let gemm = clblast.prepare(&product, &lhs.to_vec()?, &rhs.to_vec()?)?;
            agree(&product, &operands, &gemm)?;
            sides.push(Side::new("CLBlast", move |count| gemm.run(count)));
            required = (subject.is_pocl() && size == REQUIRED_SIZE).then_some(REQUIRED_OVER_CLBLAST);
        } else if subject.is_cuda() {
            match Builtin::new(engine.device(), &product, &operands) {
                Ok(library) => sides.push(Side::new("cuBLASLt", move |count| library.run(count))),
                Err(error) => report.note(format!("nothing to compare with: {error}")),
            }
        }
        let works = vec![product.work(); sides.len()];
        let pairs = [Pair::first(&sides, required)];
        report.measure(&product.to_string(), sides, &works, &pairs)?;
    }
    Ok(())
}

/// Whether both sides compute the same.
fn agree(product: &Product, [lhs, rhs]: &[Tensor; 2], gemm: &Gemm<'_>) -> Outcome {
    gemm.run(1)?;
    let result = lhs.matmul(rhs)?;
    eval(&[&result])?;
    let (ours, theirs) = (result.to_vec::<f32>()?, gemm.result()?);
    let scale = theirs.iter().fold(0.0f32, |scale, x| scale.max(x.abs()));
    for (place, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        // Written so that NaN differs.
        let agrees = (ours - theirs).abs() <= RTOL * scale;
        if !agrees {
            return Err(failure(format!(
                "{product}: element {place} is {ours} here and {theirs} in CLBlast"
            )));
        }
    }
    Ok(())
}

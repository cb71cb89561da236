//! Records of what makes tensors from nothing.

use super::sample::{Call, Sample};
use super::{ErrorCase, OpRecord};
use crate::{DType, Result, Tensor};
use halite_hal::Scalar;

pub(super) fn records() -> Vec<OpRecord> {
    vec![full(), runtime_scalar(), iota(), random_bits(), uniform()]
}

fn made(name: &str, call: impl Fn(Call<'_>) -> Result<Tensor> + Send + Sync + 'static) -> Sample {
    Sample::new(name, [], call)
}

fn full() -> OpRecord {
    OpRecord::new("full", DType::ALL)
        .not_differentiable()
        .samples([
            made("a matrix", |c| c.engine.full(&[3, 5], c.dtype, 1.25)),
            made("nothing", |c| c.engine.full(&[0, 2], c.dtype, 1.0)),
            made("a single element without axes", |c| c.engine.full(&[], c.dtype, 7.0)),
            made("beyond the range", |c| c.engine.full(&[2], c.dtype, 1e300))
                .only(|dtype| dtype != DType::F64),
            made("NaN", |c| c.engine.full(&[2], c.dtype, f64::NAN)),
            made("a view of it", |c| c.engine.full(&[2, 3], c.dtype, 2.0)?.transpose()?.reshape(&[6])),
        ])
        .errors([ErrorCase::new(
            "more elements than memory has",
            file!(),
            &["full", "address space"],
            |engine| engine.full(&[usize::MAX, 2, 0], DType::F32, 0.0),
        )])
}

fn runtime_scalar() -> OpRecord {
    let of = |dtype: DType, value: f64| match dtype {
        DType::F32 => Scalar::F32(value as f32),
        DType::I32 => Scalar::I32(value as i32),
        _ => Scalar::U32(value as u32),
    };
    OpRecord::new("runtime_scalar", [DType::F32, DType::I32, DType::U32])
        .not_differentiable()
        .samples([
            made("a number", move |c| c.engine.runtime_scalar(of(c.dtype, 12.0))),
            made("the largest", move |c| c.engine.runtime_scalar(of(c.dtype, f64::INFINITY))),
            made("broadcast", move |c| c.engine.runtime_scalar(of(c.dtype, 3.0))?.broadcast_to(&[2, 3])),
            made("NaN", move |c| c.engine.runtime_scalar(of(c.dtype, f64::NAN))),
        ])
        .errors([ErrorCase::new("64 bits", file!(), &["runtime_scalar", "u64"], |engine| {
            engine.runtime_scalar(Scalar::U64(1))
        })])
}

fn iota() -> OpRecord {
    OpRecord::new("iota", [DType::I32, DType::U32])
        .not_differentiable()
        .samples([
            made("a vector", |c| c.engine.iota(&[7], 0, c.dtype)),
            made("rows", |c| c.engine.iota(&[3, 5], 0, c.dtype)),
            made("columns", |c| c.engine.iota(&[3, 5], 1, c.dtype)),
            made("the middle", |c| c.engine.iota(&[2, 3, 2], 1, c.dtype)),
            made("one element", |c| c.engine.iota(&[1, 1], 1, c.dtype)),
            made("nothing", |c| c.engine.iota(&[2, 0], 0, c.dtype)),
            made("flipped, in steps", |c| {
                c.engine.iota(&[11], 0, c.dtype)?.flip(&[0])?.slice(&[1], &[11], &[3])
            }),
            made("transposed and reshaped", |c| {
                c.engine.iota(&[3, 4], 1, c.dtype)?.transpose()?.reshape(&[6, 2])
            }),
            made("an odd multiple", |c| c.engine.iota(&[1031], 0, c.dtype)?.mul(3.0)),
            made("the sum of two", |c| {
                let rows = c.engine.iota(&[5, 7], 0, c.dtype)?;
                rows.mul(7.0)?.add(&c.engine.iota(&[5, 7], 1, c.dtype)?)
            }),
        ])
        .errors([
            ErrorCase::new("an axis that is not there", file!(), &["iota", "axis 1"], |engine| {
                engine.iota(&[3], 1, DType::I32)
            }),
            ErrorCase::new("floats", file!(), &["iota", "f32", "cast"], |engine| {
                engine.iota(&[3], 0, DType::F32)
            }),
        ])
}

fn random_bits() -> OpRecord {
    OpRecord::new("random_bits", [DType::U32])
        .not_differentiable()
        .samples([
            made("a vector", |c| c.engine.random_bits(&[1031], 1, 2)),
            made("a matrix", |c| c.engine.random_bits(&[3, 5], u32::MAX, 0)),
            made("one element", |c| c.engine.random_bits(&[1], 0, 0)),
            made("one element without axes", |c| c.engine.random_bits(&[], 7, 8)),
            made("nothing", |c| c.engine.random_bits(&[0, 3], 1, 2)),
            made("a view of it", |c| c.engine.random_bits(&[4, 6], 5, 6)?.transpose()?.flip(&[0])),
        ])
        .errors([ErrorCase::new(
            "more elements than the counter has",
            file!(),
            &["random_bits", "32-bit"],
            |engine| engine.random_bits(&[1 << 33], 0, 0),
        )])
}

fn uniform() -> OpRecord {
    OpRecord::new("uniform", [DType::F32])
        .not_differentiable()
        .samples([
            made("unscaled", |c| c.engine.uniform(&[1031], 0.0, 1.0, 1, 2)),
            made("a power of two", |c| c.engine.uniform(&[3, 5], -2.0, 2.0, 3, 4)),
            made("nothing", |c| c.engine.uniform(&[0], 0.0, 1.0, 1, 2)),
            made("one element without axes", |c| c.engine.uniform(&[], 0.0, 1.0, 1, 2)),
        ])
        .errors([ErrorCase::new(
            "more elements than the counter has",
            file!(),
            &["random_bits", "32-bit"],
            |engine| engine.uniform(&[1 << 33], 0.0, 1.0, 0, 0),
        )])
}

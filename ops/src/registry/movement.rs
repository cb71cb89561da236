//! Records of the ops that move elements.

use super::sample::{Input, Sample, Values};
use super::{ErrorCase, OpRecord};
use crate::{DType, Result, Tensor};

pub(super) fn records() -> Vec<OpRecord> {
    vec![reshape(), permute(), broadcast_to(), slice(), flip(), pad()]
}

fn moved(
    name: &str,
    shape: &[usize],
    call: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Sample {
    Sample::new(name, [Input::new(shape, Values::Between(-9.0, 9.0))], move |c| call(&c.inputs[0]))
}

fn reshape() -> OpRecord {
    OpRecord::new("reshape", DType::ALL)
        .samples([
            moved("a matrix to a vector", &[3, 5], |x| x.reshape(&[15])),
            moved("axes of extent 1 come and go", &[1, 6, 1], |x| x.reshape(&[2, 1, 3])),
            moved("a transposed view, which needs a copy", &[3, 4], |x| x.transpose()?.reshape(&[2, 6])),
            moved("a transposed view, which splits", &[4, 6], |x| x.transpose()?.reshape(&[2, 3, 4])),
            moved("a broadcast view", &[3, 1], |x| x.broadcast_to(&[3, 4])?.reshape(&[12])),
            moved("every second row", &[7, 2], |x| x.slice(&[0, 0], &[7, 2], &[2, 1])?.reshape(&[8])),
            moved("a flipped view", &[2, 3], |x| x.flip(&[0, 1])?.reshape(&[3, 2])),
            moved("nothing", &[0, 3], |x| x.reshape(&[7, 0, 2])),
            moved("a single element to no axes", &[1, 1], |x| x.reshape(&[])),
        ])
        .errors([
            ErrorCase::new("another number of elements", file!(), &["reshape", "[2, 3]", "[7]"], |engine| {
                engine.zeros(&[2, 3], DType::F32)?.reshape(&[7])
            }),
            ErrorCase::new(
                "more elements than memory has",
                file!(),
                &["reshape", "address space"],
                |engine| engine.zeros(&[0], DType::F32)?.reshape(&[usize::MAX, 2, 0]),
            ),
        ])
}

fn permute() -> OpRecord {
    OpRecord::new("permute", DType::ALL)
        .samples([
            moved("a matrix", &[3, 5], |x| x.permute(&[1, 0])),
            moved("three axes", &[2, 3, 5], |x| x.permute(&[2, 0, 1])),
            moved("a large matrix", &[67, 31], |x| x.transpose()),
            moved("twice", &[2, 3, 4], |x| x.permute(&[1, 2, 0])?.permute(&[1, 0, 2])),
            moved("an empty axis", &[2, 0, 3], |x| x.permute(&[2, 1, 0])),
            moved("a broadcast view", &[1, 3], |x| x.broadcast_to(&[4, 3])?.transpose()),
            moved("axes of extent 1", &[1, 1, 3], |x| x.permute(&[2, 1, 0])),
            moved("no axes", &[], |x| x.permute(&[])),
        ])
        .errors([
            ErrorCase::new("an axis that is not there", file!(), &["permute", "axis 2"], |engine| {
                engine.zeros(&[2, 3], DType::F32)?.permute(&[0, 2])
            }),
            ErrorCase::new("an axis twice", file!(), &["permute", "twice"], |engine| {
                engine.zeros(&[2, 3], DType::F32)?.permute(&[1, 1])
            }),
            ErrorCase::new("too few axes", file!(), &["permute", "[1]", "2 axes"], |engine| {
                engine.zeros(&[2, 3], DType::F32)?.permute(&[1])
            }),
            ErrorCase::new("the transpose of a vector", file!(), &["transpose", "[3]"], |engine| {
                engine.zeros(&[3], DType::F32)?.transpose()
            }),
        ])
}

fn broadcast_to() -> OpRecord {
    OpRecord::new("broadcast_to", DType::ALL)
        .samples([
            moved("a row to a matrix", &[3], |x| x.broadcast_to(&[4, 3])),
            moved("a column to a matrix", &[4, 1], |x| x.broadcast_to(&[4, 3])),
            moved("a single element to three axes", &[], |x| x.broadcast_to(&[2, 3, 2])),
            moved("an axis in the middle", &[2, 1, 3], |x| x.broadcast_to(&[2, 5, 3])),
            moved("to nothing", &[1, 3], |x| x.broadcast_to(&[0, 3])),
            moved("nothing stays nothing", &[0], |x| x.broadcast_to(&[2, 0])),
            moved("a transposed view", &[3, 1], |x| x.transpose()?.broadcast_to(&[2, 4, 3])),
            moved("to the same shape", &[2, 3], |x| x.broadcast_to(&[2, 3])),
        ])
        .errors([
            ErrorCase::new(
                "an extent that is not 1",
                file!(),
                &["broadcast_to", "[2, 3]", "[2, 4]"],
                |engine| engine.zeros(&[2, 3], DType::F32)?.broadcast_to(&[2, 4]),
            ),
            ErrorCase::new("fewer axes", file!(), &["broadcast_to", "[1, 3]", "[3]"], |engine| {
                engine.zeros(&[1, 3], DType::F32)?.broadcast_to(&[3])
            }),
            ErrorCase::new(
                "more elements than memory has",
                file!(),
                &["broadcast_to", "address space"],
                |engine| engine.zeros(&[1], DType::F32)?.broadcast_to(&[usize::MAX, 8]),
            ),
        ])
}

fn slice() -> OpRecord {
    OpRecord::new("slice", DType::ALL)
        .samples([
            moved("a block", &[5, 7], |x| x.slice(&[1, 2], &[4, 6], &[1, 1])),
            moved("in steps", &[5, 7], |x| x.slice(&[0, 1], &[5, 7], &[2, 3])),
            moved("of a slice", &[11], |x| x.slice(&[1], &[11], &[2])?.slice(&[1], &[5], &[2])),
            moved("of a flipped view", &[7], |x| x.flip(&[0])?.slice(&[2], &[7], &[2])),
            moved("of a broadcast view", &[1, 4], |x| x.broadcast_to(&[3, 4])?.narrow(0, 1, 3)),
            moved("nothing at the end", &[4], |x| x.slice(&[4], &[4], &[1])),
            moved("of nothing", &[0, 3], |x| x.slice(&[0, 1], &[0, 3], &[1, 1])),
            moved("one element", &[5], |x| x.narrow(0, 4, 5)),
            moved("a step beyond the end", &[5], |x| x.slice(&[1], &[5], &[9])),
        ])
        .errors([
            ErrorCase::new("an end beyond the extent", file!(), &["slice", "0..4", "has 3"], |engine| {
                engine.zeros(&[3], DType::F32)?.slice(&[0], &[4], &[1])
            }),
            ErrorCase::new("a start behind the end", file!(), &["slice", "2..1"], |engine| {
                engine.zeros(&[3], DType::F32)?.slice(&[2], &[1], &[1])
            }),
            ErrorCase::new("a step of 0", file!(), &["slice", "steps of 0"], |engine| {
                engine.zeros(&[3], DType::F32)?.slice(&[0], &[3], &[0])
            }),
            ErrorCase::new("too few axes", file!(), &["slice", "2 axes"], |engine| {
                engine.zeros(&[3, 3], DType::F32)?.slice(&[0], &[3], &[1])
            }),
            ErrorCase::new("an axis that is not there", file!(), &["narrow", "axis 1"], |engine| {
                engine.zeros(&[3], DType::F32)?.narrow(1, 0, 1)
            }),
        ])
}

fn flip() -> OpRecord {
    OpRecord::new("flip", DType::ALL)
        .samples([
            moved("a vector", &[7], |x| x.flip(&[0])),
            moved("both axes", &[3, 5], |x| x.flip(&[1, 0])),
            moved("one axis of three", &[2, 3, 2], |x| x.flip(&[1])),
            moved("twice", &[3, 2], |x| x.flip(&[0])?.flip(&[0, 1])),
            moved("nothing", &[0, 2], |x| x.flip(&[0, 1])),
            moved("a single element", &[1], |x| x.flip(&[0])),
            moved("a broadcast view", &[1, 3], |x| x.broadcast_to(&[2, 3])?.flip(&[0, 1])),
        ])
        .errors([
            ErrorCase::new("an axis that is not there", file!(), &["flip", "axis 1"], |engine| {
                engine.zeros(&[3], DType::F32)?.flip(&[1])
            }),
            ErrorCase::new("an axis twice", file!(), &["flip", "twice"], |engine| {
                engine.zeros(&[3, 3], DType::F32)?.flip(&[0, 0])
            }),
        ])
}

fn pad() -> OpRecord {
    OpRecord::new("pad", DType::ALL)
        .samples([
            moved("around a matrix", &[2, 3], |x| x.pad(&[1, 0], &[2, 3], &[0, 0], 7.0)),
            moved("between elements", &[3, 4], |x| x.pad(&[0, 1], &[0, 0], &[2, 1], 0.0)),
            moved("cut at both ends", &[5, 4], |x| x.pad(&[-1, -2], &[-2, 0], &[0, 0], 1.0)),
            moved("cut between elements", &[5], |x| x.pad(&[-2], &[-1], &[1], 3.0)),
            moved("cut before and added behind", &[5], |x| x.pad(&[-2], &[3], &[0], 1.0)),
            moved("cut down to nothing", &[3], |x| x.pad(&[-2], &[-1], &[0], 1.0)),
            moved("out of nothing", &[0, 2], |x| x.pad(&[2, 0], &[1, 1], &[3, 0], 5.0)),
            moved("a single element without axes", &[], |x| x.pad(&[], &[], &[], 1.0)),
            moved("a transposed view", &[3, 2], |x| x.transpose()?.pad(&[0, 1], &[1, 0], &[0, 0], 2.0)),
            moved("a long vector", &[1031], |x| x.pad(&[3], &[5], &[1], 0.0)),
            moved("with a value that is not finite", &[2], |x| x.pad(&[1], &[1], &[0], f64::NEG_INFINITY))
                .without_gradient(),
        ])
        .errors([
            ErrorCase::new("more cut than there is", file!(), &["pad", "axis 0", "-1"], |engine| {
                engine.zeros(&[3], DType::F32)?.pad(&[-2], &[-2], &[0], 0.0)
            }),
            ErrorCase::new("too few axes", file!(), &["pad", "2 axes"], |engine| {
                engine.zeros(&[3, 3], DType::F32)?.pad(&[1], &[1], &[0], 0.0)
            }),
            ErrorCase::new("more elements than memory has", file!(), &["pad", "address space"], |engine| {
                engine.zeros(&[3], DType::F32)?.pad(&[i64::MAX], &[0], &[0], 0.0)
            }),
        ])
}

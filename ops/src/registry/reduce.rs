//! Records of the reductions and of what is composed of them.

use super::sample::{Input, Sample, Values};
use super::{ErrorCase, FLOATS, OpRecord, Tolerance, unit_roundoff};
use crate::lower::ReduceKind;
use crate::{DType, Tensor};

/// Elements of the longest sample.
const LONGEST: usize = 2053;
/// Largest size of a summand.
const LARGEST: f64 = 2.0;

pub(super) fn records() -> Vec<OpRecord> {
    vec![
        reduction(ReduceKind::Sum).tolerance_of(summed),
        reduction(ReduceKind::Max),
        reduction(ReduceKind::Min),
        argmax(),
        mean(),
        log_softmax(),
        cross_entropy(),
    ]
}

fn summed(dtype: DType) -> Tolerance {
    if !dtype.is_float() {
        return Tolerance::EXACT;
    }
    let accumulator = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Tolerance {
        atol: LONGEST as f64 * LARGEST * unit_roundoff(accumulator),
        rtol: 2.0 * unit_roundoff(dtype),
        reason: "2053 summands of at most 2, accumulated in f32 or f64 in any order, then rounded",
    }
}

fn reduction(kind: ReduceKind) -> OpRecord {
    // Distinct values in place of ties, at which the derivative of an extreme does not exist.
    let values =
        if kind == ReduceKind::Sum { Values::Between(-LARGEST, LARGEST) } else { Values::Distinct(0.25) };
    let over = |name: &str, shape: &[usize], axes: &'static [usize]| {
        Sample::new(name, [Input::new(shape, values.clone())], move |c| c.inputs[0].reduce(kind, axes))
    };
    let of =
        |name: &str, shape: &[usize], axes: &'static [usize], view: fn(&Tensor) -> crate::Result<Tensor>| {
            Sample::new(name, [Input::new(shape, values.clone())], move |c| {
                view(&c.inputs[0])?.reduce(kind, axes)
            })
        };
    let cycle = |name: &str, shape: &[usize], values: &[f64]| {
        let input = Input::new(shape, Values::Cycle(values.to_vec()));
        Sample::new(name, [input], move |c| c.inputs[0].reduce(kind, &[1])).without_gradient()
    };
    let repeated = of("columns of a broadcast view", &[1, 3], &[0], |x| x.broadcast_to(&[2, 3]));
    // Equal elements tie.
    let repeated = if kind == ReduceKind::Sum { repeated } else { repeated.without_gradient() };
    let numbers = DType::ALL.into_iter().filter(|&dtype| dtype != DType::Bool);
    OpRecord::new(kind.name(), numbers)
        .samples([
            over("rows", &[5, 7], &[1]),
            over("columns", &[5, 7], &[0]),
            over("all", &[5, 7], &[0, 1]),
            over("the middle", &[2, 3, 5], &[1]),
            over("both ends", &[2, 3, 5], &[2, 0]),
            over("a single element without axes", &[], &[]),
            over("axes of extent 1", &[1, 3, 1], &[0, 2]),
            over("nothing, kept", &[0, 3], &[1]),
            over("nothing, reduced", &[3, 0], &[1]).without_gradient(),
            over("nothing at all", &[0], &[0]).without_gradient(),
            over("a long vector", &[LONGEST], &[0]),
            over("long rows", &[3, 1031], &[1]),
            over("long columns", &[1031, 3], &[0]),
            of("rows of a transposed view", &[5, 3], &[1], |x| x.transpose()),
            of("a flipped view in steps", &[4, 9], &[1], |x| x.flip(&[1])?.slice(&[0, 1], &[4, 9], &[1, 3])),
            repeated,
            of("of a product", &[3, 7], &[0], |x| x.mul(x)?.mul(x)?.add(x)).only(|dtype| dtype.size() >= 4),
            cycle("with NaN", &[3, 4], &[1.0, 2.0, f64::NAN, -1.0, 3.0]).only(DType::is_float),
            cycle("with infinities", &[4, 3], &[1.0, f64::INFINITY, f64::NEG_INFINITY, 2.0])
                .only(DType::is_float),
            cycle("all of the least", &[2, 3], &[f64::NEG_INFINITY]),
            cycle("ties", &[3, 5], &[1.0, 2.0, 2.0]),
        ])
        .errors(axis_errors(kind))
}

fn axis_errors(kind: ReduceKind) -> Vec<ErrorCase> {
    vec![
        ErrorCase::new("an axis that is not there", file!(), &[kind.name(), "axis 2"], move |engine| {
            engine.zeros(&[2, 3], DType::F32)?.reduce(kind, &[2])
        }),
        ErrorCase::new("bool", file!(), &[kind.name(), "bool", "cast"], move |engine| {
            engine.zeros(&[2, 3], DType::Bool)?.reduce(kind, &[0])
        }),
    ]
}

fn argmax() -> OpRecord {
    let along = |name: &str, shape: &[usize], axis: usize, values: Values| {
        Sample::new(name, [Input::new(shape, values)], move |c| c.inputs[0].argmax(axis))
    };
    let nan = Values::Cycle(vec![1.0, f64::NAN, 3.0, f64::NAN, f64::INFINITY]);
    let numbers = DType::ALL.into_iter().filter(|&dtype| dtype != DType::Bool);
    OpRecord::new("argmax", numbers)
        .not_differentiable()
        .samples([
            along("rows", &[5, 7], 1, Values::Distinct(0.5)),
            along("columns", &[5, 7], 0, Values::Distinct(0.5)),
            along("the middle", &[2, 3, 5], 1, Values::Distinct(0.5)),
            along("one candidate", &[3, 1], 1, Values::Distinct(0.5)),
            along("nothing, kept", &[0, 3], 1, Values::Distinct(0.5)),
            along("a long vector", &[LONGEST], 0, Values::Between(-9.0, 9.0)),
            along("ties, where the first wins", &[5, 7], 1, Values::Cycle(vec![1.0, 3.0, 3.0])),
            along("all equal", &[3, 8], 1, Values::Cycle(vec![-2.0])),
            along("all of the least", &[2, 3], 1, Values::Cycle(vec![f64::NEG_INFINITY])),
            along("NaN, which is larger than all", &[4, 6], 1, nan).only(DType::is_float),
            Sample::new("a transposed view", [Input::new(&[7, 4], Values::Distinct(0.5))], |c| {
                c.inputs[0].transpose()?.argmax(1)
            }),
        ])
        .errors(axis_errors(ReduceKind::ArgMax))
        .errors([ErrorCase::new("no candidates", file!(), &["argmax", "axis 1", "no elements"], |engine| {
            engine.zeros(&[2, 0], DType::F32)?.argmax(1)
        })])
}

fn mean() -> OpRecord {
    let over = |name: &str, shape: &[usize], axes: &'static [usize]| {
        Sample::new(name, [Input::new(shape, Values::Between(-LARGEST, LARGEST))], move |c| {
            c.inputs[0].mean(axes)
        })
    };
    OpRecord::new("mean", FLOATS)
        .composed()
        .tolerance_of(|dtype| {
            let sum = summed(dtype);
            Tolerance { rtol: 2.0 * sum.rtol, reason: "a sum and a division, both rounded", ..sum }
        })
        .samples([
            over("rows", &[5, 7], &[1]),
            over("all", &[5, 7], &[0, 1]),
            over("columns", &[7, 2], &[0]),
            over("nothing, kept", &[0, 3], &[1]),
            over("nothing, reduced", &[3, 0], &[1]).without_gradient(),
            over("a single element", &[1], &[0]),
        ])
        .errors([ErrorCase::new("integers", file!(), &["mean", "i32", "cast"], |engine| {
            engine.zeros(&[2], DType::I32)?.mean(&[0])
        })])
}

/// Logits lie within this of 0.
const LOGIT: f64 = 4.0;

fn log_softmax() -> OpRecord {
    let along = |name: &str, shape: &[usize], axis: usize| {
        Sample::new(name, [Input::new(shape, Values::Between(-LOGIT, LOGIT))], move |c| {
            c.inputs[0].log_softmax(axis)
        })
    };
    let far = Input::new(&[2, 3], Values::Cycle(vec![1e4, 0.0, -1e4]));
    OpRecord::new("log_softmax", FLOATS)
        .composed()
        .tolerance_of(|dtype| Tolerance {
            atol: 8.0 * LOGIT * unit_roundoff(dtype),
            rtol: 8.0 * unit_roundoff(dtype),
            reason: "four rounded steps over values of at most twice the largest logit",
        })
        .samples([
            along("rows", &[3, 10], 1),
            along("columns", &[4, 3], 0),
            along("one class", &[3, 1], 1),
            along("nothing", &[0, 4], 1),
            along("the middle", &[2, 3, 2], 1),
            Sample::new("logits whose exponentials overflow", [far], |c| c.inputs[0].log_softmax(1)),
        ])
        .errors([
            ErrorCase::new("an axis that is not there", file!(), &["log_softmax", "axis 1"], |engine| {
                engine.zeros(&[3], DType::F32)?.log_softmax(1)
            }),
            ErrorCase::new("integers", file!(), &["log_softmax", "i32", "cast"], |engine| {
                engine.zeros(&[3], DType::I32)?.log_softmax(0)
            }),
        ])
}

fn cross_entropy() -> OpRecord {
    let of = |name: &str, batch: usize, classes: usize, labels: &[f64]| {
        let logits = Input::new(&[batch, classes], Values::Between(-LOGIT, LOGIT));
        let labels = Input::of(DType::I32, &[batch], Values::Cycle(labels.to_vec()));
        Sample::new(name, [logits, labels], |c| c.inputs[0].cross_entropy(&c.inputs[1]))
    };
    OpRecord::new("cross_entropy", FLOATS)
        .composed()
        .tolerance_of(|_| Tolerance {
            atol: 64.0 * LOGIT * unit_roundoff(DType::F32),
            rtol: 0.0,
            reason: "computed in f32: a log_softmax of each row, then their mean",
        })
        .samples([
            of("ten classes", 5, 10, &[3.0, 0.0, 9.0]),
            of("one class", 4, 1, &[0.0]),
            of("one row", 1, 7, &[6.0]),
            of("labels outside of the classes", 4, 3, &[-1.0, 3.0, 1.0]),
            of("nothing", 0, 3, &[0.0]),
        ])
        .errors([
            ErrorCase::new(
                "labels of another length",
                file!(),
                &["cross_entropy", "[2, 3]", "[4]"],
                |engine| engine.zeros(&[2, 3], DType::F32)?.cross_entropy(&engine.zeros(&[4], DType::I32)?),
            ),
            ErrorCase::new("labels of floats", file!(), &["cross_entropy", "i32", "f32"], |engine| {
                engine.zeros(&[2, 3], DType::F32)?.cross_entropy(&engine.zeros(&[2], DType::F32)?)
            }),
            ErrorCase::new("logits without a batch", file!(), &["cross_entropy", "[3]"], |engine| {
                engine.zeros(&[3], DType::F32)?.cross_entropy(&engine.zeros(&[3], DType::I32)?)
            }),
        ])
}

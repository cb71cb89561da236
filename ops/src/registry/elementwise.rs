//! Records of the elementwise ops.

use super::sample::{Call, Input, Sample, Values};
use super::{ErrorCase, FLOATS, OpRecord, Tolerance, rounded, underflow, unit_roundoff};
use crate::cluster::{BinaryOp, CompareOp, UnaryOp};
use crate::{DType, Operand, Result, Tensor};
use halite_hal::Scalar;

/// Values at which the numerics policy speaks; the last two are subnormal in f32 and too large for f16.
const SPECIAL: [f64; 12] =
    [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, 1e-40, 1e5];
/// Both ends of every integer range (casts saturate), and what is next to 0.
const EXTREMES: [f64; 7] = [f64::INFINITY, f64::NEG_INFINITY, 0.0, 1.0, -1.0, 2.0, -2.0];
/// Places of two-operand samples; combined with a cycle of another length, every pair occurs.
const PAIRS: usize = 132;

pub(super) fn records() -> Vec<OpRecord> {
    let mut records: Vec<OpRecord> = UnaryOp::ALL.map(unary).into();
    records.extend(BinaryOp::ALL.map(binary));
    records.extend(CompareOp::ALL.map(compare));
    records.extend([select(), cast(), bitcast(), relu(), stop_gradient()]);
    records
}

fn small(dtype: DType) -> bool {
    dtype.size() <= 4
}

/// One call on inputs that are dense, views, degenerate and long.
pub(super) fn shaped_samples(
    values: Values,
    call: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + Clone + 'static,
) -> Vec<Sample> {
    type View = fn(&Tensor) -> Result<Tensor>;
    let views: [(&str, &[usize], View); 11] = [
        ("matrix", &[5, 3], |x| Ok(x.clone())),
        ("nothing", &[0], |x| Ok(x.clone())),
        ("an empty axis", &[3, 0, 2], |x| x.permute(&[2, 0, 1])),
        ("a single element without axes", &[], |x| Ok(x.clone())),
        ("axes of extent 1", &[1, 1, 1], |x| Ok(x.clone())),
        ("a prime length", &[7], |x| Ok(x.clone())),
        ("a transposed view", &[3, 5], |x| x.transpose()),
        ("a broadcast view", &[4, 1], |x| x.broadcast_to(&[2, 4, 3])),
        ("every second element", &[11], |x| x.slice(&[1], &[10], &[2])),
        ("a flipped view", &[2, 5], |x| x.flip(&[1])),
        ("a long vector", &[1031], |x| Ok(x.clone())),
    ];
    views
        .into_iter()
        .map(|(name, shape, view)| {
            let call = call.clone();
            Sample::new(name, [Input::new(shape, values.clone())], move |c| call(&view(&c.inputs[0])?))
        })
        .collect()
}

fn unary(op: UnaryOp) -> OpRecord {
    let values = match op {
        UnaryOp::Abs | UnaryOp::Sign => Values::AwayFromZero(0.1, 5.0),
        UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Rsqrt => Values::Between(0.1, 9.0),
        UnaryOp::Sin | UnaryOp::Cos => Values::Between(-9.0, 9.0),
        _ => Values::Between(-4.0, 4.0),
    };
    let call = move |x: &Tensor| x.unary(op);
    let special = |name, values: &[f64]| {
        let input = Input::new(&[values.len()], Values::Cycle(values.to_vec()));
        Sample::new(name, [input], move |c: Call<'_>| c.inputs[0].unary(op)).without_gradient()
    };
    let ties = [0.5, 1.5, 2.5, -0.5, -1.5, 8388607.5, 1e10];
    let mut record = OpRecord::new(op.name(), DType::ALL.into_iter().filter(|&dtype| op.accepts(dtype)))
        .samples(shaped_samples(values, call))
        .samples([
            special("values that are not finite, zeros and subnormals", &SPECIAL).only(DType::is_float),
            special("numbers between integers", &ties).only(DType::is_float),
            special("the ends of the range", &EXTREMES).only(|dtype| !dtype.is_float() && small(dtype)),
        ])
        .errors([ErrorCase::new(
            "a dtype that it is not defined on",
            file!(),
            &[op.name(), "bool", "cast"],
            move |engine| engine.zeros(&[3], DType::Bool)?.unary(op),
        )]);
    if op == UnaryOp::Not {
        record.is_differentiable = false;
        record.errors = vec![ErrorCase::new("floats", file!(), &["not", "f32", "cast"], |engine| {
            engine.zeros(&[3], DType::F32)?.not()
        })];
    }
    match op {
        UnaryOp::Exp | UnaryOp::Log | UnaryOp::Sin | UnaryOp::Cos | UnaryOp::Tanh => {
            record.tolerance_of(transcendental)
        }
        // A reciprocal of a rounded root.
        UnaryOp::Rsqrt => record.tolerance_of(twice_rounded),
        _ => record,
    }
}

fn transcendental(dtype: DType) -> Tolerance {
    match dtype {
        DType::F32 | DType::F64 => Tolerance {
            atol: 4.0 * unit_roundoff(dtype),
            rtol: 8.0 * unit_roundoff(dtype),
            reason: "four units in the last place, and two at 1 near the zeros of a periodic function",
        },
        _ => Tolerance {
            atol: underflow(dtype) + 4.0 * unit_roundoff(DType::F32),
            rtol: unit_roundoff(dtype) + 8.0 * unit_roundoff(DType::F32),
            reason: "computed in f32 to four units in the last place, then rounded",
        },
    }
}

fn twice_rounded(dtype: DType) -> Tolerance {
    let once = rounded(dtype);
    let reason = "two operations, each correctly rounded";
    Tolerance { atol: 2.0 * once.atol, rtol: 2.0 * once.rtol + once.rtol * once.rtol, reason }
}

fn binary(op: BinaryOp) -> OpRecord {
    let (lhs, rhs) = match op {
        BinaryOp::Div => (Values::Between(-9.0, 9.0), Values::AwayFromZero(0.5, 4.0)),
        BinaryOp::Rem => (Values::Between(-9.0, 9.0), Values::AwayFromZero(0.7, 4.0)),
        BinaryOp::Pow => (Values::Between(0.2, 3.0), Values::Between(-2.0, 2.0)),
        BinaryOp::Shl | BinaryOp::Shr => (Values::Between(-90.0, 90.0), Values::Between(0.0, 7.0)),
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => {
            (Values::Between(-90.0, 90.0), Values::Between(-90.0, 90.0))
        }
        _ => (Values::Between(-3.0, 3.0), Values::Between(-3.0, 3.0)),
    };
    let pair = |name: &str, left: &[usize], right: &[usize]| {
        let inputs = [Input::new(left, lhs.clone()), Input::new(right, rhs.clone())];
        Sample::new(name, inputs, move |c| c.inputs[0].binary(op, Operand::Tensor(&c.inputs[1])))
    };
    let cycles = |name: &str, left: &[f64], right: &[f64]| {
        let input = |values: &[f64]| Input::new(&[PAIRS], Values::Cycle(values.to_vec()));
        Sample::new(name, [input(left), input(right)], move |c| {
            c.inputs[0].binary(op, Operand::Tensor(&c.inputs[1]))
        })
        .without_gradient()
    };
    let views = {
        let inputs = [Input::new(&[3, 5], lhs.clone()), Input::new(&[5, 1], rhs.clone())];
        Sample::new("a transposed and a flipped, broadcast view", inputs, move |c| {
            c.inputs[0].transpose()?.binary(op, Operand::Tensor(&c.inputs[1].flip(&[0])?))
        })
    };
    let number = Sample::new("a number", [Input::new(&[2, 5], lhs.clone())], move |c| {
        c.inputs[0].binary(op, Operand::Number(2.0))
    });
    let itself = Sample::new("a tensor with itself", [Input::new(&[7], rhs.clone())], move |c| {
        c.inputs[0].binary(op, Operand::Tensor(&c.inputs[0]))
    });
    // Where both operands are one, extremes tie, and a remainder or a negative base jumps.
    let itself = match op {
        BinaryOp::Max | BinaryOp::Min | BinaryOp::Rem | BinaryOp::Pow => itself.without_gradient(),
        _ => itself,
    };
    let shifts = [0.0, 1.0, 7.0, 8.0, 15.0, 16.0, 31.0, 32.0, 40.0, 63.0, 64.0, 127.0, -1.0];
    let is_shift = matches!(op, BinaryOp::Shl | BinaryOp::Shr);
    let right_extremes =
        if is_shift { &shifts[..] } else { &[1.0, -1.0, 0.0, 3.0, f64::INFINITY, f64::NEG_INFINITY] };
    let record = OpRecord::new(op.name(), DType::ALL.into_iter().filter(|&dtype| op.accepts(dtype)))
        .samples([
            pair("matrices", &[5, 3], &[5, 3]),
            pair("nothing", &[0, 4], &[0, 4]),
            pair("nothing by broadcast", &[0, 4], &[1, 4]),
            pair("single elements without axes", &[], &[]),
            pair("a row on each row", &[4, 3], &[3]),
            pair("a column and a row", &[4, 1], &[1, 3]),
            pair("a single element on the left", &[], &[2, 3]),
            pair("long vectors", &[1031], &[1031]),
            views,
            number,
            itself,
            cycles("values that are not finite, zeros and subnormals", &SPECIAL, &SPECIAL[..11])
                .only(DType::is_float),
            cycles("the ends of the range", &EXTREMES, right_extremes)
                .only(|dtype| dtype.is_integer() && small(dtype)),
        ])
        .errors([
            ErrorCase::new(
                "shapes that do not broadcast",
                file!(),
                &[op.name(), "[2, 3]", "[2]", "broadcast"],
                {
                    move |engine| {
                        let dtype = accepted(op);
                        let (a, b) = (engine.zeros(&[2, 3], dtype)?, engine.zeros(&[2], dtype)?);
                        a.binary(op, Operand::Tensor(&b))
                    }
                },
            ),
            ErrorCase::new("operands of two dtypes", file!(), &[op.name(), "u16", "cast"], move |engine| {
                let (a, b) = (engine.zeros(&[2], accepted(op))?, engine.zeros(&[2], DType::U16)?);
                a.binary(op, Operand::Tensor(&b))
            }),
            ErrorCase::new(
                "a dtype that it is not defined on",
                file!(),
                &[op.name(), "cast"],
                move |engine| {
                    let refused =
                        DType::ALL.into_iter().find(|&dtype| !op.accepts(dtype)).unwrap_or(DType::Bool);
                    engine.zeros(&[2], refused)?.binary(op, Operand::Number(1.0))
                },
            ),
        ]);
    match op {
        BinaryOp::Pow => record.tolerance_of(|dtype| {
            let near = transcendental(dtype);
            let rtol = near.rtol + 8.0 * unit_roundoff(DType::F32).max(unit_roundoff(dtype));
            let rtol = if dtype == DType::F64 { 16.0 * unit_roundoff(dtype) } else { rtol };
            Tolerance { rtol, reason: "eight units in the last place of f32 or of the dtype", ..near }
        }),
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => {
            record.not_differentiable()
        }
        _ => record,
    }
}

fn accepted(op: BinaryOp) -> DType {
    if op.accepts(DType::F32) { DType::F32 } else { DType::I32 }
}

fn compare(op: CompareOp) -> OpRecord {
    let pair = |name: &str, left: &[usize], right: &[usize], values: Values| {
        let inputs = [Input::new(left, values.clone()), Input::new(right, values)];
        Sample::new(name, inputs, move |c| c.inputs[0].compare(op, Operand::Tensor(&c.inputs[1])))
    };
    let input = |values: &[f64]| Input::new(&[PAIRS], Values::Cycle(values.to_vec()));
    let call = move |c: Call<'_>| c.inputs[0].compare(op, Operand::Tensor(&c.inputs[1]));
    OpRecord::new(op.name(), DType::ALL)
        .not_differentiable()
        .samples([
            pair("matrices", &[5, 3], &[5, 3], Values::Between(-2.0, 2.0)),
            pair("ties", &[4, 3], &[3], Values::Cycle(vec![1.0, 2.0])),
            pair("nothing", &[0], &[1], Values::Between(-2.0, 2.0)),
            pair("single elements without axes", &[], &[], Values::Cycle(vec![1.0])),
            pair("long vectors", &[1031], &[1031], Values::Between(-2.0, 2.0)),
            Sample::new(
                "a transposed view and a number",
                [Input::new(&[3, 5], Values::Between(0.0, 3.0))],
                move |c| c.inputs[0].transpose()?.compare(op, Operand::Number(1.0)),
            ),
            Sample::new(
                "values that are not finite, zeros and subnormals",
                [input(&SPECIAL), input(&SPECIAL[..11])],
                call,
            )
            .only(DType::is_float),
            Sample::new("the ends of the range", [input(&EXTREMES), input(&EXTREMES[..6])], call)
                .only(|dtype| dtype.is_integer() && small(dtype)),
        ])
        .errors([
            ErrorCase::new(
                "shapes that do not broadcast",
                file!(),
                &[op.name(), "[3]", "[2]"],
                move |engine| {
                    let (a, b) = (engine.zeros(&[3], DType::F32)?, engine.zeros(&[2], DType::F32)?);
                    a.compare(op, Operand::Tensor(&b))
                },
            ),
            ErrorCase::new("operands of two dtypes", file!(), &[op.name(), "f32", "i32"], move |engine| {
                let (a, b) = (engine.zeros(&[3], DType::F32)?, engine.zeros(&[3], DType::I32)?);
                a.compare(op, Operand::Tensor(&b))
            }),
        ])
}

fn select() -> OpRecord {
    let triple = |name: &str, shapes: [&[usize]; 3]| {
        let value = |shape| Input::new(shape, Values::Between(-3.0, 3.0));
        let condition = Input::of(DType::Bool, shapes[0], Values::Between(0.0, 1.0));
        Sample::new(name, [condition, value(shapes[1]), value(shapes[2])], |c| {
            c.inputs[0].select(&c.inputs[1], &c.inputs[2])
        })
    };
    let special = Input::new(&[SPECIAL.len()], Values::Cycle(SPECIAL.to_vec()));
    let condition = Input::of(DType::Bool, &[SPECIAL.len()], Values::Cycle(vec![1.0, 0.0, 0.0]));
    OpRecord::new("select", DType::ALL)
        .samples([
            triple("matrices", [&[5, 3], &[5, 3], &[5, 3]]),
            triple("nothing", [&[0], &[0], &[0]]),
            triple("single elements without axes", [&[], &[], &[]]),
            triple("a row of conditions", [&[3], &[4, 3], &[4, 1]]),
            triple("one condition for all", [&[], &[7], &[7]]),
            triple("long vectors", [&[1031], &[1031], &[1]]),
            Sample::new("a branch that is not taken is not looked at", [condition, special], |c| {
                let zero = c.inputs[1].full_like(0.0);
                c.inputs[0].select(&c.inputs[1], &zero)
            })
            .only(DType::is_float)
            .without_gradient(),
        ])
        .errors([
            ErrorCase::new("a condition of floats", file!(), &["select", "f32", "compare first"], |engine| {
                let x = engine.zeros(&[2], DType::F32)?;
                x.select(&x, &x)
            }),
            ErrorCase::new("branches of two dtypes", file!(), &["select", "f32", "i32"], |engine| {
                let condition = engine.zeros(&[2], DType::Bool)?;
                condition.select(&engine.zeros(&[2], DType::F32)?, &engine.zeros(&[2], DType::I32)?)
            }),
            ErrorCase::new("shapes that do not broadcast", file!(), &["select", "[4]", "[2, 3]"], |engine| {
                let x = engine.zeros(&[2, 3], DType::F32)?;
                engine.zeros(&[4], DType::Bool)?.select(&x, &x)
            }),
        ])
}

fn cast() -> OpRecord {
    let to = |target: DType| {
        let call = move |c: Call<'_>| c.inputs[0].cast(target);
        let input = |values: &[f64]| Input::new(&[values.len()], Values::Cycle(values.to_vec()));
        let halves = [0.5, 1.5, 2.5, -0.5, -1.5, 254.5, 1e10, -1e10, 1.0009765625, 65519.0, 65520.0];
        let samples = [
            Sample::new(
                format!("a matrix to {target}"),
                [Input::new(&[5, 3], Values::Between(-9.0, 9.0))],
                call,
            ),
            Sample::new(
                format!("a transposed view to {target}"),
                [Input::new(&[3, 5], Values::Between(0.0, 9.0))],
                move |c| c.inputs[0].transpose()?.cast(target),
            ),
            Sample::new(format!("nothing to {target}"), [Input::new(&[0], Values::Between(0.0, 1.0))], call),
            Sample::new(format!("numbers between numbers to {target}"), [input(&halves)], call)
                .without_gradient()
                .only(DType::is_float),
            Sample::new(
                format!("values that are not finite, zeros and subnormals to {target}"),
                [input(&SPECIAL)],
                call,
            )
            .without_gradient()
            .only(DType::is_float),
            Sample::new(format!("the ends of the range to {target}"), [input(&EXTREMES)], call)
                .without_gradient()
                .only(|dtype| !dtype.is_float() && small(dtype)),
        ];
        samples.map(|sample| if target.is_float() { sample } else { sample.without_gradient() })
    };
    OpRecord::new("cast", DType::ALL).samples(DType::ALL.into_iter().flat_map(to))
}

fn bitcast() -> OpRecord {
    // One sample a target; each serves the other dtypes of its size.
    let to = |target: DType, serves: fn(DType) -> bool| {
        let call = move |c: Call<'_>| c.inputs[0].bitcast(target);
        [
            Sample::new(
                format!("a matrix to {target}"),
                [Input::new(&[5, 3], Values::Between(-90.0, 90.0))],
                call,
            )
            .only(serves),
            Sample::new(
                format!("a flipped view to {target}"),
                [Input::new(&[7], Values::Between(1.0, 90.0))],
                move |c| c.inputs[0].flip(&[0])?.bitcast(target),
            )
            .only(serves),
        ]
    };
    let one: fn(DType) -> bool = |dtype| dtype.size() == 1 && dtype != DType::Bool;
    let samples = [
        to(DType::I8, one),
        to(DType::U8, one),
        to(DType::I16, |dtype| dtype.size() == 2),
        to(DType::U16, |dtype| dtype.size() == 2),
        to(DType::F16, |dtype| dtype.size() == 2),
        to(DType::BF16, |dtype| dtype.size() == 2),
        to(DType::I32, |dtype| dtype.size() == 4),
        to(DType::U32, |dtype| dtype.size() == 4),
        to(DType::F32, |dtype| dtype.size() == 4),
        to(DType::U64, |dtype| dtype.size() == 8),
        to(DType::F64, |dtype| dtype.size() == 8),
    ];
    OpRecord::new("bitcast", DType::ALL.into_iter().filter(|&dtype| dtype != DType::Bool))
        .not_differentiable()
        .samples(samples.into_iter().flatten())
        .errors([
            ErrorCase::new("another size", file!(), &["bitcast", "f32", "f16", "sizes"], |engine| {
                engine.zeros(&[2], DType::F32)?.bitcast(DType::F16)
            }),
            ErrorCase::new("to bool, which has two values", file!(), &["bitcast", "u8", "bool"], |engine| {
                engine.zeros(&[2], DType::U8)?.bitcast(DType::Bool)
            }),
        ])
}

fn relu() -> OpRecord {
    let special = Input::new(&[SPECIAL.len()], Values::Cycle(SPECIAL.to_vec()));
    OpRecord::new("relu", FLOATS)
        .composed()
        .samples(shaped_samples(Values::AwayFromZero(0.1, 3.0), |x| x.relu()))
        .samples([Sample::new("values that are not finite, zeros and subnormals", [special], |c| {
            c.inputs[0].relu()
        })
        .without_gradient()])
        .errors([ErrorCase::new("integers", file!(), &["relu", "i32", "cast"], |engine| {
            engine.zeros(&[2], DType::I32)?.relu()
        })])
}

fn stop_gradient() -> OpRecord {
    OpRecord::new("stop_gradient", DType::ALL)
        .not_differentiable()
        .samples(shaped_samples(Values::Between(-3.0, 3.0), |x| Ok(x.stop_gradient())))
        .samples([Sample::new("a runtime scalar", [], |c| {
            Ok(c.engine.runtime_scalar(Scalar::F32(1.5))?.stop_gradient())
        })
        .only(|dtype| dtype == DType::F32)])
}

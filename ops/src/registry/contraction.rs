//! Records of the contractions.

use super::sample::{Call, Input, Sample, Values};
use super::{ErrorCase, OpRecord, Tolerance, unit_roundoff};
use crate::{ConvOptions, DType, DotAxes, Result, Tensor, vector_jacobian_product};

/// Products of one sum in the longest sample; operands lie within -1..1.
const LONGEST: usize = 307;

pub(super) fn records() -> Vec<OpRecord> {
    vec![
        matmul(),
        dot_general(),
        conv(),
        conv_gradient("conv_input_gradient", 0),
        conv_gradient("conv_filter_gradient", 1),
    ]
}

/// What accumulates: products of numbers of at most 1.
fn accumulated(dtype: DType) -> Tolerance {
    if !dtype.is_float() {
        return Tolerance::EXACT;
    }
    let accumulator = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Tolerance {
        atol: LONGEST as f64 * unit_roundoff(accumulator),
        rtol: 2.0 * unit_roundoff(dtype),
        reason: "307 products of at most 1, accumulated in f32 or f64 in any order, then rounded",
    }
}

fn numbers() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|&dtype| dtype != DType::Bool)
}

/// Within -1..1 for floats; whole numbers for integers, which wrap.
fn input(shape: &[usize]) -> Input {
    Input::new(shape, Values::Between(-1.0, 1.0))
}

fn matmul() -> OpRecord {
    let product = |name: &str, left: &[usize], right: &[usize]| {
        Sample::new(name, [input(left), input(right)], |c| c.inputs[0].matmul(&c.inputs[1]))
    };
    type View = fn(&Tensor) -> Result<Tensor>;
    let of = |name: &str, left: (&[usize], View), right: (&[usize], View)| {
        let (a, b) = (left.1, right.1);
        Sample::new(name, [input(left.0), input(right.0)], move |c| {
            a(&c.inputs[0])?.matmul(&b(&c.inputs[1])?)
        })
    };
    let dense: View = |x| Ok(x.clone());
    let special = |shape: &[usize], values: &[f64]| Input::new(shape, Values::Cycle(values.to_vec()));
    OpRecord::new("matmul", numbers())
        .composed()
        .tolerance_of(accumulated)
        .samples([
            product("small matrices", &[2, 3], &[3, 4]),
            product("single elements", &[1, 1], &[1, 1]),
            product("nothing to sum", &[2, 0], &[0, 3]),
            product("no rows", &[0, 3], &[3, 2]),
            product("no columns", &[2, 3], &[3, 0]),
            product("primes", &[7, 13], &[13, 5]),
            product("a row and a column", &[1, 17], &[17, 1]),
            product("a column and a row", &[5, 1], &[1, 6]),
            product("larger than a tile", &[67, 71], &[71, 35]),
            product("a long sum", &[3, LONGEST], &[LONGEST, 2]),
            product("batches", &[2, 3, 4], &[2, 4, 5]),
            product("two batch axes", &[2, 3, 2, 3], &[2, 3, 3, 2]),
            product("no batches", &[0, 2, 3], &[0, 3, 2]),
            product("one matrix for every batch", &[2, 3, 4], &[4, 2]),
            of("transposed operands", (&[3, 5], |x| x.transpose()), (&[4, 3], |x| x.transpose())),
            of("a flipped operand", (&[3, 5], |x| x.flip(&[0, 1])), (&[5, 2], dense)),
            of(
                "every second row and column",
                (&[6, 8], |x| x.slice(&[0, 1], &[6, 8], &[2, 2])),
                (&[4, 3], dense),
            ),
            of("a broadcast row", (&[1, 4], |x| x.broadcast_to(&[3, 4])), (&[4, 2], dense)),
            of("a broadcast batch", (&[3, 4], |x| x.broadcast_to(&[2, 3, 4])), (&[2, 4, 2], dense)),
            of("a computed operand", (&[3, 4], |x| x.mul(x)), (&[4, 2], |x| x.add(1.0))),
            of("a constant operand", (&[3, 4], |x| Ok(x.full_like(1.0))), (&[4, 2], dense))
                .without_gradient(),
            Sample::new("a matrix with itself", [input(&[4, 4])], |c| c.inputs[0].matmul(&c.inputs[0])),
            Sample::new("a matrix with its transpose", [input(&[3, 4])], |c| {
                c.inputs[0].matmul(&c.inputs[0].transpose()?)
            }),
            Sample::new(
                "values that are not finite",
                [
                    special(&[4, 3], &[1.0, f64::INFINITY, 0.0, f64::NAN, 2.0]),
                    special(&[3, 4], &[0.0, 1.0, f64::NEG_INFINITY, 1.0]),
                ],
                |c| c.inputs[0].matmul(&c.inputs[1]),
            )
            .only(DType::is_float)
            .without_gradient(),
        ])
        .errors([
            ErrorCase::new("inner extents that differ", file!(), &["matmul", "[2, 3]", "[4, 5]"], |engine| {
                engine.zeros(&[2, 3], DType::F32)?.matmul(&engine.zeros(&[4, 5], DType::F32)?)
            }),
            ErrorCase::new("a vector", file!(), &["matmul", "[3]", "[3, 2]"], |engine| {
                engine.zeros(&[3], DType::F32)?.matmul(&engine.zeros(&[3, 2], DType::F32)?)
            }),
            ErrorCase::new("batches that differ", file!(), &["matmul", "[2, 3, 4]", "[3, 4, 5]"], |engine| {
                engine.zeros(&[2, 3, 4], DType::F32)?.matmul(&engine.zeros(&[3, 4, 5], DType::F32)?)
            }),
            ErrorCase::new("operands of two dtypes", file!(), &["f32", "f16", "cast"], |engine| {
                engine.zeros(&[2, 3], DType::F32)?.matmul(&engine.zeros(&[3, 2], DType::F16)?)
            }),
            ErrorCase::new("bool", file!(), &["bool", "cast"], |engine| {
                engine.zeros(&[2, 2], DType::Bool)?.matmul(&engine.zeros(&[2, 2], DType::Bool)?)
            }),
        ])
}

fn axes(contract: [&[usize]; 2], batch: [&[usize]; 2]) -> DotAxes {
    DotAxes {
        lhs_contract: contract[0].to_vec(),
        rhs_contract: contract[1].to_vec(),
        lhs_batch: batch[0].to_vec(),
        rhs_batch: batch[1].to_vec(),
    }
}

fn dot_general() -> OpRecord {
    let over = |name: &str, shapes: [&[usize]; 2], axes: DotAxes| {
        Sample::new(name, shapes.map(input), move |c| c.inputs[0].dot_general(&c.inputs[1], &axes, c.dtype))
    };
    let widened =
        |c: Call<'_>| c.inputs[0].dot_general(&c.inputs[1], &axes([&[1], &[0]], [&[], &[]]), DType::F32);
    OpRecord::new("dot_general", numbers())
        .tolerance_of(accumulated)
        .samples([
            over("vectors", [&[5], &[5]], axes([&[0], &[0]], [&[], &[]])),
            over("an outer product", [&[3], &[4]], axes([&[], &[]], [&[], &[]])),
            over("an elementwise product", [&[3, 4], &[3, 4]], axes([&[], &[]], [&[0, 1], &[0, 1]])),
            over("single elements without axes", [&[], &[]], axes([&[], &[]], [&[], &[]])),
            over("two contracted axes", [&[2, 3, 4], &[3, 4, 5]], axes([&[1, 2], &[0, 1]], [&[], &[]])),
            over(
                "contracted axes in another order",
                [&[2, 3, 4], &[4, 3, 5]],
                axes([&[1, 2], &[1, 0]], [&[], &[]]),
            ),
            over(
                "contracted axes around the free one",
                [&[3, 2, 4], &[3, 4]],
                axes([&[0, 2], &[0, 1]], [&[], &[]]),
            ),
            over(
                "contracted axes listed backwards",
                [&[4, 3, 2], &[3, 4]],
                axes([&[1, 0], &[0, 1]], [&[], &[]]),
            ),
            over(
                "batch axes at different places",
                [&[3, 2, 4], &[4, 5, 2]],
                axes([&[2], &[0]], [&[1], &[2]]),
            ),
            over(
                "batch axes in another order",
                [&[2, 3, 4], &[3, 2, 4]],
                axes([&[2], &[2]], [&[0, 1], &[1, 0]]),
            ),
            over("free axes around a contracted one", [&[2, 5, 3], &[5, 2]], axes([&[1], &[0]], [&[], &[]])),
            over(
                "nothing along one of two axes",
                [&[2, 3, 0], &[3, 0, 4]],
                axes([&[1, 2], &[0, 1]], [&[], &[]]),
            ),
            over(
                "nothing along the first of two axes",
                [&[2, 0, 3], &[0, 3, 4]],
                axes([&[1, 2], &[0, 1]], [&[], &[]]),
            ),
            over("nothing in a batch", [&[0, 2, 3], &[0, 3, 2]], axes([&[2], &[1]], [&[0], &[0]])),
            over("axes of extent 1", [&[1, 3, 1], &[1, 3, 1]], axes([&[1, 2], &[1, 2]], [&[0], &[0]])),
            Sample::new("the accumulator of 16-bit floats", [input(&[5, 19]), input(&[19, 3])], widened)
                .only(|dtype| matches!(dtype, DType::F16 | DType::BF16 | DType::F32)),
        ])
        .errors([
            ErrorCase::new(
                "contracted extents that differ",
                file!(),
                &["dot_general", "contracted", "[3]", "[4]"],
                {
                    |engine| {
                        let (a, b) = (engine.zeros(&[2, 3], DType::F32)?, engine.zeros(&[4, 5], DType::F32)?);
                        a.dot_general(&b, &axes([&[1], &[0]], [&[], &[]]), DType::F32)
                    }
                },
            ),
            ErrorCase::new("an axis that is not there", file!(), &["dot_general", "axis 2"], |engine| {
                let a = engine.zeros(&[2, 3], DType::F32)?;
                a.dot_general(&a, &axes([&[2], &[0]], [&[], &[]]), DType::F32)
            }),
            ErrorCase::new("an axis in two roles", file!(), &["dot_general", "twice"], |engine| {
                let a = engine.zeros(&[2, 2], DType::F32)?;
                a.dot_general(&a, &axes([&[1], &[1]], [&[1], &[1]]), DType::F32)
            }),
            ErrorCase::new("a result of another dtype", file!(), &["dot_general", "f32", "f16"], |engine| {
                let a = engine.zeros(&[2], DType::F32)?;
                a.dot_general(&a, &axes([&[0], &[0]], [&[], &[]]), DType::F16)
            }),
        ])
}

/// Shapes and options of the convolutions that the forward op and both gradients are tried with.
fn convolutions() -> Vec<(&'static str, [&'static [usize]; 2], ConvOptions)> {
    let plain = ConvOptions::padded;
    let strided = ConvOptions { stride: vec![2, 3], ..plain(2, 1) };
    let dilated =
        ConvOptions { dilation: vec![2, 1], pad_low: vec![2, 0], pad_high: vec![0, 1], ..plain(2, 0) };
    let grouped = ConvOptions { groups: 2, ..plain(2, 1) };
    let depthwise = ConvOptions { groups: 3, ..plain(1, 1) };
    let far = ConvOptions { pad_low: vec![4], pad_high: vec![5], ..plain(1, 0) };
    vec![
        ("images", [&[2, 3, 5, 5], &[4, 3, 3, 3]], plain(2, 1)),
        ("one axis", [&[1, 2, 7], &[3, 2, 2]], plain(1, 0)),
        ("three axes", [&[1, 2, 3, 3, 3], &[2, 2, 2, 2, 2]], plain(3, 0)),
        ("a filter of one element", [&[2, 3, 2, 3], &[2, 3, 1, 1]], plain(2, 0)),
        ("a filter as large as the input", [&[1, 2, 3, 4], &[2, 2, 3, 4]], plain(2, 0)),
        ("strides that leave a rest", [&[1, 2, 6, 8], &[2, 2, 3, 2]], strided),
        ("dilation and one-sided padding", [&[1, 2, 6, 4], &[2, 2, 3, 2]], dilated),
        ("groups", [&[1, 4, 4, 4], &[6, 2, 3, 3]], grouped),
        ("a group for each channel", [&[2, 3, 5], &[6, 1, 3]], depthwise),
        ("padding wider than the filter", [&[1, 1, 3], &[1, 1, 2]], far),
        ("no images", [&[0, 2, 4, 4], &[3, 2, 3, 3]], plain(2, 0)),
        ("no channels", [&[1, 0, 4, 4], &[2, 0, 3, 3]], plain(2, 0)),
        ("no output channels", [&[1, 2, 4, 4], &[0, 2, 3, 3]], plain(2, 0)),
        ("larger than a tile", [&[1, 5, 9, 11], &[35, 5, 3, 3]], plain(2, 1)),
    ]
}

fn conv() -> OpRecord {
    let samples = convolutions().into_iter().map(|(name, shapes, options)| {
        Sample::new(name, shapes.map(input), move |c| c.inputs[0].conv(&c.inputs[1], &options))
    });
    let transposed = Sample::new("a transposed view", [input(&[2, 5, 4, 3]), input(&[2, 3, 3, 3])], |c| {
        c.inputs[0].permute(&[0, 3, 2, 1])?.conv2d(&c.inputs[1], 1)
    });
    OpRecord::new("conv", numbers()).tolerance_of(accumulated).samples(samples).samples([transposed]).errors(
        [
            ErrorCase::new(
                "channels that differ",
                file!(),
                &["conv", "[1, 3, 4, 4]", "3 channels", "takes 2"],
                {
                    |engine| {
                        let x = engine.zeros(&[1, 3, 4, 4], DType::F32)?;
                        x.conv2d(&engine.zeros(&[2, 2, 3, 3], DType::F32)?, 0)
                    }
                },
            ),
            ErrorCase::new(
                "a filter larger than the input",
                file!(),
                &["conv", "reaches over 5", "has 4"],
                |engine| {
                    let x = engine.zeros(&[1, 1, 4, 4], DType::F32)?;
                    x.conv2d(&engine.zeros(&[1, 1, 5, 5], DType::F32)?, 0)
                },
            ),
            ErrorCase::new("a stride of 0", file!(), &["conv", "at least 1"], |engine| {
                let x = engine.zeros(&[1, 1, 4], DType::F32)?;
                let options = ConvOptions { stride: vec![0], ..ConvOptions::padded(1, 0) };
                x.conv(&engine.zeros(&[1, 1, 2], DType::F32)?, &options)
            }),
            ErrorCase::new(
                "options for another number of axes",
                file!(),
                &["conv", "2 spatial axes"],
                |engine| {
                    let x = engine.zeros(&[1, 1, 4, 4], DType::F32)?;
                    x.conv(&engine.zeros(&[1, 1, 2, 2], DType::F32)?, &ConvOptions::padded(1, 0))
                },
            ),
            ErrorCase::new("operands of two dtypes", file!(), &["conv", "f32", "f16"], |engine| {
                let x = engine.zeros(&[1, 1, 4, 4], DType::F32)?;
                x.conv2d(&engine.zeros(&[1, 1, 2, 2], DType::F16)?, 0)
            }),
            ErrorCase::new("no spatial axis", file!(), &["conv", "[1, 1]"], |engine| {
                let x = engine.zeros(&[1, 1], DType::F32)?;
                x.conv(&x, &ConvOptions::padded(0, 0))
            }),
        ],
    )
}

/// The convolution solved for its input or its filter, as a gradient is: inputs are input, filter and cotangent.
fn conv_gradient(name: &'static str, wrt: usize) -> OpRecord {
    let samples = convolutions().into_iter().map(|(name, [x, w], options)| {
        let out: Vec<usize> = (2..x.len())
            .map(|axis| {
                let spatial = axis - 2;
                let padded = x[axis] + options.pad_low[spatial] + options.pad_high[spatial];
                (padded - (w[axis] - 1) * options.dilation[spatial] - 1) / options.stride[spatial] + 1
            })
            .collect();
        let out = [&[x[0], w[0]][..], &out].concat();
        Sample::new(name, [input(x), input(w), input(&out)], move |c| {
            let y = c.inputs[0].conv(&c.inputs[1], &options)?;
            Ok(vector_jacobian_product(&y, &c.inputs[2], &[&c.inputs[wrt]])?.swap_remove(0))
        })
    });
    OpRecord::new(name, super::FLOATS).tolerance_of(accumulated).samples(samples)
}

//! Records of the sliding windows. Scatter, gather and spread are reached through gradients.

use super::sample::{Call, Input, Sample, Values};
use super::{ErrorCase, FLOATS, OpRecord, Tolerance, rounded, unit_roundoff};
use crate::{DType, Result, Tensor, WindowAttributes, vector_jacobian_product};

pub(super) fn records() -> Vec<OpRecord> {
    let max = |c: &[Tensor], a: &WindowAttributes| c[0].window_max(a);
    let sum = |c: &[Tensor], a: &WindowAttributes| c[0].window_sum(a);
    // Inputs behind x: a cotangent like the windows, then one like x.
    let scatter = |c: &[Tensor], a: &WindowAttributes| pulled(&c[0].window_max(a)?, &c[1], &c[0]);
    let gather = |c: &[Tensor], a: &WindowAttributes| {
        let scattered = pulled(&c[0].window_max(a)?, &c[1], &c[0])?;
        pulled(&scattered, &c[2], &c[1])
    };
    // Distinct elements in place of ties, at which the derivative of the largest does not exist.
    let (distinct, any) = (Values::Distinct(0.25), Values::Between(-3.0, 3.0));
    let spread = |c: &[Tensor], a: &WindowAttributes| pulled(&c[0].window_sum(a)?, &c[1], &c[0]);
    vec![
        record("window_max", distinct.clone(), 1, rounded, max)
            .samples(specials(max))
            .errors(errors("window_max")),
        record("window_sum", any.clone(), 1, added, sum).samples(specials(sum)).errors(errors("window_sum")),
        record("window_scatter", distinct.clone(), 2, added, scatter),
        record("window_gather", distinct, 3, rounded, gather),
        record("window_spread", any, 2, added, spread),
    ]
}

fn pulled(output: &Tensor, cotangent: &Tensor, wrt: &Tensor) -> Result<Tensor> {
    Ok(vector_jacobian_product(output, cotangent, &[wrt])?.swap_remove(0))
}

/// Sums of at most nine elements of at most 3.
fn added(dtype: DType) -> Tolerance {
    let accumulator = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Tolerance {
        atol: 9.0 * 9.0 * 3.0 * unit_roundoff(accumulator),
        rtol: 2.0 * unit_roundoff(dtype),
        reason: "nine summands of at most 3, accumulated in f32 or f64 in any order, then rounded",
    }
}

fn attributes(
    input: &[usize],
    window: &[usize],
    stride: &[usize],
    pad_low: &[usize],
    pad_high: &[usize],
) -> WindowAttributes {
    let [input, window, stride, pad_low, pad_high] =
        [input, window, stride, pad_low, pad_high].map(<[usize]>::to_vec);
    WindowAttributes { input, window, stride, pad_low, pad_high }
}

/// Names, shapes of x, and windows.
fn windows() -> Vec<(&'static str, &'static [usize], WindowAttributes)> {
    vec![
        ("pooling by two", &[2, 3, 4, 6], attributes(&[4, 6], &[2, 2], &[2, 2], &[0, 0], &[0, 0])),
        ("windows that overlap", &[2, 5, 5], attributes(&[5, 5], &[3, 3], &[1, 1], &[0, 0], &[0, 0])),
        ("a rest that no window covers", &[7], attributes(&[7], &[2], &[3], &[0], &[0])),
        ("padding on one side", &[5, 4], attributes(&[5, 4], &[3, 2], &[2, 1], &[1, 0], &[0, 1])),
        ("padding on both sides", &[1, 3, 3], attributes(&[3, 3], &[3, 3], &[1, 1], &[1, 1], &[1, 1])),
        ("windows of one element", &[2, 3], attributes(&[3], &[1], &[1], &[0], &[0])),
        ("one window for all", &[2, 3, 3], attributes(&[3, 3], &[3, 3], &[1, 1], &[0, 0], &[0, 0])),
        ("nothing outside", &[0, 4], attributes(&[4], &[2], &[2], &[0], &[0])),
        ("nothing inside", &[2, 0], attributes(&[0], &[2], &[2], &[0], &[0])),
        ("many rows", &[37, 11], attributes(&[11], &[2], &[2], &[0], &[0])),
    ]
}

fn record(
    name: &'static str,
    x: Values,
    operands: usize,
    tolerance: fn(DType) -> Tolerance,
    call: impl Fn(&[Tensor], &WindowAttributes) -> Result<Tensor> + Send + Sync + Copy + 'static,
) -> OpRecord {
    let samples = windows().into_iter().map(|(name, shape, attributes)| {
        let outer = &shape[..shape.len() - attributes.window.len()];
        let out = [outer, &attributes.output()].concat();
        let mut inputs = vec![Input::new(shape, x.clone())];
        inputs.push(Input::new(&out, Values::Between(-3.0, 3.0)));
        inputs.push(Input::new(shape, Values::Between(-3.0, 3.0)));
        inputs.truncate(operands);
        Sample::new(name, inputs, move |c| call(c.inputs, &attributes))
    });
    OpRecord::new(name, FLOATS).tolerance_of(tolerance).samples(samples)
}

fn specials(
    call: impl Fn(&[Tensor], &WindowAttributes) -> Result<Tensor> + Send + Sync + Copy + 'static,
) -> [Sample; 3] {
    let row = |length: usize| attributes(&[length], &[3], &[2], &[1], &[1]);
    let cycle = |name: &str, length: usize, values: &[f64]| {
        let input = Input::new(&[2, length], Values::Cycle(values.to_vec()));
        Sample::new(name, [input], move |c: Call<'_>| call(c.inputs, &row(length))).without_gradient()
    };
    let view = Sample::new("a transposed view", [Input::new(&[7, 2], Values::Distinct(0.25))], move |c| {
        call(&[c.inputs[0].transpose()?], &row(7))
    });
    [
        view,
        cycle(
            "values that are not finite",
            9,
            &[1.0, f64::NAN, 2.0, f64::INFINITY, 0.0, f64::NEG_INFINITY, 1.5],
        ),
        cycle("ties", 7, &[2.0, 2.0, 1.0]),
    ]
}

fn errors(name: &'static str) -> [ErrorCase; 5] {
    let call = move |x: &Tensor, attributes: &WindowAttributes| {
        if name == "window_max" { x.window_max(attributes) } else { x.window_sum(attributes) }
    };
    [
        ErrorCase::new("integers", file!(), &[name, "i32", "cast"], move |engine| {
            call(&engine.zeros(&[4], DType::I32)?, &attributes(&[4], &[2], &[2], &[0], &[0]))
        }),
        ErrorCase::new("attributes of another shape", file!(), &[name, "[5]", "[2, 4]"], move |engine| {
            call(&engine.zeros(&[2, 4], DType::F32)?, &attributes(&[5], &[2], &[2], &[0], &[0]))
        }),
        ErrorCase::new("a stride of 0", file!(), &[name, "axis 0", "at least 1"], move |engine| {
            call(&engine.zeros(&[4], DType::F32)?, &attributes(&[4], &[2], &[0], &[0], &[0]))
        }),
        ErrorCase::new(
            "padding as wide as the window",
            file!(),
            &[name, "axis 0", "smaller"],
            move |engine| call(&engine.zeros(&[4], DType::F32)?, &attributes(&[4], &[2], &[2], &[2], &[0])),
        ),
        ErrorCase::new(
            "a window larger than the input",
            file!(),
            &[name, "5", "axis 0", "4"],
            move |engine| call(&engine.zeros(&[4], DType::F32)?, &attributes(&[4], &[5], &[1], &[0], &[0])),
        ),
    ]
}

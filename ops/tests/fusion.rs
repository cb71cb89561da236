//! Fused evaluation of whole graphs against each node evaluated alone, and against the reference in f64.

mod common;

use common::Random;
use halite_ops::reference::evaluate;
use halite_ops::{DType, Engine, Result, Tensor, eval, grad};

/// Graphs of the random test.
const GRAPHS: u64 = 300;
/// Graphs on the emulated NPU, which takes longer.
const NPU_GRAPHS: u64 = 40;
/// Nodes that are drawn per graph; each may add several.
const NODES: usize = 24;
/// Every drawn op keeps values within about -1..1 and its slope below 2, so f32's error of 6e-8 per step grows by
/// less than 1000 along a path.
const ATOL: f64 = 1e-4;

/// What a random graph may consist of.
#[derive(Clone, Copy, PartialEq)]
enum Draw {
    /// Ops whose result is rounded once: fusion must not change a bit.
    Pointwise,
    /// Sums and products of matrices too, whose order of summation is free.
    All,
}

/// Adds a random node to `nodes`. The sequence depends on the generator and the shapes alone.
fn draw(engine: &Engine, random: &mut Random, nodes: &[Tensor], what: Draw) -> Result<Tensor> {
    let pick = |random: &mut Random| nodes[nodes.len() - 1 - random.below(nodes.len().min(9))].clone();
    let x = pick(random);
    let kinds = if what == Draw::All { 20 } else { 15 };
    Ok(match random.below(kinds) {
        0 => x.neg()?,
        1 => x.abs()?,
        2 => x.tanh()?,
        3 => x.sin()?,
        4 => x.exp()?.mul(0.25)?,
        5 => x.mul(&x)?.add(1.0)?.rsqrt()?,
        // A diamond over a view of the same value, which cannot be fused point by point.
        6 if x.rank() == 2 && x.shape()[0] == x.shape()[1] => x.add(&x.transpose()?)?.mul(0.5)?,
        7 => {
            // The same expression twice.
            let (a, b) = (x.cos()?.mul(0.5)?, x.cos()?.mul(0.5)?);
            a.sub(&b)?.add(&a)?
        }
        8 => {
            let axes: Vec<usize> = (0..x.rank()).filter(|_| random.below(2) == 0).collect();
            x.flip(&axes)?
        }
        9 => {
            let mut axes: Vec<usize> = (0..x.rank()).collect();
            axes.rotate_left(random.below(x.rank().max(1)));
            x.permute(&axes)?
        }
        10 => {
            let extents: Vec<usize> = x.shape().iter().rev().copied().collect();
            x.reshape(&extents)?
        }
        11 => {
            let start: Vec<usize> = x.shape().iter().map(|&extent| random.below(extent.min(2))).collect();
            let step: Vec<usize> = x.shape().iter().map(|_| 1 + random.below(2)).collect();
            x.slice(&start, x.shape(), &step)?
        }
        12 if x.elements() < 200 => {
            let edge: Vec<i64> = x.shape().iter().map(|_| random.below(2) as i64).collect();
            x.pad(&edge, &vec![1; x.rank()], &vec![0; x.rank()], 0.5)?
        }
        13 if x.rank() > 0 => {
            let place = engine.iota(x.shape(), x.rank() - 1, DType::I32)?;
            place.rem(2)?.eq(0)?.select(&x, &x.mul(0.5)?)?
        }
        14 => x.maximum(0.125)?.minimum(0.75)?,
        15 if x.rank() > 0 => {
            let axis = random.below(x.rank());
            x.mean(&[axis])?
        }
        16 if x.rank() > 0 && x.elements() > 0 => {
            let axis = random.below(x.rank());
            let mut kept = x.shape().to_vec();
            kept[axis] = 1;
            x.sub(&x.max(&[axis])?.reshape(&kept)?)?.mul(0.5)?
        }
        17 if x.rank() == 2 && x.shape()[1] > 0 => {
            x.matmul(&x.transpose()?)?.mul(1.0 / x.shape()[1] as f64)?
        }
        _ => {
            let y = pick(random);
            let same = |y: &Tensor| y.shape() == x.shape();
            let y = if same(&y) {
                y
            } else {
                nodes.iter().rev().find(|&y| same(y)).cloned().unwrap_or(x.clone())
            };
            match random.below(3) {
                0 => x.add(&y)?.mul(0.5)?,
                1 => x.sub(&y)?.mul(0.5)?,
                _ => x.mul(&y)?,
            }
        }
    })
}

fn leaves(engine: &Engine, random: &mut Random) -> Vec<Tensor> {
    let shapes: [&[usize]; 6] = [&[4, 4], &[3, 5], &[12], &[2, 3, 2], &[1, 7], &[]];
    shapes
        .into_iter()
        .map(|shape| {
            let data: Vec<f32> =
                random.vector(shape.iter().product()).into_iter().map(|x| x as f32).collect();
            engine.tensor(&data, shape).unwrap()
        })
        .collect()
}

fn check_random_graphs(engine: &Engine, what: Draw, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        // Which nodes keep a handle, besides the last ones that nobody uses.
        let mut choice = Random(seed ^ 0xABCD);
        let mut random = Random(seed);
        let mut alone = leaves(engine, &mut random);
        let mut alone_values: Vec<Vec<f32>> = Vec::new();
        for _ in 0..NODES {
            let node = draw(engine, &mut random, &alone, what).unwrap();
            alone_values.push(node.to_vec().unwrap());
            alone.push(node);
        }
        let mut random = Random(seed);
        let mut nodes = leaves(engine, &mut random);
        let first = nodes.len();
        for _ in 0..NODES {
            nodes.push(draw(engine, &mut random, &nodes, what).unwrap());
        }
        let expected = evaluate(&nodes[first..].iter().collect::<Vec<_>>(), &[]).unwrap();
        // Drop most handles; evaluate some of the rest together, and find the others computed on the way or not.
        let kept: Vec<(usize, Tensor)> = nodes
            .drain(first..)
            .enumerate()
            .filter(|(index, _)| *index + 1 == NODES || choice.below(4) == 0)
            .collect();
        drop(nodes);
        let wanted: Vec<&Tensor> =
            kept.iter().map(|(_, tensor)| tensor).filter(|_| choice.below(2) == 0).collect();
        eval(&wanted).unwrap();
        eval(&[&kept[kept.len() - 1].1]).unwrap();
        for (index, tensor) in &kept {
            let got: Vec<f32> = tensor.to_vec().unwrap();
            let reference = &expected[*index];
            assert_eq!(tensor.shape(), reference.shape, "seed {seed}, node {index}");
            let scale = reference.data.iter().fold(1.0, |scale: f64, x| scale.max(x.abs()));
            for (place, (&got, &expected)) in got.iter().zip(&reference.data).enumerate() {
                let off = (f64::from(got) - expected).abs();
                assert!(
                    off <= ATOL * scale || (got.is_nan() && expected.is_nan()),
                    "seed {seed}, node {index}, element {place}: {got}, reference {expected}"
                );
            }
            if what == Draw::Pointwise {
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(&got),
                    bits(&alone_values[*index]),
                    "seed {seed}, node {index}: fusion changed bits"
                );
            }
        }
    }
}

#[test]
fn fusing_pointwise_and_movement_ops_does_not_change_a_bit() {
    check_random_graphs(&common::cpu(), Draw::Pointwise, 0..GRAPHS);
}

#[test]
fn random_graphs_agree_with_the_reference() {
    check_random_graphs(&common::cpu(), Draw::All, GRAPHS..2 * GRAPHS);
}

#[test]
fn random_graphs_on_the_npu_agree_with_the_reference_and_fusing_them_does_not_change_a_bit() {
    let engine = common::npu();
    check_random_graphs(&engine, Draw::Pointwise, 0..NPU_GRAPHS);
    check_random_graphs(&engine, Draw::All, GRAPHS..GRAPHS + NPU_GRAPHS);
    assert_eq!(engine.stats().fallbacks, []);
}

fn vector(engine: &Engine, elements: usize) -> Tensor {
    let data: Vec<f32> = Random(3).vector(elements).into_iter().map(|x| x as f32).collect();
    engine.tensor(&data, &[elements]).unwrap()
}

#[test]
fn a_chain_of_elementwise_ops_is_one_launch() {
    let engine = common::cpu();
    let x = vector(&engine, 1000);
    let y = x.mul(2.0).unwrap().add(1.0).unwrap().tanh().unwrap().mul(&x).unwrap();
    assert_eq!(engine.explain(&[&y]).unwrap().len(), 1);
}

#[test]
fn a_reduction_takes_its_producer_in() {
    let engine = common::cpu();
    let x = vector(&engine, 1000);
    let loss = x.mul(&x).unwrap().add(1.0).unwrap().sum_all().unwrap();
    assert_eq!(engine.explain(&[&loss]).unwrap().len(), 1);
    let expected: f64 = x.to_f64().unwrap().iter().map(|x| x * x + 1.0).sum();
    assert!((loss.item().unwrap() - expected).abs() < 1e-2);
}

#[test]
fn a_producer_with_two_readers_is_computed_once() {
    let engine = common::cpu();
    let x = vector(&engine, 64).reshape(&[8, 8]).unwrap();
    let shared = x.exp().unwrap();
    let rows = shared.sum(&[1]).unwrap();
    let columns = shared.sum(&[0]).unwrap();
    drop(shared);
    // exp, then each sum.
    assert_eq!(engine.explain(&[&rows, &columns]).unwrap().len(), 3);
    let expected = evaluate(&[&rows, &columns], &[]).unwrap();
    eval(&[&rows, &columns]).unwrap();
    for (tensor, expected) in [&rows, &columns].into_iter().zip(expected) {
        for (got, expected) in tensor.to_f64().unwrap().iter().zip(expected.data) {
            assert!((got - expected).abs() < ATOL * expected.abs());
        }
    }
}

#[test]
fn equal_subexpressions_are_computed_once() {
    let engine = common::cpu();
    let x = vector(&engine, 36).reshape(&[6, 6]).unwrap();
    // Each sum is a launch of its own; four are written, two differ.
    let sum = |axis: usize| x.exp().unwrap().sum(&[axis]).unwrap();
    let y = sum(0).add(&sum(1)).unwrap().add(&sum(0)).unwrap().add(&sum(1)).unwrap();
    assert_eq!(engine.explain(&[&y]).unwrap().iter().filter(|launch| launch.op == "reduce").count(), 2);
}

#[test]
fn runtime_scalars_of_equal_value_stay_apart() {
    let engine = common::cpu();
    let x = vector(&engine, 3);
    let scaled = |a: f32, b: f32| {
        let [a, b] = [a, b].map(|value| engine.runtime_scalar(halite_hal::Scalar::F32(value)).unwrap());
        let sum = x.mul(&a).unwrap().add(&x.mul(&b).unwrap()).unwrap();
        sum.to_f64().unwrap()
    };
    let x = x.to_f64().unwrap();
    for (a, b) in [(2.0, 2.0), (2.0, 3.0)] {
        for (got, x) in scaled(a, b).iter().zip(&x) {
            assert!((got - f64::from(a + b) * x).abs() < 1e-6);
        }
    }
}

#[test]
fn a_value_and_its_transpose_meet_in_one_graph() {
    let engine = common::cpu();
    let x = vector(&engine, 25).reshape(&[5, 5]).unwrap();
    let y = x.exp().unwrap();
    let z = y.add(&y.transpose().unwrap()).unwrap().mul(&y).unwrap();
    let expected = evaluate(&[&z], &[]).unwrap().swap_remove(0);
    for (got, expected) in z.to_f64().unwrap().iter().zip(expected.data) {
        assert!((got - expected).abs() < 1e-5, "{got} {expected}");
    }
}

#[test]
fn more_views_of_one_tensor_than_a_kernel_has_arguments() {
    for engine in [common::cpu(), common::npu()] {
        let x = vector(&engine, 300);
        let mut sum = x.narrow(0, 0, 100).unwrap();
        for start in 1..200 {
            sum = sum.add(&x.narrow(0, start, start + 100).unwrap()).unwrap();
        }
        let x = x.to_f64().unwrap();
        for (place, got) in sum.to_f64().unwrap().into_iter().enumerate() {
            let expected: f64 = x[place..place + 200].iter().sum();
            assert!((got - expected).abs() < 1e-3, "element {place}: {got}, expected {expected}");
        }
        assert_eq!(engine.stats().fallbacks, []);
    }
}

#[test]
fn more_live_handles_than_a_kernel_has_arguments() {
    for engine in [common::cpu(), common::npu()] {
        let x = vector(&engine, 10);
        let mut handles = vec![x.clone()];
        for step in 1..=150 {
            handles.push(handles[step - 1].mul(0.5).unwrap().add(&x).unwrap());
        }
        eval(&[&handles[150]]).unwrap();
        let start = x.to_f64().unwrap();
        let mut expected = start.clone();
        for handle in &handles[1..] {
            expected.iter_mut().zip(&start).for_each(|(value, x)| *value = *value * 0.5 + x);
            assert!(handle.is_settled());
            for (got, expected) in handle.to_f64().unwrap().iter().zip(&expected) {
                assert!((got - expected).abs() < 1e-5);
            }
        }
        assert_eq!(engine.stats().fallbacks, []);
    }
}

#[test]
fn more_distinct_operands_than_a_kernel_has_arguments() {
    for engine in [common::cpu(), common::npu()] {
        let inputs: Vec<Tensor> = (0..150).map(|i| engine.tensor(&[i as f32, 1.0], &[2]).unwrap()).collect();
        let sum = inputs[1..].iter().fold(inputs[0].clone(), |sum, x| sum.add(x).unwrap());
        assert_eq!(sum.to_vec::<f32>().unwrap(), [(0..150).sum::<i32>() as f32, 150.0]);
        assert_eq!(engine.stats().fallbacks, []);
    }
}

#[test]
fn gradients_of_a_fused_graph_agree_with_the_reference() {
    let engine = common::cpu();
    let x = vector(&engine, 35).reshape(&[5, 7]).unwrap();
    let w = vector(&engine, 21).reshape(&[7, 3]).unwrap();
    let hidden = x.matmul(&w).unwrap().tanh().unwrap();
    let loss = hidden.log_softmax(1).unwrap().mul(&hidden).unwrap().mean(&[0, 1]).unwrap();
    let gradients = grad(&loss, &[&x, &w]).unwrap();
    let expected = evaluate(&[&gradients[0], &gradients[1]], &[]).unwrap();
    eval(&[&loss, &gradients[0], &gradients[1]]).unwrap();
    for (gradient, expected) in gradients.iter().zip(expected) {
        for (got, expected) in gradient.to_f64().unwrap().iter().zip(expected.data) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }
}

/// Operations that an evaluation runs, in order; one may take several launches.
fn launched(engine: &Engine, tensor: &Tensor) -> Vec<String> {
    let mut ops: Vec<String> =
        engine.explain(&[tensor]).unwrap().into_iter().map(|launch| launch.op).collect();
    ops.dedup();
    ops
}

fn agrees_with_the_reference(tensor: &Tensor) {
    let expected = evaluate(&[tensor], &[]).unwrap().swap_remove(0);
    for (place, (got, expected)) in tensor.to_f64().unwrap().iter().zip(expected.data).enumerate() {
        assert!((got - expected).abs() < 1e-5, "element {place}: {got}, expected {expected}");
    }
}

#[test]
fn a_contraction_takes_in_the_bias_and_the_relu_behind_it() {
    for engine in [common::cpu(), common::npu()] {
        let x = vector(&engine, 6 * 5).reshape(&[6, 5]).unwrap();
        let w = vector(&engine, 5 * 7).reshape(&[5, 7]).unwrap();
        let (columns, rows) = (vector(&engine, 7), vector(&engine, 6).reshape(&[6, 1]).unwrap());
        for bias in [&columns, &rows] {
            let y = x.matmul(&w).unwrap().add(bias).unwrap().relu().unwrap();
            assert_eq!(launched(&engine, &y), ["dot_general"]);
            agrees_with_the_reference(&y);
            // The bias on the left, and no relu.
            let y = bias.add(&x.matmul(&w).unwrap()).unwrap();
            assert_eq!(launched(&engine, &y), ["dot_general"]);
            agrees_with_the_reference(&y);
        }
        let images = vector(&engine, 2 * 3 * 6 * 6).reshape(&[2, 3, 6, 6]).unwrap();
        let filter = vector(&engine, 4 * 3 * 9).reshape(&[4, 3, 3, 3]).unwrap();
        let channels = vector(&engine, 4).reshape(&[1, 4, 1, 1]).unwrap();
        let y = images.conv2d(&filter, 1).unwrap().add(&channels).unwrap().relu().unwrap();
        assert_eq!(launched(&engine, &y), ["conv_general"]);
        agrees_with_the_reference(&y);
    }
}

#[test]
fn what_follows_a_bias_stays_a_kernel_and_batches_share_it() {
    let engine = common::cpu();
    let x = vector(&engine, 3 * 4 * 5).reshape(&[3, 4, 5]).unwrap();
    let w = vector(&engine, 3 * 5 * 2).reshape(&[3, 5, 2]).unwrap();
    let bias = vector(&engine, 2);
    let y = x.matmul(&w).unwrap().add(&bias).unwrap().tanh().unwrap();
    assert_eq!(launched(&engine, &y), ["dot_general", "elementwise"]);
    agrees_with_the_reference(&y);
}

#[test]
fn an_addition_that_is_no_bias_stays_outside() {
    let engine = common::cpu();
    let x = vector(&engine, 16).reshape(&[4, 4]).unwrap();
    let product = || x.matmul(&x).unwrap();
    let vectors = vector(&engine, 8);
    let later = product().sum(&[0]).unwrap();
    for (what, y) in [
        ("a matrix", product().add(&x).unwrap()),
        ("a part of a longer vector", product().add(&vectors.narrow(0, 0, 4).unwrap()).unwrap()),
        ("a flipped vector", product().add(&vector(&engine, 4).flip(&[0]).unwrap()).unwrap()),
        ("a number", product().add(0.5).unwrap()),
        ("the same product", product().add(&product()).unwrap()),
        ("a sum of the same product", product().add(&later).unwrap()),
    ] {
        assert!(launched(&engine, &y).contains(&"elementwise".to_owned()), "{what}");
        agrees_with_the_reference(&y);
    }
}

#[test]
fn values_that_are_wanted_besides_are_not_absorbed() {
    let engine = common::cpu();
    let x = vector(&engine, 12).reshape(&[4, 3]).unwrap();
    let w = vector(&engine, 6).reshape(&[3, 2]).unwrap();
    let bias = vector(&engine, 2);
    let product = x.matmul(&w).unwrap();
    let sum = product.add(&bias).unwrap();
    let y = sum.relu().unwrap();
    eval(&[&y]).unwrap();
    // All handles are live, so each has its value now.
    for tensor in [&product, &sum, &y] {
        assert!(tensor.is_settled());
    }
    let (product, sum) = (product.to_f64().unwrap(), sum.to_f64().unwrap());
    for (place, y) in y.to_f64().unwrap().into_iter().enumerate() {
        assert!((sum[place] - product[place]).abs() > 0.0);
        assert_eq!(y, sum[place].max(0.0));
    }
}

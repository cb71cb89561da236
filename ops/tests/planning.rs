//! Plans and memory: what is planned once, what is computed once, whose memory is used again.

mod common;

use common::Random;
use halite_hal::{DType, Scalar};
use halite_ops::optim::{Adam, Sgd};
use halite_ops::{Catalog, Engine, Tensor, WindowAttributes, eval, grad};
use halite_profiles::{DeviceFacts, ProfileSet};
use std::time::{Duration, Instant};

fn vector(engine: &Engine, elements: usize, seed: u64) -> Tensor {
    let data: Vec<f32> = Random(seed).vector(elements).into_iter().map(|x| x as f32).collect();
    engine.tensor(&data, &[elements]).unwrap()
}

fn scalar(engine: &Engine, value: f32) -> Tensor {
    engine.runtime_scalar(Scalar::F32(value)).unwrap()
}

#[test]
fn data_and_runtime_scalars_are_no_part_of_a_plan() {
    let engine = common::cpu();
    for step in 0..5u32 {
        let x = vector(&engine, 10, step.into());
        let rate = step as f32 * 0.5;
        let y = x.mul(&scalar(&engine, rate)).unwrap().add(1.0).unwrap();
        for (got, x) in y.to_f64().unwrap().iter().zip(x.to_f64().unwrap()) {
            assert!((got - (x * f64::from(rate) + 1.0)).abs() < 1e-6);
        }
        let noise = engine.uniform(&[7], 0.0, 1.0, step, 3).unwrap();
        assert_eq!(noise.to_f64().unwrap().len(), 7);
    }
    assert_eq!(engine.stats().plans_built, 2);
}

#[test]
fn constants_shapes_dtypes_and_structure_are_part_of_a_plan() {
    let engine = common::cpu();
    let x = vector(&engine, 12, 1);
    let half = x.cast(DType::F16).unwrap();
    eval(&[&half]).unwrap();
    let mut plans = engine.stats().plans_built;
    let tensors = [
        x.mul(2.0).unwrap(),
        x.mul(3.0).unwrap(),
        x.reshape(&[3, 4]).unwrap().mul(3.0).unwrap(),
        half.mul(3.0).unwrap(),
        x.add(3.0).unwrap(),
        x.mul(3.0).unwrap().mul(3.0).unwrap(),
        x.flip(&[0]).unwrap().mul(3.0).unwrap(),
    ];
    for (index, tensor) in tensors.iter().enumerate() {
        eval(&[tensor]).unwrap();
        plans += 1;
        assert_eq!(engine.stats().plans_built, plans, "tensor {index}");
    }
    assert_eq!(tensors[2].to_f64().unwrap(), tensors[1].to_f64().unwrap());
}

#[test]
fn a_value_is_computed_once() {
    let engine = common::cpu();
    let x = vector(&engine, 100, 1);
    let middle = x.exp().unwrap();
    let end = middle.sum_all().unwrap();
    end.item().unwrap();
    let launches = engine.stats().launches;
    // The handle in the middle kept its value, and both read it again for nothing.
    assert!(middle.is_settled());
    middle.to_f64().unwrap();
    end.item().unwrap();
    eval(&[&middle, &end, &middle]).unwrap();
    assert_eq!(engine.stats().launches, launches);
    assert_eq!(engine.explain(&[&middle, &end]).unwrap(), []);
    // What builds upon it starts from its value.
    let after = middle.mul(2.0).unwrap();
    assert_eq!(engine.explain(&[&after]).unwrap().len(), 1);
}

#[test]
fn tensors_evaluated_together_share_what_they_have_in_common() {
    let engine = common::cpu();
    let x = vector(&engine, 64, 1).reshape(&[8, 8]).unwrap();
    let shared = x.exp().unwrap().sum(&[0]).unwrap();
    let (a, b) = (shared.mul(2.0).unwrap(), shared.flip(&[0]).unwrap().add(1.0).unwrap());
    drop(shared);
    eval(&[&a, &b]).unwrap();
    assert!(a.is_settled() && b.is_settled());
    let launches = engine.stats().launches;
    assert!(launches <= 3, "{launches} launches for a sum and two elementwise results");
}

#[test]
fn explain_computes_nothing() {
    let engine = common::cpu();
    let x = vector(&engine, 10, 1).exp().unwrap();
    let explained = engine.explain(&[&x]).unwrap();
    assert!(!x.is_settled());
    assert_eq!((explained.len(), engine.stats().launches), (1, 0));
    assert_eq!(explained[0].op, "elementwise");
    assert_eq!(explained[0].device, "cpu:0");
}

#[test]
fn the_memory_of_an_input_that_nobody_holds_becomes_the_outputs() {
    let engine = common::cpu();
    let elements = 1 << 16;
    let mut x = vector(&engine, elements, 1);
    engine.synchronize().unwrap();
    let one = engine.stats().pool.in_use_bytes;
    engine.pool().reset_peak();
    for _ in 0..20 {
        x = x.mul(0.5).unwrap().add(1.0).unwrap();
        eval(&[&x]).unwrap();
    }
    engine.synchronize().unwrap();
    let pool = engine.stats().pool;
    assert_eq!((pool.in_use_bytes, pool.peak_in_use_bytes), (one, one));
    assert!(x.to_f64().unwrap().iter().all(|x| (x - 2.0).abs() < 1e-5));
}

#[test]
fn an_input_that_somebody_holds_is_not_overwritten() {
    let engine = common::cpu();
    let x = vector(&engine, 100, 1);
    let before = x.to_f64().unwrap();
    let y = x.mul(2.0).unwrap();
    eval(&[&y]).unwrap();
    assert_eq!(x.to_f64().unwrap(), before);
    // A reshape shares the memory of its input, whose handle is gone.
    let view = x.reshape(&[10, 10]).unwrap();
    eval(&[&view]).unwrap();
    let z = x.add(1.0).unwrap();
    drop(x);
    eval(&[&z]).unwrap();
    assert_eq!(view.to_f64().unwrap(), before);
    // An unevaluated graph holds its inputs too.
    let a = vector(&engine, 100, 2);
    let before = a.to_f64().unwrap();
    let (b, c) = (a.mul(2.0).unwrap(), a.mul(3.0).unwrap());
    drop(a);
    eval(&[&b]).unwrap();
    for (got, a) in c.to_f64().unwrap().iter().zip(before) {
        assert_eq!(*got, f64::from(a as f32 * 3.0));
    }
}

#[test]
fn an_input_read_out_of_order_is_not_overwritten_while_it_is_read() {
    let engine = common::cpu();
    let data: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    let x = engine.tensor(&data, &[100_000]).unwrap();
    let y = x.add(&x.flip(&[0]).unwrap()).unwrap();
    drop(x);
    assert!(y.to_vec::<f32>().unwrap().iter().all(|&y| y == 99_999.0));
    let square = engine.tensor(&data[..90_000], &[300, 300]).unwrap();
    let sum = square.sub(&square.transpose().unwrap()).unwrap();
    drop(square);
    let sum = sum.to_vec::<f32>().unwrap();
    for (i, j) in [(0, 1), (299, 0), (17, 212), (212, 17)] {
        let expected = (i as f32 * 300.0 + j as f32) - (j as f32 * 300.0 + i as f32);
        assert_eq!(sum[i * 300 + j], expected, "element {i}, {j}");
    }
}

#[test]
fn memory_over_steps_of_adam_is_flat() {
    let engine = common::cpu();
    let elements = 1 << 14;
    let mut parameters = [vector(&engine, elements, 1)];
    let target = vector(&engine, elements, 2);
    let mut adam = Adam::new(0.01);
    let mut after_first = None;
    for step in 0..30 {
        let difference = parameters[0].sub(&target).unwrap();
        let loss = difference.mul(&difference).unwrap().mean(&[0]).unwrap();
        let gradients = grad(&loss, &[&parameters[0]]).unwrap();
        drop(difference);
        adam.step(&mut parameters, &gradients).unwrap();
        drop(gradients);
        let mut wanted = vec![&loss, &parameters[0]];
        wanted.extend(adam.state());
        eval(&wanted).unwrap();
        loss.item().unwrap();
        drop(loss);
        engine.synchronize().unwrap();
        let pool = engine.stats().pool;
        match (step, after_first) {
            (0, _) => engine.pool().reset_peak(),
            (1, _) => after_first = Some((pool, engine.stats().plans_built)),
            (_, Some((first, plans))) => {
                assert_eq!(pool.peak_in_use_bytes, first.peak_in_use_bytes, "step {step}");
                assert_eq!(pool.in_use_bytes, first.in_use_bytes, "step {step}");
                assert_eq!(engine.stats().plans_built, plans, "step {step}");
            }
            (_, None) => unreachable!("step 1 comes first"),
        }
    }
    let weight_bytes = 4 * elements as u64;
    let peak = engine.stats().pool.peak_in_use_bytes;
    // Weights, two moments, the target; temporaries must not add another set of the three that change.
    assert!(peak < 7 * weight_bytes, "{peak} bytes at the peak for four tensors of {weight_bytes}");
}

#[test]
fn ten_thousand_steps_plan_once_and_allocate_alike() {
    const STEPS: usize = 10_000;
    let engine = common::cpu();
    let x = vector(&engine, 6, 1).reshape(&[3, 2]).unwrap();
    eval(&[&x]).unwrap();
    let mut parameters = [vector(&engine, 2, 3)];
    let target = vector(&engine, 3, 4);
    let mut sgd = Sgd::new(0.05);
    let mut settled = None;
    let mut last = f64::INFINITY;
    for step in 0..STEPS {
        let prediction = x.mul(&parameters[0]).unwrap().sum(&[1]).unwrap();
        let difference = prediction.sub(&target).unwrap();
        let loss = difference.mul(&difference).unwrap().sum_all().unwrap();
        let gradients = grad(&loss, &[&parameters[0]]).unwrap();
        sgd.learning_rate = 0.05 / (1.0 + step as f64 * 1e-4);
        sgd.step(&mut parameters, &gradients).unwrap();
        drop((prediction, difference, gradients));
        eval(&[&loss, &parameters[0]]).unwrap();
        if step % 1000 == 0 {
            let now = loss.item().unwrap();
            assert!(now <= last + 1e-6, "the loss grew from {last} to {now} by step {step}");
            last = now;
            drop(loss);
            engine.synchronize().unwrap();
            let stats = engine.stats();
            let now =
                (stats.plans_built, stats.pool.in_use_bytes, stats.pool.reserved_bytes, stats.pool.live);
            if step == 0 {
                continue;
            }
            assert_eq!(*settled.get_or_insert(now), now, "step {step}");
        }
    }
    // That of x, and that of a step.
    assert_eq!(engine.stats().plans_built, 2);
    assert_eq!(engine.stats().evaluations, STEPS as u64 + 1);
}

#[test]
fn plans_that_were_evicted_are_made_again() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    // More constants than the cache holds plans, twice.
    for _ in 0..2 {
        for number in 1..=300 {
            let y = x.mul(f64::from(number)).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(y, [number as f32, 2.0 * number as f32]);
        }
    }
    let stats = engine.stats();
    assert!(stats.plans_built > 300 && stats.plans_built <= 600, "{}", stats.plans_built);
}

#[test]
fn a_chain_of_a_million_nodes_fits_a_small_stack() {
    const NODES: usize = 1_000_000;
    /// Far above what it takes, far below what a quadratic step would take.
    const LIMIT: Duration = Duration::from_secs(60);
    let start = Instant::now();
    let chain = || {
        let engine = common::cpu();
        let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
        let mut y = x.clone();
        for _ in 0..NODES / 2 {
            y = y.mul(0.5).unwrap().add(&x).unwrap();
        }
        // One that is dropped without having been computed.
        let mut dropped = x.clone();
        for _ in 0..NODES / 4 {
            dropped = dropped.neg().unwrap();
        }
        drop(dropped);
        y.to_vec::<f32>().unwrap()
    };
    let result = std::thread::Builder::new().stack_size(512 << 10).spawn(chain).unwrap().join().unwrap();
    assert_eq!(result, [2.0, 4.0]);
    assert!(start.elapsed() < LIMIT, "took {:?}", start.elapsed());
}

#[test]
fn the_gradient_of_a_deep_chain_fits_a_small_stack() {
    const NODES: usize = 20_000;
    let chain = || {
        let engine = common::cpu();
        let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
        let mut y = x.clone();
        for _ in 0..NODES {
            y = y.sin().unwrap();
        }
        let gradient = grad(&y.sum_all().unwrap(), &[&x]).unwrap().swap_remove(0);
        drop(y);
        gradient.to_vec::<f32>().unwrap()
    };
    let result = std::thread::Builder::new().stack_size(512 << 10).spawn(chain).unwrap().join().unwrap();
    assert!(result.iter().all(|x| x.is_finite()));
}

#[test]
fn training_on_nothing_changes_nothing() {
    let engine = common::cpu();
    let images = engine.zeros(&[0, 1, 6, 6], DType::F32).unwrap();
    let labels = engine.zeros(&[0], DType::I32).unwrap();
    let mut parameters = [
        vector(&engine, 2 * 9, 1).reshape(&[2, 1, 3, 3]).unwrap(),
        vector(&engine, 8 * 3, 2).reshape(&[8, 3]).unwrap(),
    ];
    eval(&[&parameters[0], &parameters[1]]).unwrap();
    let before: Vec<_> = parameters.iter().map(|p| p.to_f64().unwrap()).collect();
    let features = images.conv2d(&parameters[0], 0).unwrap().relu().unwrap().max_pool2d(2).unwrap();
    let logits = features.reshape(&[0, 8]).unwrap().matmul(&parameters[1]).unwrap();
    let loss = logits.cross_entropy(&labels).unwrap();
    let gradients = grad(&loss, &[&parameters[0], &parameters[1]]).unwrap();
    Sgd::new(0.1).step(&mut parameters, &gradients).unwrap();
    eval(&[&loss, &parameters[0], &parameters[1]]).unwrap();
    assert_eq!(loss.item().unwrap(), 0.0);
    for (parameter, before) in parameters.iter().zip(before) {
        assert_eq!(parameter.to_f64().unwrap(), before);
    }
}

#[test]
fn tensors_without_elements_pass_through_everything() {
    let engine = common::cpu();
    let x = engine.tensor::<f32>(&[], &[0, 4]).unwrap();
    let windows = WindowAttributes {
        input: vec![4],
        window: vec![2],
        stride: vec![2],
        pad_low: vec![0],
        pad_high: vec![0],
    };
    let results = [
        x.exp().unwrap(),
        x.add(&x).unwrap(),
        x.transpose().unwrap().reshape(&[2, 0, 2]).unwrap(),
        x.slice(&[0, 1], &[0, 3], &[1, 1]).unwrap(),
        x.flip(&[0, 1]).unwrap(),
        x.sum(&[1]).unwrap(),
        x.max(&[1]).unwrap(),
        x.window_max(&windows).unwrap(),
        x.matmul(&vector(&engine, 12, 1).reshape(&[4, 3]).unwrap()).unwrap(),
        engine.random_bits(&[0], 1, 2).unwrap(),
    ];
    for result in &results {
        assert_eq!(result.to_f64().unwrap(), [0.0; 0], "{result:?}");
    }
    assert_eq!(engine.stats().launches, 0);
    let sums = x.sum(&[0]).unwrap();
    assert_eq!(sums.to_vec::<f32>().unwrap(), [0.0; 4]);
    assert_eq!(x.sum_all().unwrap().item().unwrap(), 0.0);
    assert_eq!(x.max(&[0]).unwrap().to_vec::<f32>().unwrap(), [f32::NEG_INFINITY; 4]);
    assert_eq!(x.transpose().unwrap().matmul(&x).unwrap().to_vec::<f32>().unwrap(), [0.0; 16]);
    assert_eq!(x.pad(&[1, 0], &[1, 0], &[0, 0], 5.0).unwrap().to_vec::<f32>().unwrap(), [5.0; 8]);
}

#[test]
fn a_user_profile_changes_variant_and_sizes() {
    let launches = |text: Option<&str>| {
        let device = common::cpu_device();
        let facts = DeviceFacts::from(device.info());
        let set = match text {
            Some(text) => ProfileSet::from_texts([("mine.yaml", text)]).unwrap(),
            None => ProfileSet::builtin(),
        };
        let profile = set.select(&facts).unwrap();
        let engine = Engine::new(device, profile, Catalog::builtin(), None).unwrap();
        let x = vector(&engine, 1000, 1);
        let y = x.exp().unwrap();
        let launches = engine.explain(&[&y]).unwrap();
        (launches, y.to_f64().unwrap())
    };
    let (builtin, expected) = launches(None);
    assert!(builtin[0].parameters.int("chunk").is_some(), "{builtin:?}");
    let mine = "name: mine\nextends: cpu\nmatch: { backend: cpu }\nkernels:\n  elementwise:\n    - { variant: portable, chunk: 64 }\n";
    let (chosen, got) = launches(Some(mine));
    assert_eq!((chosen[0].variant.as_str(), chosen[0].parameters.int("chunk")), ("portable", Some(64)));
    assert_ne!(chosen[0].parameters, builtin[0].parameters);
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 4e-7 * expected.abs());
    }
}

#[test]
fn threads_share_an_engine() {
    let engine = common::cpu();
    let shared = vector(&engine, 1000, 1).exp().unwrap();
    let expected = shared.to_f64().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (shared, expected, engine) = (&shared, &expected, &engine);
            scope.spawn(move || {
                for step in 0..50 {
                    let factor = f64::from(thread * 50 + step);
                    let rate = scalar(engine, factor as f32);
                    let y = shared.mul(&rate).unwrap();
                    let got = y.to_f64().unwrap();
                    for (got, expected) in got.iter().zip(expected) {
                        assert!((got - expected * factor).abs() <= 1e-6 * (expected * factor).abs());
                    }
                }
            });
        }
    });
    assert!(engine.stats().plans_built <= 2);
}

#[test]
fn threads_evaluate_the_same_unsettled_graph() {
    let engine = common::cpu();
    for round in 0..20 {
        let x = vector(&engine, 100, round);
        let y = x.exp().unwrap();
        let z = y.mul(2.0).unwrap();
        let expected: Vec<f64> = x.to_f64().unwrap().iter().map(|x| x.exp() * 2.0).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (got, expected) in z.to_f64().unwrap().iter().zip(&expected) {
                        assert!((got - expected).abs() < 1e-5);
                    }
                });
            }
        });
    }
}

//! Operations of another crate, and what a failed evaluation leaves behind.

mod common;

use halite_hal::{Access, ArgType, DType, KernelSource, NativeKernel, Signature};
use halite_ops::lower::{KernelOp, KernelVariant, Launch, LaunchArg, Lowered, TensorType, Unservable};
use halite_ops::reference::HostTensor;
use halite_ops::{Catalog, CustomOp, Engine, Result, Tensor, eval, grad};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Multiplies by a factor that is an attribute. Its kernel does what `MODE` of the op says.
struct Scale {
    factor: f32,
    mode: Arc<AtomicU32>,
}

const WORK: u32 = 0;
const FAIL: u32 = 1;
const PANIC: u32 = 2;

impl CustomOp for Scale {
    fn name(&self) -> &str {
        "test_scale"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType, String> {
        match inputs {
            [x] if x.dtype == DType::F32 => Ok(x.clone()),
            _ => Err(format!("takes one f32 tensor, got {}", inputs.len())),
        }
    }

    fn derivative(&self, _: &[Tensor], _: &Tensor, cotangent: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cotangent.mul(self.factor)?)])
    }

    fn reference(&self, inputs: &[HostTensor]) -> Result<HostTensor, String> {
        let data = inputs[0].data.iter().map(|x| x * f64::from(self.factor)).collect();
        Ok(HostTensor::new(inputs[0].dtype, &inputs[0].shape, data))
    }
}

/// An engine with a kernel for the op, which finds its attributes in the call.
fn scaling_engine() -> Engine {
    let mut catalog = Catalog::builtin();
    let lower = |request: &halite_ops::lower::LowerRequest<'_>| {
        let KernelOp::Custom(call) = request.op else { return Err(Unservable::new("another op")) };
        let scale = call.op_as::<Scale>().ok_or_else(|| Unservable::new("an unknown op"))?;
        let (factor, mode) = (scale.factor, scale.mode.clone());
        let buffer = |access| ArgType::Buffer { dtype: DType::F32, access };
        let signature = Signature::new(vec![buffer(Access::Read), buffer(Access::Write)]);
        let kernel = NativeKernel::new("test_scale_f32", signature, move |group| {
            match mode.load(Ordering::SeqCst) {
                FAIL => return Err("told to fail".to_owned()),
                PANIC => panic!("told to panic"),
                _ => {}
            }
            let x = group.read::<f32>(0)?;
            group.write_all::<f32>(1)?.iter_mut().zip(x).for_each(|(y, x)| *y = x * factor);
            Ok(())
        });
        let args = vec![LaunchArg::Input(0), LaunchArg::Output(0)];
        Ok(Lowered::single(Launch { source: KernelSource::Native(kernel), grid: [1, 1, 1], args }))
    };
    catalog.register(KernelVariant::new("test_scale", "plain", "native", &[], lower)).unwrap();
    common::cpu_with(catalog)
}

fn scale(factor: f32) -> Arc<Scale> {
    Arc::new(Scale { factor, mode: Arc::new(AtomicU32::new(WORK)) })
}

#[test]
fn an_op_of_another_crate_runs_and_has_a_gradient() {
    let op = scale(3.0);
    let engine = scaling_engine();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    let y = Tensor::call(op, &[&x.add(1.0).unwrap()]).unwrap().mul(2.0).unwrap();
    let gradient = grad(&y.sum_all().unwrap(), &[&x]).unwrap().swap_remove(0);
    assert_eq!(y.to_vec::<f32>().unwrap(), [12.0, 18.0]);
    assert_eq!(gradient.to_vec::<f32>().unwrap(), [6.0, 6.0]);
}

/// An op of another type under the name of [`Scale`].
struct Namesake(Arc<Scale>);

impl CustomOp for Namesake {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType, String> {
        self.0.infer(inputs)
    }

    fn derivative(&self, inputs: &[Tensor], y: &Tensor, cotangent: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.0.derivative(inputs, y, cotangent)
    }

    fn reference(&self, inputs: &[HostTensor]) -> Result<HostTensor, String> {
        self.0.reference(inputs)
    }
}

#[test]
fn a_kernel_tells_an_op_of_another_type_by_its_attributes() {
    let engine = scaling_engine();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    let y = Tensor::call(Arc::new(Namesake(scale(2.0))), &[&x]).unwrap();
    let text = y.to_vec::<f32>().unwrap_err().to_string();
    assert!(text.contains("an unknown op"), "{text}");
}

#[test]
fn a_second_op_at_the_address_of_a_freed_one_has_a_plan_of_its_own() {
    let engine = scaling_engine();
    for factor in 1..=8 {
        let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
        let y = Tensor::call(scale(factor as f32), &[&x]).unwrap();
        let factor = factor as f32;
        assert_eq!(y.to_vec::<f32>().unwrap(), [factor, 2.0 * factor]);
    }
}

#[test]
fn a_failed_evaluation_names_the_kernel_and_can_be_tried_again() {
    for (mode, message) in [(FAIL, "told to fail"), (PANIC, "told to panic")] {
        let op = scale(2.0);
        let engine = scaling_engine();
        let x = engine.tensor(&[1f32, 2.0, 3.0], &[3]).unwrap();
        let y = Tensor::call(op.clone(), &[&x.add(1.0).unwrap()]).unwrap().add(10.0).unwrap();
        op.mode.store(mode, Ordering::SeqCst);
        let error = y.to_vec::<f32>().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("test_scale_f32") && text.contains(message), "{text}");
        assert!(text.contains("cpu:0") && !error.is_usage(), "{text}");
        // It fails again as long as the cause is there; nothing is settled, and others still compute.
        assert!(y.to_vec::<f32>().is_err());
        assert!(!y.is_settled());
        assert_eq!(x.mul(2.0).unwrap().to_vec::<f32>().unwrap(), [2.0, 4.0, 6.0]);
        op.mode.store(WORK, Ordering::SeqCst);
        assert_eq!(y.to_vec::<f32>().unwrap(), [14.0, 16.0, 18.0]);
        assert_eq!(x.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0]);
    }
}

#[test]
fn a_failure_seen_late_unsettles_what_was_built_on_it_and_restores_donated_memory() {
    let op = scale(2.0);
    let engine = scaling_engine();
    let mut w = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    op.mode.store(FAIL, Ordering::SeqCst);
    // Each step hands the memory of w on; the first one fails behind the scenes.
    for _ in 0..3 {
        let step = Tensor::call(op.clone(), &[&w]).unwrap();
        w = w.sub(&step).unwrap();
        // Either the enqueueing is told at once, or a later call hears of it.
        let _ = eval(&[&w]);
    }
    assert!(w.to_vec::<f32>().is_err());
    op.mode.store(WORK, Ordering::SeqCst);
    // w - 2w = -w, three times.
    assert_eq!(w.to_vec::<f32>().unwrap(), [-1.0, -2.0]);
}

#[test]
fn a_tensor_too_large_for_memory_is_an_error_and_the_engine_goes_on() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    // 2^45 elements are more than any machine has, and fewer than the address space.
    let huge = x.sum_all().unwrap().broadcast_to(&[1 << 45]).unwrap().add(1.0).unwrap();
    for _ in 0..2 {
        let error = eval(&[&huge]).unwrap_err();
        let halite_ops::Error::Device(device_error) = &error else { panic!("{error}") };
        let kind = device_error.kind();
        let is_memory = matches!(
            kind,
            halite_hal::ErrorKind::OutOfMemory { .. } | halite_hal::ErrorKind::TooLarge { .. }
        );
        assert!(is_memory && error.to_string().contains("cpu:0"), "{error}");
        assert!(!huge.is_settled());
    }
    assert_eq!(x.add(1.0).unwrap().to_f64().unwrap().len(), 2);
}

#[test]
fn an_op_without_a_kernel_says_so_and_leaves_its_inputs() {
    let engine = common::cpu();
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    let y = Tensor::call(scale(2.0), &[&x]).unwrap();
    let error = y.to_vec::<f32>().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, halite_ops::Error::NoKernel { .. }), "{text}");
    assert!(text.contains("test_scale") && text.contains("cpu:0") && text.contains("fallback"), "{text}");
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.0, 2.0]);
}

/// An engine whose elementwise kernels do what `mode` says wherever they run over five elements.
fn flaky_engine(mode: &Arc<AtomicU32>) -> Engine {
    let mut catalog = Catalog::builtin();
    let portable = catalog.variants_of("elementwise").find(|v| v.name == "portable" && v.format == "native");
    let portable = portable.unwrap().clone();
    let mode = mode.clone();
    let flaky = KernelVariant::new("elementwise", "flaky", "native", &[], move |request| {
        let mut lowered = (portable.lower)(request)?;
        for launch in &mut lowered.launches {
            let KernelSource::Native(kernel) = &mut launch.source else { unreachable!("a native variant") };
            let (run, mode) = (kernel.run.clone(), mode.clone());
            kernel.run = Arc::new(move |group| match mode.load(Ordering::SeqCst) {
                FAIL => Err("told to fail".to_owned()),
                _ => run(group),
            });
        }
        Ok(lowered)
    });
    catalog.register(flaky).unwrap();
    let text = "name: flaky\nextends: cpu\nkernels:\n  elementwise:\n  - { variant: flaky, when: n == 5 }\n  \
                - { variant: portable }\n";
    let set = halite_profiles::ProfileSet::from_texts([("flaky.yaml", text)]).unwrap();
    Engine::new(common::cpu_device(), set.by_name("flaky").unwrap(), catalog, None).unwrap()
}

#[test]
fn after_a_failure_between_updates_no_handle_shows_memory_that_may_be_half_overwritten() {
    let mode = Arc::new(AtomicU32::new(WORK));
    let engine = flaky_engine(&mode);
    let leaf = |elements: usize| engine.tensor(&vec![1f32; elements], &[elements]).unwrap();
    let (kept, gradients) = (leaf(7), [leaf(3), leaf(5)]);
    let step = |weights: [Tensor; 2]| {
        let next = [0, 1].map(|i| weights[i].sub(&gradients[i]).unwrap());
        // Nobody else holds the old weights, so their memory becomes the new ones'.
        drop(weights);
        (eval(&[&next[0], &next[1]]).and_then(|()| engine.synchronize()), next)
    };
    let (outcome, weights) = step([leaf(3), leaf(5)]);
    outcome.unwrap();
    let before = engine.stats().pool.in_use_bytes;
    let (outcome, weights) = step(weights);
    outcome.unwrap();
    assert_eq!(
        engine.stats().pool.in_use_bytes,
        before,
        "the updates run in place, or this test shows nothing"
    );
    assert_eq!(weights[1].to_vec::<f32>().unwrap(), [-1.0; 5]);

    // The first update overwrites its weight, the second fails.
    mode.store(FAIL, Ordering::SeqCst);
    let (outcome, weights) = step(weights);
    assert!(outcome.unwrap_err().to_string().contains("told to fail"));
    mode.store(WORK, Ordering::SeqCst);
    for weight in &weights {
        let error = weight.to_vec::<f32>().unwrap_err().to_string();
        assert!(error.contains("make the input anew"), "{error}");
    }
    // Everything that was not to be overwritten is intact, and the engine goes on.
    assert_eq!(kept.add(&kept).unwrap().to_vec::<f32>().unwrap(), [2.0; 7]);
    assert_eq!(gradients[1].to_vec::<f32>().unwrap(), [1.0; 5]);
    let (outcome, weights) = step([leaf(3), leaf(5)]);
    outcome.unwrap();
    assert_eq!(weights[0].to_vec::<f32>().unwrap(), [0.0; 3]);
}

#[test]
fn a_lost_npu_says_so_from_then_on_and_gives_no_wrong_value() {
    // The loss falls into each stage of a step: uploads, forward, updates, reads.
    for commands in 1..40 {
        let engine = common::npu_with(&[("lose_after", &commands.to_string())]);
        let mut failure = None;
        let mut attempt = |result: Result<Vec<f32>>, expected: &[f32]| match result {
            Ok(values) => {
                assert!(failure.is_none(), "a value came after the loss");
                assert_eq!(values, expected);
            }
            Err(error) => failure = Some(error),
        };
        let w = engine.tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 2]);
        let Ok(mut w) = w else { continue };
        let mut expected = vec![1f32, 2.0, 3.0, 4.0];
        for _ in 0..6 {
            w = w.mul(2.0).unwrap().add(1.0).unwrap();
            expected.iter_mut().for_each(|x| *x = *x * 2.0 + 1.0);
            attempt(eval(&[&w]).and_then(|()| w.to_vec::<f32>()), &expected);
        }
        if let Some(error) = failure {
            let halite_ops::Error::Device(error) = &error else { panic!("after {commands}: {error}") };
            assert!(matches!(error.kind(), halite_hal::ErrorKind::DeviceLost), "after {commands}: {error}");
            assert!(error.to_string().contains("npu:0"), "{error}");
            assert!(engine.tensor(&[1f32], &[1]).and_then(|x| x.to_vec::<f32>()).is_err());
        }
    }
}

//! Training under injected faults: it ends with the right numbers or with the error that was injected, and leaves nothing
//! behind. A hundred schedules below the ops are in `layers/tests/fault_schedules.rs`.

#![allow(missing_docs)]

mod common;

use halite::demo::network::{Cnn, CnnConfig};
use halite::hal::{Device, ErrorKind, Layer};
use halite::layers::fault::Fault;
use halite::layers::verify::Verify;
use halite::ops::Error;
use halite::{Engine, Session, Tensor, eval};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const STEPS: usize = 5;
const SEED: u64 = 3;
/// Tries of a call; what strikes that often in a row is taken to go on.
const TRIES: usize = 30;
/// Far beyond what a run takes on a loaded machine.
const HANG_LIMIT: Duration = Duration::from_secs(240);
/// Weights of another kernel variant, or of another device: sums in another order, over a few steps.
const OTHER_KERNEL_ATOL: f64 = 1e-3;

/// How a run may end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// With the same bits as without faults.
    Same,
    /// With the same numbers from other kernels.
    Close,
    /// With the same bits; or an update failed that had begun to overwrite its weight, and says so.
    SameOrOverwritten,
    /// With the loss of the device.
    Lost,
    /// One of the above, or never: a rule that is drawn may strike in every step.
    Any,
}

/// Why a call gave nothing.
#[derive(Debug)]
enum Stop {
    /// Trying again is of no use.
    Ended(Error),
    /// The injected faults did not end.
    Struck(Error),
}

impl Stop {
    fn error(&self) -> &Error {
        match self {
            Self::Ended(error) | Self::Struck(error) => error,
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Ended(error)
    }
}

/// What is injected, and how training must end.
const CASES: [(&str, End); 22] = [
    ("allocate@1=out-of-memory", End::Same),
    ("allocate@2=out-of-memory", End::Same),
    ("allocate~0.3=out-of-memory", End::Same),
    ("load@2=out-of-memory", End::Same),
    ("load@3=build-error", End::Close),
    ("record@1=out-of-memory 2 times", End::Same),
    ("record@5=fail", End::Same),
    ("write@3=link", End::Same),
    ("write~0.2=link", End::Same),
    ("write@2=fault", End::Same),
    ("write@9=fault", End::Same),
    ("fill@1=fault", End::Same),
    ("read@1=link", End::Same),
    ("read@2=fault", End::Same),
    ("read~0.2=link", End::Same),
    ("launch@4=fail", End::SameOrOverwritten),
    ("launch@30=fault", End::SameOrOverwritten),
    ("launch~0.01=fault", End::SameOrOverwritten),
    ("launch%20=slow:5ms", End::Same),
    ("launch%9=slow:3ms; event@1=timeout", End::Same),
    ("launch%9=slow:3ms; event%1=timeout 5 times", End::Same),
    ("device@90=lost", End::Lost),
];

/// The engine of a device inside a fault layer, and inside `verify` where the script corrupts copies.
fn engine(session: &Session, device: &Device, script: &str) -> (Engine, Fault) {
    let fault = Fault::with_script(script).unwrap();
    let mut wrapped = fault.wrap(device.clone()).unwrap();
    if script.contains("corrupt") {
        wrapped = Verify.wrap(wrapped).unwrap();
    }
    let cpu = (device.id().backend != "cpu").then(|| common::open(session, "cpu"));
    let profile = session.profile_of(device.info()).unwrap();
    let new = || Engine::new(wrapped.clone(), profile.clone(), session.catalog().clone(), cpu.clone());
    (persist(new).unwrap(), fault)
}

/// Calls again until it succeeds or cannot.
fn persist<T, E: Into<Stop>>(
    mut call: impl FnMut() -> std::result::Result<T, E>,
) -> std::result::Result<T, Stop> {
    let mut tries = 0;
    loop {
        tries += 1;
        match call().map_err(Into::into) {
            Err(Stop::Ended(error)) if !is_final(&error) => {
                assert_right(&error);
                if tries == TRIES {
                    return Err(Stop::Struck(error));
                }
            }
            outcome => return outcome,
        }
    }
}

/// Whether trying again is of no use.
fn is_final(error: &Error) -> bool {
    is_lost(error) || is_overwritten(error)
}

fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Device(error) if *error.kind() == ErrorKind::DeviceLost)
}

fn is_overwritten(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("make the input anew") || text.contains("make the tensor anew")
}

/// Every error is the injected one, or that of the layer that found it.
fn assert_right(error: &Error) {
    let text = error.to_string();
    assert!(text.contains("injected by the rule") || text.contains("as the layer 'verify' saw"), "{text}");
    assert!(!error.is_usage(), "{text}");
}

/// Trains a few steps, and gives the weights.
fn train(engine: &Engine) -> std::result::Result<Vec<Vec<f32>>, Stop> {
    let mut network = persist(|| Cnn::new(engine, CnnConfig::DIGITS, SEED))?;
    for batch in common::batches(STEPS) {
        let (images, labels) = persist(|| network.upload(&batch))?;
        persist(|| {
            // By name: a handle to the old weight would keep its memory from being handed on.
            let before = name(&network);
            let Err(error) = network.train(&images, &labels, 5e-3) else { return Ok(()) };
            if is_final(&error) || name(&network) == before {
                return Err(Stop::from(error));
            }
            // The step is in the graph, though it could not be computed.
            assert_right(&error);
            let weights: Vec<&Tensor> = network.parameters().iter().collect();
            persist(|| eval(&weights))
        })?;
    }
    persist(|| network.mean_loss().map(|loss| assert!(loss.is_finite() && loss > 0.0)))?;
    network.parameters().iter().map(|weight| persist(|| weight.to_vec::<f32>())).collect()
}

fn name(network: &Cnn) -> String {
    format!("{:?}", network.parameters()[0])
}

fn bits(weights: &[Vec<f32>]) -> Vec<u32> {
    weights.iter().flatten().map(|weight| weight.to_bits()).collect()
}

/// Trains under each script, on a device of its own each time, which may lack kernels even without faults.
fn hold(name: &'static str, session: Session, lacks_kernels: bool, cases: Vec<(String, End)>) {
    let (sender, receiver) = channel();
    let count = cases.len();
    let runner = std::thread::spawn(move || {
        let clean = train(&common::open(&session, name)).unwrap();
        for (script, end) in cases {
            let device = session.open_device(name).unwrap();
            // A device that is still open is opened again, and what the last run used may be on its way back.
            drain(&device, &script);
            let (engine, fault) = engine(&session, &device, &script);
            let outcome = train(&engine);
            let context = format!(
                "{name}, '{script}': {:?}",
                outcome.as_ref().err().map(|stop| stop.error().to_string())
            );
            match &outcome {
                Ok(weights) if matches!(end, End::Close | End::Any) => {
                    let difference = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
                    let weights = weights.iter().flatten().zip(clean.iter().flatten());
                    let worst = weights.map(difference).fold(0.0, f64::max);
                    assert!(worst <= OTHER_KERNEL_ATOL, "{context}, off by {worst}");
                }
                Ok(weights) => {
                    assert!(end != End::Lost, "{context}");
                    assert!(bits(weights) == bits(&clean), "wrong numbers: {context}");
                }
                Err(Stop::Struck(_)) => assert_eq!(end, End::Any, "{context}"),
                Err(Stop::Ended(error)) if is_lost(error) => {
                    assert!(matches!(end, End::Lost | End::Any), "{context}");
                }
                Err(Stop::Ended(error)) => {
                    assert!(is_overwritten(error), "{context}");
                    assert!(matches!(end, End::SameOrOverwritten | End::Any), "{context}");
                }
            }
            // What did not strike shows nothing; of a drawn schedule, some calls may never come.
            assert!(fault.injected() > 0 || end == End::Any, "{context}");
            let mut fallbacks = engine.stats().fallbacks;
            fallbacks.retain(|fallback| !lacks_kernels || fallback.reason.contains("injected"));
            assert_eq!(!fallbacks.is_empty(), name != "cpu:0" && script.contains("build-error"), "{context}");
            for fallback in fallbacks {
                assert!(fallback.reason.contains("injected"), "{context}: {}", fallback.reason);
            }
            drop((engine, outcome));
            drain(&device, &context);
            println!("{context}");
            sender.send(()).unwrap();
        }
    });
    for finished in 0..count {
        match receiver.recv_timeout(HANG_LIMIT) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => panic!("{name}: case {finished} hangs"),
            // It has failed; how, is told below.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(panic) = runner.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until nothing is left of the device's buffers.
fn drain(device: &Device, context: &str) {
    let start = Instant::now();
    let held = || device.memory().map(|memory| (memory.used_bytes, memory.buffers)).unwrap();
    while held() != (0, 0) {
        assert!(start.elapsed() < HANG_LIMIT, "{context}: {:?} is left", device.memory());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn cases() -> Vec<(String, End)> {
    let mut cases: Vec<_> = CASES.map(|(script, end)| (script.to_owned(), end)).to_vec();
    cases.push(("seed=5; transfer~0.1=corrupt".into(), End::Same));
    // Schedules that are drawn may build a kernel in another way, too.
    let drawn = (0..12).filter(|seed| !Fault::random_script(*seed).contains("build-error"));
    cases.extend(drawn.map(|seed| (format!("random={seed}"), End::Any)));
    cases
}

#[test]
fn training_on_the_cpu_holds_under_every_kind_of_fault() {
    hold("cpu:0", common::session(), false, cases());
}

#[test]
fn training_on_the_emulated_npu_holds_under_every_kind_of_fault() {
    hold("npu:0", common::session(), false, cases());
}

#[test]
fn training_on_opencl_holds_under_every_kind_of_fault() {
    let session = common::session();
    if let Some(name) = common::opencl(&session) {
        assert_eq!(name, "opencl:0");
        // Each opening loads some forty kernels: half of those that end well or are drawn will do.
        let is_chosen = |index: usize, end| index.is_multiple_of(2) || !matches!(end, End::Same | End::Any);
        let chosen = cases().into_iter().enumerate().filter(|(index, (_, end))| is_chosen(*index, *end));
        hold("opencl:0", session, false, chosen.map(|(_, case)| case).collect());
    }
}

#[test]
fn training_on_the_example_plugin_holds_under_every_kind_of_fault() {
    let Some(plugin) = common::example_plugin() else { return };
    let session = common::builder().plugins([plugin]).build().unwrap();
    let train_on = |device| bits(&train(&common::open(&session, device)).unwrap());
    assert!(train_on("npu:0") == train_on("cpu:0"), "the copies to and fro change a number");
    hold("npu:0", session, true, example_cases());
}

/// The plugin has three operations, none of which training asks for alone, so that every value is computed by the CPU:
/// nothing is loaded or launched, and of so many copies each may fail but seldom.
fn example_cases() -> Vec<(String, End)> {
    let strikes = |(script, _): &(String, End)| !script.contains("load@") && !script.contains("launch");
    let seldom = |(script, end): (String, End)| (script.replace("~0.2=link", "~0.01=link"), end);
    cases().into_iter().filter(strikes).map(seldom).collect()
}

#[test]
fn uploads_that_a_failed_stream_skipped_are_sent_again() {
    let session = common::session();
    let device = session.open_device("cpu").unwrap();
    // The launch fails behind the scenes; the uploads that follow are accepted, and skipped.
    for seed in 0..6 {
        let (engine, _) = engine(&session, &device, &format!("seed={seed}; launch@1=fault"));
        let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
        let doubled = x.mul(2.0).unwrap();
        let _ = eval(&[&doubled]);
        let uploaded = engine.tensor(&[30f32, 40.0], &[2]);
        let zeros = engine.zeros(&[2], halite::DType::F32);
        assert_eq!(persist(|| doubled.to_vec::<f32>()).unwrap(), [2.0, 4.0]);
        let (Ok(uploaded), Ok(zeros)) = (uploaded, zeros) else { continue };
        assert_eq!(persist(|| uploaded.to_vec::<f32>()).unwrap(), [30.0, 40.0]);
        assert_eq!(persist(|| uploaded.add(&zeros)?.add(1.0)?.to_vec::<f32>()).unwrap(), [31.0, 41.0]);
    }
}

#[test]
fn a_detached_value_that_never_came_is_an_error_and_not_a_number() {
    let session = common::session();
    let device = session.open_device("cpu").unwrap();
    let (engine, _) = engine(&session, &device, "launch@2=fault");
    let x = engine.tensor(&[1f32, 2.0], &[2]).unwrap();
    assert_eq!(x.mul(3.0).unwrap().to_vec::<f32>().unwrap(), [3.0, 6.0]);
    let sum = x.add(5.0).unwrap();
    let detached = sum.detach().unwrap();
    assert_eq!(persist(|| sum.to_vec::<f32>()).unwrap(), [6.0, 7.0]);
    let error = detached.to_vec::<f32>().unwrap_err().to_string();
    assert!(error.contains("make the tensor anew"), "{error}");
}

#[test]
fn a_refused_update_does_not_pass_for_one_that_was_made() {
    let session = common::session();
    let device = session.open_device("cpu").unwrap();
    // Two updates in place, of which the second is refused: the first weight is overwritten by then.
    for strike in 1..8 {
        let (engine, _) = engine(&session, &device, &format!("launch@{strike}=fail"));
        let leaf = |elements: usize| engine.tensor(&vec![1f32; elements], &[elements]).unwrap();
        let gradients = [leaf(3), leaf(5)];
        let mut weights = [leaf(3), leaf(5)];
        for _ in 0..3 {
            weights = [0, 1].map(|i| weights[i].sub(&gradients[i]).unwrap());
            let _ = eval(&[&weights[0], &weights[1]]);
        }
        for weight in weights {
            match persist(|| weight.to_vec::<f32>()) {
                Ok(values) => {
                    assert!(values.iter().all(|value| *value == -2.0), "launch {strike}: {values:?}")
                }
                Err(stop) => assert!(is_overwritten(stop.error()), "launch {strike}: {stop:?}"),
            }
        }
    }
}

/// The main job as a program: exit code, report and standard error.
fn demo(layers: &str, arguments: &[&str]) -> (i32, Value, String) {
    let mut command: Command = common::program(env!("CARGO_BIN_EXE_halite").as_ref());
    command.args(["demo", "--json", "--epochs", "1", "--batch", "128"]).args(arguments);
    if !layers.is_empty() {
        command.env("HALITE_LAYERS", layers);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > HANG_LIMIT {
            let _ = child.kill();
            panic!("'{layers}' hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!stderr.contains("panicked"), "'{layers}': {stderr}");
    let report = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
    (status.code().expect("no signal"), report, stderr)
}

#[test]
fn the_main_job_ends_with_the_right_numbers_or_the_injected_error() {
    let loss = |report: &Value| report["devices"][0]["loss"].clone();
    let (code, clean, _) = demo("", &["--device", "cpu"]);
    assert_eq!(code, 0);
    for layers in [
        "fault:allocate@2=out-of-memory",
        "fault:allocate>64MiB=out-of-memory",
        "fault:write~0.1=link; read~0.2=link",
        "fault:record@1=out-of-memory; event%2=timeout 3 times",
        "fault:launch%50=slow:2ms",
        "fault:seed=2; transfer~0.02=corrupt,verify",
        "verify",
    ] {
        let (code, report, stderr) = demo(layers, &["--device", "cpu"]);
        assert_eq!((code, loss(&report)), (0, loss(&clean)), "'{layers}': {stderr} {report}");
    }
    for layers in [
        "fault:launch@200=fail",
        "fault:launch@200=fault",
        "fault:write@5=fault",
        "fault:device@300=lost",
        "fault:allocate%1=out-of-memory",
        "fault:load%1=build-error",
        "fault:read%1=fail",
        "fault:event%1=timeout; launch%1=slow:1ms",
        "fault:create-stream@1=out-of-memory",
    ] {
        let (code, report, stderr) = demo(layers, &["--device", "cpu"]);
        let error = report["devices"][0]["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(code, 1, "'{layers}': {stderr} {report}");
        assert!(error.contains("injected by the rule '"), "'{layers}': {error}");
        assert!(error.contains("HALITE_LAYERS") && error.contains("cpu:0"), "'{layers}': {error}");
    }
}

#[test]
fn other_devices_go_on_when_one_is_lost() {
    let (code, report, stderr) = demo("fault:on=npu; device@200=lost", &["--device", "npu,cpu"]);
    assert_eq!(code, 1, "{stderr}");
    let [npu, cpu] = [0, 1].map(|index: usize| &report["devices"][index]);
    let error = npu["error"].as_str().unwrap();
    assert!(
        error.contains("device lost") && error.contains("injected") && error.contains("open the device anew"),
        "{error}"
    );
    assert!(cpu["error"].is_null() && cpu["test_accuracy"].as_f64().unwrap() > 0.3, "{cpu}");
}

#[test]
fn a_script_with_a_mistake_is_refused_before_anything_runs() {
    for (layers, parts) in [
        ("fault:lunch@3=fail", &["HALITE_LAYERS", "column 1", "'lunch'", "launch"][..]),
        ("fault:@/absent/script", &["/absent/script", "cannot be read"]),
        ("falt", &["HALITE_LAYERS", "'falt'", "fault"]),
    ] {
        let (code, report, stderr) = demo(layers, &["--device", "cpu"]);
        assert_eq!((code, report), (2, Value::Null), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "'{part}' is missing: {stderr}");
        }
    }
}

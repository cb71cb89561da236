//! Products by a vendor's library: where a device has the built-in, a profile may prefer it; all else goes on as before.

mod common;

use common::Random;
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    Buffer, DType, Device, DeviceInfo, Error, Health, Kernel, KernelSource, MemoryInfo, MemoryKind,
    NativeKernel, Result, driver,
};
use halite_ops::{Catalog, Engine, Tensor};
use halite_profiles::{Parameters, Profile, ProfileSet};
use std::sync::Arc;

/// A CPU with a library that multiplies matrices of f32, if the rows of the left ones lie together.
struct Vendor {
    inner: Device,
    info: DeviceInfo,
    workspace_bytes: u64,
}

impl driver::Device for Vendor {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.inner.memory()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.inner.driver().allocate(len_bytes, kind)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.inner.driver().create_stream()
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        let KernelSource::Builtin(op) = source else { return self.inner.driver().load(source) };
        let signature = op.signature(self.workspace_bytes);
        if self.workspace_bytes > 0 {
            return Ok(Kernel::new(
                self.info.id.clone(),
                op.name(),
                signature,
                self.workspace_bytes,
                Box::new(()),
            ));
        }
        let [lhs, ..] = op.operands.as_slice() else { return Err(Error::invalid("no operands")) };
        // Nothing here asks for products that are rounded.
        if matches!(op.kind, BuiltinKind::FusedMatMul { allow_tf32: true, .. }) {
            return Err(Error::invalid("nobody asked for TF32"));
        }
        if lhs.dtype != DType::F32 || lhs.strides.last() != Some(&1) {
            return Err(Error::unsupported("the library has no algorithm for it"));
        }
        let op = op.clone();
        let kernel = NativeKernel::new("vendors_matmul", signature, move |group| {
            let (lhs, rhs) = (group.read::<f32>(0)?, group.read::<f32>(1)?);
            let count = op.operands.len();
            let bias = if count == 4 { Some(group.read::<f32>(2)?) } else { None };
            multiply(&op, lhs, rhs, bias, group.write_all::<f32>(count - 1)?);
            Ok(())
        });
        self.inner.driver().load(&KernelSource::Native(kernel))
    }
}

fn multiply(op: &BuiltinOp, lhs: &[f32], rhs: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    let at = |desc: &OperandDesc, index: &[u64]| -> usize {
        index.iter().zip(&desc.strides).map(|(&i, stride)| i as i64 * stride).sum::<i64>() as usize
    };
    let (left, right) = (&op.operands[0], &op.operands[1]);
    let shape = &op.operands[op.operands.len() - 1].shape;
    let k = left.shape[left.shape.len() - 1];
    for (place, out) in out.iter_mut().enumerate() {
        let mut rest = place as u64;
        let mut index: Vec<u64> = vec![0; shape.len()];
        for (axis, &extent) in shape.iter().enumerate().rev() {
            (index[axis], rest) = (rest % extent, rest / extent);
        }
        let [row, column] = [index[index.len() - 2], index[index.len() - 1]];
        let mut operand = |last: [u64; 2], desc: &OperandDesc| {
            let from = index.len() - 2;
            index[from..].copy_from_slice(&last);
            at(desc, &index)
        };
        let product = |i: u64, operand: &mut dyn FnMut([u64; 2], &OperandDesc) -> usize| {
            lhs[operand([row, i], left)] * rhs[operand([i, column], right)]
        };
        *out = (0..k).map(|i| product(i, &mut operand)).sum::<f32>()
            + bias.map_or(0.0, |bias| bias[column as usize]);
    }
}

/// A profile that prefers the library, and says how the next best kernel goes.
fn profile() -> Arc<Profile> {
    let text = "name: mine\nextends: cpu\nkernels:\n  dot_general:\n    - { variant: builtin }\n    \
                - { variant: portable, tile: [8, 16, 24] }\n";
    ProfileSet::from_texts([("mine.yaml", text)]).unwrap().by_name("mine").unwrap()
}

fn engine(has_library: bool, workspace_bytes: u64) -> Engine {
    let inner = common::cpu_device();
    let mut info = inner.info().clone();
    if has_library {
        info.features.push("builtin:fused_matmul".to_owned());
    }
    let device = Device::new(Arc::new(Vendor { inner, info, workspace_bytes }));
    Engine::new(device, profile(), Catalog::builtin(), None).unwrap()
}

/// Variants and sizes of the products that computing `tensor` takes.
fn products(engine: &Engine, tensor: &Tensor) -> Vec<(String, Parameters)> {
    let launches = engine.explain(&[tensor]).unwrap().into_iter();
    launches.filter(|launch| launch.op == "dot_general").map(|l| (l.variant, l.parameters)).collect()
}

fn by_library() -> Vec<(String, Parameters)> {
    vec![("builtin".to_owned(), Parameters::default())]
}

fn by_ours() -> Vec<(String, Parameters)> {
    vec![("portable".to_owned(), Parameters::default().with_tile([8, 16, 24]))]
}

fn tensor(engine: &Engine, random: &mut Random, shape: &[usize]) -> Tensor {
    let data: Vec<f32> = random.vector(shape.iter().product()).iter().map(|&x| x as f32).collect();
    engine.tensor(&data, shape).unwrap()
}

/// The same on the plain CPU.
#[track_caller]
fn assert_same(build: impl Fn(&Engine) -> Tensor, expected: &[(String, Parameters)]) {
    let engine = engine(true, 0);
    let got = build(&engine);
    assert_eq!(products(&engine, &got), expected);
    let plain = build(&common::cpu()).to_vec::<f32>().unwrap();
    for (place, (got, plain)) in got.to_vec::<f32>().unwrap().into_iter().zip(plain).enumerate() {
        assert!((got - plain).abs() < 1e-5, "{place}: {got}, not {plain}");
    }
}

#[test]
fn products_that_the_library_has_are_its_own() {
    let random = || Random(3);
    assert_same(
        |engine| {
            let mut random = random();
            let (x, w) = (tensor(engine, &mut random, &[7, 5]), tensor(engine, &mut random, &[9, 5]));
            x.matmul(&w.transpose().unwrap()).unwrap()
        },
        &by_library(),
    );
    assert_same(
        |engine| {
            let mut random = random();
            let (x, w) = (tensor(engine, &mut random, &[2, 3, 4, 5]), tensor(engine, &mut random, &[5, 6]));
            let b = tensor(engine, &mut random, &[6]);
            x.matmul(&w).unwrap().add(&b).unwrap()
        },
        &by_library(),
    );
}

#[test]
fn what_the_library_lacks_is_left_to_the_profiles_next_kernel_with_its_sizes() {
    let random = || Random(4);
    // The library refuses when the built-in is loaded.
    assert_same(
        |engine| {
            let mut random = random();
            let (x, w) = (tensor(engine, &mut random, &[5, 7]), tensor(engine, &mut random, &[5, 4]));
            x.transpose().unwrap().matmul(&w).unwrap()
        },
        &by_ours(),
    );
    // The variant refuses: an operand that begins inside of its buffer, and a relu that this device cannot add.
    assert_same(
        |engine| {
            let mut random = random();
            let (x, w) = (tensor(engine, &mut random, &[7, 5]), tensor(engine, &mut random, &[5, 4]));
            x.slice(&[2, 0], &[6, 5], &[1, 1]).unwrap().matmul(&w).unwrap()
        },
        &by_ours(),
    );
    assert_same(
        |engine| {
            let mut random = random();
            let (x, w) = (tensor(engine, &mut random, &[7, 5]), tensor(engine, &mut random, &[5, 4]));
            let b = tensor(engine, &mut random, &[4]);
            x.matmul(&w).unwrap().add(&b).unwrap().relu().unwrap()
        },
        &by_ours(),
    );
    let engine = engine(true, 0);
    let x = engine.tensor(&[1i32, 2, 3, 4], &[2, 2]).unwrap();
    let product = x.matmul(&x).unwrap();
    assert_eq!(products(&engine, &product), by_ours());
    assert_eq!(product.to_vec::<i32>().unwrap(), [7, 10, 15, 22]);
}

#[test]
fn a_device_without_the_library_is_never_asked_for_it() {
    let engine = engine(false, 0);
    let x = tensor(&engine, &mut Random(5), &[3, 3]);
    assert_eq!(products(&engine, &x.matmul(&x).unwrap()), by_ours());
}

#[test]
fn the_librarys_scratch_memory_is_a_part_of_the_plans_own() {
    // A plan whose launch lacked the argument, or gave it less, would not be made.
    let engine = engine(true, 1000);
    let x = tensor(&engine, &mut Random(6), &[3, 3]);
    let product = x.matmul(&x).unwrap().matmul(&x).unwrap();
    let expected = [by_library(), by_library()].concat();
    assert_eq!(products(&engine, &product), expected);
}

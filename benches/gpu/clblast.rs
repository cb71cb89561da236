//! CLBlast's products, on a queue of OpenCL's own.

use crate::library::library;
use crate::opencl::{Handle, Object, Queue};
use crate::product::Product;
use crate::{Outcome, failure};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

library! {
    /// Functions of CLBlast, as `clblast_c.h` of version 1.5 declares them.
    Functions {
        CLBlastSgemm: fn(
            u32, u32, u32, usize, usize, usize, f32, Handle, usize, usize, Handle, usize, usize, f32, Handle, usize,
            usize, *mut Handle, *mut Handle,
        ) -> i32;
        CLBlastClearCache: fn() -> i32;
    }
}

const NAMES: &[&str] = &["libclblast.so.1", "libclblast.so", "clblast.dll"];
const ROW_MAJOR: u32 = 101;
const NO_TRANSPOSE: u32 = 111;

/// The library with a queue on one device.
pub(crate) struct ClBlast {
    functions: Functions,
    queue: Queue,
}

impl ClBlast {
    /// CLBlast on the OpenCL device of this name.
    pub(crate) fn open(device: &str) -> Outcome<Self> {
        let functions = Functions::open(NAMES)
            .map_err(|error| failure(format!("CLBlast is absent: {error}; Debian has libclblast1")))?;
        Ok(Self { functions, queue: Queue::open(device)? })
    }

    /// A product with its operands on the device.
    pub(crate) fn prepare<'a>(&'a self, product: &Product, lhs: &[f32], rhs: &[f32]) -> Outcome<Gemm<'a>> {
        let upload = |values: &[f32]| {
            let buffer = self.queue.buffer(size_of_val(values))?;
            self.queue.write(&buffer, values).map(|()| buffer)
        };
        let out = self.queue.buffer(product.m * product.n * size_of::<f32>())?;
        Ok(Gemm { library: self, product: *product, lhs: upload(lhs)?, rhs: upload(rhs)?, out })
    }
}

impl Drop for ClBlast {
    fn drop(&mut self) {
        // Compiled programs, which hold the context of this queue.
        // SAFETY: the queue is idle: whoever ran a product has waited for it.
        unsafe { (self.functions.CLBlastClearCache)() };
    }
}

/// A product that is ready to run.
pub(crate) struct Gemm<'a> {
    library: &'a ClBlast,
    product: Product,
    lhs: Object,
    rhs: Object,
    out: Object,
}

impl Gemm<'_> {
    /// The time until the device is done with `count` products.
    pub(crate) fn run(&self, count: u64) -> Outcome<Duration> {
        let Product { m, n, k, .. } = self.product;
        let mut queue = self.library.queue.handle();
        let begin = Instant::now();
        for _ in 0..count {
            // SAFETY: the buffers hold m * k, k * n and m * n numbers, row by row, and outlive the wait below.
            let code = unsafe {
                (self.library.functions.CLBlastSgemm)(
                    ROW_MAJOR,
                    NO_TRANSPOSE,
                    NO_TRANSPOSE,
                    m,
                    n,
                    k,
                    1.0,
                    self.lhs.handle(),
                    0,
                    k,
                    self.rhs.handle(),
                    0,
                    n,
                    0.0,
                    self.out.handle(),
                    0,
                    n,
                    &mut queue,
                    null_mut(),
                )
            };
            if code != 0 {
                self.library.queue.finish()?;
                return Err(failure(format!("CLBlastSgemm failed with code {code}")));
            }
        }
        self.library.queue.finish()?;
        Ok(begin.elapsed())
    }

    /// The last product.
    pub(crate) fn result(&self) -> Outcome<Vec<f32>> {
        let mut values = vec![f32::NAN; self.product.m * self.product.n];
        self.library.queue.read(&self.out, &mut values)?;
        Ok(values)
    }
}

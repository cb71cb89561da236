//! Native kernels: loading, and running their workgroups on a team of threads.

use crate::buffer::address;
use crate::error::{self, lock};
use crate::pool::Team;
use crate::sync::{Mutex, thread_local};
use crate::team::Shares;
use crate::{builtin, scratch};
use halite_hal::{
    Arg, ArgType, DeviceId, Error, Kernel, KernelSource, NativeArg, NativeKernel, Result, Workgroup,
};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

/// A loaded kernel.
pub(crate) struct CpuKernel {
    native: NativeKernel,
    /// For built-ins, which are launched without a grid: the one to run them on, and the bytes that each argument
    /// must have.
    builtin: Option<BuiltinShape>,
}

/// What a built-in knows about its launches.
pub(crate) struct BuiltinShape {
    pub(crate) grid: [u32; 3],
    pub(crate) min_bytes: Vec<u64>,
}

thread_local! {
    /// Whether this thread runs a kernel now.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Makes a kernel of this device.
pub(crate) fn load(device: &DeviceId, source: &KernelSource) -> Result<Kernel> {
    let (native, builtin) = match source {
        KernelSource::Native(native) => (native.clone(), None),
        KernelSource::Builtin(op) => {
            let (native, shape) = builtin::kernel(op)?;
            (native, Some(shape))
        }
        other => {
            let (name, format) = (other.name(), other.format());
            let message =
                format!("kernel '{name}' is of format {format}; the cpu backend takes native and builtin");
            return Err(Error::unsupported(message));
        }
    };
    let (name, signature) = (native.name.clone(), native.signature.clone());
    Ok(Kernel::new(device.clone(), name, signature, 0, Box::new(CpuKernel { native, builtin })))
}

/// The backend's part of a kernel handle.
pub(crate) fn object(kernel: &Kernel) -> Result<&CpuKernel> {
    kernel.object().ok_or_else(|| error::foreign("kernel"))
}

/// Whether the calling thread is inside of a kernel.
pub(crate) fn is_inside() -> bool {
    INSIDE.with(Cell::get)
}

impl CpuKernel {
    /// Argument `index` of a launch as its workgroups will see it.
    pub(crate) fn native_arg(&self, index: usize, arg: &Arg) -> Result<NativeArg> {
        match arg {
            Arg::Scalar(scalar) => Ok(NativeArg::Scalar(*scalar)),
            Arg::Buffer(slice) => self.native_buffer(index, address(slice)?, slice.len_bytes()),
        }
    }

    /// As [`native_arg`](Self::native_arg), for a range of memory.
    pub(crate) fn native_buffer(&self, index: usize, ptr: *mut u8, len_bytes: u64) -> Result<NativeArg> {
        let Some(ArgType::Buffer { dtype, access }) = self.native.signature.args.get(index) else {
            return Err(Error::invalid(format!("argument {index} of '{}' is no buffer", self.native.name)));
        };
        if !(ptr as usize).is_multiple_of(dtype.size()) {
            let message = format!("argument {index} of '{}' is not aligned to {dtype}", self.native.name);
            return Err(Error::invalid(message));
        }
        if let Some(shape) = &self.builtin
            && len_bytes < shape.min_bytes[index]
        {
            return Err(Error::invalid(format!(
                "argument {index} of built-in '{}' has {len_bytes} bytes, its layout needs {}",
                self.native.name, shape.min_bytes[index]
            )));
        }
        // A range of host memory, so its length fits `usize`.
        Ok(NativeArg::Buffer { ptr, len_bytes: len_bytes as usize, access: *access })
    }

    /// Runs a whole launch on `team`. The first failure that a thread meets is the launch's; workgroups that have
    /// not begun by then are left out.
    ///
    /// # Safety
    /// Every buffer argument was made by [`native_arg`](Self::native_arg) from memory that lives and that nobody
    /// else touches until the launch is done, and the launch has passed the signature's check.
    pub(crate) unsafe fn run(&self, team: &Team<'_>, grid: [u32; 3], args: &[NativeArg]) -> Result<()> {
        let grid = self.builtin.as_ref().map_or(grid, |shape| shape.grid);
        // Within 64 bits because the device's limits, which the launch was checked against, are 32, 16 and 16.
        let workgroups = grid.iter().fold(1u64, |product, count| product.saturating_mul(u64::from(*count)));
        let failure = Mutex::new(None);
        team.share(workgroups, &|shares| {
            // SAFETY: this function's own contract.
            if let Err(error) = unsafe { self.run_shares(shares, grid, args) } {
                shares.cancel();
                lock(&failure).get_or_insert(error);
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn run_shares(&self, shares: &Shares<'_>, grid: [u32; 3], args: &[NativeArg]) -> Result<()> {
        let NativeKernel { name, signature, scratch_bytes, run, .. } = &self.native;
        let current = Cell::new([0; 3]);
        let outside = INSIDE.with(|inside| inside.replace(true));
        let result = scratch::with(*scratch_bytes, |scratch| {
            // Once per thread and launch rather than per workgroup; `current` tells which one it was.
            catch_unwind(AssertUnwindSafe(|| {
                while let Some(range) = shares.take() {
                    let mut index = place(range.start, grid);
                    for _ in range {
                        current.set(index);
                        // SAFETY: this function's own contract; the scratch memory is this thread's.
                        let mut workgroup =
                            unsafe { Workgroup::new(index, grid, args, signature.in_place, scratch) };
                        run(&mut workgroup)?;
                        advance(&mut index, grid);
                    }
                }
                Ok(())
            }))
        });
        INSIDE.with(|inside| inside.set(outside));
        let reason = match result? {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(payload) => {
                let reason = error::panic_reason(&*payload);
                // The payload is the kernel's, and may panic again when it is dropped.
                if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                    std::mem::forget(second);
                }
                reason
            }
        };
        Err(error::fault(name, current.get(), grid, &reason))
    }
}

/// The place in the grid of workgroup `number`, counted with the first axis innermost.
fn place(number: u64, grid: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = grid.map(u64::from);
    [number % x, number / x % y, number / x / y].map(|index| index as u32)
}

fn advance(index: &mut [u32; 3], grid: [u32; 3]) {
    for axis in 0..3 {
        index[axis] += 1;
        if index[axis] < grid[axis] || axis == 2 {
            return;
        }
        index[axis] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_linear_order() {
        let grid = [3, 5, 2];
        let mut index = place(0, grid);
        for number in 0..30 {
            assert_eq!(index, place(number, grid));
            advance(&mut index, grid);
        }
        assert_eq!(place((1 << 32) + 5, [u32::MAX, 3, 1]), [6, 1, 0]);
    }
}

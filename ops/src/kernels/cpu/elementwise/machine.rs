//! Runs a [`Program`] over chunks of points.

use super::Rep;
use super::lanes::{LANES, Operands};
use super::program::{ALIGN, Program, SPLAT_BYTES, Slot, Splat, Work};
use crate::cluster::View;
use half::{bf16, f16};
use halite_hal::{DType, Scalar, Workgroup};

/// The state of one workgroup: where every slot lies now.
pub(crate) struct Machine<'a> {
    program: &'a Program,
    inputs: Vec<*const u8>,
    outputs: Vec<*mut u8>,
    /// First byte of the current elements, and whether the slot advances with the points.
    slots: Vec<(*mut u8, usize)>,
    registers: *mut u8,
    splats: *mut u8,
    /// Inputs that stand in a register because an output is their memory.
    staged: Vec<Staged>,
    /// The row whose first elements the row slots name.
    row: Option<usize>,
    /// Offset of the current row in each input, in elements; only where chunks lie in rows.
    row_offsets: Vec<i64>,
    index: Vec<usize>,
}

struct Staged {
    slot: usize,
    input: usize,
    register: *mut u8,
    size: usize,
}

/// A block of elements of any type, for the ragged end of a chunk.
type Spare = [u64; LANES];

impl<'a> Machine<'a> {
    /// Prepares `program` for this workgroup, whose arguments are the inputs from `first_input` on, the outputs (if
    /// they are stored) from `first_output` on, and the scalars from `first_scalar` on.
    ///
    /// # Errors
    /// When the arguments are not those that the program was compiled for.
    pub(crate) fn new(
        program: &'a Program,
        group: &Workgroup<'_>,
        first_output: usize,
        first_scalar: usize,
        scratch: &'a mut [u8],
    ) -> Result<Self, String> {
        let mut inputs = Vec::with_capacity(program.views.len());
        for (arg, (view, elements)) in program.views.iter().zip(&program.input_elements).enumerate() {
            inputs.push(argument(group, arg, view.dtype, *elements)?.cast_const());
        }
        let mut outputs = Vec::with_capacity(program.output_dtypes.len());
        for (n, dtype) in program.output_dtypes.iter().enumerate() {
            outputs.push(argument(group, first_output + n, *dtype, program.points)?);
        }
        let pad = scratch.as_ptr().align_offset(ALIGN);
        let registers_len = program.registers * program.register_stride();
        let splats_len = program.splats.len() * SPLAT_BYTES;
        if scratch.len() < pad + registers_len + splats_len {
            return Err(format!("got {} bytes of scratch memory for a larger program", scratch.len()));
        }
        let (registers, splats) = scratch[pad..].split_at_mut(registers_len);
        let mut machine = Self {
            program,
            inputs,
            outputs,
            slots: Vec::with_capacity(program.slots.len()),
            registers: registers.as_mut_ptr(),
            splats: splats.as_mut_ptr(),
            staged: Vec::new(),
            row: None,
            row_offsets: vec![0; if program.by_rows { program.views.len() } else { 0 }],
            index: vec![0; program.shape.len()],
        };
        for slot in &program.slots {
            let place = match *slot {
                Slot::Register(n) => (machine.register(n), 1),
                Slot::Splat(n) | Slot::RowSplat(n) => {
                    (machine.splats.wrapping_add(usize::from(n) * SPLAT_BYTES), 0)
                }
                Slot::Input(_) | Slot::Row(_) | Slot::Output(_) => (std::ptr::null_mut(), 1),
            };
            machine.slots.push(place);
        }
        machine.fill_splats(group, first_scalar)?;
        for hazard in &program.hazards {
            let (output, input) = (usize::from(hazard.output), usize::from(hazard.input));
            if machine.outputs[output].cast_const() == machine.inputs[input] {
                let register = machine.register(hazard.register);
                let size = program.views[input].dtype.size();
                machine.staged.push(Staged { slot: usize::from(hazard.slot), input, register, size });
            }
        }
        Ok(machine)
    }

    fn register(&self, n: u16) -> *mut u8 {
        self.registers.wrapping_add(usize::from(n) * self.program.register_stride())
    }

    fn fill_splats(&mut self, group: &Workgroup<'_>, first_scalar: usize) -> Result<(), String> {
        if self.program.points == 0 {
            return Ok(());
        }
        for (n, (splat, rep)) in self.program.splats.iter().enumerate() {
            let bits = match *splat {
                Splat::Constant(bits) => bits,
                Splat::Scalar(scalar) => {
                    let scalar = group.scalar(first_scalar + usize::from(scalar))?;
                    if Rep::of(scalar.dtype()) != *rep {
                        return Err(format!(
                            "got a scalar of {} for a program of another type",
                            scalar.dtype()
                        ));
                    }
                    Scalar::to_bits(scalar)
                }
                Splat::Input(input) => {
                    let view = &self.program.views[usize::from(input)];
                    // SAFETY: the offset is inside the buffer, as compiling the program checked for a uniform view,
                    // and the argument has the length that it checked against.
                    unsafe { element_bits(self.inputs[usize::from(input)], view.offset, view.dtype) }
                }
                Splat::Row(_) => continue,
            };
            self.fill_splat(n, bits, rep.size());
        }
        Ok(())
    }

    fn fill_splat(&mut self, n: usize, bits: u64, size: usize) {
        let block = self.splats.wrapping_add(n * SPLAT_BYTES);
        // SAFETY: `new` made room for SPLAT_BYTES = LANES * 8 bytes per block, aligned to 64 bytes.
        unsafe {
            match size {
                1 => block.cast::<[u8; LANES]>().write([bits as u8; LANES]),
                2 => block.cast::<[u16; LANES]>().write([bits as u16; LANES]),
                4 => block.cast::<[u32; LANES]>().write([bits as u32; LANES]),
                _ => block.cast::<[u64; LANES]>().write([bits; LANES]),
            }
        }
    }

    /// Runs the program on the points `first..first + n`, and returns the value that is kept: its first element, and
    /// 1 if the elements follow each other or 0 if a block of equal ones stands for all.
    ///
    /// # Safety
    /// `1 <= n <= program.chunk`; the points lie inside the iteration space, and inside one row if
    /// `program.by_rows`. No other thread accesses these points of the outputs, nor writes what the program reads.
    pub(crate) unsafe fn chunk(&mut self, first: usize, n: usize) -> (*const u8, usize) {
        if self.program.by_rows {
            self.enter_row(first / self.program.row);
        }
        self.place(first);
        for staged in &self.staged {
            // SAFETY: a staged input is read in the order of the points, so that it has the elements
            // `first..first + n` (its offset is 0); the register holds a chunk, and is apart from the arguments.
            unsafe {
                let from = self.inputs[staged.input].add(first * staged.size);
                std::ptr::copy_nonoverlapping(from, staged.register, n * staged.size);
            }
            self.slots[staged.slot].0 = staged.register;
        }
        for at in 0..self.program.code.len() {
            // SAFETY: the caller's promise; `place` has just pointed the slots to these points.
            unsafe { self.execute(at, first, n) };
        }
        let (value, step) = self.slots[usize::from(self.program.result.0)];
        (value.cast_const(), step)
    }

    /// Points the slots that move with the points to `first`.
    fn place(&mut self, first: usize) {
        let program = self.program;
        for (slot, place) in program.slots.iter().zip(&mut self.slots) {
            match *slot {
                Slot::Input(input) => {
                    let view = &program.views[usize::from(input)];
                    let at = (view.offset as isize + first as isize) * view.dtype.size() as isize;
                    place.0 = self.inputs[usize::from(input)].wrapping_offset(at).cast_mut();
                }
                Slot::Row(input) => {
                    let size = program.views[usize::from(input)].dtype.size() as isize;
                    let column = (first % program.row) as isize;
                    let at = (self.row_offsets[usize::from(input)] as isize + column) * size;
                    place.0 = self.inputs[usize::from(input)].wrapping_offset(at).cast_mut();
                }
                Slot::Output(output) => {
                    let size = program.output_dtypes[usize::from(output)].size();
                    place.0 = self.outputs[usize::from(output)].wrapping_add(first * size);
                }
                Slot::Register(_) | Slot::Splat(_) | Slot::RowSplat(_) => {}
            }
        }
    }

    fn enter_row(&mut self, row: usize) {
        if self.row == Some(row) {
            return;
        }
        self.row = Some(row);
        let program = self.program;
        self.locate(row);
        for (offset, view) in self.row_offsets.iter_mut().zip(&program.views) {
            *offset = offset_at(view, &self.index);
        }
        for (n, (splat, rep)) in program.splats.iter().enumerate() {
            if let Splat::Row(input) = *splat {
                let input = usize::from(input);
                let dtype = program.views[input].dtype;
                // SAFETY: the row lies inside the iteration space, all of whose offsets compiling has checked.
                let bits = unsafe { element_bits(self.inputs[input], self.row_offsets[input], dtype) };
                self.fill_splat(n, bits, rep.size());
            }
        }
    }

    /// Sets the index to the first point of `row`.
    fn locate(&mut self, row: usize) {
        let mut rest = row;
        let outer = self.index.len().saturating_sub(1);
        for axis in (0..outer).rev() {
            let extent = self.program.shape[axis].max(1);
            self.index[axis] = rest % extent;
            rest /= extent;
        }
        if let Some(innermost) = self.index.last_mut() {
            *innermost = 0;
        }
    }

    /// # Safety
    /// As for [`Machine::chunk`], with the slots in place.
    unsafe fn execute(&mut self, at: usize, first: usize, n: usize) {
        let program = self.program;
        let instruction = &program.code[at];
        let dst = self.slots[usize::from(instruction.dst)].0;
        let run = match instruction.work {
            Work::Map(run) => run,
            Work::Gather(input) => {
                // SAFETY: the points lie inside the iteration space; `dst` has room for them.
                unsafe { self.gather(usize::from(input), first, n, dst) };
                return;
            }
            Work::Index(axis, rep) => {
                // SAFETY: `dst` has room for `n` elements of `rep`.
                unsafe { self.count(usize::from(axis), rep, first, n, dst) };
                return;
            }
        };
        let places = instruction.src.map(|slot| self.slots[usize::from(slot)]);
        let operands = Operands { dst, src: places.map(|p| p.0.cast_const()), step: places.map(|p| p.1) };
        if !instruction.exact {
            // SAFETY: registers hold a chunk, which is a whole number of blocks, and splats are blocks.
            unsafe { run(&operands, n.next_multiple_of(LANES)) };
            return;
        }
        let whole = n - n % LANES;
        // SAFETY: the slots hold `n` elements; an output is the memory of an operand of the same size or apart.
        unsafe {
            if whole > 0 {
                run(&operands, whole);
            }
            if whole < n {
                let sizes = instruction.src_size.map(usize::from);
                let count = usize::from(instruction.operands);
                self.ragged(
                    &operands,
                    whole,
                    n - whole,
                    sizes,
                    count,
                    usize::from(instruction.dst_size),
                    run,
                );
            }
        }
    }

    /// Runs the last `n < LANES` elements on copies of the operands.
    ///
    /// # Safety
    /// As for `run`, for the elements `at..at + n`.
    #[allow(clippy::too_many_arguments, reason = "one call; a struct of them would say less")]
    unsafe fn ragged(
        &self,
        operands: &Operands,
        at: usize,
        n: usize,
        sizes: [usize; 4],
        count: usize,
        dst_size: usize,
        run: super::lanes::KernelFn,
    ) {
        let mut spare: [Spare; 4] = [[0; LANES]; 4];
        let mut out: Spare = [0; LANES];
        let mut copies = *operands;
        copies.dst = out.as_mut_ptr().cast();
        for (operand, block) in spare.iter_mut().enumerate().take(count) {
            if operands.step[operand] == 1 {
                // SAFETY: the operand has the elements `at..at + n`, and a block of any type fits a spare one.
                unsafe {
                    let from = operands.src[operand].add(at * sizes[operand]);
                    copy_few(from, block.as_mut_ptr().cast(), n * sizes[operand]);
                }
                copies.src[operand] = block.as_ptr().cast();
            }
        }
        // SAFETY: every operand is a whole block now, and the result has the elements `at..at + n`.
        unsafe {
            run(&copies, LANES);
            copy_few(out.as_ptr().cast(), operands.dst.add(at * dst_size), n * dst_size);
        }
    }

    /// Collects the elements of the points `first..first + n`.
    ///
    /// # Safety
    /// The points lie inside the iteration space, and `dst` has room for them.
    unsafe fn gather(&mut self, input: usize, first: usize, n: usize, dst: *mut u8) {
        let program = self.program;
        let view = &program.views[input];
        let size = view.dtype.size();
        let row = program.row;
        let outer = self.index.len().saturating_sub(1);
        let stride = view.strides.last().copied().unwrap_or(0) as isize;
        self.locate(first / row);
        let mut base = offset_at(view, &self.index) as isize;
        let (mut column, mut done) = (first % row, 0);
        while done < n {
            let segment = (row - column).min(n - done);
            // SAFETY: the points lie inside the iteration space, all of whose offsets compiling has checked.
            unsafe {
                let from = self.inputs[input].offset((base + column as isize * stride) * size as isize);
                copy_strided(from, stride, dst.add(done * size), segment, size);
            }
            done += segment;
            column = 0;
            for axis in (0..outer).rev() {
                self.index[axis] += 1;
                base += view.strides[axis] as isize;
                if self.index[axis] < program.shape[axis] {
                    break;
                }
                base -= view.strides[axis] as isize * program.shape[axis] as isize;
                self.index[axis] = 0;
            }
        }
    }

    /// Writes the index along `axis` of the points `first..first + n`.
    ///
    /// # Safety
    /// `dst` has room for `n` elements of `rep`.
    unsafe fn count(&mut self, axis: usize, rep: Rep, first: usize, n: usize, dst: *mut u8) {
        let program = self.program;
        let inner: usize = program.shape[axis + 1..].iter().product();
        let extent = program.shape[axis];
        let (mut value, mut left) = ((first / inner) % extent, inner - first % inner);
        for at in 0..n {
            // SAFETY: `at < n`.
            unsafe {
                match rep {
                    Rep::I8 | Rep::U8 => dst.add(at).write(value as u8),
                    Rep::I16 | Rep::U16 => dst.cast::<u16>().add(at).write_unaligned(value as u16),
                    Rep::I32 | Rep::U32 => dst.cast::<u32>().add(at).write_unaligned(value as u32),
                    Rep::I64 | Rep::U64 => dst.cast::<u64>().add(at).write_unaligned(value as u64),
                    Rep::F32 => dst.cast::<f32>().add(at).write_unaligned(value as f32),
                    Rep::F64 => dst.cast::<f64>().add(at).write_unaligned(value as f64),
                }
            }
            left -= 1;
            if left == 0 {
                left = inner;
                value = if value + 1 == extent { 0 } else { value + 1 };
            }
        }
    }
}

/// The address of argument `arg`, which must hold at least `elements` of `dtype`.
pub(crate) fn argument(
    group: &Workgroup<'_>,
    arg: usize,
    dtype: DType,
    elements: usize,
) -> Result<*mut u8, String> {
    let (ptr, len_bytes) = group.pointer::<u8>(arg)?;
    match elements.checked_mul(dtype.size()) {
        Some(needed) if needed <= len_bytes => Ok(ptr),
        _ => Err(format!(
            "argument {arg} has {len_bytes} bytes, but {elements} elements of {dtype} are needed"
        )),
    }
}

/// Offset of the point `index` in a view; in range, since compiling has checked every point.
fn offset_at(view: &View, index: &[usize]) -> i64 {
    view.offset + view.strides.iter().zip(index).map(|(stride, at)| stride * *at as i64).sum::<i64>()
}

/// Bits of one element in the type that programs compute in.
///
/// # Safety
/// Element `offset` of `dtype` lies inside the buffer.
unsafe fn element_bits(buffer: *const u8, offset: i64, dtype: DType) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let at = buffer.offset(offset as isize * dtype.size() as isize);
        match dtype {
            DType::F16 => u64::from(f16::from_bits(at.cast::<u16>().read_unaligned()).to_f32().to_bits()),
            DType::BF16 => u64::from(bf16::from_bits(at.cast::<u16>().read_unaligned()).to_f32().to_bits()),
            _ => match dtype.size() {
                1 => u64::from(at.read()),
                2 => u64::from(at.cast::<u16>().read_unaligned()),
                4 => u64::from(at.cast::<u32>().read_unaligned()),
                _ => at.cast::<u64>().read_unaligned(),
            },
        }
    }
}

/// Copies fewer than a block of bytes, which may be the same memory.
///
/// # Safety
/// Both sides are valid for `len` bytes.
unsafe fn copy_few(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(from, to, len) }
}

/// Copies `n` elements of `size` bytes, `stride` elements apart, to a dense place.
///
/// # Safety
/// The elements and the place are valid, and do not overlap.
unsafe fn copy_strided(from: *const u8, stride: isize, to: *mut u8, n: usize, size: usize) {
    /// # Safety
    /// As above, for elements of `T`.
    unsafe fn typed<T: Copy>(from: *const T, stride: isize, to: *mut T, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if stride == 0 {
                let value = from.read_unaligned();
                (0..n).for_each(|at| to.add(at).write_unaligned(value));
            } else {
                (0..n).for_each(|at| {
                    to.add(at).write_unaligned(from.offset(at as isize * stride).read_unaligned())
                });
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            _ if stride == 1 => std::ptr::copy_nonoverlapping(from, to, n * size),
            1 => typed(from, stride, to, n),
            2 => typed::<u16>(from.cast(), stride, to.cast(), n),
            4 => typed::<u32>(from.cast(), stride, to.cast(), n),
            _ => typed::<u64>(from.cast(), stride, to.cast(), n),
        }
    }
}

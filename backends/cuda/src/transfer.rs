//! Host memory to the device and back.
//!
//! | copy | goes | the caller |
//! | --- | --- | --- |
//! | in, up to [`PART_BYTES`] | the host copies to pinned blocks now, the device fetches from them in order | goes on |
//! | in, longer, owned bytes | through one block: a thread of the driver fills it, the device fetches, again and again | goes on |
//! | in, longer, borrowed bytes | part after part, as above | waits where blocks run out |
//! | out, up to [`SMALL_READ_BYTES`] | to a block; whoever sees its event first copies to the target | goes on |
//! | out, longer | through one block, emptied by a thread of the driver | goes on |
//! | out, blocking | part after part: the device fills blocks, the host copies from each as soon as it is full | waits |
//!
//! So the driver is given pinned memory alone, and owned memory by way of it: nothing that a caller has borrowed out is
//! touched after a call has returned, whatever fails.

use crate::buffer::place;
use crate::context::{Current, StreamHandle};
use crate::event::{EventShared, timed_out};
use crate::staging::{self, BLOCK_BYTES, Block};
use crate::stream::{Held, StreamShared};
use halite_hal::driver::{HostBytes, HostTarget};
use halite_hal::{BufferSlice, Error, ErrorKind, Result};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// Longest copy whose blocks are all taken at once.
pub(crate) const PART_BYTES: usize = 64 << 20;
/// Longest read that is finished by whoever waits for it. A function on a thread of the driver takes some ten
/// microseconds to begin, which for short reads is most of the time; copying this much takes about as long.
const SMALL_READ_BYTES: usize = 256 << 10;

/// A copy on the host in a stream's order, made by a thread of the driver.
pub(crate) struct HostCopy {
    from: *const u8,
    to: *mut u8,
    len_bytes: usize,
    /// What the two pointers lead to.
    _owners: (Arc<Block>, Owner),
}

enum Owner {
    Bytes(#[expect(dead_code, reason = "held, not read")] HostBytes),
    Target(#[expect(dead_code, reason = "held, not read")] HostTarget),
}

// SAFETY: the pointers lead into what the value owns, and the copy is the only user of both ranges in its stream's order.
unsafe impl Send for HostCopy {}
// SAFETY: as above.
unsafe impl Sync for HostCopy {}

/// What the driver calls; `data` is a [`HostCopy`].
unsafe extern "C" fn run_host_copy(data: *mut c_void) {
    // SAFETY: the stream holds the copy until the call is over, or for good (see `Books::give_up`).
    let copy = unsafe { &*data.cast::<HostCopy>() };
    // SAFETY: both ranges are that long and owned by `copy`; a block and caller's memory do not overlap.
    unsafe { ptr::copy_nonoverlapping(copy.from, copy.to, copy.len_bytes) }
}

/// A read whose bytes are in a block once its command is over.
pub(crate) struct SmallRead {
    block: Block,
    target: HostTarget,
}

impl SmallRead {
    /// Brings the bytes to their target. The command is over.
    pub(crate) fn finish(self) {
        // SAFETY: the block is at least as long as the target, and the device has written it; the target is written by
        // this read alone, and read only after this (`HostTarget`).
        unsafe {
            ptr::copy_nonoverlapping(
                self.block.as_mut_ptr(),
                self.target.as_mut_ptr(),
                self.target.len_bytes(),
            );
        }
    }
}

impl StreamShared {
    pub(crate) fn write(self: &Arc<Self>, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        let bytes = src.as_slice();
        if bytes.is_empty() {
            return self.admit();
        }
        if bytes.len() <= PART_BYTES && self.write_part(dst, bytes)? {
            return Ok(());
        }
        let place = place(dst)?;
        let block = self.only_block(bytes.len())?;
        let copies: Vec<_> = ranges(bytes.len(), BLOCK_BYTES)
            .map(|(offset, len)| {
                let from = bytes[offset..].as_ptr();
                let owners = (block.clone(), Owner::Bytes(src.clone()));
                Arc::new(HostCopy { from, to: block.as_mut_ptr(), len_bytes: len, _owners: owners })
            })
            .collect();
        let steps = steps(&copies);
        let held = copies.into_iter().map(Held::HostCopy).chain([Held::Buffer(dst.buffer().clone())]);
        self.enqueue_pieces(held, |gpu, stream, begun| {
            for (offset, data, len) in steps {
                // SAFETY: the copy is held until the command is over, and calls nothing.
                unsafe { gpu.launch_host(stream, run_host_copy, data)? };
                begun.set(true);
                // SAFETY: the block is at least as long as a range, and held; the next function runs after this copy.
                unsafe { gpu.copy_in(stream, place.at(offset), block.as_mut_ptr(), len)? };
            }
            Ok(())
        })
    }

    pub(crate) fn write_blocking(self: &Arc<Self>, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        if src.is_empty() {
            return self.admit();
        }
        for (offset, len) in ranges(src.len(), PART_BYTES) {
            let part = dst.slice(offset as u64, len as u64)?;
            let bytes = &src[offset..offset + len];
            while !self.write_part(&part, bytes)? {
                // Blocks come back when the work that uses them is over.
                if self.in_flight() == 0 {
                    self.write(&part, bytes.into())?;
                    break;
                }
                self.synchronize(None)?;
            }
        }
        Ok(())
    }

    /// Copies to blocks and enqueues their way to the device; false if there are not enough blocks.
    fn write_part(self: &Arc<Self>, dst: &BufferSlice, bytes: &[u8]) -> Result<bool> {
        self.admit()?;
        let place = place(dst)?;
        let Some(blocks) = self.blocks(bytes.len())? else { return Ok(false) };
        for (block, chunk) in blocks.iter().zip(bytes.chunks(BLOCK_BYTES)) {
            // SAFETY: the block is at least as long as the chunk, and nobody else's.
            unsafe { ptr::copy_nonoverlapping(chunk.as_ptr(), block.as_mut_ptr(), chunk.len()) };
        }
        let held = blocks.iter().cloned().map(Held::Block).chain([Held::Buffer(dst.buffer().clone())]);
        self.enqueue_pieces(held, |gpu, stream, begun| {
            for (block, (offset, len)) in blocks.iter().zip(ranges(bytes.len(), BLOCK_BYTES)) {
                // SAFETY: the block is at least as long as the range, and held until the command is over.
                unsafe { gpu.copy_in(stream, place.at(offset), block.as_mut_ptr(), len)? };
                begun.set(true);
            }
            Ok(())
        })?;
        Ok(true)
    }

    pub(crate) fn read(self: &Arc<Self>, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        let len = dst.len_bytes();
        if len == 0 {
            return self.admit();
        }
        let place = place(src)?;
        let buffer = Held::Buffer(src.buffer().clone());
        if len <= SMALL_READ_BYTES
            && let Some(block) = staging::acquire(&self.device, len, false)?
        {
            let pointer = block.as_mut_ptr();
            let read = SmallRead { block, target: dst };
            return self.enqueue_read([buffer], read, |gpu, stream| {
                // SAFETY: the block, which is at least as long, is held until the command is over.
                unsafe { gpu.copy_out(stream, pointer, place, len) }
            });
        }
        let block = self.only_block(len)?;
        let copies: Vec<_> = ranges(len, BLOCK_BYTES)
            .map(|(offset, len)| {
                // SAFETY: the offset lies inside the target.
                let to = unsafe { dst.as_mut_ptr().add(offset) };
                let owners = (block.clone(), Owner::Target(dst.clone()));
                Arc::new(HostCopy { from: block.as_mut_ptr(), to, len_bytes: len, _owners: owners })
            })
            .collect();
        let steps = steps(&copies);
        let held = copies.into_iter().map(Held::HostCopy).chain([buffer]);
        self.enqueue_pieces(held, |gpu, stream, begun| {
            for (offset, data, len) in steps {
                // SAFETY: the block is at least as long as a range, and held; the last function is over before this.
                unsafe { gpu.copy_out(stream, block.as_mut_ptr(), place.at(offset), len)? };
                begun.set(true);
                // SAFETY: the copy is held until the command is over, and calls nothing.
                unsafe { gpu.launch_host(stream, run_host_copy, data)? };
            }
            Ok(())
        })
    }

    pub(crate) fn read_blocking(self: &Arc<Self>, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        if dst.is_empty() {
            return self.admit();
        }
        let mut offset = 0;
        while offset < dst.len() {
            let left = dst.len() - offset;
            let blocks = match self.blocks(left.min(PART_BYTES))? {
                Some(blocks) => blocks,
                None => vec![self.only_block(left)?],
            };
            let len = left.min(blocks.len() * BLOCK_BYTES);
            let part = src.slice(offset as u64, len as u64)?;
            self.read_part(&part, &mut dst[offset..offset + len], &blocks)?;
            offset += len;
        }
        Ok(())
    }

    /// Reads through blocks, of which there are enough.
    fn read_part(self: &Arc<Self>, src: &BufferSlice, dst: &mut [u8], blocks: &[Arc<Block>]) -> Result<()> {
        let place = place(src)?;
        let held = blocks.iter().cloned().map(Held::Block).chain([Held::Buffer(src.buffer().clone())]);
        let events: Vec<_> =
            blocks.iter().map(|_| EventShared::create(&self.device)).collect::<Result<_>>()?;
        self.enqueue(held, |gpu, stream| {
            let pieces = ranges(dst.len(), BLOCK_BYTES);
            for ((block, event), (offset, len)) in blocks.iter().zip(&events).zip(pieces) {
                // SAFETY: the block is at least as long as the range, and held until the command is over.
                unsafe { gpu.copy_out(stream, block.as_mut_ptr(), place.at(offset), len)? };
                gpu.event_record(event.handle, stream)?;
            }
            Ok(())
        })?;
        for ((block, event), chunk) in blocks.iter().zip(&events).zip(dst.chunks_mut(BLOCK_BYTES)) {
            match event.wait(None) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.fail(error.clone())?;
                    // An earlier failure comes first.
                    return self.admit().and(Err(error));
                }
                None => return Err(timed_out(None)),
            }
            // SAFETY: the device is past this block's copy, the only one that uses it, and it is as long as the chunk.
            unsafe { ptr::copy_nonoverlapping(block.as_mut_ptr(), chunk.as_mut_ptr(), chunk.len()) };
        }
        Ok(())
    }

    /// Enqueues a command in pieces. `run` notes when the first one is enqueued: a refusal after that leaves a half-done
    /// command, which poisons the stream.
    fn enqueue_pieces(
        self: &Arc<Self>,
        held: impl IntoIterator<Item = Held>,
        run: impl FnOnce(&Current<'_>, StreamHandle, &Cell<bool>) -> Result<()>,
    ) -> Result<()> {
        let begun = Cell::new(false);
        let result = self.enqueue(held, |gpu, stream| run(gpu, stream, &begun));
        if let Err(error) = &result
            && begun.get()
        {
            self.fail(error.clone())?;
        }
        result
    }

    /// Blocks for `len` bytes in all, unless so many are in use that copies should do with one each.
    fn blocks(&self, len: usize) -> Result<Option<Vec<Arc<Block>>>> {
        let mut blocks = Vec::new();
        for (_, len) in ranges(len, BLOCK_BYTES) {
            match staging::acquire(&self.device, len, false)? {
                Some(block) => blocks.push(Arc::new(block)),
                None => return Ok(None),
            }
        }
        Ok(Some(blocks))
    }

    /// One block for the pieces of `len` bytes, in any case.
    fn only_block(&self, len: usize) -> Result<Arc<Block>> {
        let block = staging::acquire(&self.device, len.min(BLOCK_BYTES), true)?;
        block.map(Arc::new).ok_or_else(|| {
            let kind = ErrorKind::OutOfMemory { requested: len as u64, free: 0 };
            Error::new(kind, "the host has no memory to pin for a copy; drop pinned buffers")
        })
    }
}

/// Offset, the copy and length of each piece, for the driver.
fn steps(copies: &[Arc<HostCopy>]) -> Vec<(usize, *mut c_void, usize)> {
    let step = |(index, copy): (usize, &Arc<HostCopy>)| {
        (index * BLOCK_BYTES, Arc::as_ptr(copy).cast_mut().cast(), copy.len_bytes)
    };
    copies.iter().enumerate().map(step).collect()
}

/// `len` bytes as offsets and lengths of pieces.
fn ranges(len: usize, piece: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(piece).map(move |offset| (offset, piece.min(len - offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_length_without_gaps() {
        assert_eq!(ranges(0, 4).count(), 0);
        assert_eq!(ranges(4, 4).collect::<Vec<_>>(), [(0, 4)]);
        assert_eq!(ranges(9, 4).collect::<Vec<_>>(), [(0, 4), (4, 4), (8, 1)]);
    }
}

//! The calling thread's stack as bare addresses, which take microseconds where symbols take milliseconds.

/// Frames that count, from the innermost on: enough to reach the caller's program through the ops, and few enough that
/// a deep recursion does not look like ever new places.
const DEPTH: usize = 128;

/// A number for the return addresses on the stack: the same for the same calls, another for others. `None` where they
/// are not to be had.
pub(super) fn number() -> Option<u64> {
    let mut addresses = [0; DEPTH];
    let count = system::walk(&mut addresses);
    (count > 0).then(|| hash(&addresses[..count]))
}

/// FNV-1a, of words. Nobody chooses addresses to make two stacks look alike.
fn hash(words: &[usize]) -> u64 {
    words
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, word| (hash ^ *word as u64).wrapping_mul(0x0100_0000_01B3))
}

/// Without the 32-bit ARM ABI, where the second function is a macro of C.
#[cfg(all(unix, not(target_arch = "arm")))]
mod system {
    use std::ffi::{c_int, c_void};

    /// Opaque.
    #[repr(C)]
    struct Context([u8; 0]);

    // The unwinder of the C++ ABI for Itanium (level I, section 1.6), with which the standard library is linked: its own
    // backtraces come from there.
    unsafe extern "C" {
        fn _Unwind_Backtrace(
            visit: unsafe extern "C" fn(*mut Context, *mut c_void) -> c_int,
            data: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(context: *mut Context) -> usize;
    }

    const GO_ON: c_int = 0;
    const STOP: c_int = 5;

    struct Walk<'a> {
        addresses: &'a mut [usize],
        count: usize,
    }

    pub(super) fn walk(addresses: &mut [usize]) -> usize {
        let mut walk = Walk { addresses, count: 0 };
        // SAFETY: `visit` gets back the pointer to `walk`, which outlives the call.
        unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
        walk.count
    }

    /// # Safety
    /// `data` leads to a [`Walk`] that nobody else uses; `context` is the unwinder's.
    unsafe extern "C" fn visit(context: *mut Context, data: *mut c_void) -> c_int {
        // SAFETY: the caller's promise.
        let walk = unsafe { &mut *data.cast::<Walk<'_>>() };
        let Some(place) = walk.addresses.get_mut(walk.count) else { return STOP };
        // SAFETY: the caller's promise.
        *place = unsafe { _Unwind_GetIP(context) };
        walk.count += 1;
        GO_ON
    }
}

#[cfg(windows)]
mod system {
    use std::ffi::c_void;
    use std::ptr;

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn RtlCaptureStackBackTrace(
            skip: u32,
            capture: u32,
            addresses: *mut *mut c_void,
            hash: *mut u32,
        ) -> u16;
    }

    pub(super) fn walk(addresses: &mut [usize]) -> usize {
        // SAFETY: there is room for so many addresses, each as large as a usize; the hash may be null.
        let count = unsafe {
            RtlCaptureStackBackTrace(
                0,
                addresses.len() as u32,
                addresses.as_mut_ptr().cast(),
                ptr::null_mut(),
            )
        };
        count.into()
    }
}

#[cfg(not(any(all(unix, not(target_arch = "arm")), windows)))]
mod system {
    pub(super) fn walk(_: &mut [usize]) -> usize {
        0
    }
}

#[cfg(all(test, any(all(unix, not(target_arch = "arm")), windows)))]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[inline(never)]
    fn at_depth(depth: usize) -> Option<u64> {
        // Kept from becoming a loop by what is done behind the call.
        let number = if depth == 0 { number() } else { at_depth(depth - 1) };
        std::hint::black_box(number)
    }

    #[test]
    fn calls_are_told_apart_by_their_place_and_by_nothing_else() {
        // The compiler may repeat the body of a loop some times.
        let turns: HashSet<_> = (0..std::hint::black_box(1000)).map(|_| at_depth(1)).collect();
        assert!(!turns.contains(&None) && turns.len() < 100, "{turns:?}");
        let (here, there) = (at_depth(1), at_depth(1));
        assert_ne!(here, there);
        assert_ne!(at_depth(1), at_depth(2));
        // Beyond the depth that counts, all are alike.
        let deep = [2 * DEPTH, 3 * DEPTH].map(at_depth);
        assert_eq!(deep[0], deep[1]);
    }
}

//! Tables with changes, for tests of loaders and of plugins: shorter and longer ones, without functions that may lack,
//! of other versions.

use super::Plugin;
use crate::{Error, Result};
use std::mem;

/// More than any loader reads: a stated size beyond it is stated alone.
const MAX_BYTES: u64 = 64 << 10;

/// What stands behind the functions of a table that is longer than this version's.
const FILLER: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// One change of a plugin's table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableChange {
    /// States another size. Behind what this version knows stand bytes without meaning.
    Size(u64),
    /// Ends the table right before a function.
    CutBefore(&'static str),
    /// Ends the table right behind a function.
    CutBehind(&'static str),
    /// Takes a function out, so that its place is null.
    Remove(&'static str),
    /// States another major version.
    Major(u32),
    /// States another minor version.
    Minor(u32),
    /// Sets bits of the features.
    SetFeatures(u64),
    /// Clears bits of the features.
    ClearFeatures(u64),
}

/// A copy of a plugin's table with changes, which lies in memory as the interface says.
#[derive(Debug)]
pub struct ChangedTable(Box<[u64]>);

impl ChangedTable {
    /// A copy of `source` with `changes`, in their order.
    ///
    /// # Errors
    /// `InvalidArgument` for a function that the table does not have.
    pub fn new(source: &Plugin, changes: &[TableChange]) -> Result<Self> {
        let mut table = *source;
        for change in changes {
            match change {
                TableChange::Size(size) => table.struct_size = *size,
                TableChange::CutBefore(name) => table.struct_size = place_of(name)?,
                TableChange::CutBehind(name) => {
                    table.struct_size = place_of(name)? + size_of::<usize>() as u64
                }
                TableChange::Remove(name) => remove(&mut table, name)?,
                TableChange::Major(major) => table.abi_major = *major,
                TableChange::Minor(minor) => table.abi_minor = *minor,
                TableChange::SetFeatures(bits) => table.features |= bits,
                TableChange::ClearFeatures(bits) => table.features &= !bits,
            }
        }
        let bytes = table.struct_size.min(MAX_BYTES).max(size_of::<Plugin>() as u64);
        let mut words = vec![FILLER; bytes.div_ceil(8) as usize].into_boxed_slice();
        let source = (&raw const table).cast::<u8>();
        // SAFETY: both sides hold the bytes of a table: the words are at least as many (`bytes` above).
        unsafe { std::ptr::copy_nonoverlapping(source, words.as_mut_ptr().cast(), size_of::<Plugin>()) };
        Ok(Self(words))
    }

    /// The table, as an entry function would return it; valid for as long as this lives.
    pub fn as_ptr(&self) -> *const Plugin {
        self.0.as_ptr().cast()
    }
}

/// Where a function stands, and how it is taken out.
macro_rules! functions {
    ($($name:ident)*) => {
        /// The functions of a table, in order.
        pub const FUNCTIONS: &[&str] = &[$(stringify!($name)),*];

        fn place_of(name: &str) -> Result<u64> {
            match name {
                $(stringify!($name) => Ok(mem::offset_of!(Plugin, $name) as u64),)*
                _ => Err(unknown(name)),
            }
        }

        fn remove(table: &mut Plugin, name: &str) -> Result<()> {
            match name {
                $(stringify!($name) => table.$name = None,)*
                _ => return Err(unknown(name)),
            }
            Ok(())
        }
    };
}

functions!(
    device_count device_info device_open device_close memory_alloc memory_free memory_info stream_create stream_destroy
    stream_write stream_read stream_copy stream_fill stream_wait_event stream_synchronize event_create event_destroy
    event_record event_wait event_query event_elapsed stream_reset device_health device_counters get_extension
    builtin_validate builtin_prepare builtin_release builtin_enqueue program_load program_unload kernel_find
    kernel_launch kernel_info kernel_argument memory_import peer_enable stream_copy_peer
);

fn unknown(name: &str) -> Error {
    Error::invalid(format!("a plugin's table has no function '{name}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_apply_in_order_and_leave_the_source_alone() {
        let source = Plugin { abi_major: 1, features: 3, ..Plugin::sized() };
        let changes = [
            TableChange::Major(9),
            TableChange::SetFeatures(1 << 40),
            TableChange::ClearFeatures(1),
            TableChange::Size(4096),
        ];
        let table = ChangedTable::new(&source, &changes).unwrap();
        // SAFETY: the table is whole and aligned, and lives until the end of the test.
        let copy = unsafe { *table.as_ptr() };
        assert_eq!((copy.abi_major, copy.features, copy.struct_size), (9, 1 << 40 | 2, 4096));
        assert_eq!((table.0.len(), table.0[511]), (512, FILLER));
        assert_eq!((source.abi_major, source.features), (1, 3));
    }

    #[test]
    fn tables_end_where_they_are_cut_and_absurd_sizes_take_no_memory() {
        let source = Plugin::sized();
        let size = |change| {
            let table = ChangedTable::new(&source, &[change]).unwrap();
            (table.0[0], table.0.len() * 8)
        };
        let whole = size_of::<Plugin>();
        assert_eq!(size(TableChange::CutBehind("stream_copy_peer")), (whole as u64, whole));
        let place = mem::offset_of!(Plugin, event_elapsed) as u64;
        assert_eq!(size(TableChange::CutBefore("event_elapsed")), (place, whole));
        assert_eq!(size(TableChange::CutBehind("event_query")), (place, whole));
        assert_eq!(size(TableChange::Size(u64::MAX)), (u64::MAX, MAX_BYTES as usize));
        assert!(ChangedTable::new(&source, &[TableChange::Remove("launch")]).is_err());
    }
}

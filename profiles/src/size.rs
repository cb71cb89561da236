//! Which sizes a kernel variant reads, so that a profile is not believed to change what it cannot.

use crate::error::{Error, Result};
use crate::profile::Profile;
use crate::schema::{KernelEntry, Parameters};
use crate::suggest::list;

/// A size that a kernel variant reads from a profile's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Size {
    /// `tile`, with this many extents.
    Tile(usize),
    /// `threads`, with this many extents. A bare number is one extent.
    Threads(usize),
    /// `chunk`.
    Chunk,
    /// `stages`.
    Stages,
    /// `split_k`.
    SplitK,
    /// `unroll`.
    Unroll,
}

impl Size {
    /// The key of a profile's entry.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Tile(_) => "tile",
            Self::Threads(_) => "threads",
            Self::Chunk => "chunk",
            Self::Stages => "stages",
            Self::SplitK => "split_k",
            Self::Unroll => "unroll",
        }
    }

    /// Extents of a list; `None` for a number.
    const fn extents(self) -> Option<usize> {
        match self {
            Self::Tile(extents) | Self::Threads(extents) => Some(extents),
            _ => None,
        }
    }
}

impl Parameters {
    /// The sizes that are given.
    pub fn sizes(&self) -> Vec<Size> {
        let lists = [self.tile().map(|tile| Size::Tile(tile.len()))];
        let lists = lists.into_iter().chain([self.threads().map(|threads| Size::Threads(threads.len()))]);
        let integers = [Size::Chunk, Size::Stages, Size::SplitK, Size::Unroll];
        let integers = integers.into_iter().filter(|size| self.int(size.key()).is_some());
        lists.flatten().chain(integers).collect()
    }

    /// The first size that is given and that a variant which reads these does not.
    pub fn unread(&self, reads: &[Size]) -> Option<Size> {
        self.sizes().into_iter().find(|size| !reads.contains(size))
    }
}

impl Profile {
    /// Checks that a user's file gives each variant of `op` only sizes that it reads; `reads` answers `None` for a
    /// variant that takes any.
    ///
    /// # Errors
    ///
    /// [`Error::UnreadSize`] with file and line.
    pub fn check_sizes(&self, op: &str, reads: impl Fn(&str) -> Option<Vec<Size>>) -> Result<()> {
        for (index, entry) in self.users_entries(op) {
            let Some(reads) = reads(entry.variant()) else { continue };
            if let Some(size) = entry.parameters().unread(&reads) {
                return Err(Error::UnreadSize {
                    at: self.entry_location(op, index, size.key()),
                    key: Self::entry_path(op, index, size.key()),
                    variant: entry.variant().to_owned(),
                    size,
                    reads,
                });
            }
        }
        Ok(())
    }

    /// The entries of an op that stand in a user's file, with their numbers.
    pub(crate) fn users_entries(&self, op: &str) -> impl Iterator<Item = (usize, &KernelEntry)> {
        let entries = self.kernel_entries(op).iter().enumerate();
        entries.filter(|(_, entry)| !entry.origin().is_builtin())
    }
}

/// What an [`Error::UnreadSize`] says behind the key.
pub(crate) fn unread_text(size: Size, variant: &str, reads: &[Size]) -> String {
    let same = reads.iter().filter(|own| own.key() == size.key()).filter_map(|own| own.extents());
    let expected: Vec<String> = same.map(|extents| extents.to_string()).collect();
    if let (Some(got), false) = (size.extents(), expected.is_empty()) {
        let (plural, expected) = (if got == 1 { "" } else { "s" }, expected.join(" or "));
        return format!(
            "has {got} extent{plural}, but the kernel '{variant}' reads {expected}; write {expected} numbers"
        );
    }
    let mut keys: Vec<&str> = reads.iter().map(|own| own.key()).collect();
    keys.dedup();
    let keys = if keys.is_empty() { "no sizes".to_owned() } else { list(keys) };
    format!("is not read by the kernel '{variant}', which reads {keys}; leave the key out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProfileSet;

    fn checked(entry: &str, reads: Option<&[Size]>) -> Result<(), String> {
        let text = format!("name: mine\nkernels:\n  op:\n    - variant: k\n      {entry}\n");
        let set =
            ProfileSet::from_texts([("mine.yaml", text.as_str())]).map_err(|error| error.to_string())?;
        let profile = set.by_name("mine").map_err(|error| error.to_string())?;
        profile.check_sizes("op", |_| reads.map(<[Size]>::to_vec)).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_that_a_kernel_reads_pass() {
        for (entry, reads) in [
            ("when: m > 3", [].as_slice()),
            ("tile: [1, 2, 3]", &[Size::Tile(3)]),
            ("threads: 4", &[Size::Threads(1)]),
            ("threads: [4, 2]", &[Size::Threads(1), Size::Threads(2)]),
            ("chunk: 5", &[Size::Unroll, Size::Chunk]),
        ] {
            assert_eq!(checked(entry, Some(reads)), Ok(()), "{entry}");
        }
        // A kernel that does not say what it reads takes any.
        assert_eq!(checked("tile: [1]\n      stages: 3", None), Ok(()));
    }

    #[test]
    fn sizes_that_a_kernel_does_not_read_are_refused_with_their_line() {
        for (entry, reads, expected) in [
            (
                "tile: [64]",
                [Size::Tile(3)].as_slice(),
                "mine.yaml:5: kernels.op[0].tile has 1 extent, but the kernel 'k' reads 3; write 3 numbers",
            ),
            (
                "threads: [1, 2, 3]",
                &[Size::Threads(1), Size::Threads(2)],
                "mine.yaml:5: kernels.op[0].threads has 3 extents, but the kernel 'k' reads 1 or 2; write 1 or 2 \
                 numbers",
            ),
            (
                "tile: [64]",
                &[Size::Chunk],
                "mine.yaml:5: kernels.op[0].tile is not read by the kernel 'k', which reads chunk; leave the key out",
            ),
            (
                "chunk: 7\n      split_k: 2",
                &[Size::Chunk],
                "mine.yaml:6: kernels.op[0].split_k is not read by the kernel 'k', which reads chunk; leave the key \
                 out",
            ),
            (
                "unroll: 7",
                &[],
                "mine.yaml:5: kernels.op[0].unroll is not read by the kernel 'k', which reads no sizes; leave the \
                 key out",
            ),
        ] {
            assert_eq!(checked(entry, Some(reads)), Err(expected.to_owned()));
        }
    }
}

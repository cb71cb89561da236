//! The 1,797 handwritten 8x8 digits of the UCI optical recognition set, and the order they are learnt in.
//!
//! The data ship inside the program (`data/digits.bin`, 73,709 bytes, CC BY 4.0). `data/README.md`
//! describes the format, the split and the attribution; the reader here checks every part of it,
//! since `from_file` also takes files that did not come from us.

use std::io::Read;
use std::path::{Path, PathBuf};

/// Rows and columns of an image.
pub const SIDE: usize = 8;
/// Pixels of an image.
pub const PIXELS: usize = SIDE * SIDE;
/// Classes, the digits 0 to 9.
pub const CLASSES: usize = 10;
/// The largest pixel: how many of a cell's 4x4 scanned dots were inked.
pub const MAX_PIXEL: u8 = 16;
/// Training images of the built-in data.
pub const TRAIN_IMAGES: usize = 1437;
/// Test images of the built-in data.
pub const TEST_IMAGES: usize = 360;

const MAGIC: &[u8; 8] = b"HALDIGIT";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
const CHECKSUM_BYTES: usize = 4;
const BITS_PER_PIXEL: usize = 5;
const PACKED_BYTES: usize = PIXELS * BITS_PER_PIXEL / 8;
// A file is read whole; four bytes of count could otherwise announce hundreds of gigabytes.
const MAX_IMAGES: u64 = 10_000_000;
const MAX_FILE_BYTES: u64 =
    HEADER_BYTES as u64 + MAX_IMAGES * (1 + PACKED_BYTES as u64) + CHECKSUM_BYTES as u64;

const BUILTIN: &[u8] = include_bytes!("../../data/digits.bin");
const BUILTIN_NAME: &str = "the built-in data";

/// Why digits could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DigitsError {
    /// The file could not be opened or read.
    #[error("read digits: cannot read {}: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The bytes are not what the format says.
    #[error(
        "read digits: {origin} is damaged at byte {offset}: {fault}; \
         restore the file or make it again with tools/make_digits.py"
    )]
    Damaged {
        /// The file, or "the built-in data".
        origin: String,
        /// Where the first fault was found, counted from the start.
        offset: usize,
        /// What is wrong there.
        fault: Fault,
    },
}

/// What is wrong with a file of digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file ends early or goes on after its end.
    #[error("the file has {actual} bytes, expected {expected}")]
    Length {
        /// Bytes that the header announces.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// The first eight bytes are not ours.
    #[error("the file does not start with \"HALDIGIT\", so it holds no digits")]
    Magic,
    /// A number in the header is not one that this program reads.
    #[error("{field} is {actual}, expected {expected}")]
    Header {
        /// Which number.
        field: &'static str,
        /// What this program reads.
        expected: u64,
        /// What the file says.
        actual: u64,
    },
    /// The checksum does not belong to the bytes before it.
    #[error("the checksum is {stored:#010x}, expected {computed:#010x}")]
    Checksum {
        /// The checksum in the file.
        stored: u32,
        /// The CRC-32 of the bytes before it.
        computed: u32,
    },
    /// A label is not a digit.
    #[error("the label of image {image} is {label}, expected at most 9")]
    Label {
        /// Number of the image in the file.
        image: usize,
        /// Its label.
        label: u8,
    },
    /// A pixel is darker than black.
    #[error("pixel {pixel} of image {image} is {value}, expected at most 16")]
    Pixel {
        /// Number of the image in the file.
        image: usize,
        /// Which pixel, row by row.
        pixel: usize,
        /// Its value.
        value: u8,
    },
}

/// Handwritten digits, split into images to train with and images to test with.
#[derive(Debug, Clone)]
pub struct Digits {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    train_len: usize,
}

/// One half of the split, borrowed from [`Digits`].
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    pixels: &'a [u8],
    labels: &'a [u8],
}

/// Images with their labels, as a network takes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Normalised pixels, shape `[len, 1, 8, 8]`, row-major.
    pub images: Vec<f32>,
    /// Digits 0 to 9, shape `[len]`.
    pub labels: Vec<i32>,
}

impl Digits {
    /// The digits that ship with the program: 1,437 to train, 360 to test.
    ///
    /// # Errors
    /// Only if the program itself was built from a damaged file.
    pub fn builtin() -> Result<Self, DigitsError> {
        Self::from_bytes(BUILTIN, BUILTIN_NAME)
    }

    /// Reads a file of digits.
    ///
    /// # Errors
    /// [`DigitsError::Io`] if it cannot be read, [`DigitsError::Damaged`] if its content is not what the
    /// format says.
    pub fn from_file(path: &Path) -> Result<Self, DigitsError> {
        let io = |source| DigitsError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        // One byte more than any legal file, so that a longer one is seen to be too long.
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads digits from memory; `origin` names them in an error.
    ///
    /// # Errors
    /// [`DigitsError::Damaged`] with the first byte that is wrong.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, DigitsError> {
        parse(bytes).map_err(|(offset, fault)| DigitsError::Damaged {
            origin: origin.to_owned(),
            offset,
            fault,
        })
    }

    /// The images to train with.
    pub fn train(&self) -> Images<'_> {
        let (pixels, labels) = (&self.pixels[..self.train_len * PIXELS], &self.labels[..self.train_len]);
        Images { pixels, labels }
    }

    /// The images to test with, which no training step may see.
    pub fn test(&self) -> Images<'_> {
        let (pixels, labels) = (&self.pixels[self.train_len * PIXELS..], &self.labels[self.train_len..]);
        Images { pixels, labels }
    }
}

impl<'a> Images<'a> {
    /// Number of images.
    #[expect(clippy::len_without_is_empty, reason = "the reader refuses a split with an empty half")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Labels, digits 0 to 9.
    pub fn labels(&self) -> &'a [u8] {
        self.labels
    }

    /// The raw pixels of one image, 0 (paper) to 16 (ink), row by row.
    ///
    /// # Panics
    /// If `index` is not less than [`len`](Self::len).
    pub fn pixels(&self, index: usize) -> &'a [u8] {
        &self.pixels[index * PIXELS..(index + 1) * PIXELS]
    }

    /// The images at `indices`, normalised to -1 (paper) to 1 (ink) as `pixel / 8 - 1`.
    ///
    /// Every value is a multiple of 1/8, so f16 and bf16 hold it exactly and devices of any
    /// precision start from the same input.
    ///
    /// # Panics
    /// If an index is not less than [`len`](Self::len).
    pub fn batch(&self, indices: &[usize]) -> Batch {
        let mut images = Vec::with_capacity(indices.len() * PIXELS);
        for &index in indices {
            images.extend(self.pixels(index).iter().map(|&pixel| f32::from(pixel) / 8.0 - 1.0));
        }
        let labels = indices.iter().map(|&index| i32::from(self.labels[index])).collect();
        Batch { images, labels }
    }

    /// All images in the order of the file.
    pub fn all(&self) -> Batch {
        self.batch(&(0..self.len()).collect::<Vec<_>>())
    }

    /// Batches of one epoch, all of exactly `batch` images, in an order that follows from seed and epoch.
    ///
    /// Every image comes once; the last batch is filled up with images from the start of the epoch, so
    /// that all steps have one shape and share one plan. A `batch` of zero gives no batches.
    pub fn epoch(
        self,
        batch: usize,
        seed: u64,
        epoch: u64,
    ) -> impl ExactSizeIterator<Item = Batch> + use<'a> {
        let order = shuffled(self.len(), seed, epoch);
        let steps = self.steps_per_epoch(batch);
        (0..steps).map(move |step| {
            let wrapped = (step * batch..(step + 1) * batch).map(|position| order[position % order.len()]);
            self.batch(&wrapped.collect::<Vec<_>>())
        })
    }

    /// How many batches an [`epoch`](Self::epoch) has.
    pub fn steps_per_epoch(&self, batch: usize) -> usize {
        if batch == 0 { 0 } else { self.len().div_ceil(batch) }
    }
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// The numbers `0..len` in an order that follows from `seed` and `epoch` alone.
///
/// Fisher-Yates with numbers from SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators", OOPSLA 2014). The choice below a bound is the high word of a product
/// (Lemire, "Fast random integer generation in an interval", 2019) without its rejection step: the
/// bias is below `len / 2^64`.
pub fn shuffled(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut state = seed;
    // The epoch enters through the mixer, so neighbouring seeds and epochs share no sequence.
    state = split_mix(&mut state) ^ epoch;
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        let product = u128::from(split_mix(&mut state)) * (last as u128 + 1);
        order.swap(last, (product >> 64) as usize);
    }
    order
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn parse(bytes: &[u8]) -> Result<Digits, (usize, Fault)> {
    let actual = bytes.len() as u64;
    let start = &bytes[..bytes.len().min(MAGIC.len())];
    if start.is_empty() || !MAGIC.starts_with(start) {
        return Err((0, Fault::Magic));
    }
    if bytes.len() < HEADER_BYTES {
        let expected = (HEADER_BYTES + CHECKSUM_BYTES) as u64;
        return Err((bytes.len(), Fault::Length { expected, actual }));
    }

    header_field(bytes, 8, 4, "the format version", u64::from(VERSION))?;
    let train = image_count(bytes, 12, "the number of training images", TRAIN_IMAGES)?;
    let test = image_count(bytes, 16, "the number of test images", TEST_IMAGES)?;
    header_field(bytes, 20, 2, "the image height", SIDE as u64)?;
    header_field(bytes, 22, 2, "the image width", SIDE as u64)?;
    header_field(bytes, 24, 2, "the number of classes", CLASSES as u64)?;
    header_field(bytes, 26, 2, "the largest pixel", u64::from(MAX_PIXEL))?;

    let images = train + test;
    let packed_start = HEADER_BYTES + images;
    let checksum_start = packed_start + images * PACKED_BYTES;
    let expected = (checksum_start + CHECKSUM_BYTES) as u64;
    if actual != expected {
        return Err((bytes.len().min(expected as usize), Fault::Length { expected, actual }));
    }
    let stored = little_endian(&bytes[checksum_start..]) as u32;
    let computed = crc32fast::hash(&bytes[..checksum_start]);
    if stored != computed {
        return Err((checksum_start, Fault::Checksum { stored, computed }));
    }

    let labels = bytes[HEADER_BYTES..packed_start].to_vec();
    if let Some((image, &label)) = labels.iter().enumerate().find(|&(_, &label)| label >= CLASSES as u8) {
        return Err((HEADER_BYTES + image, Fault::Label { image, label }));
    }
    let mut pixels = Vec::with_capacity(images * PIXELS);
    for (image, packed) in bytes[packed_start..checksum_start].chunks_exact(PACKED_BYTES).enumerate() {
        pixels.extend(unpack(packed));
        let added = &pixels[image * PIXELS..];
        if let Some((pixel, &value)) = added.iter().enumerate().find(|&(_, &value)| value > MAX_PIXEL) {
            let offset = packed_start + image * PACKED_BYTES + pixel * BITS_PER_PIXEL / 8;
            return Err((offset, Fault::Pixel { image, pixel, value }));
        }
    }
    Ok(Digits { pixels, labels, train_len: train })
}

fn header_field(
    bytes: &[u8],
    offset: usize,
    len: usize,
    field: &'static str,
    expected: u64,
) -> Result<(), (usize, Fault)> {
    let actual = little_endian(&bytes[offset..offset + len]);
    if actual == expected { Ok(()) } else { Err((offset, Fault::Header { field, expected, actual })) }
}

fn image_count(
    bytes: &[u8],
    offset: usize,
    field: &'static str,
    usual: usize,
) -> Result<usize, (usize, Fault)> {
    let actual = little_endian(&bytes[offset..offset + 4]);
    if actual == 0 || actual > MAX_IMAGES / 2 {
        return Err((offset, Fault::Header { field, expected: usual as u64, actual }));
    }
    Ok(actual as usize)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The pixels of one packed image: 5 bits each, the first one in the lowest bits.
fn unpack(packed: &[u8]) -> impl Iterator<Item = u8> + '_ {
    // Eight pixels fill five bytes exactly.
    packed.chunks_exact(5).flat_map(|group| {
        let bits = little_endian(group);
        (0..8).map(move |pixel| (bits >> (pixel * BITS_PER_PIXEL)) as u8 & 0x1f)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: usize = HEADER_BYTES;
    const PACKED: usize = HEADER_BYTES + TRAIN_IMAGES + TEST_IMAGES;

    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len() - CHECKSUM_BYTES;
        let checksum = crc32fast::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn changed(offset: usize, value: u8) -> Vec<u8> {
        let mut bytes = BUILTIN.to_vec();
        bytes[offset] = value;
        bytes
    }

    fn fault(bytes: &[u8]) -> (usize, Fault) {
        match Digits::from_bytes(bytes, "digits.bin") {
            Err(error @ DigitsError::Damaged { .. }) => {
                let message = error.to_string();
                assert!(!message.contains('\n') && message.contains("make_digits.py"), "{message}");
                let DigitsError::Damaged { offset, fault, .. } = error else { unreachable!() };
                assert!(message.contains(&format!("digits.bin is damaged at byte {offset}: ")), "{message}");
                (offset, fault)
            }
            other => panic!("expected damage, got {other:?}"),
        }
    }

    #[test]
    fn builtin_digits_are_complete_and_stratified() {
        let digits = Digits::builtin().unwrap();
        assert_eq!((digits.train().len(), digits.test().len()), (TRAIN_IMAGES, TEST_IMAGES));
        let count = |images: Images<'_>, class: u8| images.labels().iter().filter(|&&l| l == class).count();
        // The counts per class that the data set's own description states.
        let total = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180];
        for (class, total) in total.into_iter().enumerate() {
            let (train, test) = (count(digits.train(), class as u8), count(digits.test(), class as u8));
            assert_eq!(train + test, total, "class {class}");
            let share = total as f64 * TEST_IMAGES as f64 / (TRAIN_IMAGES + TEST_IMAGES) as f64;
            assert!((test as f64 - share).abs() < 1.0, "class {class}: {test} test images, share {share}");
        }
    }

    #[test]
    fn no_test_image_is_a_training_image() {
        let digits = Digits::builtin().unwrap();
        let train: std::collections::HashSet<&[u8]> =
            (0..TRAIN_IMAGES).map(|index| digits.train().pixels(index)).collect();
        assert!((0..TEST_IMAGES).all(|index| !train.contains(digits.test().pixels(index))));
    }

    #[test]
    fn the_first_training_digit_is_a_one() {
        let digits = Digits::builtin().unwrap();
        let row = |row: &[u8]| row.iter().map(|&p| if p > 8 { '#' } else { '.' }).collect::<String>();
        let rows: Vec<String> = digits.train().pixels(0).chunks(SIDE).map(row).collect();
        assert_eq!(digits.train().labels()[0], 1);
        assert_eq!(
            rows,
            [
                "...#....", //
                "...###..", "..###...", "...###..", "..###...", "...###..", "..###...", "...###..",
            ]
        );
    }

    #[test]
    fn normalised_pixels_are_multiples_of_an_eighth_between_minus_one_and_one() {
        let digits = Digits::builtin().unwrap();
        let batch = digits.train().all();
        assert_eq!((batch.images.len(), batch.len()), (TRAIN_IMAGES * PIXELS, TRAIN_IMAGES));
        assert!(batch.images.iter().all(|&x| (-1.0..=1.0).contains(&x) && (x * 8.0).fract() == 0.0));
        assert!(batch.images.contains(&-1.0) && batch.images.contains(&1.0));
    }

    #[test]
    fn an_epoch_shows_every_image_and_fills_its_last_batch() {
        let digits = Digits::builtin().unwrap();
        for batch in [1, 31, 32, 1437] {
            let batches: Vec<Batch> = digits.train().epoch(batch, 7, 3).collect();
            assert_eq!(batches.len(), TRAIN_IMAGES.div_ceil(batch));
            assert!(batches.iter().all(|b| b.len() == batch && b.images.len() == batch * PIXELS));
            let order = shuffled(TRAIN_IMAGES, 7, 3);
            let shown: Vec<i32> = batches.iter().flat_map(|b| b.labels.clone()).collect();
            let labels = digits.train().labels();
            assert!(shown.iter().zip(order.iter().cycle()).all(|(&s, &o)| s == i32::from(labels[o])));
        }
        assert_eq!(digits.train().epoch(0, 7, 3).len(), 0);
        assert_eq!(digits.train().epoch(5000, 7, 3).map(|b| b.len()).collect::<Vec<_>>(), [5000]);
    }

    #[test]
    fn a_shuffle_is_a_permutation_that_depends_on_seed_and_epoch() {
        for len in [0, 1, 2, 97, 1437] {
            let mut order = shuffled(len, 1, 0);
            assert_eq!(order, shuffled(len, 1, 0));
            order.sort_unstable();
            assert!(order.into_iter().eq(0..len));
        }
        let orders: std::collections::HashSet<_> =
            (0..20).flat_map(|seed| (0..20).map(move |epoch| shuffled(50, seed, epoch))).collect();
        assert_eq!(orders.len(), 400);
    }

    #[test]
    fn a_shuffle_puts_every_number_everywhere_equally_often() {
        const LEN: usize = 6;
        const ROUNDS: u64 = 6000;
        let mut counts = [[0_u32; LEN]; LEN];
        for epoch in 0..ROUNDS {
            for (position, number) in shuffled(LEN, 42, epoch).into_iter().enumerate() {
                counts[position][number] += 1;
            }
        }
        // 1000 expected; the standard deviation is 29, and 36 counts stay within 5 of them.
        assert!(counts.iter().flatten().all(|&count| (855..=1145).contains(&count)), "{counts:?}");
    }

    #[test]
    fn every_truncation_is_refused() {
        for len in (0..100).chain((100..BUILTIN.len()).step_by(997)).chain([BUILTIN.len() - 1]) {
            let (offset, fault) = fault(&BUILTIN[..len]);
            assert_eq!(offset, len);
            assert!(matches!(fault, Fault::Length { .. }) || len == 0, "{len}: {fault}");
        }
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let mut bytes = BUILTIN.to_vec();
        bytes.push(0);
        let (expected, actual) = (BUILTIN.len() as u64, BUILTIN.len() as u64 + 1);
        assert_eq!(fault(&bytes), (BUILTIN.len(), Fault::Length { expected, actual }));
    }

    #[test]
    fn foreign_files_are_refused() {
        assert_eq!(fault(b"\x89PNG\r\n\x1a\n and so on"), (0, Fault::Magic));
        assert_eq!(fault(&changed(7, b'X')), (0, Fault::Magic));
    }

    #[test]
    fn a_header_of_another_shape_is_refused_where_it_differs() {
        for (offset, value, name) in [
            (8, 2, "the format version is 2, expected 1"),
            (15, 0xff, "the number of training images is"),
            (16, 0, "the number of test images is 256, expected 360"),
            (20, 28, "the image height is 28, expected 8"),
            (22, 0, "the image width is 0, expected 8"),
            (24, 26, "the number of classes is 26, expected 10"),
            (27, 1, "the largest pixel is 272, expected 16"),
        ] {
            let (at, fault) = fault(&changed(offset, value));
            if offset == 16 {
                // 256 is a possible count, so it is the length that gives it away.
                assert!(matches!(fault, Fault::Length { .. }), "{fault}");
                continue;
            }
            assert!(at <= offset && fault.to_string().starts_with(name), "{at} {fault}");
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        for offset in (0..BUILTIN.len()).step_by(41) {
            fault(&changed(offset, BUILTIN[offset] ^ 0x10));
        }
    }

    #[test]
    fn a_wrong_checksum_is_named() {
        let (offset, fault) = fault(&changed(PACKED + 5, BUILTIN[PACKED + 5] ^ 1));
        assert_eq!(offset, BUILTIN.len() - CHECKSUM_BYTES);
        assert!(matches!(fault, Fault::Checksum { stored, computed } if stored != computed));
    }

    #[test]
    fn a_label_that_is_no_digit_is_refused_even_with_a_good_checksum() {
        let bytes = with_checksum(changed(LABELS + 3, 10));
        assert_eq!(fault(&bytes), (LABELS + 3, Fault::Label { image: 3, label: 10 }));
    }

    #[test]
    fn a_pixel_above_sixteen_is_refused_even_with_a_good_checksum() {
        let mut bytes = BUILTIN.to_vec();
        // Image 2, pixel 0 lies in the lowest five bits of its first byte.
        bytes[PACKED + 2 * PACKED_BYTES] |= 0x1f;
        let expected = (PACKED + 2 * PACKED_BYTES, Fault::Pixel { image: 2, pixel: 0, value: 31 });
        assert_eq!(fault(&with_checksum(bytes)), expected);
    }

    #[test]
    fn an_absent_file_is_an_error_with_its_path() {
        let error = Digits::from_file(Path::new("no/such/digits.bin")).unwrap_err().to_string();
        assert!(error.starts_with("read digits: cannot read no/such/digits.bin: "), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn a_file_reads_like_the_builtin_data() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits.bin");
        if !path.exists() {
            // A packaged crate keeps the file; a scratch build elsewhere need not.
            eprintln!("skipped: {} is absent", path.display());
            return;
        }
        assert_eq!(Digits::from_file(&path).unwrap().train().all(), Digits::builtin().unwrap().train().all());
    }
}

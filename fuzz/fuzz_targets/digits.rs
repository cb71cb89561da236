//! Files of the demo's digits: any bytes are digits or an error that names the first byte that is wrong.
#![no_main]

use halite::demo::digits::{Digits, SIDE};
use halite_npu_isa::crc::crc32;
use libfuzzer_sys::fuzz_target;

/// Images of five bits a pixel.
const IMAGE_BYTES: usize = SIDE * SIDE * 5 / 8;

/// A file with these contents and the header and checksum that belong to them.
fn file(train: u8, test: u8, contents: &[u8]) -> Vec<u8> {
    let (train, test) = (usize::from(train % 4), usize::from(test % 4));
    let mut file = b"HALDIGIT".to_vec();
    for number in [1, train as u32, test as u32] {
        file.extend(number.to_le_bytes());
    }
    for number in [8_u16, 8, 10, 16] {
        file.extend(number.to_le_bytes());
    }
    let length = (train + test) * (1 + IMAGE_BYTES);
    file.extend(contents.iter().copied().chain(std::iter::repeat(0)).take(length));
    file.extend(crc32(&file).to_le_bytes());
    file
}

fn read(bytes: &[u8]) {
    match Digits::from_bytes(bytes, "fuzz.bin") {
        Ok(digits) => {
            let _ = digits.train();
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    if let [train, test, contents @ ..] = bytes {
        read(&file(*train, *test, contents));
    }
});

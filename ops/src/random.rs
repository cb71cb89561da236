//! Counter-based random bits as an elementwise program: Threefry2x32 with 20 rounds.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Because the program consists of
//! 32-bit additions, shifts and exclusive ors alone, every device computes the same bits.

/// Rotations of the eight rounds that repeat.
const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
/// The key schedule's parity word.
const PARITY: u32 = 0x1BD1_1BDA;
const ROUNDS: u32 = 20;

/// The 32-bit operations that the cipher consists of; a value may be a number or a step of a program.
pub(crate) trait Words {
    /// A 32-bit word.
    type Word: Copy;
    /// A constant.
    fn constant(&mut self, value: u32) -> Self::Word;
    /// Wrapping sum.
    fn add(&mut self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// Exclusive or.
    fn xor(&mut self, a: Self::Word, b: Self::Word) -> Self::Word;
    /// Rotation to the left by 1..=31.
    fn rotate(&mut self, a: Self::Word, by: u32) -> Self::Word;
}

/// Both output words for a key and a counter.
pub(crate) fn threefry2x32<W: Words>(
    words: &mut W,
    key: [W::Word; 2],
    counter: [W::Word; 2],
) -> [W::Word; 2] {
    let parity = words.constant(PARITY);
    let both = words.xor(key[0], key[1]);
    let schedule = [key[0], key[1], words.xor(parity, both)];
    let mut x = [words.add(counter[0], schedule[0]), words.add(counter[1], schedule[1])];
    for round in 0..ROUNDS {
        x[0] = words.add(x[0], x[1]);
        x[1] = words.rotate(x[1], ROTATIONS[round as usize % 8]);
        x[1] = words.xor(x[1], x[0]);
        if round % 4 == 3 {
            let injection = round / 4 + 1;
            x[0] = words.add(x[0], schedule[injection as usize % 3]);
            let number = words.constant(injection);
            let word = words.add(schedule[(injection as usize + 1) % 3], number);
            x[1] = words.add(x[1], word);
        }
    }
    x
}

/// Plain numbers, for the reference and for hosts that draw a few.
pub(crate) struct Numbers;

impl Words for Numbers {
    type Word = u32;

    fn constant(&mut self, value: u32) -> u32 {
        value
    }

    fn add(&mut self, a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }

    fn xor(&mut self, a: u32, b: u32) -> u32 {
        a ^ b
    }

    fn rotate(&mut self, a: u32, by: u32) -> u32 {
        a.rotate_left(by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution for threefry2x32, 20 rounds.
    #[test]
    fn agrees_with_the_published_known_answers() {
        let cases = [
            ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
            ([u32::MAX; 2], [u32::MAX; 2], [0x1cb9_96fc, 0xbb00_2be7]),
            ([0x13198a2e, 0x03707344], [0x243f6a88, 0x85a308d3], [0xc492_3a9c, 0x483d_f7a0]),
        ];
        for (key, counter, expected) in cases {
            assert_eq!(threefry2x32(&mut Numbers, key, counter), expected, "key {key:08x?}");
        }
    }
}

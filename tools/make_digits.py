"""Makes data/digits.bin, the digits of the main job, from the copy that scikit-learn's wheel carries.

    pip install scikit-learn
    python tools/make_digits.py data/digits.bin

The result is the same byte for byte on every machine: order and split follow from the images themselves.
data/README.md describes the format, the split and the licence.
"""

import argparse
import hashlib
import struct
import sys
import zlib

MAGIC = b"HALDIGIT"
VERSION = 1
SIDE = 8
CLASSES = 10
MAX_PIXEL = 16
TEST_IMAGES = 360


def rank(number: int, pixels: bytes) -> bytes:
    """The key that images are ordered by: as good as random, and the same everywhere."""
    return hashlib.sha256(pixels + struct.pack("<I", number)).digest()


def test_share(count_by_class: list[int]) -> list[int]:
    """How many images each class gives to the test set: its proportional share, by largest remainder."""
    total = sum(count_by_class)
    shares = [count * TEST_IMAGES // total for count in count_by_class]
    by_remainder = sorted(range(CLASSES), key=lambda c: (-(count_by_class[c] * TEST_IMAGES % total), c))
    for label in by_remainder[: TEST_IMAGES - sum(shares)]:
        shares[label] += 1
    return shares


def pack(pixels: bytes) -> bytes:
    """64 pixels of 5 bits, the first one in the lowest bits, as 40 bytes."""
    bits = sum(pixel << (5 * position) for position, pixel in enumerate(pixels))
    return bits.to_bytes(SIDE * SIDE * 5 // 8, "little")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the file to write, data/digits.bin in this repository")
    arguments = parser.parse_args()
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("scikit-learn is missing: pip install scikit-learn")

    source = load_digits()
    images = [
        (rank(number, pixels), pixels, int(label))
        for number, (row, label) in enumerate(zip(source.data, source.target))
        for pixels in [bytes(int(value) for value in row)]
    ]
    assert all(max(pixels) <= MAX_PIXEL and label < CLASSES for _, pixels, label in images)
    images.sort()

    left_for_test = test_share([sum(label == c for _, _, label in images) for c in range(CLASSES)])
    train, test = [], []
    for image in images:
        label = image[2]
        (test if left_for_test[label] > 0 else train).append(image)
        left_for_test[label] -= 1

    ordered = train + test
    body = MAGIC + struct.pack("<IIIHHHH", VERSION, len(train), len(test), SIDE, SIDE, CLASSES, MAX_PIXEL)
    body += bytes(label for _, _, label in ordered)
    body += b"".join(pack(pixels) for _, pixels, _ in ordered)
    with open(arguments.output, "wb") as file:
        file.write(body + struct.pack("<I", zlib.crc32(body)))
    print(f"{arguments.output}: {len(train)} images to train, {len(test)} to test")


if __name__ == "__main__":
    main()

"""LZW streams: whole ones pass, and what passes can be decoded without ending the process."""

import subprocess
import sys

import imagecodecs
import numpy as np
import pytest

from simtriplet.wsi.lzw_stream import refuse_broken_lzw

# decodes in a process of its own, which a stream that was let through wrongly would end
DECODE = """
import imagecodecs, numpy as np
from simtriplet.wsi.lzw_stream import refuse_broken_lzw
rng, counts = np.random.default_rng(1), {"refused": 0, "decoded": 0, "error": 0}
pixels = [np.repeat(rng.integers(0, high, 6000, dtype=np.uint8), 2).tobytes() for high in (3, 30, 255)]
whole = [imagecodecs.lzw_encode(one) for one in pixels]
for turn in range(6000):
    data = bytearray(whole[turn % 3])
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    if turn % 5 == 0:
        data = data[: int(rng.integers(1, len(data)))]
    try:
        refuse_broken_lzw(bytes(data))
        imagecodecs.lzw_decode(bytes(data), out=12000)
        counts["decoded"] += 1
    except ValueError:
        counts["refused"] += 1
    except Exception:  # its own, by a name that it does not export
        counts["error"] += 1
print(counts["refused"], counts["decoded"], counts["error"])
"""


@pytest.mark.parametrize("high", [2, 5, 40, 255])
@pytest.mark.parametrize("n", [1, 300, 5000, 200_000])
def test_whole_streams_pass(high: int, n: int) -> None:
    pixels = np.random.default_rng(n).integers(0, high, n, dtype=np.uint8).tobytes()
    data = imagecodecs.lzw_encode(pixels)
    refuse_broken_lzw(data)
    refuse_broken_lzw(data[: len(data) // 2])  # cut short it decodes to less
    assert imagecodecs.lzw_decode(data) == pixels


def codes_of_nine_bits(*codes: int) -> bytes:
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def test_entries_that_the_table_does_not_have_are_refused() -> None:
    refuse_broken_lzw(codes_of_nine_bits(256, 7, 258, 259, 257))
    refuse_broken_lzw(codes_of_nine_bits(256, 256, 7, 257))
    refuse_broken_lzw(b"")
    for wrong in ((256, 300, 257), (256, 258, 257), (256, 7, 259, 257), (256, 7, 258, 256, 258, 257)):
        with pytest.raises(ValueError, match="its LZW stream names an entry that its table does not have"):
            refuse_broken_lzw(codes_of_nine_bits(*wrong))


def test_damaged_streams_that_pass_do_not_end_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", DECODE], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    refused, decoded, errors = map(int, ended.stdout.split())
    assert refused + decoded + errors == 6000
    assert min(refused, decoded) > 300

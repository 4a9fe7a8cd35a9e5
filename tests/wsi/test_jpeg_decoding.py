"""Decoding JPEG tiles: the pixels are the decoder's own, wherever the memory lies."""

import threading

import imagecodecs
import numpy as np
import pytest

from simtriplet.wsi.jpeg_decoding import decode_jpeg, unaligned_empty


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])


@pytest.mark.parametrize("shape", [(3, 5, 3), (256, 256, 3), (0, 4)])
def test_memory_begins_between_two_vectors(shape: tuple[int, ...]) -> None:
    memory = unaligned_empty(shape)
    assert memory.shape == shape
    assert memory.flags.c_contiguous
    assert memory.ctypes.data % 32 == 8 or not memory.size


@pytest.mark.parametrize("size", [(256, 256), (240, 240), (33, 17), (1, 1)])
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_the_pixels_are_those_of_the_plain_decoder(size: tuple[int, int], subsampling: str) -> None:
    data = imagecodecs.jpeg8_encode(picture(*size), level=85, subsampling=subsampling)
    out = np.zeros((3, *size, 3), np.uint8)
    decode_jpeg(data, out[1])
    assert np.array_equal(out[1], imagecodecs.jpeg8_decode(data))
    assert not out[[0, 2]].any()


def test_threads_do_not_share_their_landing_place() -> None:
    streams = [imagecodecs.jpeg8_encode(picture(64, 64, seed), level=85) for seed in range(4)]
    wrong: list[int] = []

    def work(number: int) -> None:
        expected, out = imagecodecs.jpeg8_decode(streams[number]), np.empty((64, 64, 3), np.uint8)
        for _ in range(300):
            decode_jpeg(streams[number], out)
            if not np.array_equal(out, expected):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_size_or_no_jpeg_is_a_value_error() -> None:
    data = imagecodecs.jpeg8_encode(picture(16, 24))
    for shape in ((24, 16, 3), (8, 8, 3), (64, 64, 3)):
        with pytest.raises(ValueError, match="shape"):
            decode_jpeg(data, np.empty(shape, np.uint8))
    for broken in (b"", b"xx", data[:2]):
        with pytest.raises(ValueError, match=r".+"):
            decode_jpeg(broken, np.empty((16, 24, 3), np.uint8))

"""Tile codecs: lossless where they say so, and damaged bytes are a ValueError."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.codec import CODECS, JpegCodec, NoneCodec, codec_from_metadata, make_codec
from simtriplet.wsi.errors import StoreError, UnknownNameError


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(["none", "zstd"]), size=st.integers(1, 20), seed=st.integers(0, 99))
def test_lossless_codecs_return_every_byte(name: str, size: int, seed: int) -> None:
    tile = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    codec, out = make_codec(name), np.empty_like(tile)
    codec.decode(bytes(codec.encode(tile)), out)
    assert np.array_equal(out, tile)


def test_a_tile_that_is_a_view_is_encoded_as_it_looks() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)[:, ::-1]
    for name in ("none", "zstd"):
        codec, out = make_codec(name), np.empty((8, 8, 3), np.uint8)
        codec.decode(bytes(codec.encode(tile)), out)
        assert np.array_equal(out, tile)


def test_a_jpeg_chunk_is_a_jpeg_file_and_close_to_the_pixels() -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    tile = np.stack([np.add.outer(ramp // 2, ramp // 2)] * 3, axis=-1).astype(np.uint8)
    codec, out = make_codec("jpeg", jpeg_quality=95), np.empty_like(tile)
    data = bytes(codec.encode(tile))
    codec.decode(data, out)
    assert data[:3] == b"\xff\xd8\xff"
    assert np.abs(out.astype(int) - tile).max() <= 4
    assert len(data) < len(bytes(NoneCodec().encode(tile))) / 3


def test_lower_quality_is_smaller() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [len(bytes(make_codec("jpeg", jpeg_quality=quality).encode(tile))) for quality in (30, 60, 90)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize("name", ["none", "zstd", "jpeg"])
@pytest.mark.parametrize("data", [b"", b"\x01", b"\x28\xb5\x2f\xfd", b"\xff\xd8\xff\xe0", b"x" * 50])
def test_damaged_bytes_are_a_value_error(name: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make_codec(name).decode(data, np.empty((4, 4, 3), np.uint8))


@pytest.mark.parametrize("name", ["none", "zstd", "jpeg"])
def test_bytes_of_another_shape_are_a_value_error(name: str) -> None:
    data = bytes(make_codec(name).encode(np.zeros((6, 6, 3), np.uint8)))
    with pytest.raises(ValueError, match=r".+"):
        make_codec(name).decode(data, np.empty((4, 4, 3), np.uint8))


def test_the_chain_in_the_metadata_names_its_codec() -> None:
    for name in CODECS:
        codec = make_codec(name, jpeg_quality=77)
        again = codec_from_metadata(codec.zarr_codecs(), where="x")
        assert again.name == name
        if isinstance(again, JpegCodec):
            assert again.quality == 77


def test_an_unknown_chain_or_name_is_refused() -> None:
    with pytest.raises(StoreError, match=r"^store 'x': tiles are encoded with bytes\+blosc; open it with a newer"):
        codec_from_metadata([{"name": "bytes"}, {"name": "blosc"}], where="x")
    with pytest.raises(UnknownNameError, match="did you mean 'jpeg'"):
        make_codec("jpg")

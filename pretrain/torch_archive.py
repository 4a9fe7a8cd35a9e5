"""Files that torch.save wrote, read without running what a pickle asks for, and only if every byte of them is as it was written.

torch takes whatever the tensors of a file hold: it has the checksums of the zip archive that it writes, and compares none.
"""

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simtriplet.wsi.errors import CheckpointError, SimTripletError
from simtriplet.wsi.metadata import DAMAGE

__all__ = ["load_archive", "load_pickle", "understanding"]

_CHUNK_BYTES = 1 << 20
_DOS_FOLDER = 0x10


def load_archive(path: Path) -> Any:
    """Read tensors and plain values to the CPU.

    Raises:
        ValueError: if the file is no such archive, or not as it was written.
        Exception: whatever else torch raises on values that it does not know.
    """
    if not path.is_file():  # of a pipe no end might ever come
        raise ValueError("is no file")
    _verify(path)
    return _load(path)


def load_pickle(path: Path) -> Any:
    """Read tensors and plain values to the CPU; of the older form too, which has no checksums.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is no file, or an archive that is not as it was written.
        Exception: whatever else torch raises on values that it does not know.
    """
    if path.exists() and path.is_file() and not zipfile.is_zipfile(path):
        return _load(path)
    if not path.exists():
        raise FileNotFoundError(str(path))
    return load_archive(path)


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that other programs wrote, which are refused or read
        return torch.load(path, map_location="cpu", weights_only=True)


def _verify(path: Path) -> None:
    """Compare every entry with its checksum; torch compresses none, so that none can be longer than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("is compressed or encrypted, as torch never is")
        # torch's own reader leaves the memory of what calls itself a folder as it finds it
        if any(entry.is_dir() or entry.external_attr & _DOS_FOLDER for entry in entries):
            raise ValueError("holds folders, as torch's never do")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("tells of more bytes than it has")
        for entry in entries:
            with archive.open(entry) as file:
                while file.read(_CHUNK_BYTES):
                    pass


@contextmanager
def understanding(path: Path) -> Iterator[None]:
    """Turn what comes of a checkpoint with other contents than ours into an error that says so.

    Raises:
        CheckpointError: instead of what values of other names, types and shapes lead to.
    """
    try:
        yield
    except SimTripletError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"checkpoint '{path}': holds other things than a run saves ({type(error).__name__}: {reason}); "
            "start again in another folder"
        ) from error

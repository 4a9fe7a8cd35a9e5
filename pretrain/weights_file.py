"""A file of weights that a run starts from: what it is called and what is in it."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from simtriplet.wsi.errors import CheckpointError

__all__ = ["WeightsFile"]


class WeightsFile(NamedTuple):
    """What tells a file of weights from others, wherever it lies.

    Attributes:
        name: of the file, without its folder.
        hash: SHA-256 of its bytes, hexadecimal.
    """

    name: str
    hash: str

    @classmethod
    def of(cls, path: Path) -> "WeightsFile":
        """Read a file's hash.

        Raises:
            CheckpointError: if it cannot be read.
        """
        try:
            with path.open("rb") as file:
                return cls(path.name, hashlib.file_digest(file, "sha256").hexdigest())
        except FileNotFoundError as error:
            raise CheckpointError(f"weights '{path}': do not exist; give a file of weights") from error
        except OSError as error:
            raise CheckpointError(
                f"weights '{path}': cannot be read ({error.strerror}); give a file of weights"
            ) from error

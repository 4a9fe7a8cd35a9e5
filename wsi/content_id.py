"""An id that is the content's own: the same content made again has it again, and other content another one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.table import Categorical

__all__ = ["content_id"]


def content_id(plain: Mapping[str, Any], columns: Mapping[str, npt.NDArray[Any] | Categorical]) -> str:
    """Return the SHA-256 of plain values and of arrays, each with its name, type and shape, as 64 hexadecimal digits.

    Args:
        plain: what JSON can say; the order does not matter.
        columns: arrays and columns of classes; the order does not matter.
    """
    described: dict[str, Any] = {"plain": dict(plain)}
    for name, column in columns.items():
        values = column.codes if isinstance(column, Categorical) else column
        names = list(column.categories) if isinstance(column, Categorical) else None
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        digest = hashlib.sha256(little.reshape(-1).view(np.uint8).data).hexdigest()
        described[f"array {name}"] = [little.dtype.str, list(little.shape), names, digest]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

"""What is asked of an export, whatever its format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.store import SPATIAL

__all__ = ["ExportRequest", "ImageFormat", "Progress"]

ImageFormat = Literal["auto", "png", "jpeg"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The options of an export.

    Attributes:
        predictions: folder of `<slide_id>.csv` that `predict` wrote, whose classes and probabilities are exported too.
        image_format: "auto" copies the JPEG files of stores that hold JPEG and makes PNG of the others, both without loss;
            "png" and "jpeg" make all alike.
        jpeg_quality: 1..100, where a JPEG is made.
        shard_tiles: tiles in one tar file of a WebDataset.
        neighbours: the index whose neighbours a WebDataset names; the other formats carry all indices.
        threads: that read, encode and write.
    """

    predictions: Path | None = None
    image_format: ImageFormat = "auto"
    jpeg_quality: int = 90
    shard_tiles: int = 4096
    neighbours: str = SPATIAL
    threads: int = 1

    def __post_init__(self) -> None:
        if self.image_format not in get_args(ImageFormat):
            known = ", ".join(get_args(ImageFormat))
            raise SettingsError(f"image_format {self.image_format!r}: must be one of {known}; correct it")
        if not 1 <= self.jpeg_quality <= 100:
            raise SettingsError(f"jpeg_quality {self.jpeg_quality}: must lie in 1..100; correct it")
        for name in ("shard_tiles", "threads"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} {getattr(self, name)}: must be at least 1; correct it")

"""What is asked of the tiling stage: the slide, and everything that shapes its store."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simtriplet.wsi.annotation import NamedRegion
from simtriplet.wsi.codec import CodecName
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.quality import QualitySpec
from simtriplet.wsi.tissue import TissueSpec

__all__ = ["Existing", "GridName", "LabelSpec", "OnDamage", "SlideJob", "TileRequest", "slide_id_of"]

Existing = Literal["skip", "replace", "error"]
GridName = Literal["mpp", "native"]
OnDamage = Literal["error", "skip"]
_SAFE_ID = re.compile(r"[\w][\w .()+-]*")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, with any ending: a folder of that name cannot be copied there."""


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """How annotations become tile labels.

    Attributes:
        min_cover: least share of a tile that its class must cover.
        background: class of annotated slides' tiles outside all regions; None leaves them unlabelled.
    """

    min_cover: float = 0.5
    background: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_cover <= 1:
            raise SettingsError(f"min_cover {self.min_cover}: must lie above 0 and up to 1; pass --min-label-cover 0.5")


@dataclass(frozen=True, slots=True)
class TileRequest:
    """Everything that shapes a store, the same for all slides of a batch.

    Attributes:
        tiling: lattice and resolution.
        tissue: how tissue is found.
        labels: how annotations become tile labels.
        quality: which tiles are good enough.
        grid: "mpp" cuts and resamples; "native" copies the slide's own JPEG tiles without decoding them.
        codec: of the pixels; native tiles stay the JPEG they are.
        jpeg_quality: 1..100, for codec jpeg.
        reader: a name in READERS, or auto.
        on_damage: what a region that cannot be decoded does: "error" fails the slide, "skip" leaves its tiles out and
            records where they were.
    """

    tiling: TilingSpec = field(default_factory=TilingSpec)
    tissue: TissueSpec = field(default_factory=TissueSpec)
    labels: LabelSpec = field(default_factory=LabelSpec)
    quality: QualitySpec = field(default_factory=QualitySpec)
    grid: GridName = "mpp"
    codec: CodecName = "none"
    jpeg_quality: int = 90
    reader: str = "auto"
    on_damage: OnDamage = "error"

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise SettingsError(f"jpeg_quality {self.jpeg_quality}: must lie in 1..100; correct it")
        if self.grid == "native" and self.codec == "zstd":
            raise SettingsError(
                "codec 'zstd': native tiles stay the JPEG they are; leave --codec out or use --grid mpp"
            )
        if self.grid == "native" and self.tiling.context_mpp:
            raise SettingsError("context_mpp: native tiles are copied, not resampled; use --grid mpp")


@dataclass(frozen=True, slots=True)
class SlideJob:
    """One slide of a batch.

    Attributes:
        path: the slide file.
        slide_id: unique name; the store is called after it.
        patient_id: None where it is not known.
        label: class of the whole slide, None where there is none.
        slide_mpp: micrometres per level-0 pixel, where the file is wrong or silent.
        regions: annotations, None where there are none.
        annotation: file of annotations, or a folder with the slide's own, `<slide_id>.geojson`, .xml or .csv: read when the
            slide is tiled, where `regions` are not given.
    """

    path: Path
    slide_id: str
    patient_id: str | None = None
    label: str | None = None
    slide_mpp: float | None = None
    regions: tuple[NamedRegion, ...] | None = None
    annotation: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a text will do
        if self.annotation is not None:
            object.__setattr__(self, "annotation", Path(self.annotation))
        if not _SAFE_ID.fullmatch(self.slide_id) or len(self.slide_id.encode()) > 200:
            raise SettingsError(
                f"slide id {self.slide_id!r}: must be letters, digits, blanks and ._()+- and start with a letter or digit; "
                "give it another id in a manifest"
            )
        if _DEVICE.fullmatch(self.slide_id):
            raise SettingsError(
                f"slide id {self.slide_id!r}: is the name of a device on Windows; give it another id in a manifest"
            )
        if self.slide_mpp is not None and not 0 < self.slide_mpp < math.inf:
            raise SettingsError(f"slide_mpp {self.slide_mpp}: must be a positive number of micrometres; correct it")


def slide_id_of(path: Path) -> str:
    """Return the slide's id when no manifest gives one: the file name without its last suffix."""
    return path.stem

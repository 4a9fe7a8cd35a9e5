"""What a synthetic slide is: its spec, its areas of one class, and the drawn slide."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import shapely

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.synthetic_texture import PAINTERS

__all__ = ["SyntheticRegion", "SyntheticSlide", "SyntheticSlideSpec"]

TIFF_COMPRESSION = {"jpeg": 7, "jpeg2000": 33005, "deflate": 8, "none": 1}
APERIO_COMPRESSION = {
    "jpeg": "JPEG/RGB Q={quality}",
    "jpeg2000": "J2K/KDU Q={quality}",
    "deflate": "ZIP/RGB",
    "none": "RAW/RGB",
}


def require(holds: bool, name: str, value: object, rule: str, cure: str = "correct it") -> None:
    if not holds:
        raise SettingsError(f"{name} {value!r}: {rule}; {cure}")


@dataclass(frozen=True, slots=True)
class SyntheticSlideSpec:
    """Say what slide to draw; equal specs give equal files, byte for byte.

    Args:
        width_px: width of level 0.
        height_px: height of level 0.
        mpp: micrometres per pixel of level 0, both axes.
        level_downsamples: of each level, against level 0; the first is 1, each is a multiple of the one before.
        native_tile_px: side of the file's own tiles, a multiple of 16 (of 32 without compression).
        compression: of the tiles; `jpeg2000` and `deflate` are lossless here.
        jpeg_quality: 1 to 100.
        subsampling: chroma of JPEG tiles, "420" or "444".
        tissue_fraction: area of the tissue over the area of the slide, at most 0.6.
        n_pieces: pieces of tissue.
        region_um: typical diameter of an area of one class, micrometres; less where the tissue is too small for it.
        classes: tissue classes, each of which is on every slide.
        patient_seed: decides stain and morphology, which the slides of a patient share.
        seed: decides the shapes.
        description_mpp: False leaves the resolution and the magnification out of the file.

    Raises:
        SettingsError: if a value is out of range.
    """

    width_px: int = 6000
    height_px: int = 5000
    mpp: float = 0.5
    level_downsamples: tuple[int, ...] = (1, 4, 16)
    native_tile_px: int = 256
    compression: Literal["jpeg", "jpeg2000", "deflate", "none"] = "jpeg"
    jpeg_quality: int = 80
    subsampling: Literal["420", "444"] = "420"
    tissue_fraction: float = 0.35
    n_pieces: int = 3
    region_um: float = 500.0
    classes: tuple[str, ...] = tuple(PAINTERS)
    patient_seed: int = 0
    seed: int = 0
    description_mpp: bool = True

    def __post_init__(self) -> None:
        for name in ("width_px", "height_px"):
            size = getattr(self, name)
            require(128 <= size <= 1_000_000, name, size, "must be between 128 and 1000000")
        require(0.05 <= self.mpp <= 20, "mpp", self.mpp, "must be between 0.05 and 20 micrometres per pixel")
        self._check_levels()
        tile = self.native_tile_px
        require(tile >= 16 and tile % 16 == 0, "native_tile_px", tile, "must be a positive multiple of 16", "take 256")
        require(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "must be between 1 and 100")
        require(self.subsampling in ("420", "444"), "subsampling", self.subsampling, "must be '420' or '444'")
        known = ", ".join(TIFF_COMPRESSION)
        require(self.compression in TIFF_COMPRESSION, "compression", self.compression, f"must be one of {known}")
        # libtiff in openslide-bin 4.0.1.2 takes its buffer, whole KiB, for the size of a raw tile ("Invalid tile byte
        # count") and so refuses any TIFF with raw tiles of 240 pixels; measured on files that tifffile wrote by itself.
        readable = self.compression != "none" or tile % 32 == 0
        require(readable, "native_tile_px", tile, "must be a multiple of 32 without compression", "take 256")
        fraction = self.tissue_fraction
        require(0 < fraction <= 0.6, "tissue_fraction", fraction, "must be above 0 and at most 0.6")
        require(1 <= self.n_pieces <= 100, "n_pieces", self.n_pieces, "must be between 1 and 100")
        smallest = max(20.0, 16 * self.mpp)
        require(self.region_um >= smallest, "region_um", self.region_um, f"must be at least {smallest:g} micrometres")
        distinct = len(set(self.classes)) == len(self.classes) > 0
        require(distinct, "classes", self.classes, "must be one or more different names", "correct the list")
        for name in ("patient_seed", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")

    def _check_levels(self) -> None:
        steps = self.level_downsamples
        rule = "must start with 1, each a multiple of the one before"
        multiples = all(b > a and b % a == 0 for a, b in itertools.pairwise(steps))
        require(bool(steps) and steps[0] == 1 and multiples, "level_downsamples", steps, rule, "take (1, 4, 16)")
        fits = min(self.width_px, self.height_px) >= steps[-1]
        require(fits, "level_downsamples", steps, "leave a level without pixels", "leave the last out")

    @property
    def level_sizes_px(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level; rows and columns that do not fill a pixel are dropped, as scanners do."""
        return tuple((self.width_px // step, self.height_px // step) for step in self.level_downsamples)


class SyntheticRegion(NamedTuple):
    """One contiguous area of one class.

    Args:
        class_name: the class.
        polygon: its outline, level-0 pixels.
    """

    class_name: str
    polygon: shapely.Polygon


@dataclass(frozen=True, slots=True)
class SyntheticSlide:
    """A drawn slide and its ground truth.

    Args:
        path: the slide file.
        spec: what it was drawn from.
        regions: areas of tissue, level-0 pixels; they cover the tissue and do not overlap.
    """

    path: Path
    spec: SyntheticSlideSpec
    regions: tuple[SyntheticRegion, ...]

"""Where tiles lie: pure arithmetic from a slide's levels and a request to a lattice of tile positions.

Three frames: tile pixels (what is stored, at the tile's mpp), level pixels (what is read) and level-0 pixels ("base").
Position k along an axis is rint(k x stride x scale) level pixels, rounded once and never accumulated, so that there is
no drift; each tile then covers exactly size x scale level pixels from there.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import ResolutionError, SettingsError
from simtriplet.wsi.slide import SlideInfo

__all__ = ["TilePlan", "TilingSpec", "centred_level_xy", "morton_order", "plan_context", "plan_tiles"]

EdgePolicy = Literal["inside", "pad"]

MAX_READ_PX = 16_384
"""Side of the window that a tile is averaged from; 805 MB of pixels."""


@dataclass(frozen=True, slots=True)
class TilingSpec:
    """The tiling asked for.

    Attributes:
        mpp: micrometres per tile pixel; ignored when `level` is given.
        level: take this pyramid level as it is, without resampling; None to go by mpp.
        size_px: side of a tile, tile pixels.
        stride_px: lattice pitch, tile pixels; None means the size (no overlap).
        edge: "inside" keeps tiles that lie wholly on the slide, "pad" also those that reach over its right or lower border,
            padded with white.
        mpp_tolerance: a level within this share of the wanted mpp is taken as it is, without resampling; 0 resamples always.
        upsample: allow tiles finer than level 0.
        min_tissue: least share of a tile covered by tissue, 0..1.
        context_mpp: micrometres per pixel of further tiles of the same size around the same centre.
    """

    mpp: float = 0.5
    level: int | None = None
    size_px: int = 224
    stride_px: int | None = None
    edge: EdgePolicy = "inside"
    mpp_tolerance: float = 0.02
    upsample: bool = False
    min_tissue: float = 0.5
    context_mpp: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("mpp", self.mpp), ("size_px", self.size_px), ("stride_px", self.stride_px or 1)):
            if not 0 < value < math.inf:
                raise SettingsError(f"{name} {value}: must be a positive number; correct it")
        if self.stride_px is not None and self.stride_px < 1:
            raise SettingsError(f"stride_px {self.stride_px}: must be at least 1; correct it")
        if self.size_px > 8192:
            raise SettingsError(f"size_px {self.size_px}: must be at most 8192; correct it")
        if self.edge not in get_args(EdgePolicy):
            raise SettingsError(f"edge {self.edge!r}: must be one of {', '.join(get_args(EdgePolicy))}; correct it")
        if not 0 <= self.min_tissue <= 1:
            raise SettingsError(f"min_tissue {self.min_tissue}: must lie in 0..1; correct it")
        if not 0 <= self.mpp_tolerance < 0.5:
            raise SettingsError(f"mpp_tolerance {self.mpp_tolerance}: must lie in 0..0.5; correct it")
        if self.level is not None and self.level < 0:
            raise SettingsError(f"level {self.level}: must be at least 0; correct it")

        if len(set(self.context_mpp)) != len(self.context_mpp) or not all(
            0 < mpp < math.inf for mpp in self.context_mpp
        ):
            raise SettingsError(f"context_mpp {list(self.context_mpp)}: must be different positive numbers; correct it")

    @property
    def stride(self) -> int:
        """Lattice pitch, tile pixels."""
        return self.size_px if self.stride_px is None else self.stride_px


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tiling as it is carried out on one slide.

    Attributes:
        level: the level that is read.
        level_downsample: level-0 pixels per level pixel.
        scale: level pixels per tile pixel; 1 where nothing is resampled.
        mpp: micrometres per tile pixel, exact.
        size_px: side of a tile, tile pixels.
        stride_px: lattice pitch, tile pixels.
        read_px: side of the window read for a tile, level pixels.
        n_rows: lattice rows.
        n_cols: lattice columns.
    """

    level: int
    level_downsample: float
    scale: float
    mpp: float
    size_px: int
    stride_px: int
    read_px: int
    n_rows: int
    n_cols: int

    def level_xy(self, row: npt.NDArray[np.integer[Any]], col: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """Return (n, 2) int64 level pixels: top-left corners of lattice cells."""
        cells = np.stack([np.asarray(col), np.asarray(row)], axis=-1)
        return _positions(cells, self.stride_px, self.scale)

    def base_xy(self, row: npt.NDArray[np.integer[Any]], col: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """Return (n, 2) int64 level-0 pixels: top-left corners of lattice cells."""
        corners: npt.NDArray[np.float64] = np.rint(self.level_xy(row, col) * self.level_downsample)
        return corners.astype(np.int64)

    @property
    def base_size(self) -> float:
        """Side of a tile in level-0 pixels."""
        return self.size_px * self.scale * self.level_downsample


def plan_tiles(info: SlideInfo, slide_mpp: float, spec: TilingSpec, *, slide_name: str) -> TilePlan:
    """Choose the level and lay the lattice.

    The level is the one with the largest downsample not above the wanted one, area-averaged down to the exact mpp.

    Args:
        info: the slide's levels.
        slide_mpp: micrometres per level-0 pixel.
        spec: what is asked for.
        slide_name: for error messages.

    Raises:
        ResolutionError: if the slide is coarser than the wanted mpp and upsampling was not asked for.
        SettingsError: if the level does not exist, or a tile spans more than MAX_READ_PX of its pixels.
    """
    if spec.level is not None:
        if spec.level >= len(info.level_downsamples):
            raise SettingsError(
                f"level {spec.level}: slide '{slide_name}' has levels 0..{len(info.level_downsamples) - 1}; choose one of them"
            )
        level, scale = spec.level, 1.0
    else:
        level, scale = _level_for(info, slide_mpp, spec, slide_name)
    downsample = info.level_downsamples[level]
    read_px = math.ceil(round(spec.size_px * scale, 6))
    if read_px > MAX_READ_PX:
        raise SettingsError(
            f"mpp {spec.mpp:g}: a tile of {spec.size_px} px would be read from {read_px} x {read_px} pixels of slide "
            f"'{slide_name}', more than {MAX_READ_PX}; choose a finer mpp or smaller tiles"
        )
    width, height = info.level_sizes[level]
    return TilePlan(
        level=level,
        level_downsample=downsample,
        scale=scale,
        mpp=spec.mpp if spec.level is None and scale != 1 else slide_mpp * downsample,
        size_px=spec.size_px,
        stride_px=spec.stride,
        read_px=read_px,
        n_rows=_count(height, read_px, spec.stride, scale, spec.edge),
        n_cols=_count(width, read_px, spec.stride, scale, spec.edge),
    )


def plan_context(info: SlideInfo, slide_mpp: float, spec: TilingSpec, mpp: float, *, slide_name: str) -> TilePlan:
    """Plan the co-centred tiles at another resolution; the plan has no lattice of its own.

    Raises:
        ResolutionError: if the slide is coarser than `mpp` and upsampling was not asked for.
    """
    asked = replace(spec, mpp=mpp, level=None, stride_px=None, context_mpp=())
    try:
        plan = plan_tiles(info, slide_mpp, asked, slide_name=slide_name)
    except ResolutionError as error:
        raise ResolutionError(
            f"slide '{slide_name}': its {slide_mpp:g} um per pixel are coarser than the context of {mpp:g}; "
            "pass a coarser --context-mpp, or --upsample"
        ) from error
    return replace(plan, n_rows=0, n_cols=0)


def centred_level_xy(plan: TilePlan, base_centres: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return (n, 2) int64 level pixels: top-left corners of the windows around (n, 2) level-0 centres."""
    half = plan.size_px * plan.scale / 2
    corners: npt.NDArray[np.float64] = np.rint(base_centres / plan.level_downsample - half)
    return corners.astype(np.int64)


def _level_for(info: SlideInfo, slide_mpp: float, spec: TilingSpec, slide_name: str) -> tuple[int, float]:
    wanted = spec.mpp / slide_mpp
    for level, downsample in enumerate(info.level_downsamples):
        if abs(wanted / downsample - 1) <= spec.mpp_tolerance:
            return level, 1.0
    finer = [level for level, downsample in enumerate(info.level_downsamples) if downsample <= wanted]
    if not finer:
        if spec.upsample:
            return 0, wanted
        raise ResolutionError(
            f"slide '{slide_name}': its {slide_mpp:g} um per pixel are coarser than the wanted {spec.mpp:g}; "
            f"pass --mpp {slide_mpp:g} or coarser, or --upsample, or --slide-mpp if the file is wrong"
        )
    level = max(finer, key=lambda index: info.level_downsamples[index])
    return level, wanted / info.level_downsamples[level]


def _positions(cells: npt.NDArray[np.integer[Any]], stride_px: int, scale: float) -> npt.NDArray[np.int64]:
    """Return the level pixels where cells of the lattice begin; the one place that rounds."""
    positions: npt.NDArray[np.float64] = np.rint(cells.astype(np.float64) * stride_px * scale)
    return positions.astype(np.int64)


def _count(length: int, read_px: int, stride_px: int, scale: float, edge: EdgePolicy) -> int:
    """Return how many positions fit: wholly inside, or with at least one pixel on the slide."""
    last = length - read_px if edge == "inside" else length - 1
    if last < 0:
        return 0
    # the division may be off by one where a position lies half way between two pixels
    guess = int((last + 0.5) / (stride_px * scale))
    near = np.arange(max(0, guess - 2), guess + 3)
    return int(near[_positions(near, stride_px, scale) <= last].max()) + 1


def morton_order(row: npt.NDArray[np.integer[Any]], col: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint64]:
    """Return (n,) uint64 Morton codes (bits of row and column interleaved), which keep neighbours close in storage."""
    return _spread(np.asarray(col)) | (_spread(np.asarray(row)) << np.uint64(1))


def _spread(values: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint64]:
    """Put a zero bit between the 32 bits of each value."""
    bits = values.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
    return bits

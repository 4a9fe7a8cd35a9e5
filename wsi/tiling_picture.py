"""The picture beside a store: what was kept of its slide, and why the rest was not."""

import logging
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import shapely

from simtriplet.wsi.picture import draw_tiling
from simtriplet.wsi.quality import QUALITY_REASONS
from simtriplet.wsi.store import STORE_SUFFIX
from simtriplet.wsi.survey import Survey
from simtriplet.wsi.tile_stream import Streamed
from simtriplet.wsi.whole_file import write_whole

__all__ = ["tiling_picture", "write_picture"]

log = logging.getLogger(__name__)

PICTURE_SUFFIX = ".tiling.jpg"
_PICTURE_QUALITY = 88
"""JPEG: a PNG of the same picture takes 0.7 s and ten times the space."""


def tiling_picture(survey: Survey, regions: Sequence[shapely.MultiPolygon], streamed: Streamed) -> bytes:
    """Draw what was kept and why the rest was not, as JPEG."""
    plan, chosen = survey.plan, survey.cells
    base_xy = plan.base_xy(chosen.row, chosen.col)
    places = {"tissue": survey.bare, "edge": survey.beyond, "damaged": survey.damaged}
    rejected = {reason: plan.base_xy(cells[:, 0], cells[:, 1]) for reason, cells in places.items()}
    for code, reason in enumerate(QUALITY_REASONS[1:], start=1):
        rejected[reason] = base_xy[streamed.reasons == code]
    rings = [
        np.asarray(ring.coords)
        for region in regions
        for polygon in region.geoms
        for ring in (polygon.exterior, *polygon.interiors)
    ]
    picture = draw_tiling(
        survey.overview.pixels,
        survey.overview.downsample,
        rings,
        base_xy[streamed.reasons == 0],
        {reason: xy for reason, xy in rejected.items() if len(xy)},
        plan.base_size,
    )
    return bytes(imagecodecs.jpeg8_encode(picture, level=_PICTURE_QUALITY))


def write_picture(store: Path, picture: bytes) -> None:
    """Write the picture beside the store: `<slide_id>.tiling.jpg`; the store is whole without it, so a failure is a warning."""
    path = store.with_name(store.name.removesuffix(STORE_SUFFIX) + PICTURE_SUFFIX)
    try:
        write_whole(path, picture)
    except OSError as error:
        log.warning("picture '%s': cannot be written (%s); the store is whole without it", path, error.strerror)

"""Where the tissue of a synthetic slide is: pieces with smooth outlines, cut into areas of one class."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.synthetic_spec import SyntheticRegion, SyntheticSlideSpec

__all__ = ["plan_regions"]

_VERTEX_STEP_UM = 8.0


def plan_regions(spec: SyntheticSlideSpec) -> tuple[SyntheticRegion, ...]:
    """Cut pieces of tissue into areas, and give every class its share of them."""
    rng = np.random.default_rng([spec.seed, 0])
    tissue_px = spec.tissue_fraction * spec.width_px * spec.height_px
    rule = f"has too little tissue for {spec.n_pieces} pieces and {len(spec.classes)} classes"
    too_small = SettingsError(f"slide of {spec.width_px} x {spec.height_px} px: {rule}; enlarge it")
    if tissue_px < 400 * max(spec.n_pieces, len(spec.classes)):
        raise too_small
    pieces = _plan_pieces(spec, rng)
    region_px = min(spec.region_um / spec.mpp, math.sqrt(tissue_px / (2 * len(spec.classes))))
    for _ in range(8):
        faces = [_cut_piece(piece, region_px, spec.mpp, rng) for piece in pieces]
        if sum(map(len, faces)) >= len(spec.classes):
            break
        region_px *= 0.75
    else:
        raise too_small
    keys = [(i, j) for i, part in enumerate(faces) for j in range(len(part))]
    by_area = sorted(keys, key=lambda key: -faces[key[0]][key[1]].area)
    rounds = [rng.permutation(len(spec.classes)) for _ in range(0, len(by_area), len(spec.classes))]
    class_of = dict(zip(by_area, np.concatenate(rounds).tolist(), strict=False))
    regions = []
    for i, part in enumerate(faces):
        for label, name in enumerate(spec.classes):
            same = [face for j, face in enumerate(part) if class_of[i, j] == label]
            merged = shapely.get_parts(shapely.coverage_union_all(same)) if same else []
            regions += [SyntheticRegion(name, polygon) for polygon in merged]
    return tuple(regions)


def _plan_pieces(spec: SyntheticSlideSpec, rng: np.random.Generator) -> list[shapely.Polygon]:
    """Lay the pieces out in rows of boxes; their areas add up to the tissue fraction."""
    n_rows = min(spec.n_pieces, max(1, round(math.sqrt(spec.n_pieces * spec.height_px / spec.width_px))))
    counts = [spec.n_pieces // n_rows + (row < spec.n_pieces % n_rows) for row in range(n_rows)]
    height = spec.height_px / n_rows
    boxes = [
        (spec.width_px / count * column, height * row, spec.width_px / count, height)
        for row, count in enumerate(counts)
        for column in range(count)
    ]
    areas = np.array([box[2] * box[3] for box in boxes]) * rng.uniform(0.88, 1.12, len(boxes))
    areas *= spec.tissue_fraction * spec.width_px * spec.height_px / areas.sum()
    return [_outline_piece(box, area, spec.mpp, rng) for box, area in zip(boxes, areas.tolist(), strict=True)]


def _outline_piece(
    box: tuple[float, float, float, float], area_px: float, mpp: float, rng: np.random.Generator
) -> shapely.Polygon:
    """Return an irregular smooth blob of the given area inside `box` (x, y, width, height)."""
    angles = np.linspace(0, 2 * math.pi, 4096, endpoint=False)
    waves = np.arange(2, 24)
    strengths = rng.normal(size=len(waves)) / waves**1.6
    bumps = strengths @ np.cos(np.outer(waves, angles) + rng.uniform(0, 2 * math.pi, (len(waves), 1)))
    place = rng.uniform(0, 1, 2)
    room = 0.92 * np.array(box[2:])
    for roughness, exponent in ((0.42, 2.2), (0.28, 2.5), (0.15, 3.0), (0.07, 4.0), (0.0, 6.0)):
        rounded = (np.abs(np.cos(angles)) ** exponent + np.abs(np.sin(angles)) ** exponent) ** (-1 / exponent)
        points = (rounded * np.exp(roughness * bumps))[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = (points - points.min(axis=0)) / np.ptp(points, axis=0) * room
        filled = shapely.Polygon(points).area
        if filled >= area_px:
            break
    points *= math.sqrt(area_px / filled)
    corner = np.array(box[:2]) + 0.04 * np.array(box[2:]) + place * (room - points.max(axis=0))
    ring = shapely.LinearRing(points + corner)
    step = max(2.0, min(_VERTEX_STEP_UM / mpp, ring.length / 64))
    distances = np.linspace(0, ring.length, round(ring.length / step), endpoint=False)
    return shapely.Polygon(shapely.get_coordinates(shapely.line_interpolate_point(ring, distances)))


def _cut_piece(piece: shapely.Polygon, region_px: float, mpp: float, rng: np.random.Generator) -> list[shapely.Polygon]:
    """Cut a piece along the curved walls of a bent Voronoi diagram; neighbours share corners, all whole pixels."""
    centre, reach = shapely.get_coordinates(piece.centroid)[0], np.ptp(shapely.get_coordinates(piece), axis=0).max()
    steps = np.arange(-reach - 2 * region_px, reach + 2 * region_px, region_px)
    seeds = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    seeds += rng.uniform(-0.4, 0.4, seeds.shape) * region_px
    walls = shapely.voronoi_polygons(
        shapely.MultiPoint(seeds @ _rotation(rng.uniform(0, math.pi)) + centre), only_edges=True
    )
    walls = shapely.segmentize(walls, max(2.0, min(_VERTEX_STEP_UM / mpp, region_px / 16)))
    for _ in range(2):
        walls = shapely.transform(walls, _random_bend(region_px, rng))
    lines = shapely.union_all([piece.exterior, walls], grid_size=1.0)
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(lines)))
    inside = shapely.contains(piece, shapely.point_on_surface(faces))
    return _merge_small(list(faces[inside]), smallest_px=0.3 * region_px**2)


def _rotation(angle: float) -> npt.NDArray[np.float64]:
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _random_bend(
    region_px: float, rng: np.random.Generator
) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Return a smooth map of (n, 2) points that moves each axis by three waves about as long as a region.

    A wave has slope 0.23: the gradient of the shift stays below 1, so that the plane never folds and no walls cross.
    """
    lengths = region_px * rng.uniform(0.45, 1.3, (2, 3))
    directions, phases = rng.uniform(0, 2 * math.pi, (2, 2, 3))
    waves = 2 * math.pi / lengths * np.stack([np.cos(directions), np.sin(directions)])

    def bend(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        angles = np.tensordot(points, waves, axes=1) + phases
        shifts = 0.23 * lengths / (2 * math.pi) * np.sin(angles)
        return points + np.asarray(shifts.sum(axis=-1), np.float64)

    return bend


def _merge_small(faces: list[shapely.Polygon], *, smallest_px: float) -> list[shapely.Polygon]:
    """Join each face below `smallest_px` (square pixels) to the neighbour that it shares the longest wall with."""
    faces = sorted(faces, key=lambda face: -face.area)
    while len(faces) > 1 and faces[-1].area < smallest_px:
        small = faces.pop()
        shared = shapely.length(shapely.intersection(small.exterior, faces))
        other = int(np.argmax(shared))
        if shared[other] > 0:  # otherwise a crumb that hangs by a corner, which is left out
            faces[other] = shapely.union(faces[other], small)
            faces.sort(key=lambda face: -face.area)
    return faces

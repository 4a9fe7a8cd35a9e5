"""Draw the pictures of docs/quality.md from a synthetic slide: `python docs/figures/make_quality.py`."""

import io
import tempfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image

from simtriplet.wsi.overview import read_overview
from simtriplet.wsi.picture import draw_tiling
from simtriplet.wsi.quality import QUALITY_REASONS, QualitySpec, find_fold_limit, score_tiles
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide
from simtriplet.wsi.tissue import TissueMap, TissueSpec, map_tissue

HERE = Path(__file__).parent
TILE_PX, SHOWN_PX, GAP_PX, CAPTION_PX = 224, 140, 8, 26
SUGGESTED = QualitySpec(min_sharpness=0.2, max_pen=0.05, max_fold=0.15, min_saturation=0.05)
GREEN_INK, BLUE_INK = (30, 140, 60), (25, 70, 170)

Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Draw the slide and write the pictures beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        spec = SyntheticSlideSpec(width_px=4000, height_px=3000, seed=3)
        slide = draw_slide(Path(folder) / "slide.svs", spec)
        with open_slide(slide.path) as reader:
            pixels = reader.read(0, (0, 0), (spec.width_px, spec.height_px))
            overview = read_overview(reader, downsample=16)
    tissue = map_tissue(overview, TissueSpec(), slide_mpp=spec.mpp)
    limit = find_fold_limit(overview.pixels, tissue.regions > 0)
    tile = pixels[1850 : 1850 + TILE_PX, 1500 : 1500 + TILE_PX]
    ladders = {
        "sharpness": [blur(tile, sigma) for sigma in (0, 1, 1.5, 2, 3)],
        "pen": [draw_stroke(tile, width) for width in (0, 4, 10, 40, 90)],
        "fold": [lay_fold(tile, width) for width in (0, 24, 48, 100, 224)],
        "saturation": [pale(tile, power) for power in (1, 0.5, 0.2, 0.1, 0.03)],
    }
    for name, tiles in ladders.items():
        strip = draw_strip(tiles, name, limit)
        (HERE / f"quality_{name}.png").write_bytes(encode_small(strip))
    picture = draw_spoilt_slide(pixels, tissue, spec.mpp)
    (HERE / "quality_slide.png").write_bytes(encode_small(picture))


def blur(tile: Pixels, sigma_px: float) -> Pixels:
    """Put a tile out of focus."""
    return np.asarray(cv2.GaussianBlur(tile, (0, 0), sigma_px), np.uint8) if sigma_px else tile


def draw_stroke(tile: Pixels, width_px: int, colour: tuple[int, int, int] = GREEN_INK) -> Pixels:
    """Draw a marker stroke across a tile; the ink swallows the light of the tissue below."""
    if not width_px:
        return tile
    stroke = np.zeros(tile.shape[:2], np.uint8)
    cv2.line(stroke, (0, tile.shape[0]), (tile.shape[1], 0), 255, width_px, cv2.LINE_AA)
    share = stroke[..., None] / 255
    return np.rint(tile * (1 - share) + share * np.array(colour)).astype(np.uint8)


def lay_fold(tile: Pixels, width_px: int) -> Pixels:
    """Lay a strip of tissue twice: light passes both layers."""
    folded = tile.copy()
    part = folded[:, (tile.shape[1] - width_px) // 2 :][:, :width_px]
    part[...] = np.clip(np.rint(part.astype(np.float64) ** 2 / 244), 0, 255)
    return folded


def pale(tile: Pixels, power: float) -> Pixels:
    """Take stain out of a tile."""
    return np.asarray(np.rint(244 * (tile / 244) ** power).clip(0, 255), np.uint8)


def draw_strip(tiles: list[Pixels], name: str, fold_limit: float) -> Pixels:
    """Lay tiles side by side, each in the colour of its fate and over its score."""
    scores = score_tiles(tiles, fold_limit=fold_limit)
    code = list(scores).index(name) + 1
    missed = SUGGESTED.reason_codes(
        {key: values if key == name else _fine(key, values) for key, values in scores.items()}
    )
    side = SHOWN_PX + GAP_PX
    strip = np.full((SHOWN_PX + CAPTION_PX + GAP_PX, side * len(tiles) + GAP_PX, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        x, y = GAP_PX + place * side, GAP_PX // 2
        strip[y : y + SHOWN_PX, x : x + SHOWN_PX] = cv2.resize(tile, (SHOWN_PX, SHOWN_PX), interpolation=cv2.INTER_AREA)
        is_missed = missed[place] == code
        colour = (213, 60, 0) if is_missed else (0, 90, 181)
        cv2.rectangle(strip, (x - 2, y - 2), (x + SHOWN_PX + 1, y + SHOWN_PX + 1), colour, 3)
        text = f"{scores[name][place]:.3f} {'out' if is_missed else 'kept'}"
        cv2.putText(strip, text, (x, y + SHOWN_PX + 20), cv2.FONT_HERSHEY_DUPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return strip


def _fine(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.full_like(values, 0 if name in ("pen", "fold") else 1)


def draw_spoilt_slide(pixels: Pixels, tissue: TissueMap, mpp: float) -> Pixels:
    """Blur, mark and fold parts of the slide, and draw what the suggested limits leave of it."""
    spoilt = pixels.copy()
    spoilt[600:1200, 2600:3300] = blur(spoilt[600:1200, 2600:3300], 3)
    spoilt[1800:2400, 2100:2500] = lay_fold(spoilt[1800:2400, 2100:2500], 300)
    spoilt[400:1100, 500:1300] = draw_stroke(spoilt[400:1100, 500:1300], 90)
    spoilt[1500:2000, 200:900] = draw_stroke(spoilt[1500:2000, 200:900], 70, BLUE_INK)
    thumbnail = np.asarray(cv2.resize(spoilt, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA), np.uint8)
    side = 128
    rows, cols = (axis.ravel() for axis in np.mgrid[0 : pixels.shape[0] // side, 0 : pixels.shape[1] // side])
    xy = np.column_stack([cols, rows]).astype(np.int64) * side
    cover = tissue.coverage(xy, side)
    chosen = xy[cover >= 0.5]
    limit = find_fold_limit(thumbnail[::2, ::2], cv2.resize(tissue.regions, (500, 375))[::2, ::2] > 0)
    codes = SUGGESTED.reason_codes(
        score_tiles([spoilt[y : y + side, x : x + side] for x, y in chosen], fold_limit=limit)
    )
    rejected = {reason: chosen[codes == code] for code, reason in enumerate(QUALITY_REASONS) if code}
    rejected["tissue"] = xy[(cover > 0) & (cover < 0.5)]
    rings = [
        shapely.get_coordinates(ring)
        for region in tissue.polygons()
        for polygon in region.geoms
        for ring in (polygon.exterior, *polygon.interiors)
    ]
    return draw_tiling(thumbnail, 8.0, rings, chosen[codes == 0], rejected, side, side_px=1000)


def encode_small(picture: Pixels) -> bytes:
    """Return a PNG with a palette of 128 colours."""
    buffer = io.BytesIO()
    Image.fromarray(picture).quantize(128, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()

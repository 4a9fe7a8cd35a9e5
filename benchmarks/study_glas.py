"""GlaS as published, images and masks in BMP, made into the slides, outlines and labels that the study reads."""

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
import tifffile
from PIL import Image

MPP = 0.62005
"""Micrometres per pixel, as the challenge's page gives it: objective 20x of a Zeiss MIRAX MIDI."""

_GRADES = "Grade.csv"
_JPEG_QUALITY = 95
_logger = logging.getLogger("study")


def find_glas(data: Path, out: Path) -> Path:
    """Return the folder of slides/, annotations/ and labels.csv; made in `out` where `data` is GlaS as published.

    Raises:
        FileNotFoundError: if `data` is neither.
    """
    if (data / "labels.csv").exists():
        return data
    found = sorted(data.rglob(_GRADES))
    if not found:
        raise FileNotFoundError(
            f"folder '{data}': holds neither labels.csv nor {_GRADES}; unpack the published archive into it"
        )
    made = out / "glas"
    if not (made / "labels.csv").exists():
        _convert(found[0].parent, made)
    return made


def _convert(published: Path, made: Path) -> None:
    """Write the table last: it says that all is there."""
    for folder in ("slides", "annotations"):
        (made / folder).mkdir(parents=True, exist_ok=True)
    with (published / _GRADES).open(newline="", encoding="utf-8-sig") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(line)][1:]
    rows = []
    for name, patient, diagnosis, grade, *_ in lines:
        _write_slide(np.asarray(Image.open(published / f"{name}.bmp").convert("RGB")), made / "slides" / f"{name}.tif")
        mask = np.asarray(Image.open(published / f"{name}_anno.bmp"))
        outlines = {"type": "FeatureCollection", "features": list(_outlines(mask))}
        (made / "annotations" / f"{name}.geojson").write_text(json.dumps(outlines), encoding="utf-8")
        rows.append((name, f"patient-{int(patient):02d}", diagnosis, grade))
    partial = made / "labels.csv.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("slide_id", "patient_id", "diagnosis", "grade"), *rows])
    partial.replace(made / "labels.csv")
    _logger.info("GlaS: %d slides made in '%s'", len(rows), made)


def _write_slide(pixels: npt.NDArray[np.uint8], file: Path) -> None:
    """Write (h, w, 3) pixels as a tiled TIFF that knows its resolution."""
    tifffile.imwrite(
        file,
        pixels,
        photometric="rgb",
        subsampling=(1, 1),
        tile=(256, 256),
        compression="jpeg",
        compressionargs={"level": _JPEG_QUALITY},
        resolution=(1e4 / MPP, 1e4 / MPP),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def _outlines(mask: npt.NDArray[np.uint8]) -> Iterator[dict[str, object]]:
    """Yield a QuPath annotation for each gland of an (h, w) mask of glands' numbers, along the edges of its pixels."""
    for number in np.unique(mask[mask > 0]).tolist():
        inside = np.pad(mask == number, ((0, 0), (1, 1)))
        steps = np.diff(inside.astype(np.int8), axis=1)
        y, left = np.nonzero(steps == 1)
        _, right = np.nonzero(steps == -1)  # in the order of rows, as the left ends
        shape = shapely.union_all(shapely.box(left, y, right, y + 1))
        yield {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(shape),
            "properties": {"objectType": "annotation", "classification": {"name": "gland", "color": [200, 0, 0]}},
        }

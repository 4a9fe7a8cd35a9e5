"""Draw synthetic whole-slide images with known tissue classes, for the demo, the tests and the benchmarks."""

import csv
import dataclasses
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.errors import UnknownNameError
from simtriplet.wsi.registry import nearest_name
from simtriplet.wsi.synthetic_file import draw_file, replacing
from simtriplet.wsi.synthetic_layout import plan_regions
from simtriplet.wsi.synthetic_spec import SyntheticRegion, SyntheticSlide, SyntheticSlideSpec, require
from simtriplet.wsi.synthetic_texture import PAINTERS, Pixels, Texture, paint_texture

__all__ = [
    "CLASS_COLOURS",
    "SyntheticRegion",
    "SyntheticSlide",
    "SyntheticSlideSpec",
    "draw_cohort",
    "draw_slide",
    "write_ground_truth",
]

CLASS_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "epithelium": (128, 0, 128),
    "stroma": (255, 105, 180),
    "adipose": (255, 200, 0),
    "lymphoid": (0, 0, 160),
}
"""Colour of each class in the ground truth; another class gets one from its name."""


def draw_slide(
    path: str | Path, spec: SyntheticSlideSpec, *, canvas: Mapping[str, npt.NDArray[np.uint8]] | None = None
) -> SyntheticSlide:
    """Draw an Aperio-like pyramid; the file appears under its name when it is whole.

    Memory holds a few bands of tiles and the coarser levels compressed, never a level.

    Args:
        path: the file to write, by custom `.svs`; a slide that was drawn before is replaced, no other file is.
        spec: what to draw.
        canvas: (h, w, 3) uint8 RGB images by class, repeated mirrored in the place of the painted texture.

    Raises:
        SettingsError: if another file is there, a class has no texture, a canvas is no such image, or the tissue is too small
            for the classes.
    """
    path = Path(path)
    return draw_file(path, spec, plan_regions(spec), _make_textures(spec, canvas or {}))


def write_ground_truth(path: Path, slide: SyntheticSlide) -> None:
    """Write the regions of a slide as GeoJSON annotations that QuPath opens (level-0 pixels)."""
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(polygon),
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": list(_class_colour(name))},
            },
        }
        for name, polygon in slide.regions
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def draw_cohort(
    folder: str | Path, *, n_patients: int, slides_per_patient: int, spec: SyntheticSlideSpec, seed: int
) -> Path:
    """Draw slides of several patients with their ground truth, and return the path of their manifest.

    The folder receives `patient01-slide1.svs` and so on, `annotations/<slide_id>.geojson` and `manifest.csv` with the
    columns path (relative to the manifest), slide_id and patient_id.

    Args:
        folder: made if it does not exist.
        n_patients: patients, each with a stain of its own.
        slides_per_patient: slides of each.
        spec: of every slide, except that its seeds are replaced.
        seed: decides all seeds.

    Raises:
        SettingsError: if a number is too small, or as `draw_slide`.
    """
    folder = Path(folder)
    require(n_patients >= 1, "n_patients", n_patients, "must be 1 or more")
    require(slides_per_patient >= 1, "slides_per_patient", slides_per_patient, "must be 1 or more")
    require(seed >= 0, "seed", seed, "must be 0 or more")
    rows = []
    for patient in range(1, n_patients + 1):
        patient_seed, *slide_seeds = _derive_seeds(seed, patient, count=1 + slides_per_patient)
        patient_spec = dataclasses.replace(spec, patient_seed=patient_seed)
        textures = _make_textures(patient_spec, {})
        for number, slide_seed in enumerate(slide_seeds, 1):
            slide_id = f"patient{patient:02d}-slide{number}"
            slide_spec = dataclasses.replace(patient_spec, seed=slide_seed)
            slide = draw_file(folder / f"{slide_id}.svs", slide_spec, plan_regions(slide_spec), textures)
            write_ground_truth(folder / "annotations" / f"{slide_id}.geojson", slide)
            rows.append((slide.path.name, slide_id, f"patient{patient:02d}"))
    manifest = folder / "manifest.csv"
    with replacing(manifest) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "slide_id", "patient_id"), *rows])
    return manifest


def _derive_seeds(seed: int, patient: int, *, count: int) -> list[int]:
    return [int(state) for state in np.random.SeedSequence([seed, patient]).generate_state(count)]


def _class_colour(name: str) -> tuple[int, int, int]:
    red, green, blue = zlib.crc32(name.encode()).to_bytes(4, "big")[:3]
    return CLASS_COLOURS.get(name, (red, green, blue))


def _make_textures(spec: SyntheticSlideSpec, canvas: Mapping[str, Pixels]) -> dict[str, Texture]:
    for name, image in canvas.items():
        require(name in spec.classes, "canvas", name, "names no class of the spec", "add the class or leave it out")
        is_rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0
        require(is_rgb, f"canvas {name!r} of shape", image.shape, "must be (h, w, 3) uint8", "convert it to RGB")
    for name in spec.classes:
        if name not in canvas and name not in PAINTERS:
            known = ", ".join(PAINTERS)
            hint = nearest_name(name, PAINTERS)
            raise UnknownNameError(f"class {name!r}: has no texture{hint}; give it in canvas, or take from {known}")
    period = 2048 if max(spec.width_px, spec.height_px) > 2500 else 1024
    painted = [name for name in spec.classes if name not in canvas]
    with ThreadPoolExecutor(2) as pool:  # a texture being painted takes up to 0.35 GB
        made = pool.map(
            lambda name: paint_texture(name, period_px=period, mpp=spec.mpp, patient_seed=spec.patient_seed), painted
        )
        textures = dict(zip(painted, made, strict=True))
    return textures | {name: Texture(np.ascontiguousarray(image), mirrored=True) for name, image in canvas.items()}

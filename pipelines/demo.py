"""What the demo does: the slides it draws, and a recipe small enough for two CPU cores and a few minutes."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simtriplet.pipelines.console import say
from simtriplet.pipelines.output_hold import holding
from simtriplet.pipelines.recipe import Recipe
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import SimTripletError, StoreError
from simtriplet.wsi.settings import build, merge, parse_assignments
from simtriplet.wsi.slide import open_slide, slide_mpp
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_cohort
from simtriplet.wsi.whole_file import write_whole

__all__ = ["demo_recipe", "slide_recipe"]

N_PATIENTS = 6
TILE_UM = 64.0
"""Side of the demo's tiles: well under the size of the drawn tissue areas, so that neighbours are mostly alike."""

_COHORT_FILE = "cohort.json"

_SHARE_OF_RAW = 1 / 24
"""Size of a drawn slide against its pixels, with some to spare: a file takes 3.0 of 90 MB."""


def demo_recipe(out: Path, *, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """Draw a cohort under `out/slides` (or reuse the same one) and return the recipe that works on it.

    Args:
        out: folder of everything.
        seed: of the slides and the training.
        overrides: `section.key=value` for the recipe.

    Raises:
        StoreError: if the folder cannot be written, or another demo works there.
        SettingsError: if an override is wrong.
    """
    slides = out / "slides"
    values = _values(out, [slides / "manifest.csv"], slides / "annotations", seed)
    recipe = build(Recipe, merge(values, parse_assignments(overrides)), source="demo settings")
    spec = SyntheticSlideSpec()
    wanted = {"patients": N_PATIENTS, "seed": seed, "spec": dataclasses.asdict(spec)}
    with holding(out):
        _draw_slides(slides, spec, wanted, seed)
    return recipe


def _draw_slides(slides: Path, spec: SyntheticSlideSpec, wanted: dict[str, Any], seed: int) -> None:
    marker = slides / _COHORT_FILE
    if _same_cohort(marker, wanted):
        say(f"[0/5] {N_PATIENTS} slides are drawn already in {slides}")
        return
    say(f"[0/5] draw {N_PATIENTS} slides of {spec.width_px} x {spec.height_px} px, one a patient, into {slides}")
    try:
        marker.unlink(missing_ok=True)
        draw_cohort(slides, n_patients=N_PATIENTS, slides_per_patient=1, spec=spec, seed=seed)
        write_whole(marker, f"{json.dumps(wanted, indent=2)}\n".encode())
    except SimTripletError:  # some are an OSError too
        raise
    except OSError as error:
        needed = int(N_PATIENTS * spec.width_px * spec.height_px * 3 * _SHARE_OF_RAW)
        why = why_not_written(error, slides, needed=needed)
        raise StoreError(
            f"drawn slides '{slides}': cannot be written ({why}); free space, or choose another --out"
        ) from error


def _same_cohort(marker: Path, wanted: dict[str, Any]) -> bool:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == json.loads(json.dumps(wanted)))


def slide_recipe(
    out: Path,
    slide: Path,
    *,
    slide_mpp: float | None,
    annotations: Path | None,
    seed: int,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Return the demo's recipe for a slide of the user's.

    Tiles are half as large as the drawn slides' and overlap by half, so that a small slide gives enough of them.

    Raises:
        SlideOpenError: if the file is no slide.
        ResolutionError: if its mpp is unknown and not given.
        SettingsError: if an override is wrong.
    """
    mpp = max(0.5, _slide_mpp(slide, slide_mpp))
    size_px = max(16, round(TILE_UM / mpp / 16) * 16)
    changes: dict[str, Any] = {
        "slides": {"slide_mpp": slide_mpp} if slide_mpp is not None else {},
        "tiling": {"mpp": mpp, "size_px": size_px, "stride_px": size_px // 2},
    }
    values = merge(_values(out, [slide], annotations, seed), changes)
    return build(Recipe, merge(values, parse_assignments(overrides)), source="demo settings")


def _slide_mpp(slide: Path, override: float | None) -> float:
    with open_slide(slide) as reader:
        return slide_mpp(reader, override)


def _values(out: Path, inputs: Sequence[Path], annotations: Path | None, seed: int) -> dict[str, Any]:
    slides: dict[str, Any] = {"inputs": [str(path) for path in inputs]}
    if annotations is not None:
        slides["annotations"] = str(annotations)
    return {
        "out": str(out),
        "slides": slides,
        "tiling": {"mpp": 0.5, "size_px": round(TILE_UM / 0.5)},
        "pretrain": {"preset": "quick", "run": {"seed": seed}},
        "evaluate": {"seed": seed},
    }

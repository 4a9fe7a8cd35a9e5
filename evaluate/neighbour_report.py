"""The report of `index`: what the neighbour index of each slide is like, as JSON, CSV and pictures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.csv_text import csv_text
from simtriplet.evaluate.graph_picture import draw_graph
from simtriplet.evaluate.prediction_files import check_file_name
from simtriplet.wsi.neighbour_statistics import NeighbourStatistics, add_statistics, measure_neighbours
from simtriplet.wsi.store import SPATIAL, TileStore

__all__ = ["write_neighbour_report"]

_MAX_DISTANCES = 24
_CSV_COLUMNS = (
    "slide",
    "tiles",
    "pairs",
    "mean_degree",
    "tiles_without_neighbours",
    "share_without_neighbours",
    "labelled_pairs",
    "label_agreement",
    "chance_agreement",
    "min_um",
    "median_um",
    "mean_um",
    "max_um",
)


def write_neighbour_report(
    stores: Sequence[TileStore],
    folder: Path,
    *,
    name: str = SPATIAL,
    pictures: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[NeighbourStatistics]:
    """Measure the indices called `name` and write `<name>.json`, `<name>.csv` and `<name>/<slide_id>.png`.

    Args:
        stores: indexed stores.
        folder: made where it does not exist; reports of other names in it stay.
        name: of the indices.
        pictures: draw the graphs; a slide without a tile gets none.
        progress: called with (slides done, slides in all, slide id).

    Returns:
        The numbers of each slide, then those of all together.

    Raises:
        NeighbourError: if a store has no such index.
        EvaluationError: if a slide's id cannot name a file, or the folder cannot be written.
    """
    for store in stores:
        check_file_name(store.slide_id)
    measured = []
    for done, store in enumerate(stores, start=1):
        measured.append(measure_neighbours(store, name))
        if pictures and len(store):
            replace_file(folder / name / f"{store.slide_id}.png", draw_graph(store, name))
        if progress is not None:
            progress(done, len(stores), store.slide_id)
    together = add_statistics(measured)
    document = {
        "index": name,
        "all": _describe(together),
        "slides": {part.slide_id: _describe(part) for part in measured},
    }
    replace_file(folder / f"{name}.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    replace_file(folder / f"{name}.csv", _as_csv([*measured, together]))
    return [*measured, together]


def _describe(part: NeighbourStatistics) -> dict[str, Any]:
    distances = part.distances
    shown = distances.binned(_MAX_DISTANCES)
    agreement = part.label_agreement
    return {
        "slides": part.n_slides,
        "slides_without_neighbours": part.n_without_neighbours,
        "tiles": part.n_tiles,
        "pairs": part.n_pairs,
        "mean_degree": part.mean_degree,
        "degree_histogram": {str(degree): count for degree, count in enumerate(part.degree_counts) if count},
        "tiles_without_neighbours": part.n_isolated,
        "share_without_neighbours": part.isolated_share,
        "labelled_pairs": part.n_labelled_pairs,
        "label_agreement": agreement,
        "false_positive_rate": None if agreement is None else 1 - agreement,
        "chance_agreement": part.chance_agreement,
        "distances_um": {
            "min": _rounded(distances.um[0]) if part.n_pairs else None,
            "median": _rounded(distances.median_um),
            "mean": _rounded(distances.mean_um),
            "max": _rounded(distances.um[-1]) if part.n_pairs else None,
        },
        "by_distance": [
            {"um": _rounded(um), "pairs": pairs, "labelled_pairs": labelled, "label_agreement": _share(agree, labelled)}
            for um, pairs, labelled, agree in zip(*(column.tolist() for column in shown), strict=True)
        ],
        "params": part.params,
    }


def _rounded(um: float | None) -> float | None:
    """Round to what distances are counted in, tenths of a micrometre; a mean keeps two digits more."""
    return None if um is None else round(float(um), 3)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _as_csv(parts: Sequence[NeighbourStatistics]) -> str:
    rows: list[Sequence[object]] = [_CSV_COLUMNS]
    for part in parts:
        about = _describe(part)
        far = about["distances_um"]
        values = [about[key] for key in _CSV_COLUMNS[1:9]] + [far[key] for key in ("min", "median", "mean", "max")]
        rows.append([part.slide_id or "all", *("" if value is None else _text(value) for value in values)])
    return csv_text(rows, line_end="\r\n")


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"

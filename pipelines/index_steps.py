"""The step `index` as plain functions: the command and the recipe runner both call these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simtriplet.pipelines.console import print_table, progress_bar
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.gate_spec import GateSpec
from simtriplet.wsi.neighbour_index import IndexSummary, check_same_mpp, index_store
from simtriplet.wsi.neighbour_statistics import NeighbourStatistics
from simtriplet.wsi.neighbours import GridRule, KnnRule, NeighbourRule, RadiusRule, RingRule
from simtriplet.wsi.reach import is_file
from simtriplet.wsi.store import SPATIAL, TileStore

__all__ = ["IndexRequest", "index_stores", "report_neighbours"]

_COLUMNS = ("slide", "tiles", "pairs", "mean degree", "alone", "labels agree")
_REPORT_COLUMNS = (
    "slide",
    "tiles",
    "pairs",
    "mean degree",
    "alone",
    "labels agree",
    "by chance",
    "median um",
    "max um",
)


@dataclass(frozen=True, slots=True)
class IndexRequest:
    """How tiles become neighbours.

    Attributes:
        rule: grid, radius, ring or knn.
        connectivity: 4 or 8, for grid.
        allow_overlap: let neighbours share pixels, for grid.
        radius_um: outer distance between centres in micrometres, for radius and ring.
        inner_um: inner distance in micrometres, for ring.
        k: number of nearest tiles, for knn.
        same_tissue: only within one tissue region.
        min_tissue: least share of tissue on both tiles; None for no such gate.
        annotations: file, or folder of <slide_id>.geojson (.xml, .csv), whose borders no pair may cross.
        similar_to: name of features in the stores that a pair must be similar in.
        min_similarity: quantile of that similarity over the candidate pairs of a slide that a pair must reach.
        name: the index's name in the store.
    """

    rule: Literal["grid", "radius", "ring", "knn"] = "grid"
    connectivity: int = 8
    allow_overlap: bool = False
    radius_um: float | None = None
    inner_um: float | None = None
    k: int = 8
    same_tissue: bool = True
    min_tissue: float | None = None
    annotations: Path | None = None
    similar_to: str | None = None
    min_similarity: float | None = None
    name: str = SPATIAL

    def make_rule(self) -> NeighbourRule:
        """Return the rule object.

        Raises:
            SettingsError: if a distance that the rule needs is missing.
            NeighbourError: if a parameter is out of range.
        """
        if self.rule == "grid":
            return GridRule(self.connectivity, self.allow_overlap)
        if self.rule == "knn":
            return KnnRule(self.k)
        if self.radius_um is None:
            raise SettingsError(f"rule {self.rule!r}: needs a distance; pass --radius-um")
        if self.rule == "radius":
            return RadiusRule(self.radius_um)
        if self.inner_um is None:
            raise SettingsError("rule 'ring': needs an inner distance; pass --inner-um")
        return RingRule(self.inner_um, self.radius_um)

    def make_gates(self) -> GateSpec:
        """Return what pairs must fulfil besides the rule.

        Raises:
            NeighbourError: if a parameter is out of range.
        """
        return GateSpec(self.same_tissue, self.min_tissue, self.annotations, self.similar_to, self.min_similarity)


def index_stores(
    stores: Sequence[TileStore], request: IndexRequest, *, quiet: bool = False, skip_same: bool = False
) -> list[IndexSummary]:
    """Index stores and print how many neighbours their tiles have.

    Args:
        stores: the stores.
        request: rule and gates.
        quiet: show no progress.
        skip_same: leave a store alone whose index of that name was built by the same rule and gates.

    Raises:
        NeighbourError: if the stores are of different resolutions, or the request cannot be met.
    """
    rule, gates = request.make_rule(), request.make_gates()
    check_same_mpp(stores)
    if request.annotations is not None and len(stores) > 1 and is_file(request.annotations):
        raise SettingsError(f"annotations '{request.annotations}': is one file for several slides; pass a folder")
    summaries = []
    with progress_bar("index", "stores", quiet=quiet) as tick:
        for done, store in enumerate(stores, start=1):
            summaries.append(index_store(store, rule, gates=gates, name=request.name, skip_same=skip_same))
            tick(done, len(stores), store.slide_id)
    print_table("neighbours", _COLUMNS, [_summary_row(summary) for summary in summaries])
    return summaries


def _summary_row(summary: IndexSummary) -> list[str]:
    numbers = [str(summary.n_tiles), str(summary.n_pairs), f"{summary.mean_degree:.2f}", str(summary.n_isolated)]
    return [summary.slide_id, *numbers, _share(summary.label_agreement)]


def report_neighbours(
    stores: Sequence[TileStore], folder: Path, *, name: str, quiet: bool = False
) -> list[NeighbourStatistics]:
    """Write the report of the indices called `name` and print its numbers, the last row being all slides together.

    Raises:
        NeighbourError: if a store has no such index.
        EvaluationError: if the folder cannot be written.
    """
    from simtriplet.evaluate.neighbour_report import write_neighbour_report  # drawing takes a second to import

    with progress_bar("report", "stores", quiet=quiet) as tick:
        parts = write_neighbour_report(stores, folder, name=name, progress=tick)
    print_table("neighbours", _REPORT_COLUMNS, [_report_row(part) for part in parts])
    return parts


def _report_row(part: NeighbourStatistics) -> list[str]:
    alone = f"{part.n_isolated}" if part.isolated_share is None else f"{part.n_isolated} ({part.isolated_share:.1%})"
    median, longest = part.distances.median_um, part.distances.um[-1] if part.n_pairs else None
    return [
        part.slide_id or f"all {part.n_slides}",
        str(part.n_tiles),
        str(part.n_pairs),
        f"{part.mean_degree:.2f}",
        alone,
        _share(part.label_agreement),
        _share(part.chance_agreement),
        "" if median is None else f"{median:.1f}",
        "" if longest is None else f"{longest:.1f}",
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

"""The steps on slides, tile and index, as plain functions: the commands and the recipe runner both call these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simtriplet.pipelines.batch import Outcome, tile_batch, write_summary
from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.wsi.errors import SettingsError, StoreError
from simtriplet.wsi.neighbour_index import IndexSummary, index_store
from simtriplet.wsi.neighbours import GridRule, KnnRule, NeighbourRule, RadiusRule, RingRule
from simtriplet.wsi.settings import to_toml
from simtriplet.wsi.store import SPATIAL, STORE_SUFFIX, TileStore
from simtriplet.wsi.survey import estimate_batch, gigabytes, refuse_full_disk
from simtriplet.wsi.tiling import Existing, SlideJob, TileRequest

__all__ = ["IndexRequest", "index_stores", "make_folder", "tile_slides", "write_settings"]

TILE_COLUMNS = ("slide", "status", "tiles", "labelled", "mpp", "reader", "s", "MB", "reason")


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


def make_folder(path: Path) -> None:
    """Make an output folder.

    Raises:
        StoreError: if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(f"output '{path}': cannot be written ({error.strerror}); choose another --out") from error


def write_settings(path: Path, settings: Any) -> None:
    """Write resolved settings as TOML beside a result, atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(to_toml(settings), encoding="utf-8")
    partial.replace(path)


def tile_slides(
    jobs: Sequence[SlideJob],
    out: Path,
    request: TileRequest,
    *,
    existing: Existing,
    workers: int = 1,
    scheduler: str | None = None,
    quiet: bool = False,
) -> list[Outcome]:
    """Tile slides, print the summary, and write `tile.toml` and `tile-summary.csv` beside the stores."""
    make_folder(out)
    _tell_room(jobs, out, request, existing)
    write_settings(out / "tile.toml", request)
    outcomes: list[Outcome] = []
    with progress_bar("tile", "tiles", quiet=quiet) as tick:
        total = 0

        def progress(slide_id: str, done: int, of: int) -> None:
            tick(total + done, total + of, f"{slide_id} ({len(outcomes) + 1}/{len(jobs)})")

        batch = tile_batch(
            jobs, out, request, existing=existing, workers=workers, scheduler=scheduler, progress=progress
        )
        for outcome in batch:
            outcomes.append(outcome)
            total += outcome.summary.n_tiles if outcome.summary is not None else 0
    write_summary(out / "tile-summary.csv", outcomes)
    print_table("tiling", TILE_COLUMNS, [_tile_row(outcome) for outcome in outcomes])
    return outcomes


def _tell_room(jobs: Sequence[SlideJob], out: Path, request: TileRequest, existing: Existing) -> None:
    """Say how much room the stores will take, and refuse where there is less."""
    new = [job for job in jobs if existing == "replace" or not (out / f"{job.slide_id}{STORE_SUFFIX}").exists()]
    if not new:
        return
    room = estimate_batch(new, request)
    if room.chosen:
        codec = "jpeg (native)" if request.grid == "native" else request.codec
        as_jpeg = "" if codec.startswith("jpeg") else f", {gigabytes(room.jpeg)} as jpeg"
        say(f"{len(new)} slides will take about {gigabytes(room.chosen)} as {codec}{as_jpeg}")
        refuse_full_disk(out, room)


def _tile_row(outcome: Outcome) -> list[str]:
    summary = outcome.summary
    if summary is None:
        return [outcome.slide_id, "failed", "", "", "", "", "", "", outcome.reason]
    megabytes = f"{summary.n_bytes / 1e6:.1f}"
    numbers = [str(summary.n_tiles), str(summary.n_labelled), f"{summary.mpp:.4g}", summary.reader]
    return [summary.slide_id, summary.status, *numbers, f"{summary.seconds:.1f}", megabytes, ""]


def index_stores(
    stores: Sequence[TileStore], request: IndexRequest, *, quiet: bool = False, skip_same: bool = False
) -> list[IndexSummary]:
    """Index stores and print how many neighbours their tiles have.

    Args:
        stores: the stores.
        request: rule and gates.
        quiet: show no progress.
        skip_same: leave a store alone whose index of that name was built by the same rule and gates.
    """
    rule = request.make_rule()
    summaries = []
    with progress_bar("index", "stores", quiet=quiet) as tick:
        for done, store in enumerate(stores, start=1):
            summaries.append(
                index_store(
                    store,
                    rule,
                    name=request.name,
                    same_tissue=request.same_tissue,
                    min_tissue=request.min_tissue,
                    skip_same=skip_same,
                )
            )
            tick(done, len(stores), store.slide_id)
    rows = [
        [
            summary.slide_id,
            str(summary.n_tiles),
            str(summary.n_pairs),
            f"{summary.mean_degree:.2f}",
            str(summary.n_isolated),
            "" if summary.label_agreement is None else f"{summary.label_agreement:.3f}",
        ]
        for summary in summaries
    ]
    print_table("neighbours", ("slide", "tiles", "pairs", "mean degree", "alone", "labels agree"), rows)
    return summaries

"""Results as a Markdown table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import Result

HEADINGS = ("program", "tiles", "s", "tiles/s", "peak MB", "x fastest peer", "x decode floor", "note")
LEGEND = """Medians of the rounds. A ratio above 1 is faster; ratios compare pixels per second, for tiles may differ in size.
Every program finds its own tissue and lays its own grid, so tile counts differ. Imports are not counted. Peak memory is
that of the largest process. The page cache is warm."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rows that compare: one job on one number of cores."""

    job: str
    title: str
    cores: int
    results: Sequence[Result]

    def rows(self) -> list[dict[str, Any]]:
        """Return one record a row, with its ratios."""
        peer = max((_speed(result) for result in self.results if result.contender.kind == "peer"), default=0.0)
        floor = next((_speed(result) for result in self.results if result.contender.kind == "floor"), 0.0)
        return [self._row(result, peer, floor) for result in self.results]

    def _row(self, result: Result, peer: float, floor: float) -> dict[str, Any]:
        about: dict[str, Any] = {
            "job": self.job,
            "cores": self.cores,
            "kind": result.contender.kind,
            "program": result.contender.name,
            "tile_px": result.contender.tile_px,
        }
        if result.failure:
            return {**about, "skipped": result.failure}
        return {
            **about,
            "tiles": result.tiles,
            "seconds": result.median_s,
            "rounds_s": result.seconds,
            "tiles_per_s": result.tiles_per_s,
            "peak_mb": result.peak_mb,
            "to_fastest_peer": _speed(result) / peer if peer else None,
            "to_decode_floor": _speed(result) / floor if floor else None,
            "note": result.note,
        }

    def markdown(self) -> str:
        """Return the table under its title."""
        lines = [f"### {self.title}, {self.cores} core{'s' if self.cores > 1 else ''}", "", _line(HEADINGS)]
        lines.append("|" + "---|" * len(HEADINGS))
        return "\n".join([*lines, *(_line(_cells(row)) for row in self.rows())])


def _speed(result: Result) -> float:
    """Return pixels per second, 0 where there is no result."""
    return 0.0 if result.failure or not result.seconds else result.tiles_per_s * result.contender.tile_px**2


def _cells(row: dict[str, Any]) -> list[str]:
    if "skipped" in row:
        return [row["program"], *[""] * 6, f"skipped: {row['skipped']}"]
    ratios = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("to_fastest_peer", "to_decode_floor")]
    numbers = [str(row["tiles"]), f"{row['seconds']:.2f}", f"{row['tiles_per_s']:,.0f}", f"{row['peak_mb']:,.0f}"]
    return [row["program"], *numbers, *ratios, row["note"]]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def markdown(machine: dict[str, Any], settings: dict[str, Any], groups: Sequence[Group]) -> str:
    """Return the whole report."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}"
    about = [
        "# Tiling benchmark",
        "",
        f"{hardware}, Python {machine['python']}, {machine['date']}, load {machine['load_at_start']} at the start.",
        f"{libraries}.",
        "",
        f"Slides: {settings['slides']}. {settings['repeat']} rounds.",
        LEGEND,
    ]
    return "\n".join(about) + "\n\n" + "\n\n".join(group.markdown() for group in groups) + "\n"


def write_reports(out: Path, machine: dict[str, Any], settings: dict[str, Any], groups: Sequence[Group]) -> None:
    """Write `tiling.md` and `tiling.json`, each whole or not at all."""
    rows = [row for group in groups for row in group.rows()]
    record = {"machine": machine, "settings": settings, "rows": rows}
    texts = {"tiling.md": markdown(machine, settings, groups), "tiling.json": json.dumps(record, indent=2) + "\n"}
    for name, text in texts.items():
        partial = out / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / name)

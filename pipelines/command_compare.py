"""The command `compare`: several encoders in one table and one report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from simtriplet.evaluate.comparison import Comparison, ComparisonSettings
from simtriplet.evaluate.comparison_measurement import compare_encoders
from simtriplet.evaluate.comparison_table import headers, table_cells
from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.pipelines.options import AnyPath, quiet, stores_argument
from simtriplet.pipelines.patient_list import read_patients
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.store import open_stores

__all__ = ["compare"]


@click.command()
@stores_argument
@click.option(
    "--features",
    multiple=True,
    required=True,
    metavar="NAME[=TITLE]",
    help="Name that embed was given, and what to call the encoder; give it once for each.",
)
@click.option(
    "--out",
    required=True,
    type=AnyPath,
    help="Folder for comparison.json, comparison.csv, comparison.md, comparison.html.",
)
@click.option(
    "--reference", default=None, metavar="NAME", help="What differences are taken from.  [default: the first]"
)
@click.option("--labels", type=AnyPath, default=None, help="CSV by slide or tile.  [default: the annotations' labels]")
@click.option("--label-column", default="label", show_default=True, help="Column of the classes.")
@click.option("--patient-column", default=None, help="Column of the patients in --labels.  [default: patient_id]")
@click.option("--protocol", default="linear", show_default=True, help="linear, knn or paper.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Folds, always by patient.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything drawn.")
@click.option("--test-patients", type=AnyPath, default=None, help="Text file of patients to test on, instead of folds.")
@click.option(
    "--curves/--no-curves",
    default=True,
    show_default=True,
    help="Label-efficiency and few-shot curves; most of the time.",
)
@click.option("--k", type=click.IntRange(1), default=5, show_default=True, help="Tiles retrieved for each tile.")
@click.option(
    "--map",
    "map_method",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="How features are laid out in a plane; umap needs umap-learn.",
)
def compare(
    stores: tuple[Path, ...],
    features: tuple[str, ...],
    out: Path,
    reference: str | None,
    test_patients: Path | None,
    **options: Any,
) -> None:
    """Measure several encoders' features of STOREs on the same tiles and the same folds of patients.

    Writes one table (comparison.csv, .json, .md) and one page (comparison.html) that needs no other file.
    """
    named = _parse_features(features)
    tested = read_patients(test_patients) if test_patients is not None else ()
    settings = ComparisonSettings(test_patients=tested, **options)
    opened = open_stores(stores)
    with progress_bar("compare", "steps", quiet=quiet()) as tick:
        comparison = compare_encoders(opened, named, settings=settings, reference=reference, out=out, progress=tick)
    print_comparison(comparison)
    say(f"report: {out / 'comparison.html'}")


def _parse_features(given: Sequence[str]) -> dict[str, str]:
    """Return name -> title of `NAME[=TITLE]`; without a title the name is it."""
    named: dict[str, str] = {}
    for text in given:
        name, _, title = text.partition("=")
        if not name.strip():
            raise SettingsError(f"--features {text!r}: has no name; give NAME or NAME=TITLE")
        if name in named:
            raise SettingsError(f"--features {name!r}: is given twice; name each once")
        named[name] = title.strip() or name
    return named


def print_comparison(comparison: Comparison) -> None:
    """Print the table that comparison.md holds."""
    rows = [[" ".join(cell) for cell in table_cells(encoder, comparison)] for encoder in comparison.encoders]
    print_table("encoders", [" ".join(title) for title in headers(comparison)], rows)

"""The command `compare`: several encoders in one table and one report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from simtriplet.evaluate.comparison import Comparison, ComparisonSettings
from simtriplet.evaluate.comparison_measurement import compare_encoders
from simtriplet.evaluate.comparison_table import headers, table_cells
from simtriplet.pipelines.command_evaluate_checks import (
    check_label_options,
    parse_classes,
    read_test_patients,
    require_features,
)
from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.pipelines.model_steps import train_for_comparison
from simtriplet.pipelines.options import AnyPath, quiet, stores_argument
from simtriplet.pipelines.output_hold import check_folder, holding
from simtriplet.pipelines.repeated_warnings import each_warning_once
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.store import open_stores

__all__ = ["compare"]

_SUPERVISED = "supervised from scratch"


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
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=None,
    help="Folds, always by patient.  [default: 5, or as many as the rarest class has patients]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything drawn.")
@click.option("--test-patients", type=AnyPath, default=None, help="Text file of patients to test on, instead of folds.")
@click.option(
    "--classes",
    default=None,
    metavar="NAME,NAME,...",
    help="Classes to tell apart; tiles of others are left out.  [default: all]",
)
@click.option(
    "--curves/--no-curves",
    default=True,
    show_default=True,
    help="Label-efficiency and few-shot curves; most of the time.",
)
@click.option("--supervised", is_flag=True, help="Also train a network from scratch in each fold, on the same labels.")
@click.option(
    "--supervised-curve", is_flag=True, help="Train such networks from 1, 10, 25 % of the labels too: 15 more a fold."
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="--supervised: a setting of the training, such as epochs=10 or backbone=resnet18; may be repeated.",
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
    classes: str | None,
    supervised: bool,
    supervised_curve: bool,
    assignments: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure several encoders' features of STOREs on the same tiles and the same folds of patients.

    Writes one table (comparison.csv, .json, .md) and one page (comparison.html) that needs no other file.
    """
    named = _parse_features(features)
    check_label_options(options["labels"], options["patient_column"])
    _check_supervised(supervised, supervised_curve, assignments)
    tested, told = read_test_patients(test_patients), parse_classes(classes)
    settings = ComparisonSettings(test_patients=tested, classes=told, **options)
    opened = open_stores(stores)
    require_features(opened, list(named))
    check_folder(out)
    context = click.get_current_context()
    context.with_resource(each_warning_once())
    context.with_resource(holding(out))
    results, curves = {}, {}
    if supervised:
        say(f"{_SUPERVISED}: a network for each fold")
        found = train_for_comparison(opened, settings, assignments, with_curve=supervised_curve)
        results[_SUPERVISED], curves[_SUPERVISED] = found
    with progress_bar("compare", "steps", quiet=quiet()) as tick:
        comparison = compare_encoders(
            opened,
            named,
            settings=settings,
            reference=reference,
            results=results,
            result_curves=curves,
            out=out,
            progress=tick,
        )
    print_comparison(comparison)
    say(f"report: {out / 'comparison.html'}")


def _check_supervised(supervised: bool, curve: bool, assignments: Sequence[str]) -> None:
    idle = [name for name, given in (("--supervised-curve", curve), ("--set", bool(assignments))) if given]
    if idle and not supervised:
        raise SettingsError(f"{' and '.join(idle)} without --supervised: nothing is trained; add it or leave them out")


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

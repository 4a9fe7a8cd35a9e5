"""The command `index`: adjacent tiles become each other's inter-sample positives."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from simtriplet.pipelines.console import say
from simtriplet.pipelines.index_steps import IndexRequest, index_stores, report_neighbours
from simtriplet.pipelines.options import AnyPath, quiet, stores_argument
from simtriplet.pipelines.output_hold import check_folder
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.store import open_stores

__all__ = ["index"]


_RULE_OPTIONS = {
    "grid": ("connectivity", "allow_overlap"),
    "radius ring": ("radius_um",),
    "ring": ("inner_um",),
    "knn": ("k",),
}


@click.command()
@stores_argument
@click.option(
    "--rule",
    type=click.Choice(["grid", "radius", "ring", "knn"]),
    default="grid",
    show_default=True,
    help="Who is near.",
)
@click.option("--connectivity", type=click.Choice(["4", "8"]), default="8", show_default=True, help="For grid.")
@click.option("--allow-overlap", is_flag=True, help="For grid: let neighbours share pixels where tiles overlap.")
@click.option("--radius-um", type=float, default=None, help="For radius and ring: outer distance, micrometres.")
@click.option("--inner-um", type=float, default=None, help="For ring: inner distance, micrometres.")
@click.option("--k", default=8, show_default=True, help="For knn: nearest tiles.")
@click.option("--same-tissue/--any-tissue", default=True, show_default=True, help="Only within one tissue region.")
@click.option("--min-tissue", type=float, default=None, help="Least share of tissue on both tiles, 0..1.")
@click.option(
    "--annotations",
    type=AnyPath,
    default=None,
    help="Folder of <slide_id>.geojson (.xml, .csv), or one file: no pair across a border drawn there.",
)
@click.option(
    "--similar-to", default=None, metavar="X_NAME", help="Features in the stores that pairs must be alike in."
)
@click.option(
    "--min-similarity", type=float, default=None, help="Quantile of their likeness that a pair must reach, 0..1."
)
@click.option("--name", default="spatial", show_default=True, help="Name of the index; several live side by side.")
@click.option(
    "--report",
    type=AnyPath,
    default=None,
    help="Folder for degrees, distances, label agreement (JSON, CSV) and the graph drawn on each thumbnail.",
)
@click.option("--only-report", is_flag=True, help="Report on the index that is there and leave it as it is.")
def index(stores: tuple[Path, ...], connectivity: str, report: Path | None, only_report: bool, **options: Any) -> None:
    """Pair adjacent tiles of STOREs as inter-sample positives; an older index of the same name is replaced."""
    if only_report and report is None:
        raise SettingsError("--only-report: needs a folder to write to; pass --report")
    for rule, names in _RULE_OPTIONS.items():
        for name in names:
            given = click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE
            if given and options["rule"] not in rule.split():
                flag = f"--{name.replace('_', '-')}"
                raise click.UsageError(f"{flag}: does nothing with --rule {options['rule']}; it is for {rule}")
    request = IndexRequest(connectivity=int(connectivity), **options)
    opened = open_stores(stores)
    if report is not None:  # before an index is replaced
        check_folder(report, option="--report")
    if not only_report:
        index_stores(opened, request, quiet=quiet())
    if report is not None:
        report_neighbours(opened, report, name=request.name, quiet=quiet())
        say(f"report: {report / f'{request.name}.json'}, .csv and the pictures in {report / request.name}")

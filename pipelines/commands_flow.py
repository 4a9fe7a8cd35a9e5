"""The commands that do the whole job: run and demo."""

from pathlib import Path

import click

from simtriplet.pipelines.console import say
from simtriplet.pipelines.demo import demo_recipe, slide_recipe
from simtriplet.pipelines.flow import FlowResult, run_recipe
from simtriplet.pipelines.options import AnyPath, quiet, with_settings
from simtriplet.pipelines.recipe import read_recipe
from simtriplet.pipelines.repeated_warnings import each_warning_once
from simtriplet.wsi.errors import StoreError

__all__ = ["demo", "run"]


@click.command()
@click.argument("recipe", type=AnyPath, metavar="RECIPE.toml")
@with_settings
def run(recipe: Path, assignments: tuple[str, ...]) -> None:
    """Do everything that RECIPE.toml says, from slides to a report; finished steps are skipped."""
    with each_warning_once():  # labels are read before the first slide, and for each of the features
        result = run_recipe(read_recipe(recipe, assignments), source=recipe, quiet=quiet())
    _say_where(result)
    if result.n_failed:
        what = "slide" if result.n_failed == 1 else "slides"
        raise StoreError(
            f"{result.n_failed} {what} failed; for the reasons see the table of tiling, or '{result.stores / 'tile-summary.csv'}'"
        )


@click.command()
@click.option("--out", type=AnyPath, default=Path("demo"), show_default=True, help="Folder for everything.")
@click.option("--slide", type=AnyPath, default=None, help="Use this slide instead of drawn ones.")
@click.option("--slide-mpp", type=float, default=None, help="For --slide: micrometres per level-0 pixel.")
@click.option("--annotations", type=AnyPath, default=None, help="For --slide: its regions as GeoJSON.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the drawn slides and the training."
)
@with_settings
def demo(
    out: Path,
    slide: Path | None,
    slide_mpp: float | None,
    annotations: Path | None,
    seed: int,
    assignments: tuple[str, ...],
) -> None:
    """Show the whole job in minutes: draw slides (or take --slide), tile, index, pretrain, embed, evaluate, report."""
    if slide is None:
        recipe = demo_recipe(out, seed=seed, overrides=assignments)
        title = "SimTriplet demo: drawn slides"
    else:
        recipe = slide_recipe(
            out, slide, slide_mpp=slide_mpp, annotations=annotations, seed=seed, overrides=assignments
        )
        title = f"SimTriplet demo: {slide.stem}"
    with each_warning_once():
        result = run_recipe(recipe, title=title, quiet=quiet())
    _say_where(result)


def _say_where(result: FlowResult) -> None:
    click.echo(f"stores   {result.stores}")
    click.echo(f"encoder  {result.run / 'encoder.safetensors'}")
    click.echo(f"report   {result.report}")
    say("done")

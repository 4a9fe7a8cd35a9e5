"""Options that several commands share, and values that come from them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from simtriplet.pipelines.stop_signals import STOP

__all__ = [
    "AnyPath",
    "device_options",
    "existing_option",
    "quiet",
    "slide_timeout_option",
    "stores_argument",
    "tile_options",
    "with_settings",
]

F = TypeVar("F", bound=Callable[..., Any])


class _AnyPath(click.Path):
    """A path that says something: an empty one is a variable of a script that was never set, and would mean this folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("is empty; name a file or folder", param, ctx)
        return super().convert(value, param, ctx)


AnyPath = _AnyPath(path_type=Path)

stores_argument = click.argument("stores", nargs=-1, required=True, type=AnyPath, metavar="STORE|FOLDER...")


def _tell_how_to_go_on(_context: click.Context, _option: click.Parameter, chosen: str) -> str:
    """Say after an interruption what is true then: skipping would leave what was not replaced yet."""
    if chosen == "replace":
        STOP.go_on = "run the same command again, which replaces everything once more"
    return chosen


def existing_option(default: str) -> Callable[[F], F]:
    """Add --existing."""
    return click.option(
        "--existing",
        type=click.Choice(["skip", "replace", "error"]),
        default=default,
        show_default=True,
        help="What to do about results that are there already.",
        callback=_tell_how_to_go_on,
    )


def slide_timeout_option(default: float) -> Callable[[F], F]:
    """Add --slide-timeout, seconds."""
    return click.option(
        "--slide-timeout",
        type=click.FloatRange(0),
        default=default,
        show_default=True,
        help="A slide that takes more seconds has failed; 0 waits for ever.",
    )


def device_options(command: F) -> F:
    """Add --device, --precision and --batch-size for a pass through an encoder."""
    for option in (
        click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Tiles a batch."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
            default="auto",
            show_default=True,
            help="Arithmetic; auto is bf16 on a GPU that supports it, else fp32.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    ):
        command = option(command)
    return command


def tile_options(command: F) -> F:
    """Add what reads slides, how tiles are stored, and which annotations label them: --reader to --background."""
    for option in (
        click.option("--background", default=None, help="Class of annotated slides' tiles outside all regions."),
        click.option(
            "--min-label-cover", default=0.5, show_default=True, help="Least share of a tile its class covers."
        ),
        click.option(
            "--annotations",
            type=AnyPath,
            default=None,
            help="Folder of <slide_id>.geojson, .xml (ASAP, ImageScope) or .csv; or one such file.",
        ),
        click.option("--jpeg-quality", default=90, show_default=True, help="1..100, for --codec jpeg."),
        click.option(
            "--codec",
            type=click.Choice(["none", "zstd", "jpeg"]),
            default="none",
            show_default=True,
            help="none and zstd are lossless; jpeg takes about a seventh of the space.",
        ),
        click.option("--reader", default="auto", show_default=True, help="auto, tiff, openslide or tiffslide."),
    ):
        command = option(command)
    return command


def quiet() -> bool:
    """Tell whether the group option -q was given."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))


def with_settings(command: F) -> F:
    """Add --set section.key=value."""
    option = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Override one setting; may be repeated.",
    )
    return option(command)

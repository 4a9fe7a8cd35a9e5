"""The command `export`: stores in the form of other programs."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.pipelines.options import AnyPath, existing_option, quiet, stores_argument
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.export_formats import FORMATS, Exported, export_stores
from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.reach import is_folder
from simtriplet.wsi.store import open_stores
from simtriplet.wsi.tiling import usable_cores

__all__ = ["export"]

_OF_FORMATS = {
    "image_format": ("images", "webdataset"),
    "jpeg_quality": ("images", "webdataset"),
    "shard_tiles": ("webdataset",),
    "neighbours": ("webdataset",),
}


@click.command()
@stores_argument
@click.option("--to", "form", required=True, type=click.Choice(list(FORMATS)), help="The form.")
@click.option(
    "--out",
    required=True,
    type=AnyPath,
    help="Folder of one output a slide; for images and webdataset the folder that holds all slides.",
)
@click.option(
    "--predictions",
    type=AnyPath,
    default=None,
    help="Folder that predict wrote: its classes and probabilities are exported too.",
)
@click.option(
    "--image-format",
    type=click.Choice(["auto", "png", "jpeg"]),
    default="auto",
    show_default=True,
    help="For images and webdataset: auto copies stored JPEG as it is and makes PNG of the rest, both without loss.",
)
@click.option("--jpeg-quality", default=90, show_default=True, help="1..100, where --image-format jpeg encodes.")
@click.option("--shard-tiles", default=4096, show_default=True, help="For webdataset: tiles a tar file.")
@click.option(
    "--neighbours", default="spatial", show_default=True, help="For webdataset: the index whose neighbours are named."
)
@existing_option("error")
def export(
    stores: tuple[Path, ...], form: str, out: Path, predictions: Path | None, existing: Any, **options: Any
) -> None:
    """Write STOREs for other programs: SpatialData, AnnData, QuPath, geopandas, picture folders, WebDataset.

    spatialdata, anndata and geoparquet need packages: pip install 'simtriplet[interop]'. Of one slide each:
    <slide_id>.spatialdata.zarr, .h5ad, .geojson, .parquet; of all slides together: images and webdataset.
    """
    _refuse_idle_options(form)
    if predictions is not None and not is_folder(predictions):
        raise SettingsError(f"predictions '{predictions}': is no folder; pass the one that predict wrote")
    request = ExportRequest(predictions=predictions, threads=usable_cores(), **options)
    opened = open_stores(stores)
    with progress_bar(f"export to {form}", "tiles", quiet=quiet()) as tick:
        exported = export_stores(opened, form, out, request, existing=existing, progress=tick)
    print_table("exports", ("output", "status", "slides", "tiles"), [_row(one) for one in exported])
    say(f"{form}: {out}")


def _refuse_idle_options(form: str) -> None:
    """An option that would do nothing is a misunderstanding."""
    context = click.get_current_context()
    for name, forms in _OF_FORMATS.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and form not in forms:
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag}: does nothing with --to {form}; it is for {' and '.join(forms)}")


def _row(one: Exported) -> list[str]:
    return [one.path.name, one.status, str(one.n_slides), str(one.n_tiles)]

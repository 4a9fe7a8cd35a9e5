"""The command `predict`: a trained head over slides."""

from pathlib import Path

import click
import numpy as np

from simtriplet.evaluate.prediction import SlidePrediction, predict_slide
from simtriplet.evaluate.prediction_files import refuse_foreign_files, write_prediction
from simtriplet.evaluate.saved_head import load_head
from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.pipelines.options import AnyPath, quiet, stores_argument
from simtriplet.pipelines.output_hold import check_folder, holding
from simtriplet.pipelines.repeated_warnings import first_of_each_warning
from simtriplet.wsi.store import open_stores

__all__ = ["predict"]


@click.command()
@stores_argument
@click.option("--head", required=True, type=AnyPath, help="File that evaluate --save-head wrote.")
@click.option("--out", required=True, type=AnyPath, help="Folder for <slide_id>.geojson, .csv and .png.")
@click.option(
    "--merged/--per-tile",
    default=True,
    show_default=True,
    help="GeoJSON: one polygon for each connected area of a class, or one for each tile.",
)
def predict(stores: tuple[Path, ...], head: Path, out: Path, merged: bool) -> None:
    """Predict the class of every tile of STOREs with a trained head.

    The features must be those of the encoder that the head was fitted on. QuPath opens the GeoJSON as annotations. Earlier
    predictions in the folder are replaced, other files never.
    """
    saved = load_head(head)
    opened = open_stores(stores)
    check_folder(out)
    for store in opened:
        refuse_foreign_files(out, store.slide_id)
    click.get_current_context().with_resource(holding(out))
    rows = []
    with progress_bar("predict", "slides", quiet=quiet()) as tick, first_of_each_warning():
        for number, store in enumerate(opened, start=1):
            prediction = predict_slide(store, saved)
            write_prediction(out, store, prediction, merged=merged)
            rows.append(_row(prediction))
            tick(number, len(opened))
    print_table("predictions", ("slide", "tiles", *saved.classes), rows)
    say(f"class maps: {out}")


def _row(prediction: SlidePrediction) -> list[str]:
    counts = np.bincount(prediction.codes, minlength=len(prediction.classes))
    return [prediction.slide_id, str(len(prediction.codes)), *(str(count) for count in counts.tolist())]

"""The commands with a network: pretrain, embed, evaluate."""

from pathlib import Path
from typing import Any

import click

from simtriplet.evaluate.evaluation import evaluate_features
from simtriplet.evaluate.report import write_report
from simtriplet.pipelines.console import say
from simtriplet.pipelines.model_steps import embed_stores, pretrain_encoder, print_result
from simtriplet.pipelines.options import AnyPath, device_options, existing_option, quiet, stores_argument, with_settings
from simtriplet.pipelines.slide_steps import make_folder
from simtriplet.pretrain.distributed import is_first_process
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.settings import load_settings, preset_names
from simtriplet.wsi.errors import SettingsError, TrainingError
from simtriplet.wsi.store import open_stores

__all__ = ["embed", "evaluate", "pretrain"]


@click.command()
@stores_argument
@click.option(
    "--out",
    required=True,
    type=AnyPath,
    help="Run folder: settings, metrics, monitor, checkpoints, encoder, model card.",
)
@click.option("--config", type=AnyPath, default=None, help="TOML of settings, laid over the preset.")
@click.option(
    "--preset",
    default="paper",
    show_default=True,
    help=f"Settings to start from: {', '.join(preset_names())}. paper: ResNet-50, 128 px, 400 epochs; quick: a CPU, minutes.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
    default=None,
    help="Arithmetic of the encoder.  [default: the preset's, auto]",
)
@click.option(
    "--exclude-patients", type=AnyPath, default=None, help="Text file of patient ids to leave out, one a line."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@with_settings
def pretrain(
    stores: tuple[Path, ...],
    out: Path,
    config: Path | None,
    preset: str,
    precision: str | None,
    exclude_patients: Path | None,
    resume: bool,
    assignments: tuple[str, ...],
) -> None:
    """Learn an encoder from the tiles of STOREs and their neighbours, without labels.

    \b
    Some settings to --set (docs/training.md has all):
      run.accumulate=4                     less memory: micro-batches
      run.activation_checkpointing=true    less memory: compute activations twice
      run.monitor_every_epochs=5           rank, kNN accuracy, slide leakage
      run.keep_every_epochs=50             keep checkpoints for good
      run.on_nan=skip, run.on_collapse=warn
      run.compile=on|off, run.tensorboard=on|off
      run.export=['torchscript']           or 'onnx'

    \b
    Several GPUs share each batch:
      torchrun --nproc-per-node 4 -m simtriplet.pipelines pretrain STORE... --out RUN
    """  # noqa: D301 (click wants the character itself)
    overrides = [*assignments, *([f"run.precision={precision}"] if precision else [])]
    settings = load_settings(preset=preset, file=config, overrides=overrides)
    excluded = _read_patients(exclude_patients) if exclude_patients is not None else ()
    opened = open_stores(stores)
    make_folder(out)
    result = pretrain_encoder(opened, settings, out, resume=resume, exclude_patients=excluded, quiet=quiet())
    if not result.finished:
        raise TrainingError(f"run '{out}': stopped after run.max_minutes; go on with --resume")
    if is_first_process():
        say(f"next: simtriplet embed {' '.join(map(str, stores))} --encoder {out} --name simtriplet")


def _read_patients(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"patients file '{path}': cannot be read ({error}); pass a UTF-8 text file") from error
    return tuple(line.strip() for line in lines if line.strip())


@click.command()
@stores_argument
@click.option(
    "--encoder",
    required=True,
    help="Run folder, encoder.safetensors, random:NAME, or torchvision:NAME:FILE with weights from a file.",
)
@click.option("--name", default="simtriplet", show_default=True, help="Name of the features in the stores.")
@device_options
@existing_option("replace")
def embed(stores: tuple[Path, ...], encoder: str, name: str, **options: Any) -> None:
    """Run a frozen encoder over the tiles of STOREs and keep the features beside them."""
    opened = open_stores(stores)
    embed_stores(opened, load_encoder(encoder), name=name, quiet=quiet(), **options)


@click.command()
@stores_argument
@click.option("--features", default="simtriplet", show_default=True, help="Name that embed was given.")
@click.option("--baseline", default=None, help="Features to compare with, measured the same way.")
@click.option("--out", required=True, type=AnyPath, help="Folder for results.json, predictions.csv and report.html.")
@click.option("--labels", type=AnyPath, default=None, help="CSV by slide or tile.  [default: the annotations' labels]")
@click.option("--label-column", default="label", show_default=True, help="Column of the classes.")
@click.option("--patient-column", default=None, help="Column of the patients in --labels.  [default: patient_id]")
@click.option("--protocol", default="linear", show_default=True, help="linear, knn or paper.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Folds, always by patient.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds, heads and bootstrap.")
@click.option("--test-patients", type=AnyPath, default=None, help="Text file of patients to test on, instead of folds.")
@click.option("--run", type=AnyPath, default=None, help="Run folder, to show its loss curve in the report.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write report.html.")
def evaluate(
    stores: tuple[Path, ...],
    features: str,
    baseline: str | None,
    out: Path,
    run: Path | None,
    report: bool,
    test_patients: Path | None,
    **options: Any,
) -> None:
    """Measure how well classes can be told apart from the features of STOREs, split by patient."""
    opened = open_stores(stores)
    tested = _read_patients(test_patients) if test_patients is not None else ()
    result = evaluate_features(opened, features, out=out, test_patients=tested, **options)
    other = None
    if baseline is not None:
        other = evaluate_features(opened, baseline, test_patients=tested, **options)
    print_result(result, other)
    if report:
        say(f"report: {write_report(out, result=result, baseline=other, stores=opened, run=run)}")

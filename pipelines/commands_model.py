"""The commands with a network: pretrain, embed."""

from pathlib import Path
from typing import Any

import click

from simtriplet.evaluate.feature_file import FeatureForm, check_forms, write_feature_file
from simtriplet.pipelines.console import say
from simtriplet.pipelines.model_steps import embed_stores, pretrain_encoder
from simtriplet.pipelines.options import AnyPath, device_options, existing_option, quiet, stores_argument, with_settings
from simtriplet.pipelines.patient_list import read_patients
from simtriplet.pipelines.repeated_warnings import first_of_each_warning
from simtriplet.pipelines.slide_steps import make_folder
from simtriplet.pipelines.stop_signals import STOP
from simtriplet.pretrain.settings import load_settings, preset_names
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.store import open_stores

__all__ = ["embed", "pretrain"]


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
    help=f"Settings to start from: {', '.join(preset_names())}. paper: as published, ResNet-50, 400 epochs; "
    "pathology: what the study found better on tissue; quick: a CPU, minutes.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
    default=None,
    help="Arithmetic of the encoder.  [default: the preset's, auto]",
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "skip"]),
    default=None,
    help="After a loss or gradient that is not finite: stop, or leave the step out and count it.  [default: the settings', stop]",
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
    on_nan: str | None,
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
      run.on_collapse=warn
      run.compile=off|encoder|step         torch.compile; step: views and loss too
      run.tensorboard=on|off
      run.export=['torchscript']           or 'onnx'

    \b
    Several GPUs share each batch:
      torchrun --nproc-per-node 4 -m simtriplet.pipelines pretrain STORE... --out RUN
    """  # noqa: D301 (click wants the character itself)
    named = {"run.precision": precision, "run.on_nan": on_nan}
    overrides = [*assignments, *(f"{key}={value}" for key, value in named.items() if value)]
    settings = load_settings(preset=preset, file=config, overrides=overrides)
    excluded = read_patients(exclude_patients) if exclude_patients is not None else ()
    opened = open_stores(stores)
    make_folder(out)
    with STOP.while_importing():  # torch: after what can be refused without it
        from simtriplet.pretrain.distributed import is_first_process
    result = pretrain_encoder(opened, settings, out, resume=resume, exclude_patients=excluded, quiet=quiet())
    if not result.finished:
        raise TrainingError(f"run '{out}': stopped after run.max_minutes; go on with --resume")
    if is_first_process():
        say(f"next: simtriplet embed {' '.join(map(str, stores))} --encoder {out} --name simtriplet")


@click.command()
@stores_argument
@click.option(
    "--encoder",
    required=True,
    help="Run folder, encoder.safetensors, random:NAME[:SIZE_PX], torchvision:NAME[:FILE] or timm:NAME[:FILE].",
)
@click.option("--name", default="simtriplet", show_default=True, help="Name of the features in the stores.")
@click.option(
    "--write",
    "forms",
    type=click.Choice(["npy", "parquet"]),
    multiple=True,
    help="Write <slide_id>.NAME.npy or .parquet beside each store too; may be repeated.",
)
@click.option("--allow-download", is_flag=True, help="Fetch published weights of torchvision or timm.")
@device_options
@existing_option("skip")
def embed(
    stores: tuple[Path, ...],
    encoder: str,
    name: str,
    forms: tuple[FeatureForm, ...],
    allow_download: bool,
    **options: Any,
) -> None:
    """Run a frozen encoder over the tiles of STOREs and keep the features beside them.

    Stores that have these features of this encoder already are skipped, so that an interrupted job goes on where it was.
    """
    check_forms(forms)
    opened = open_stores(stores)
    with STOP.while_importing():  # torch: after what can be refused without it
        from simtriplet.pretrain.encoder import load_encoder

    network = load_encoder(encoder, allow_download=allow_download)
    with first_of_each_warning():
        embed_stores(opened, network, name=name, quiet=quiet(), **options)
    for store in opened:
        for form in forms:
            write_feature_file(store, name, form)

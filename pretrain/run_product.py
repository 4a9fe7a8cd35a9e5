"""What a run is made for: the encoder in the forms others load, and a card that says what it is."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.encoder import EncoderInfo, load_encoder, package_versions, save_encoder
from simtriplet.pretrain.export import EXPORTERS, Exporter, write_timm_config
from simtriplet.pretrain.model import TripletModel
from simtriplet.pretrain.model_card import write_model_card
from simtriplet.pretrain.result import PretrainResult
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.settings import ExportFormat, PretrainSettings
from simtriplet.wsi.errors import CheckpointError

__all__ = ["describe_encoder", "write_missing_exports", "write_product"]


def describe_encoder(settings: PretrainSettings, cohort: Cohort, model: TripletModel, *, steps: int) -> EncoderInfo:
    """Return what the backbone of a run is after so many steps; the hash is known when its file is written."""
    initial = model.initial_weights
    return EncoderInfo(
        backbone=settings.model.backbone,
        feature_dim=model.feature_dim,
        image_size_px=settings.data.image_size_px,
        mpp=cohort.numbering.mpp,
        mean=settings.views.mean,
        std=settings.views.std,
        checkpoint_hash="",
        patients=cohort.patients,
        slides=cohort.slides,
        objective=settings.objective.name,
        steps=steps,
        versions=package_versions(),
        tile_size_px=cohort.numbering.size_px,
        initial_weights=None if initial is None else initial.name,
        initial_weights_hash=None if initial is None else initial.hash,
    )


def write_product(
    folder: RunFolder, backbone: nn.Module, info: EncoderInfo, settings: PretrainSettings, result: PretrainResult
) -> None:
    """Write encoder.safetensors, encoder.json, config.json, README.md and the exports that are asked for.

    Raises:
        CheckpointError: if the disk is full or fails.
        MissingDependencyError: if a form of export needs a package that is missing.
    """
    info = save_encoder(folder.path, backbone, info)
    write_timm_config(folder.path, info)
    write_model_card(folder, info, settings, result)
    _write_exports(folder, settings.run.export)


def write_missing_exports(folder: RunFolder, forms: Sequence[ExportFormat]) -> None:
    """Write the forms of a finished run's encoder that are asked for and are not there; itself too, from the checkpoint.

    Raises:
        CheckpointError: if the checkpoint is damaged, or the disk is full or fails.
        MissingDependencyError: if a form of export needs a package that is missing.
    """
    try:
        load_encoder(folder.encoder)
    except CheckpointError:  # gone, or damaged
        kept = load_encoder(folder.checkpoint)
        write_timm_config(folder.path, save_encoder(folder.path, kept.backbone, kept.info))
    _write_exports(folder, [form for form in forms if not _export_file(folder, EXPORTERS[form]).exists()])


def _write_exports(folder: RunFolder, forms: Sequence[ExportFormat]) -> None:
    if not forms:
        return
    encoder = load_encoder(folder.encoder)
    for form in forms:
        EXPORTERS[form].write(encoder, _export_file(folder, EXPORTERS[form]))


def _export_file(folder: RunFolder, exporter: Exporter) -> Path:
    return folder.path / f"encoder{exporter.suffix}"

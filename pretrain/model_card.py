"""README.md of a run: what the encoder was trained on and how, its last numbers, what it is for and what it is not."""

import json
import os
from pathlib import Path
from typing import Any

from simtriplet.pretrain.encoder import EncoderInfo
from simtriplet.pretrain.result import PretrainResult
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.wsi.errors import CheckpointError

__all__ = ["model_card", "write_model_card"]

_USE = """## Intended use

Features of tissue tiles for research: retrieval, clustering, linear classifiers on few labels, multiple-instance models.
Normalise tiles with the mean and deviation above, at the resolution above.

## Limits

* Not a medical device: nothing here was validated for diagnosis.
* Learnt without labels from the slides named in encoder.json: other organs, stains, scanners and resolutions may differ.
* The patients in encoder.json were trained on. Numbers measured on them say little about others; evaluate by patient,
  on patients that are not in that list.
* Features can carry the slide or the scanner rather than the tissue; `slide_leakage` above, against its chance level, is how
  much of that was seen.
* The kNN accuracy above, where there is one, was measured on patients of the training set.
"""


def model_card(
    info: EncoderInfo, settings: PretrainSettings, result: PretrainResult, *, measured: dict[str, Any] | None
) -> str:
    """Return the card as Markdown with the header that the Hugging Face hub reads.

    Args:
        info: of the encoder.
        settings: of the run.
        result: of the run.
        measured: the last line of monitor.jsonl, None where there is none.
    """
    architecture = info.backbone.removeprefix("timm:")
    head = ["---", "library_name: timm", "tags: [pathology, self-supervised, image-feature-extraction]", "---"]
    head += [f"# {architecture} by {info.objective}", ""]
    end = "finished" if result.finished else "stopped before its end"
    head += [f"A {architecture} encoder of {info.feature_dim} features, pretrained without labels; the run {end}.", ""]
    parts = [*head, *_data_lines(info, result), *_training_lines(settings, result), *_number_lines(result, measured)]
    return "\n".join([*parts, *_loading_lines(architecture), _USE])


def _data_lines(info: EncoderInfo, result: PretrainResult) -> list[str]:
    size, mpp = info.image_size_px, "unknown" if info.mpp is None else f"{info.mpp:g}"
    return [
        "## Data",
        "",
        f"* {result.n_tiles} tiles of {len(info.slides)} slides, {len(info.patients)} patients; ids are in encoder.json",
        f"* images of {size} x {size} px; the stored tiles have {mpp} micrometres a pixel",
        f"* mean {list(info.mean)}, deviation {list(info.std)}, of RGB values in [0, 1]",
        f"* {result.n_isolated} tiles without a neighbour",
        "",
    ]


def _training_lines(settings: PretrainSettings, result: PretrainResult) -> list[str]:
    objective, optimiser, run = settings.objective, settings.optimiser, settings.run
    return [
        "## Training",
        "",
        f"* objective {objective.name}, neighbour weight {objective.inter_weight:g}",
        f"* {result.steps} steps of {result.batch_size} triplets, {result.epochs} epochs begun, seed {run.seed}",
        f"* SGD, learning rate {optimiser.base_lr:g} x batch / 256, momentum {optimiser.momentum:g}",
        f"* weight decay {optimiser.weight_decay:g}, warm-up over {optimiser.warmup_epochs:g} epochs, then a cosine",
        f"* precision {run.precision}; all settings are in settings.toml, all numbers in metrics.jsonl and monitor.jsonl",
        "",
    ]


def _number_lines(result: PretrainResult, measured: dict[str, Any] | None) -> list[str]:
    rows = {"loss": result.loss, "z_std": result.z_std}
    names = ["z_std_healthy", "feature_rank", "z_rank", "knn_accuracy", "slide_leakage", "slide_leakage_chance"]
    rows |= {name: measured[name] for name in names if measured and measured.get(name) is not None}
    lines = [f"| {name} | {value:.4g} |" for name, value in rows.items()]
    return ["## Last numbers", "", "| measure | value |", "|---|---|", *lines, ""]


def _loading_lines(architecture: str) -> list[str]:
    return [
        "## Loading",
        "",
        "```python",
        'encoder = simtriplet.pretrain.load_encoder("this folder")          # encoder.embed(uint8 tiles)',
        f'network = timm.create_model("{architecture}", checkpoint_path="encoder.safetensors", num_classes=0)',
        "```",
        "",
        "For the ResNets, torchvision's network of that name takes the file too: `load_state_dict(..., strict=False)` leaves",
        "only `fc` missing.",
        "",
    ]


def write_model_card(folder: RunFolder, info: EncoderInfo, settings: PretrainSettings, result: PretrainResult) -> None:
    """Write README.md into the run folder, in one rename.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    text = model_card(info, settings, result, measured=_last_line(folder.monitor))
    partial = folder.card.with_name(folder.card.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder.card)
    except OSError as error:
        raise CheckpointError(
            f"model card '{folder.card}': cannot be written ({error.strerror}); free space"
        ) from error


def _last_line(path: Path) -> dict[str, Any] | None:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not lines:
        return None
    values: dict[str, Any] = json.loads(lines[-1])
    return values

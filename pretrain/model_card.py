"""README.md of a run: what the encoder was trained on and how, its last numbers, what it is for and what it is not."""

import json
from pathlib import Path
from typing import Any

from simtriplet.pretrain.encoder import EncoderInfo
from simtriplet.pretrain.export import creation_arguments
from simtriplet.pretrain.objective import make_objective
from simtriplet.pretrain.precision import pick_device, pick_precision
from simtriplet.pretrain.result import PretrainResult
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.schedule import plan_schedule
from simtriplet.pretrain.settings import ObjectiveSettings, PretrainSettings
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import CheckpointError
from simtriplet.wsi.whole_file import write_whole

__all__ = ["model_card", "write_model_card"]

_OWN_WEIGHTS = {
    "vicreg": ("invariance_weight", "variance_weight", "covariance_weight"),
    "barlow": ("redundancy_weight",),
}
"""Settings that one objective alone looks at."""

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
    head += [f"A {architecture} encoder of {info.feature_dim} features, pretrained without labels; the run {end}."]
    head += [*_origin_lines(info), ""]
    uses_neighbour = make_objective(settings.objective).uses_neighbour
    parts = [*head, *_data_lines(info, result, uses_neighbour=uses_neighbour)]
    parts += [*_training_lines(settings, result, uses_neighbour=uses_neighbour), *_number_lines(result, measured)]
    return "\n".join([*parts, *_loading_lines(info, architecture), _USE])


def _origin_lines(info: EncoderInfo) -> list[str]:
    if info.initial_weights is None:
        return ["It started from random weights."]
    return [
        f"It started from the weights in {info.initial_weights} (SHA-256 {info.initial_weights_hash}), which may have been",
        "learnt with labels, and from other images and patients than those named here.",
    ]


def _data_lines(info: EncoderInfo, result: PretrainResult, *, uses_neighbour: bool) -> list[str]:
    size, tile = info.image_size_px, info.tile_size_px
    mpp, tile_mpp = ("unknown" if each is None else f"{each:.4g}" for each in (info.image_mpp, info.mpp))
    isolated = [f"* {result.n_isolated} tiles without a neighbour"] if uses_neighbour else []
    return [
        "## Data",
        "",
        f"* {result.n_tiles} tiles of {len(info.slides)} slides, {len(info.patients)} patients; ids are in encoder.json",
        f"* images of {size} x {size} px; a whole tile in one has {mpp} micrometres a pixel",
        f"* the stored tiles are {tile} x {tile} px, at {tile_mpp} micrometres a pixel",
        f"* mean {list(info.mean)}, deviation {list(info.std)}, of RGB values in [0, 1]",
        *isolated,
        "",
    ]


def _training_lines(settings: PretrainSettings, result: PretrainResult, *, uses_neighbour: bool) -> list[str]:
    """Say what was done, with what `auto` and the limits of the run came to."""
    optimiser, run = settings.optimiser, settings.run
    steps_per_epoch = result.n_tiles // result.batch_size
    schedule = plan_schedule(settings, steps_per_epoch=steps_per_epoch, batch_size=result.batch_size)
    device = pick_device(run.device)
    warmup = f"warm-up over {schedule.warmup_steps} steps" if schedule.warmup_steps else "no warm-up"
    compiled = "" if run.compiled == "off" else f", {run.compiled} compiled"
    sample = "triplets" if uses_neighbour else "pairs of views"
    left_out = f"{result.skipped_steps} of these steps changed nothing: a loss or gradient was not finite"
    return [
        "## Training",
        "",
        f"* objective {_objective_words(settings.objective, uses_neighbour=uses_neighbour)}",
        f"* {result.steps} steps of {result.batch_size} {sample}, {result.epochs} epochs begun, seed {run.seed}",
        *([f"* {left_out}"] if result.skipped_steps else []),
        f"* SGD, learning rate {schedule.peak:g}, momentum {optimiser.momentum:g}, weight decay {optimiser.weight_decay:g}",
        f"* {warmup}, then a cosine to step {schedule.total_steps}",
        f"* precision {pick_precision(run.precision, device)} on {device.type}{compiled}",
        "* all settings are in settings.toml, all numbers in metrics.jsonl and monitor.jsonl",
        "",
    ]


def _objective_words(settings: ObjectiveSettings, *, uses_neighbour: bool) -> str:
    """Name the objective with those of its weights that it looks at."""
    words = [settings.name]
    if uses_neighbour:
        words.append(f"neighbour weight {settings.inter_weight:g}")
        if settings.inter_warmup_epochs:
            words[-1] += f" after a rise over {settings.inter_warmup_epochs:g} epochs"
    own = _OWN_WEIGHTS.get(settings.name, ())
    return ", ".join([*words, *(f"{name.replace('_', ' ')} {getattr(settings, name):g}" for name in own)])


def _number_lines(result: PretrainResult, measured: dict[str, Any] | None) -> list[str]:
    rows = {"loss": result.loss, "z_std": result.z_std}
    names = ["z_std_healthy", "feature_rank", "z_rank", "knn_accuracy", "slide_leakage", "slide_leakage_chance"]
    rows |= {name: measured[name] for name in names if measured and measured.get(name) is not None}
    lines = [f"| {name} | {value:.4g} |" for name, value in rows.items()]
    return ["## Last numbers", "", "| measure | value |", "|---|---|", *lines, ""]


def _loading_lines(info: EncoderInfo, architecture: str) -> list[str]:
    told = "".join(f", {name}={value}" for name, value in creation_arguments(info).items())
    resnet = [
        "For the ResNets, torchvision's network of that name takes the file too: `load_state_dict(..., strict=False)` leaves",
        "only `fc` missing.",
        "",
    ]
    return [
        "## Loading",
        "",
        "```python",
        'encoder = simtriplet.pretrain.load_encoder("this folder")          # encoder.embed(uint8 tiles)',
        f'network = timm.create_model("{architecture}", checkpoint_path="encoder.safetensors", num_classes=0{told})',
        "```",
        "",
        *([] if info.backbone.startswith("timm:") else resnet),
    ]


def write_model_card(folder: RunFolder, info: EncoderInfo, settings: PretrainSettings, result: PretrainResult) -> None:
    """Write README.md into the run folder, in one rename.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    data = model_card(info, settings, result, measured=_last_line(folder.monitor)).encode()
    try:
        write_whole(folder.card, data)
    except OSError as error:
        why = why_not_written(error, folder.path, needed=len(data))
        raise CheckpointError(
            f"model card '{folder.card}': cannot be written ({why}); free space and resume"
        ) from error


def _last_line(path: Path) -> dict[str, Any] | None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if not lines:
        return None
    values: dict[str, Any] = json.loads(lines[-1])
    return values

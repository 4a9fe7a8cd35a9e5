"""The encoder in forms that need none of this package: timm's config.json, TorchScript, ONNX."""

import contextlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simtriplet.pretrain.encoder import Encoder, EncoderInfo
from simtriplet.pretrain.settings import ExportFormat
from simtriplet.pretrain.timm_backbone import has_fixed_size, timm_arguments
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import CheckpointError, MissingDependencyError

__all__ = [
    "EXPORTERS",
    "Exporter",
    "check_exports",
    "creation_arguments",
    "export_onnx",
    "export_torchscript",
    "timm_config",
    "write_timm_config",
]

_OPSET = 18

_GRAPH_BYTES = 1 << 20
"""Of an ONNX file beside the weights, generously."""


def timm_config(info: EncoderInfo) -> dict[str, Any]:
    """Return what timm and the Hugging Face hub expect in config.json, with this package's provenance beside it.

    timm.create_model(architecture, checkpoint_path="encoder.safetensors", num_classes=0, **model_args) then gives the
    encoder.
    """
    library, _, name = info.backbone.rpartition(":")
    arguments = creation_arguments(info)
    return {
        "architecture": info.backbone.removeprefix("timm:"),
        "num_classes": 0,
        "num_features": info.feature_dim,
        "pretrained_cfg": {
            "input_size": [3, info.image_size_px, info.image_size_px],
            "mean": list(info.mean),
            "std": list(info.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": 0,
            "fixed_input_size": library == "timm" and has_fixed_size(name),
        },
        **({"model_args": arguments} if arguments else {}),
        "simtriplet": {
            "mpp": info.image_mpp,
            "tile_mpp": info.mpp,
            "tile_size_px": info.tile_size_px,
            "initial_weights": info.initial_weights,
            "initial_weights_hash": info.initial_weights_hash,
            "objective": info.objective,
            "steps": info.steps,
            "slides": len(info.slides),
            "patients": len(info.patients),
            "checkpoint_hash": info.checkpoint_hash,
            "versions": dict(info.versions),
        },
    }


def creation_arguments(info: EncoderInfo) -> dict[str, int]:
    """Return what timm.create_model has to be told beside the name to make this encoder's network."""
    library, _, name = info.backbone.rpartition(":")
    return timm_arguments(name, info.image_size_px) if library == "timm" else {}


def write_timm_config(folder: Path, info: EncoderInfo) -> None:
    """Write config.json into `folder`, in one rename.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    data = f"{json.dumps(timm_config(info), indent=2)}\n".encode()
    _replace(folder / "config.json", lambda partial: partial.write_bytes(data), needed=len(data))


def export_torchscript(encoder: Encoder, path: Path) -> None:
    """Write the encoder as TorchScript: (n, 3, s, s) float32 normalised images to (n, feature_dim), for any n.

    torch.jit.load(path) gives it back without this package.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    data = _trace(encoder).save_to_buffer()  # to a file: torch ends the process where the disk is full
    _replace(path, lambda partial: partial.write_bytes(data), needed=len(data))


def _trace(encoder: Encoder) -> Any:
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # torch calls TorchScript deprecated, but it is what viewers such as QuPath's extensions load
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return torch.jit.trace(encoder.eval(), _example(encoder), check_trace=False)  # type: ignore[no-untyped-call]


def _example(encoder: Encoder) -> torch.Tensor:
    size = encoder.info.image_size_px
    return torch.zeros(2, 3, size, size, device=encoder.device)


def export_onnx(encoder: Encoder, path: Path) -> None:
    """Write the encoder as ONNX: input `images` (n, 3, s, s) float32 normalised, output `features`, for any n.

    Raises:
        MissingDependencyError: if the packages onnx and onnxscript are not installed.
        CheckpointError: if the disk is full or fails.
    """
    check_exports(("onnx",))
    dynamic = {"images": {0: torch.export.Dim.DYNAMIC}}

    program = torch.onnx.export(
        encoder.eval(),
        (_example(encoder),),
        input_names=["images"],
        output_names=["features"],
        opset_version=_OPSET,
        dynamic_shapes=dynamic,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    needed = sum(values.nbytes for values in encoder.state_dict().values()) + _GRAPH_BYTES
    _replace(path, lambda partial: program.save(str(partial)), needed=needed)


def check_exports(forms: tuple[ExportFormat, ...]) -> None:
    """Make sure that the packages are there which the forms need, before a run rather than after it.

    Raises:
        MissingDependencyError: if one is missing.
    """
    missing = [name for form in forms for name in EXPORTERS[form].needs if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"run.export {', '.join(forms)!r}: needs {' and '.join(missing)}, not installed; install, or leave that form out"
        )


class Exporter(NamedTuple):
    """A form of export.

    Attributes:
        write: the function.
        suffix: of the file.
        needs: packages beyond those of the trainer.
    """

    write: Callable[[Encoder, Path], None]
    suffix: str
    needs: tuple[str, ...]


EXPORTERS: Mapping[ExportFormat, Exporter] = {
    "torchscript": Exporter(export_torchscript, ".torchscript.pt", ()),
    "onnx": Exporter(export_onnx, ".onnx", ("onnx", "onnxscript")),
}


def _replace(path: Path, write: Callable[[Path], Any], *, needed: int) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        why = why_not_written(error, path.parent, needed=needed)
        raise CheckpointError(f"encoder '{path}': cannot be written ({why}); free space and resume") from error

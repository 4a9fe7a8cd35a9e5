"""checkpoints/*.pt: everything an exact resume needs, as tensors and plain values, replaced in one rename."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from simtriplet.wsi.errors import CheckpointError

__all__ = [
    "CHECKPOINT_FORMAT",
    "copy_checkpoint",
    "read_checkpoint",
    "restore_rng",
    "rng_state",
    "write_checkpoint",
]

CHECKPOINT_FORMAT = 1


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write under a temporary name, flush, then rename: a reader sees the old checkpoint or the new one.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"format": CHECKPOINT_FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"checkpoint '{path}': cannot be written ({error}); free space and resume") from error


def copy_checkpoint(path: Path, other: Path) -> None:
    """Give a checkpoint a second name, in one rename; a copy where the file system has no hard links.

    Checkpoints are replaced, never changed, so that two names of one file never get in each other's way.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    partial = other.with_name(other.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
        os.replace(partial, other)
        # Renaming one name of a file over another name of the same file does nothing, and leaves both.
        partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"checkpoint '{other}': cannot be written ({error}); free space and resume") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without running any pickled code.

    Raises:
        CheckpointError: if it is damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load reports damage as any of several builtin errors, UnpicklingError among them
    except Exception as error:
        raise CheckpointError(f"checkpoint '{path}': cannot be read; start again in another folder") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(f"checkpoint '{path}': is of another format; resume with the version that wrote it")
    return cast("dict[str, Any]", state)


def rng_state(generators: Mapping[str, torch.Generator]) -> dict[str, torch.Tensor]:
    """Return the state of torch's global generators and of the given ones."""
    states = {name: generator.get_state() for name, generator in generators.items()}
    states["torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_rng(states: Mapping[str, torch.Tensor], generators: Mapping[str, torch.Generator]) -> None:
    """Undo everything drawn since `rng_state`."""
    for name, generator in generators.items():
        generator.set_state(states[name])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])

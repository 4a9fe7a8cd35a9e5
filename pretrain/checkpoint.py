"""checkpoints/*.pt: everything an exact resume needs, as tensors and plain values, replaced in one rename."""

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from simtriplet.pretrain.torch_archive import load_archive
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import CheckpointError
from simtriplet.wsi.store import PARTIAL_SUFFIX

__all__ = [
    "CHECKPOINT_FORMAT",
    "copy_checkpoint",
    "read_checkpoint",
    "restore_rng",
    "rng_state",
    "write_checkpoint",
]

CHECKPOINT_FORMAT = 1

_FRAME_BYTES = 1 << 16
"""Of a checkpoint beside its tensors, generously."""


def write_checkpoint(path: Path, state: Mapping[str, Any], *, copies: Sequence[Path] = ()) -> None:
    """Write under a temporary name, flush, then rename: a reader sees the old checkpoint or the new one.

    Args:
        path: of the checkpoint that a run goes on from.
        state: tensors and plain values.
        copies: further names of the same checkpoint, which get it first: who goes on from `path` finds them there.

    Raises:
        CheckpointError: if the disk is full or fails; what was there before is as it was.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"format": CHECKPOINT_FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        for other in copies:
            copy_checkpoint(partial, other)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink()  # the room it takes is wanted
        if isinstance(error, CheckpointError):
            raise
        raise _not_written(path, error, needed=_n_bytes(state) + _FRAME_BYTES) from error


def copy_checkpoint(path: Path, other: Path) -> None:
    """Give a checkpoint a second name, in one rename; a copy where the file system has no hard links.

    Checkpoints are replaced, never changed, so that two names of one file never get in each other's way.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    partial = other.with_name(other.name + PARTIAL_SUFFIX)
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
        with contextlib.suppress(OSError):
            partial.unlink()
        needed = path.stat().st_size if path.exists() else 0
        raise _not_written(other, error, needed=needed) from error


def _not_written(path: Path, error: Exception, *, needed: int) -> CheckpointError:
    why = why_not_written(error, path.parent, needed=needed)
    return CheckpointError(f"checkpoint '{path}': cannot be written ({why}); free space and resume")


def _n_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested mappings and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_n_bytes, value.values()))
    return sum(map(_n_bytes, value)) if isinstance(value, (list, tuple)) else 0


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without running any pickled code.

    Raises:
        CheckpointError: if it is damaged or of another format.
    """
    try:
        state = load_archive(path)
    # torch.load reports damage as any of several builtin errors, UnpicklingError among them
    except Exception as error:
        raise CheckpointError(f"checkpoint '{path}': cannot be read; start again in another folder") from error
    found = state.get("format") if isinstance(state, dict) else None
    if not isinstance(found, int) or found != CHECKPOINT_FORMAT:  # a tensor has no one truth
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

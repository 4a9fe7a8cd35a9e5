"""The folder of a run: settings, metrics, the checkpoint, the encoder; and whether a run may use it."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simtriplet.pretrain.checkpoint import read_checkpoint, write_checkpoint
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.step_log import StepReport
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.settings import to_toml, to_values

__all__ = ["RunFolder"]

_FREE_SETTINGS = {
    "data.storage",
    "run.checkpoint_every_epochs",
    "run.log_every_steps",
    "run.max_minutes",
    "run.threads",
}
"""May differ on resuming: they change how a run goes on, not what comes out."""


_STORE_PARTS = {"tiles_id": "other tiles", "index": "another neighbour index", "patient": "another patient"}


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; made when the run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoints" / "last.pt"
        self.metrics = path / "metrics.jsonl"
        self.encoder = path / "encoder.safetensors"

    def begin(self, settings: PretrainSettings, stores: list[dict[str, Any]], *, resume: bool) -> dict[str, Any] | None:
        """Claim the folder for a run, or find the checkpoint to go on from.

        Returns:
            The checkpoint, None where the run starts from nothing.

        Raises:
            TrainingError: if a run is here and `resume` is not set, or it has other settings or stores.
            CheckpointError: if the checkpoint is damaged.
        """
        if not resume and self._is_used():
            raise TrainingError(f"run folder '{self.path}': holds a run; pass --resume to go on, or another --out")
        if self.checkpoint.exists():
            state = read_checkpoint(self.checkpoint)
            self._check_same(state, settings, stores)
            self._drop_metrics_after(state["step"])
            return state
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.metrics.unlink(missing_ok=True)
            self._write_settings(settings)
        except OSError as error:
            raise TrainingError(
                f"run folder '{self.path}': cannot be written ({error.strerror}); choose another --out"
            ) from error
        return None

    def _is_used(self) -> bool:
        """Settings alone are left by a run that failed before its first step, and stand in nobody's way."""
        return any(file.exists() for file in (self.checkpoint, self.metrics, self.encoder))

    def _write_settings(self, settings: PretrainSettings) -> None:
        """Write TOML; where its writer is not installed, the same as JSON."""
        try:
            (self.path / "settings.toml").write_text(to_toml(settings), encoding="utf-8")
        except ImportError:
            (self.path / "settings.json").write_text(json.dumps(to_values(settings), indent=2) + "\n", encoding="utf-8")

    def _check_same(
        self, state: Mapping[str, Any], settings: PretrainSettings, stores: Sequence[Mapping[str, Any]]
    ) -> None:
        before, now = _flatten(state["settings"]), _flatten(to_values(settings))
        for key in sorted((before.keys() | now.keys()) - _FREE_SETTINGS):
            if before.get(key) != now.get(key):
                raise TrainingError(
                    f"run folder '{self.path}': was begun with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                    "resume with the same settings, or choose another --out"
                )
        difference = _store_difference(state["stores"], stores)
        if difference:
            raise TrainingError(
                f"run folder '{self.path}': {difference}; resume with the same stores, or choose another --out"
            )

    def _drop_metrics_after(self, step: int) -> None:
        """Remove the lines of steps that a killed run did after its last checkpoint, and that will be done again."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        partial = self.metrics.with_name(self.metrics.name + ".partial")
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, self.metrics)

    def add_metrics(self, report: StepReport) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(report)) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        write_checkpoint(self.checkpoint, state)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short when the run was killed
        return float("inf")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _store_difference(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """Say how two lists of stores differ, empty when they do not."""
    old = {store["slide"]: store for store in before}
    new = {store["slide"]: store for store in now}
    for slide in sorted(old.keys() | new.keys()):
        if slide not in new:
            return f"was begun with slide {slide!r}, which is missing now"
        if slide not in old:
            return f"was begun without slide {slide!r}"
        for key, what in _STORE_PARTS.items():
            if old[slide][key] != new[slide][key]:
                return f"was begun with {what} of slide {slide!r}"
    return ""

"""The folder of a run: settings, metrics, the checkpoint, the encoder; and whether a run may use it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simtriplet.pretrain.checkpoint import read_checkpoint, write_checkpoint
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.settings import PretrainSettings, load_settings
from simtriplet.pretrain.settings_file import write_settings
from simtriplet.pretrain.torch_archive import understanding
from simtriplet.wsi.disk_room import is_disk_full, why_not_written
from simtriplet.wsi.errors import CheckpointError, SettingsError, SimTripletError, TrainingError
from simtriplet.wsi.folder_hold import FolderHold
from simtriplet.wsi.settings import build, to_values
from simtriplet.wsi.store import PARTIAL_SUFFIX
from simtriplet.wsi.whole_file import write_whole

__all__ = ["RunFolder", "begin_together"]

_FREE_SETTINGS = {
    "data.storage",
    "run.activation_checkpointing",
    "run.checkpoint_every_epochs",
    "run.export",
    "run.keep_every_epochs",
    "run.log_every_steps",
    "run.max_minutes",
    "run.monitor_every_epochs",
    "run.monitor_tiles",
    "run.on_collapse",
    "run.on_nan",
    "run.tensorboard",
    "run.threads",
}
"""May differ on resuming: they change how a run goes on, not what comes out; but for run.threads, on which the last bits of
sums depend."""

_RECORDS_BYTES = 1 << 20
"""What settings and metrics take, generously."""

_STORE_PARTS = {
    "tiles_id": "other tiles",
    "index": "another neighbour index",
    "features": "other features for the pair weights",
    "patient": "another patient",
}


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; made when the run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoints" / "last.pt"
        self.best_checkpoint = path / "checkpoints" / "best.pt"
        self.metrics = path / "metrics.jsonl"
        self.monitor = path / "monitor.jsonl"
        self.events = path / "tensorboard"
        self.encoder = path / "encoder.safetensors"
        self.card = path / "README.md"
        self._hold: FolderHold | None = None

    def begin(self, settings: PretrainSettings, stores: list[dict[str, Any]], *, resume: bool) -> dict[str, Any] | None:
        """Claim the folder for a run until `close`, and find the checkpoint to go on from.

        What a killed process left is removed; a run of which there is no checkpoint and no encoder begins anew.

        Returns:
            The checkpoint, None where the run starts from nothing.

        Raises:
            TrainingError: if a run is here and `resume` is not set, or it has other settings or stores; or another process
                is training in the folder, or it cannot be written.
            CheckpointError: if the checkpoint is damaged.
        """
        self._take()
        if not resume and self._is_used():
            raise TrainingError(f"run folder '{self.path}': holds a run; pass --resume to go on, or another --out")
        if os.path.lexists(self.checkpoint):  # a link that leads nowhere is a disk that is not there
            state = self._read_last()
            with understanding(self.checkpoint):
                self._check_same(state, settings, stores)
                state["step"], state["finished"] = int(state["step"]), bool(state["finished"])
            try:
                for lines in (self.metrics, self.monitor):
                    _drop_lines_after(lines, state["step"])
            except OSError as error:
                raise self._not_writable(error) from error
            return state
        self._refuse_lost_checkpoint()
        try:
            self.metrics.unlink(missing_ok=True)
            self.monitor.unlink(missing_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        self.write_settings(settings, {})
        return None

    def _read_last(self) -> dict[str, Any]:
        try:
            return read_checkpoint(self.checkpoint)
        except CheckpointError as error:
            others = sorted(path.name for path in self.checkpoint.parent.glob("*.pt") if path != self.checkpoint)
            if not others:
                raise
            raise CheckpointError(f"{error}; or copy {others[-1]} there to go on from that") from error

    def _refuse_lost_checkpoint(self) -> None:
        """What there is of a run would be trained anew and replaced."""
        if os.path.lexists(self.encoder):
            raise TrainingError(
                f"run folder '{self.path}': has an encoder but no checkpoint to go on from; bring checkpoints/last.pt back, or "
                "choose another --out"
            )
        kept = sorted(self.checkpoint.parent.glob("*.pt"))
        if kept:
            raise TrainingError(
                f"run folder '{self.path}': has no checkpoints/last.pt to go on from; bring it back, or copy {kept[-1].name} there "
                "to go on from that, or choose another --out"
            )

    def begun_with(self) -> list[str]:
        """Return the ids of the slides that the run was begun with.

        Raises:
            CheckpointError: if its checkpoint is missing or damaged.
        """
        state = self._read_last()
        with understanding(self.checkpoint):
            return [str(store["slide"]) for store in state["stores"]]

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _take(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold = FolderHold(self.path)
            for folder in (self.path, self.checkpoint.parent):
                for left in folder.glob(f"*{PARTIAL_SUFFIX}"):
                    left.unlink(missing_ok=True)
        except BlockingIOError as error:
            raise TrainingError(
                f"run folder '{self.path}': another process is training in it; wait for it to end, or pass another --out"
            ) from error
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: OSError) -> TrainingError:
        if is_disk_full(error):
            why = why_not_written(error, self.path, needed=_RECORDS_BYTES)
            return TrainingError(f"run folder '{self.path}': cannot be written ({why}); free space and resume")
        return TrainingError(f"run folder '{self.path}': cannot be written ({error.strerror}); choose another --out")

    def _is_used(self) -> bool:
        """Settings and metrics alone are left by a run that ended before its first checkpoint, and stand in nobody's way."""
        return os.path.lexists(self.encoder) or any(self.checkpoint.parent.glob("*.pt"))

    def write_settings(self, settings: PretrainSettings, chosen: Mapping[str, str | int] | None = None) -> None:
        """Say what the run was told and what it chose; see settings_file.

        Raises:
            TrainingError: if the folder cannot be written.
        """
        try:
            write_settings(self.path, settings, chosen)
        except OSError as error:
            raise self._not_writable(error) from error

    def _check_same(
        self, state: Mapping[str, Any], settings: PretrainSettings, stores: Sequence[Mapping[str, Any]]
    ) -> None:
        # An older version's checkpoint lacks the settings that came later: their defaults are what it did.
        self._refuse_other(build(PretrainSettings, state["settings"], source=f"run folder '{self.path}'"), settings)
        difference = _store_difference(state["stores"], stores)
        if difference:
            raise TrainingError(
                f"run folder '{self.path}': {difference}; resume with the same stores, or choose another --out"
            )

    def check_settings(self, settings: PretrainSettings) -> None:
        """Compare settings with those that the folder says its run was begun with.

        Raises:
            TrainingError: if they are others, or it does not say.
        """
        try:
            begun = load_settings(file=self.path / "settings.toml")
        except SettingsError as error:
            raise TrainingError(
                f"run folder '{self.path}': does not say what its encoder was trained with; choose another --out"
            ) from error
        self._refuse_other(begun, settings)

    def _refuse_other(self, begun: PretrainSettings, settings: PretrainSettings) -> None:
        before, now = _flatten(to_values(begun)), _flatten(to_values(settings))
        # several ways to say one thing
        before["run.compile"], now["run.compile"] = begun.run.compiled, settings.run.compiled
        for values in (before, now):  # older checkpoints name the folder too
            values["model.weights"] = values.get("model.weights") and Path(values["model.weights"]).name
        for key in sorted((before.keys() | now.keys()) - _FREE_SETTINGS):
            if before.get(key) != now.get(key):
                raise TrainingError(
                    f"run folder '{self.path}': was begun with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                    "resume with the same settings, or choose another --out"
                )

    def save(self, state: Mapping[str, Any], *, is_best: bool = False, keep_as_epoch: int | None = None) -> None:
        """Replace the last checkpoint, and the best one by the same where it is the best; each in one rename.

        Args:
            state: see write_checkpoint.
            is_best: whether it is the best so far.
            keep_as_epoch: after which epoch to keep it for good, as checkpoints/epoch_0010.pt; None: it is not kept.
        """
        copies = [self.best_checkpoint] if is_best else []
        if keep_as_epoch is not None:
            copies.append(self.kept_checkpoint(keep_as_epoch))
        write_checkpoint(self.checkpoint, state, copies=copies)

    def kept_checkpoint(self, epoch: int) -> Path:
        """Return where the checkpoint after an epoch is kept."""
        return self.checkpoint.with_name(f"epoch_{epoch:04}.pt")


def begin_together(
    world: World, folder: RunFolder, settings: PretrainSettings, stores: list[dict[str, Any]], *, resume: bool
) -> dict[str, Any] | None:
    """Let the first of several processes begin the run, and all of them have its checkpoint or its error.

    Raises:
        SimTripletError: as RunFolder.begin does; a TrainingError of the same words in the other processes.
    """
    state: dict[str, Any] | None = None
    failure: SimTripletError | None = None
    if world.is_first:
        try:
            state = folder.begin(settings, stores, resume=resume)
        except SimTripletError as error:
            failure = error
    found, reason = world.tell((state is not None, None if failure is None else str(failure)))
    if failure is not None:
        raise failure
    if reason is not None:
        raise TrainingError(reason)
    return read_checkpoint(folder.checkpoint) if found and not world.is_first else state


def _drop_lines_after(path: Path, step: int) -> None:
    """Remove the lines of steps that a killed run did after its last checkpoint, and that will be done again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step_of(line) <= step]
    write_whole(path, "".join(line + "\n" for line in kept).encode())


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
            was_unknown = key == "features" and old[slide].get(key) == "None"  # features imported in an earlier version
            if not was_unknown and old[slide].get(key) != new[slide].get(key):
                return f"was begun with {what} of slide {slide!r}"
    return ""

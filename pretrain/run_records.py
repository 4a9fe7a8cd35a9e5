"""What a run leaves to be read while it goes on: metrics.jsonl, monitor.jsonl and TensorBoard events."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simtriplet.pretrain.monitor import MonitorReport
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.settings import Switch
from simtriplet.pretrain.step_log import StepReport
from simtriplet.pretrain.tensorboard_log import open_event_log
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import TrainingError

__all__ = ["RunRecords"]

_REPORT_BYTES = 2000


class RunRecords:
    """Append reports to the files of a run folder; of several processes, only the first writes.

    A TrainingError says that the folder cannot be written: it is gone, read-only, or its disk is full.

    Args:
        folder: of the run.
        writes: whether this process does.
        tensorboard: whether there are events.
        after_step: steps done before.

    Raises:
        MissingDependencyError: if events are asked for and cannot be written.
    """

    def __init__(self, folder: RunFolder, *, writes: bool, tensorboard: Switch, after_step: int) -> None:
        self.folder = folder
        self.writes = writes
        with self._told():
            self.events = open_event_log(tensorboard, folder.events, after_step=after_step) if writes else None

    def add_step(self, report: StepReport) -> None:
        """Write a line of metrics.jsonl."""
        self._add(self.folder.metrics, "train", dataclasses.asdict(report))

    def add_monitor(self, report: MonitorReport) -> None:
        """Write a line of monitor.jsonl."""
        values = dataclasses.asdict(report)
        features = values.pop("features")
        self._add(self.folder.monitor, "monitor", {**values, **features})

    def _add(self, path: Path, group: str, values: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        finite = _without_infinities(values)
        with self._told():
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")
            if self.events is not None:
                self.events.add(group, int(values["step"]), finite)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = why_not_written(error, self.folder.path, needed=_REPORT_BYTES)
            raise TrainingError(
                f"run folder '{self.folder.path}': cannot be written ({why}); mend that and resume"
            ) from error


def _without_infinities(value: Any) -> Any:
    """JSON has no NaN; readers other than Python's refuse it."""
    if isinstance(value, Mapping):
        return {key: _without_infinities(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

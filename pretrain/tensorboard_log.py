"""Events for TensorBoard beside the plain lines of metrics.jsonl; the package tensorboard is optional."""

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simtriplet.pretrain.settings import Switch
from simtriplet.wsi.errors import MissingDependencyError

__all__ = ["EventLog", "open_event_log"]

logger = logging.getLogger(__name__)


class EventLog:
    """Write numbers as TensorBoard scalars.

    Args:
        folder: for the event files.
        after_step: steps that count; events of later ones, which a killed run left, are hidden.
    """

    def __init__(self, folder: Path, *, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=after_step + 1)

    def add(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among `values`, those of nested mappings as `group/outer/inner`."""
        for name, value in values.items():
            if isinstance(value, Mapping):
                self.add(f"{group}/{name}", step, value)
            elif isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def open_event_log(choice: Switch, folder: Path, *, after_step: int) -> EventLog | None:
    """Open the events of a run, None where they are not wanted or, for "auto", cannot be written.

    Raises:
        MissingDependencyError: if "on" is asked for and the package tensorboard is missing.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if choice == "on" and not installed:
        raise MissingDependencyError(
            "run.tensorboard 'on': needs the package tensorboard, which is not installed; install it, or use auto or off"
        )
    if choice == "off" or not installed:
        return None
    return EventLog(folder, after_step=after_step)

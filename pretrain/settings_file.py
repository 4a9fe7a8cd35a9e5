"""settings.toml of a run: what it was told, and in comments what it chose itself."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.wsi.settings import to_toml, to_values
from simtriplet.wsi.whole_file import write_whole

__all__ = ["write_settings"]

_CHOSEN = (
    '# What was left open above ("auto", or no number of threads) came to this when the run last began or went on:'
)


def write_settings(folder: Path, settings: PretrainSettings, chosen: Mapping[str, str | int] | None = None) -> None:
    """Write settings.toml in one rename, unless it says the same already; without TOML's writer, settings.json.

    What the run chose is written as comments: the file is still what load_settings reads, and a run begun with it on
    another machine chooses for itself.

    Args:
        folder: of the run; exists.
        settings: of the run.
        chosen: `section.key` to what it came to; None keeps what an earlier call wrote.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        text, path = to_toml(settings), folder / "settings.toml"
    except ImportError:
        text, path = _as_json(settings, chosen, folder / "settings.json"), folder / "settings.json"
    else:
        text = "\n".join([text, *(_comments(path) if chosen is None else _lines(chosen))]).rstrip() + "\n"
    if _read(path) != text:
        write_whole(path, text.encode())


def _read(path: Path) -> str:
    """Return what the file says, whatever became of it; nothing where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _lines(chosen: Mapping[str, str | int]) -> list[str]:
    return [_CHOSEN, *(f"# {key} = {json.dumps(value)}" for key, value in sorted(chosen.items()))] if chosen else []


def _comments(path: Path) -> list[str]:
    return [line for line in _read(path).splitlines() if line.startswith("#") and "\ufffd" not in line]


def _as_json(settings: PretrainSettings, chosen: Mapping[str, str | int] | None, path: Path) -> str:
    if chosen is None:
        with contextlib.suppress(ValueError, AttributeError):  # nothing there, or nothing that can be kept
            chosen = json.loads(_read(path)).get("chosen")
    values: dict[str, Any] = {**to_values(settings), "chosen": dict(chosen or {})}
    return json.dumps(values, indent=2) + "\n"

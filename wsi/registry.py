"""Named extension points: readers, tissue detectors, neighbour rules, backbones, objectives."""

import difflib
import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from simtriplet.wsi.errors import SettingsError, UnknownNameError

T = TypeVar("T")


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return a hint such as `; did you mean 'otsu'?`, empty when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """Map names to implementations of one Protocol.

    Args:
        kind: what is registered, in the singular, as error messages name it ("slide reader").
        group: of the entry points with which installed packages add entries; they are loaded when a name is not known
            otherwise, in every process that asks for it.
    """

    def __init__(self, kind: str, *, group: str | None = None) -> None:
        self.kind = kind
        self._group = group
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`.

        Raises:
            SettingsError: if the name is taken.
        """
        if name in self._entries:
            raise SettingsError(f"{self.kind} {name!r}: is registered already; choose another name")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: if there is none; the message lists the known names.
        """
        if name not in self._entries:
            self._load_installed()
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(self)
            raise UnknownNameError(
                f"{self.kind} {name!r}: is not known{nearest_name(name, self)}; known are {known}"
            ) from None

    def _load_installed(self) -> None:
        group, self._group = self._group, None
        for point in importlib.metadata.entry_points(group=group) if group is not None else ():
            self.add(point.name, point.load())

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

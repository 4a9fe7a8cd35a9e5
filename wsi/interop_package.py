"""Packages that only exchange with other programs needs: imported where they are used, and named where they lack."""

import importlib
from types import ModuleType

from simtriplet.wsi.errors import MissingDependencyError

__all__ = ["interop_package"]


def interop_package(name: str, what: str, *, extra: str = "interop") -> ModuleType:
    """Import a package of an extra.

    Args:
        name: of the package, dots and all.
        what: what needs it, for the error message.
        extra: the smallest that has it.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{what}: needs the package {name.partition('.')[0]}, which is not installed; "
            f"pip install 'simtriplet[{extra}]'"
        ) from error

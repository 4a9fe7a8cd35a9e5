"""The exception tree: every failure a user can cause or meet derives from SimTripletError.

A message reads `<what> <value>: <rule>; <what to do>`. Leaves also inherit the builtin that a caller would catch.
"""

_MOST_LETTERS, _LAST_LETTERS = 1200, 200


class SimTripletError(Exception):
    """Base of all errors that the command line prints in one line (exit status 1).

    A message that quotes a damaged file may become any length: it is shortened in the middle, so that the cure stays.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _MOST_LETTERS:
            return text
        return f"{text[: _MOST_LETTERS - _LAST_LETTERS]} ... {text[-_LAST_LETTERS:]}"


class UnreachableError(SimTripletError, OSError):
    """What a path leads to cannot be told: a folder may not be entered, or a disk or network fails."""


class SlideOpenError(SimTripletError, OSError):
    """The file is missing, unreadable or not a whole-slide image."""


class SlideDamagedError(SlideOpenError):
    """The file contradicts itself, so that no other reader should try."""


class SlideReadError(SimTripletError, OSError):
    """A region of an opened slide cannot be decoded."""


class ResolutionError(SimTripletError, ValueError):
    """The slide's resolution is unknown, anisotropic or too coarse for the request."""


class TissueError(SimTripletError, ValueError):
    """No tissue was found, so that there is nothing to tile."""


class AnnotationError(SimTripletError, ValueError):
    """An annotation or label file cannot be understood."""


class SettingsError(SimTripletError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class UnknownNameError(SettingsError, LookupError):
    """A name is not in the registry it was looked up in."""


class StoreError(SimTripletError, OSError):
    """A tile store is missing, incomplete, damaged or cannot be written."""


class StoreVersionError(StoreError):
    """A tile store follows another major version of the format."""


class StoreExistsError(StoreError, FileExistsError):
    """The output exists and the caller asked not to touch it."""


class StoreMismatchError(StoreExistsError):
    """The store that is there was made from another slide or with other settings."""


class NeighbourError(SimTripletError, ValueError):
    """A neighbour index is missing, stale or cannot be built as asked."""


class EvaluationError(SimTripletError, ValueError):
    """Labels, patients or features do not allow the evaluation asked for."""


class CheckpointError(SimTripletError, OSError):
    """A checkpoint or an encoder file is missing, damaged or of another kind."""


class TrainingError(SimTripletError, RuntimeError):
    """Training cannot start or must stop: no data, a non-finite loss or a collapsed encoder."""


class MissingDependencyError(SimTripletError, ImportError):
    """An optional package is not installed."""

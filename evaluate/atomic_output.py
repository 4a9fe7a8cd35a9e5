"""Give files their final name only when they are whole."""

from pathlib import Path

from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.whole_file import write_whole

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes | str) -> Path:
    """Write a file under a temporary name, then rename it; text is UTF-8.

    Returns:
        `path`.

    Raises:
        EvaluationError: if the folder cannot be made or the file not written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        why = why_not_written(error, path.parent, needed=len(data))
        raise EvaluationError(f"output '{path}': cannot be written ({why}); choose another --out") from error
    return path

"""Names of exported files: plain, and different wherever what they stand for is different."""

from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.store import TileStore

__all__ = ["UNLABELLED", "class_folder", "slide_file_stem", "tile_key"]

UNLABELLED = "unlabelled"
"""Folder of the tiles without a class."""

_PLAIN = frozenset(" _-+(),.")
_LONGEST_BYTES = 200  # file systems take 255, with the position and the ending


def slide_file_stem(store: TileStore) -> str:
    """Return the slide's id as a file name.

    Raises:
        StoreError: if it cannot name a file inside a folder.
    """
    name = store.slide_id
    unfit = not name.strip() or not name.isprintable() or any(letter in name for letter in '/\\:*?"<>|')
    if unfit or name.startswith(".") or len(name.encode()) > _LONGEST_BYTES:
        raise StoreError(
            f"store '{store.path.name}': its slide id {name!r} cannot name a file; tile the slide under a plain id"
        )
    return name


def class_folder(name: str) -> str:
    """Return the folder of a class: its name, with letters that no file name takes as %XX.

    Raises:
        StoreError: if it is longer than file systems take.
    """
    folder = _escape(name, _PLAIN)
    if not folder or folder == UNLABELLED:  # a class of that name is not the tiles without one
        folder = "%" + (folder.encode()[:1].hex().upper() or "00") + folder[1:]
    if len(folder.encode()) > _LONGEST_BYTES:
        raise StoreError(f"class {name[:40]!r}...: is too long for a folder; export with shorter class names")
    return folder


def tile_key(slide_id: str, x: int, y: int) -> str:
    """Return a tile's key in a WebDataset, where a dot would end it: `<slide_id>_<x>_<y>`, level-0 pixels."""
    return f"{_escape(slide_id, _PLAIN - {'.'})}_{x}_{y}"


def _escape(name: str, plain: frozenset[str]) -> str:
    def spell(place: int, letter: str) -> str:
        hidden = letter == "." and place == 0
        if (letter.isalnum() or letter in plain) and not hidden:
            return letter
        return "".join(f"%{byte:02X}" for byte in letter.encode())

    return "".join(spell(place, letter) for place, letter in enumerate(name))

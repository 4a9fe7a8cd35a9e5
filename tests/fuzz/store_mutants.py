"""Damage to a tile store, by number: which files are changed, and whether what is then read can be told from what was written."""

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simtriplet.wsi.checksum import crc32c
from simtriplet.wsi.metadata import CHECKSUM, metadata_bytes
from simtriplet.wsi.zarr_files import write_array

Rng = np.random.Generator
Files = dict[str, bytes]

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 10**12, 2**31, 2**63, -(2**70), 0.5, 1e308, 1e-300, float("nan"), float("inf")),
    *("", "x", "../../x", "a\x00b", "\u202e", "9" * 5000, [], [-1], [10**12], [None], {}, {"a": 1}, [[[]]]),
    *(
        [1, 2, 3, 4, 5],
        "float32",
        "uint8",
        "string",
        "complete",
        "int64",
        "group",
        "array",
        "crc32c",
        "blosc",
        "/",
        ".",
    ),
)
TABLE = "tables/tiles"


@dataclass
class Mutant:
    """A damaged store.

    Attributes:
        what: for a person.
        places: the files that are not what they were.
        is_meant: the metadata's checksum is right, as if the writer had meant them, so that values may be other ones; the
            pixels still have to be right.
    """

    what: str
    places: list[str]
    is_meant: bool = False


def read_files(store: Path) -> Files:
    return {
        path.relative_to(store).as_posix(): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()
    }


def write_files(store: Path, files: Files) -> None:
    shutil.rmtree(store, ignore_errors=True)
    for place, data in files.items():
        restore(store / place, data)


def restore(path: Path, data: bytes) -> None:
    """Put a file back, whatever lies in its place or in that of its folders."""
    for folder in reversed(path.parents):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    clear(path)
    path.write_bytes(data)


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def choose(rng: Rng, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def choose_file(rng: Rng, files: Files) -> str:
    """Choose a file, those of the root and the pixels as often as all others."""
    places = sorted(files)
    special = ["zarr.json", *(place for place in places if place.startswith("tiles/"))]
    return str(choose(rng, special if rng.random() < 0.4 else places))


def flip(store: Path, files: Files, rng: Rng) -> Mutant:
    place = choose_file(rng, files)
    data = bytearray(files[place])
    for at in rng.integers(len(data), size=int(rng.integers(1, 4))).tolist():
        data[at] ^= int(rng.integers(1, 256))
    (store / place).write_bytes(data)
    return Mutant(f"flip {place}", [place])


def cut(store: Path, files: Files, rng: Rng) -> Mutant:
    place = choose_file(rng, files)
    (store / place).write_bytes(files[place][: int(rng.integers(len(files[place])))])
    return Mutant(f"cut {place}", [place])


def lose(store: Path, files: Files, rng: Rng) -> Mutant:
    place = choose_file(rng, files)
    (store / place).unlink()
    return Mutant(f"lose {place}", [place])


def scribble(store: Path, files: Files, rng: Rng) -> Mutant:
    place = choose_file(rng, files)
    noise = rng.bytes(int(rng.integers(1, 3000)))
    data = choose(rng, [noise, files[place] + noise, noise + files[place], b"\0" * len(files[place]), b"[" * 100_000])
    (store / place).write_bytes(data)
    return Mutant(f"scribble {place}", [place])


def lose_folder(store: Path, files: Files, rng: Rng) -> Mutant:
    folders = sorted({parent.as_posix() for place in files for parent in Path(place).parents} - {"."})
    folder = choose(rng, folders)
    shutil.rmtree(store / folder)
    return Mutant(f"lose {folder}/", [place for place in files if place.startswith(f"{folder}/")])


def replace_by_other_kind(store: Path, files: Files, rng: Rng) -> Mutant:
    place = choose_file(rng, files)
    path = store / place
    path.unlink()
    kind = choose(rng, ["folder", "pipe", "zero", "full", "loop", "nowhere", "other", "mem"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        target = {
            "zero": "/dev/zero",
            "full": "/dev/full",
            "loop": path.name,
            "nowhere": "nowhere",
            "mem": "/proc/self/mem",
        }
        path.symlink_to(target.get(kind, store / choose_file(rng, files)))
    return Mutant(f"{kind} for {place}", [place])


def leave_by_link(store: Path, files: Files, rng: Rng) -> Mutant:
    """A link to the same bytes elsewhere: what is read is right."""
    place = choose_file(rng, files)
    elsewhere = store.parent / "elsewhere"
    elsewhere.write_bytes(files[place])
    (store / place).unlink()
    (store / place).symlink_to(elsewhere)
    return Mutant(f"link for {place}", [place])


def edit(store: Path, files: Files, rng: Rng) -> Mutant:
    """Change one value of a zarr.json; its checksum is left, made anew or taken away."""
    nodes = ["zarr.json", "tiles/images/zarr.json", *(place for place in files if place.endswith("zarr.json"))]
    place = choose(rng, nodes)
    document = json.loads(files[place])
    what = change_value(document, rng)
    how = choose(rng, ["left", "anew", "gone"])
    if how == "gone" and isinstance(document.get("attributes"), dict):
        document["attributes"].pop(CHECKSUM, None)
    with contextlib.suppress(ValueError, AttributeError):  # not everything can be written with a checksum
        data = metadata_bytes(document) if how == "anew" else json.dumps(document).encode()
        (store / place).write_bytes(data)
    return Mutant(f"edit {place}: {what}, checksum {how}", [place], is_meant=how != "left")


def change_value(document: Any, rng: Rng) -> str:
    at, name = document, ""
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        keys = [key for key in keys if key != CHECKSUM]
        if not keys:
            return "nothing"
        key = choose(rng, keys)
        name += f".{key}"
        deeper = isinstance(at[key], (dict, list)) and at[key]
        if deeper and rng.random() < 0.85:
            at = at[key]
            continue
        if rng.random() < 0.15:
            del at[key]
            return f"{name} deleted"
        at[key] = choose(rng, VALUES)
        return f"{name} = {str(at[key])[:30]!r}"


def tell_another_format(store: Path, files: Files, rng: Rng) -> Mutant:
    document = json.loads(files["zarr.json"])
    key, values = choose(
        rng,
        [
            ("version", ("2.0", "0.9", 2, None, "", "x")),
            ("state", ("writing", None, 3)),
            ("schema", ("other", 1, None)),
        ],
    )
    document["attributes"]["simtriplet"][key] = choose(rng, values)
    (store / "zarr.json").write_bytes(metadata_bytes(document))
    return Mutant(f"another {key}", ["zarr.json"], is_meant=True)


def lie_of_size(store: Path, files: Files, rng: Rng) -> Mutant:
    """Claim more tiles or larger ones than there are, wherever it is told."""
    size = int(choose(rng, [10**12, 2**31 - 1, 10**6, 65, 25, 2**63]))
    document = json.loads(files["zarr.json"])
    images = json.loads(files["tiles/images/zarr.json"])
    if rng.random() < 0.7:
        document["attributes"]["simtriplet"]["n_tiles"] = size
        images["shape"][0] = size
    else:
        document["attributes"]["simtriplet"]["tiling"]["size_px"] = size
        images["shape"][1:3] = [size, size]
        images["chunk_grid"]["configuration"]["chunk_shape"][1:3] = [size, size]
        images["codecs"][0]["configuration"]["chunk_shape"][1:3] = [size, size]
    places = ["zarr.json", "tiles/images/zarr.json"]
    written = [document, images]
    columns = [place for place in files if place.startswith(f"{TABLE}/obs/") and place.endswith("zarr.json")]
    for place in columns if rng.random() < 0.5 else []:
        column = json.loads(files[place])
        if column["node_type"] == "array":
            column["shape"] = [size]
            if rng.random() < 0.5:
                column["chunk_grid"]["configuration"]["chunk_shape"] = [max(1, size)]
            places.append(place)
            written.append(column)
    for place, one in zip(places, written, strict=True):
        (store / place).write_bytes(metadata_bytes(one))
    return Mutant(f"lie of {size}", places, is_meant=True)


def rewrite_array(store: Path, files: Files, rng: Rng) -> Mutant:
    """Replace an array by another, whole one: of other values, length, shape or type."""
    arrays = sorted({place.partition("/c")[0] for place in files if place.startswith("tables/") and "/c" in place})
    arrays += [f"{TABLE}/obs/x", f"{TABLE}/obs/y", f"{TABLE}/obsm/spatial"] * 4
    place = choose(rng, arrays)
    n_rows = int(choose(rng, [24, 24, 24, 0, 1, 23, 25]))
    shape = choose(rng, [(n_rows,), (n_rows, 2), (n_rows, 1), (n_rows, 2, 2)])
    values = choose(
        rng,
        [
            np.full(shape, np.nan),
            np.full(shape, -5, np.int64),
            np.full(shape, 2**62, np.int64),
            np.full(shape, np.inf, np.float32),
            np.full(shape, True),
            np.full(shape, 3, np.uint8),
            np.full(shape, "text", object),
            np.full(shape, 2**64 - 1, np.uint64),
        ],
    )
    shutil.rmtree(store / place)
    write_array(store / place, values)
    return Mutant(
        f"rewrite {place} by {values.dtype} {values.shape} {values.flat[0] if values.size else ''}",
        [name for name in files if name.startswith(f"{place}/")],
        is_meant=True,
    )


def forge_shard(store: Path, files: Files, rng: Rng) -> Mutant:
    """Let the index of a shard lie, its own checksum being right."""
    place = choose(rng, [place for place in files if place.startswith("tiles/images/c.")])
    data = bytearray(files[place])
    index = np.frombuffer(bytes(data[-4 - 16 * 64 : -4]), "<u8").reshape(-1, 2).copy()
    for row in rng.integers(24, size=3).tolist():
        other = int(rng.integers(24))
        lies = [index[other], [2**64 - 1, 2**64 - 1], [2**63, 2**63], [0, 2**40], rng.integers(0, len(data), 2), [0, 0]]
        index[row] = np.array(choose(rng, lies), np.uint64)
    table = index.tobytes()
    data[-4 - len(table) :] = table + struct.pack("<I", crc32c(table))
    (store / place).write_bytes(data)
    return Mutant(f"forge {place}", [place], is_meant=True)


def plant_bomb(store: Path, files: Files, rng: Rng) -> Mutant:
    """A chunk whose frame says that it holds terabytes, with the right checksum behind it."""
    places = [place for place in files if place.endswith(("/c/0", "/c/0/0"))]
    place = choose(rng, places)
    size = int(choose(rng, [2**43, 2**62, 2**32 - 1, 2**64 - 1]))
    frame = b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", size) + b"\x03\x00\x00a" * 50
    (store / place).write_bytes(frame + struct.pack("<I", crc32c(frame)))
    return Mutant(f"bomb in {place}", [place], is_meant=True)


KINDS: tuple[Callable[[Path, Files, Rng], Mutant], ...] = (
    flip,
    flip,
    flip,
    cut,
    lose,
    scribble,
    lose_folder,
    replace_by_other_kind,
    leave_by_link,
    edit,
    edit,
    edit,
    edit,
    tell_another_format,
    lie_of_size,
    rewrite_array,
    rewrite_array,
    forge_shard,
    plant_bomb,
)


def damage(store: Path, files: Files, number: int) -> Mutant:
    """Damage a store that holds `files`."""
    return KINDS[number % len(KINDS)](store, files, np.random.default_rng(number))

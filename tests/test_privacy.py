"""Nothing that a slide says of a person, and no path of this machine, reaches anything that is written.

Slides whose every property, label and macro image carries a marker, in a folder named after another one, go through the
whole job; then every byte of every output is searched, decompressed where it is compressed. A slide's file stem is its
id, and the manifest's patient ids and labels are what the user asked to keep: these are allowed.
"""

import base64
import io
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from safetensors.numpy import save_file

NAME, FOLDER = "Hypatia-Q7X3", "ward-Z9K4"
STAMP = "1912:06:23 11:22:33"
GREEN = (13, 247, 101)
"""The colour of every label and macro image; no tissue and no chart is like it."""

NEAR, FEW = 14, 24
MARKERS = (NAME, FOLDER, STAMP, "1912-06-23", "19120623")
TAGS = {
    269: "DocumentName",
    271: "Make",
    272: "Model",
    285: "PageName",
    305: "Software",
    315: "Artist",
    316: "HostComputer",
    700: "XMP",
    32_781: "ImageID",
    33_432: "Copyright",
    33_723: "IPTC",
    37_510: "UserComment",
    65_000: "of the vendor",
}
ABOUT = "".join(
    f"|{key} = {NAME} {key}" for key in ("User", "Filename", "Title", "Patient", "Barcode", "ImageID", "Date")
)


def draw(seed: int) -> np.ndarray:
    """Return (384, 448, 3) of stained tissue with white glass around it."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).random((384, 448))
    share = np.clip((gaussian_filter(noise, 3) - 0.5) * 8 + 0.5, 0, 1)[..., None]
    pixels = np.rint(share * (228, 150, 196) + (1 - share) * (120, 66, 140)).astype(np.uint8)
    sheet = np.full((384, 448, 3), 243, np.uint8)
    sheet[32:-32, 32:-32] = pixels[32:-32, 32:-32]
    return sheet


def extra_tags() -> list[tuple[int, int, int, Any, bool]]:
    return [(code, 2, 0, f"{NAME} {title}", True) for code, title in TAGS.items() if code != 305]


def write_tiff(path: Path, pixels: np.ndarray, *, aperio: bool) -> None:
    """Write a slide with a label and a macro image, as Aperio's scanners do, or as a plain pyramid."""
    size = "448x384 [0,0 448x384] (128x128) JPEG/RGB Q=90"
    head = "Aperio Image Library v12.0.0\r\n" if aperio else ""
    more: dict[str, Any] = {
        "metadata": None,
        "software": f"{NAME} Software",
        "datetime": STAMP,
        "extratags": extra_tags(),
    }
    associated = np.full((96, 160, 3), GREEN, np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 4):
            scale = {"resolution": (20_000 // step, 20_000 // step), "resolutionunit": "CENTIMETER"}
            about = f"{head}{size}|AppMag = 20|MPP = 0.5{ABOUT}"
            reduced = {"subfiletype": int(step > 1 and not aperio), "description": about}
            level = pixels[::step, ::step].copy()
            tiff.write(level, tile=(128, 128), photometric="rgb", compression="deflate", **scale, **reduced, **more)
            if aperio and step == 1:
                tiff.write(pixels[::8, ::8].copy(), photometric="rgb", description=f"{head}thumbnail{ABOUT}", **more)
        if aperio:
            for title, kind in (("label", 1), ("macro", 9)):
                about = f"{head}{title} 160x96{ABOUT}"
                tiff.write(associated, photometric="rgb", description=about, subfiletype=kind, **more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slides in a folder named after a patient, which have gone through the whole job."""
    home = tmp_path_factory.mktemp("home")
    slides = home / FOLDER
    slides.mkdir()
    rows = ["path,patient_id,label"]
    for number in range(4):
        name = f"slide{number}{'.svs' if number % 2 else '.tif'}"
        write_tiff(slides / name, draw(number), aperio=bool(number % 2))
        rows.append(f"{FOLDER}/{name},p{number},{'even' if number % 4 < 2 else 'odd'}")
    (slides / "broken.svs").write_bytes((slides / "slide1.svs").read_bytes()[:5000])
    (home / "slides.csv").write_text("\n".join(rows), encoding="utf-8")
    (home / "recipe.toml").write_text(
        'out = "out"\n[slides]\ninputs = ["slides.csv"]\n[tiling]\nmpp = 0.5\nsize_px = 64\n[pretrain]\npreset = "quick"\n'
        "[pretrain.run]\nmax_steps = 4\nbatch_size = 16\nthreads = 1\n"
        "[pretrain.data]\nimage_size_px = 32\n"
    )
    run_commands(
        home,
        ["-vv", "info", f"{FOLDER}/slide0.tif", f"{FOLDER}/slide1.svs"],
        ["-vv", "run", "recipe.toml"],
        ["-vv", "tile", FOLDER, "--out", "more", "--size", "64", "--codec", "jpeg", "--min-tissue", "0.2", "!1"],
        ["-vv", "index", "out/stores", "--name", "near", "--report", "neighbours"],
        ["-vv", "embed", "out/stores", "--encoder", "random:resnet18:32", "--name", "random18", "--write", "parquet"],
        ["-vv", "evaluate", "out/stores", "--save-head", "out/head.json", "--out", "measured"],
        ["-vv", "predict", "out/stores", "--head", "out/head.json", "--out", "predicted"],
        [
            "-vv",
            "compare",
            "out/stores",
            "--features",
            "simtriplet",
            "--features",
            "random18",
            "--out",
            "compared",
            "--no-curves",
        ],
        *(
            ["-vv", "export", "out/stores", "--to", form, "--out", f"exported/{form}"]
            for form in ("geojson", "images", "webdataset")
        ),
        ["-vv", "check", "out/stores"],
    )
    return home


def run_commands(home: Path, *commands: list[str]) -> None:
    """Run commands one after another in one process, which imports torch once; `!1` tells the exit status to expect."""
    program = (
        "import sys\nfrom simtriplet.pipelines.cli import main\n"
        f"for command in {commands!r}:\n"
        "    wanted = int(command[-1][1:]) if command[-1][0] == '!' else 0\n"
        "    sys.argv = ['simtriplet', *(word for word in command if word[0] != '!')]\n"
        "    try:\n        status = main() or 0\n    except SystemExit as stop:\n        status = stop.code or 0\n"
        "    assert status == wanted, (command, status)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=home, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (home / "said.log").write_text(ended.stdout + ended.stderr, encoding="utf-8")


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield where and what: the bytes of a file, and those that it holds compressed."""
    data = path.read_bytes()
    yield str(path), data
    yield from packed(str(path), data)
    if path.suffix == ".pt":
        yield f"{path}!", repr(list(leaves(torch.load(path, weights_only=True, map_location="cpu")))).encode()
    if path.suffix == ".parquet":
        pandas = pytest.importorskip("pyarrow.parquet")
        table = pandas.read_table(path)
        yield f"{path}!", repr((table.schema.metadata, table.select(texts(table)).to_pydict())).encode()


def texts(table: Any) -> list[str]:
    return [field.name for field in table.schema if str(field.type) in ("string", "large_string", "binary")]


def packed(where: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what lies within: members of a zip, streams of zlib, pictures in a page, and what pictures say."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                member = archive.read(name)
                yield f"{where}!{name}", name.encode() + member
                yield from packed(f"{where}!{name}", member)
    if is_picture(data):
        with Image.open(io.BytesIO(data)) as picture:
            yield f"{where}!info", repr((picture.info, dict(picture.getexif()))).encode()
    for number, found in enumerate(re.finditer(rb"data:[\w/+.-]+;base64,([A-Za-z0-9+/=]+)", data)):
        inner = base64.b64decode(found[1])
        yield f"{where}!{number}", inner
        yield from packed(f"{where}!{number}", inner)
    if len(data) > 4 << 20:  # weights, which hold two such bytes by chance every few kilobytes
        return
    for number, found in enumerate(re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", data)):
        try:
            yield f"{where}!z{number}", zlib.decompressobj(47).decompress(data[found.start() :], 1 << 22)
        except zlib.error:
            continue  # two bytes by chance


def leaves(value: Any) -> Iterator[str]:
    """Yield every text in nested containers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(key)
            yield from leaves(inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str | bytes):
        yield str(value)


def arrays(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the decompressed arrays of every Zarr store below a folder."""
    for store in sorted(folder.rglob("*.zarr")):
        group = zarr.open_group(store, mode="r")
        for name, member in group.members(max_depth=None):
            if isinstance(member, zarr.Array):
                values = np.asarray(member[...])
                raw = (
                    values.tobytes() if values.dtype.kind not in "OUT" else "\0".join(map(str, values.ravel())).encode()
                )
                yield f"{store}/{name}", raw
                if values.dtype == np.uint8 and values.ndim >= 3 and values.shape[-1] == 3:
                    yield f"{store}/{name}!green", b"\1" * (n_green(values) > FEW) and bytes(GREEN) * 16


def is_picture(data: bytes) -> bool:
    return data[:4] == b"\x89PNG" or data[:3] == b"\xff\xd8\xff"


def n_green(pixels: np.ndarray) -> int:
    """Count pixels of the label images' colour."""
    return int((np.abs(pixels.astype(np.int16) - GREEN).max(axis=-1) <= NEAR).sum())


def all_outputs(home: Path) -> list[Path]:
    return sorted(
        path
        for path in home.rglob("*")
        if path.is_file() and path.relative_to(home).parts[0] not in (FOLDER, "slides.csv", "recipe.toml")
    )


def leaks(where: str, data: bytes, home: Path) -> list[str]:
    found = [marker for marker in (*MARKERS, str(home)) if any(marker.encode(code) in data for code in CODES)]
    return [f"{where}: {marker}" for marker in found if not (marker == FOLDER and where.endswith("said.log"))]


CODES = ("utf-8", "utf-16-le", "utf-16-be")


@pytest.mark.slow
def test_no_output_names_a_person_or_a_place(home: Path) -> None:
    files = all_outputs(home)
    kinds = {path.suffix for path in files}
    assert {
        ".json",
        ".csv",
        ".html",
        ".pt",
        ".safetensors",
        ".toml",
        ".geojson",
        ".png",
        ".jpg",
        ".log",
        ".tar",
    } <= kinds, kinds
    found = [leak for path in files for where, data in contents(path) for leak in leaks(where, data, home)]
    found += [leak for where, data in arrays(home) for leak in leaks(where, data, home)]
    found += [f"{path}: its name" for path in files if NAME in str(path) or FOLDER in str(path.relative_to(home))]
    assert found == []


@pytest.mark.slow
def test_no_output_shows_a_label_or_macro_image(home: Path) -> None:
    row, shown, n_pictures = bytes(GREEN) * 8, [], 0
    for path in all_outputs(home):
        for where, data in contents(path):
            if row in data:
                shown.append(where)
            if is_picture(data):
                n_pictures += 1
                with Image.open(io.BytesIO(data)) as picture:
                    if n_green(np.asarray(picture.convert("RGB"))) > FEW:
                        shown.append(where)
    shown += [where for where, data in arrays(home) if row in data]
    assert shown == []
    assert n_pictures > 8


def test_the_slides_carry_the_markers(home: Path) -> None:
    """Otherwise nothing could be found."""
    import openslide

    for path in sorted((home / FOLDER).glob("slide*")):
        data = path.read_bytes()
        assert data.count(NAME.encode()) > 20
        assert STAMP.encode() in data
    with openslide.OpenSlide(str(home / FOLDER / "slide1.svs")) as slide:
        assert set(slide.associated_images) >= {"label", "macro"}
        assert np.asarray(slide.associated_images["label"])[5, 5, :3].tolist() == list(GREEN)
        assert sum(NAME in value for value in slide.properties.values()) >= 8


@pytest.mark.parametrize("kind", ["zip", "png", "html", "pt", "zarr", "safetensors", "gzip", "utf-16"])
def test_the_search_finds(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("b.txt", f"{NAME}" * 50)
    elif kind == "png":
        from PIL.PngImagePlugin import PngInfo

        about = PngInfo()
        about.add_text("Author", NAME * 40, zip=True)
        Image.new("RGB", (8, 8)).save(path, pnginfo=about)
    elif kind == "html":
        path.write_bytes(b"<img src=data:image/png;base64," + base64.b64encode(NAME.encode() * 3) + b">")
    elif kind == "pt":
        torch.save({"model": {"where": [NAME]}}, path)
    elif kind == "zarr":
        zarr.create_array(path / "x.zarr/y", data=np.frombuffer(NAME.encode() * 99, np.uint8))
        zarr.open_group(path / "x.zarr", mode="a")
        assert any(leaks(where, data, tmp_path) for where, data in arrays(path))
        return
    elif kind == "safetensors":
        save_file({"a": np.zeros(3)}, path, metadata={"by": NAME})
    elif kind == "gzip":
        import gzip

        path.write_bytes(gzip.compress(NAME.encode() * 30))
    else:
        path.write_text(NAME, encoding="utf-16-le")
    assert any(leaks(where, data, tmp_path / "no") for where, data in contents(path))

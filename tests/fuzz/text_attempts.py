"""Read damaged text files as the program does, in child processes; prints what came of them as JSON.

python text_attempts.py SCRATCH KIND FIRST COUNT
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contained import run_contained

from simtriplet.evaluate.label_file import read_label_file
from simtriplet.pipelines.manifest import read_manifest
from simtriplet.pipelines.patient_list import read_patients
from simtriplet.pipelines.recipe import read_recipe
from simtriplet.pretrain.settings import load_settings
from simtriplet.wsi.annotation import label_tiles
from simtriplet.wsi.annotation_file import read_annotations
from simtriplet.wsi.errors import SimTripletError

Rng = np.random.Generator
SECRET = "a-file-that-no-annotation-may-read"
RING = [[0, 0], [400, 0], [400, 300], [0, 300], [0, 0]]
QUPATH = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "a",
            "geometry": {"type": "Polygon", "coordinates": [RING]},
            "properties": {"classification": {"name": "Tumor", "color": [200, 0, 0]}, "objectType": "annotation"},
        },
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[[[9, 9], [50.5, 9], [50, 80], [9, 9]]]]},
            "properties": {"classification": "Stroma"},
        },
    ],
}
ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>
<Coordinate Order="0" X="10.5" Y="20" /><Coordinate Order="1" X="400" Y="20" /><Coordinate Order="2" X="10" Y="300" />
</Coordinates></Annotation></Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#0000FF" />
</AnnotationGroups></ASAP_Annotations>
"""
APERIO = """<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="Tumor"><Regions>
<Region Id="1" Type="0" Text=""><Vertices><Vertex X="1" Y="2"/><Vertex X="300" Y="2"/><Vertex X="1" Y="90"/></Vertices></Region>
<Region Id="2" Type="2" Text="Round"><Vertices><Vertex X="1" Y="2"/><Vertex X="300" Y="200"/></Vertices></Region>
</Regions></Annotation></Annotations>
"""
RECIPE = """out = "results"
[slides]
inputs = ["slides"]
slide_mpp = 0.25
[tiling]
mpp = 0.5
size_px = 224
context_mpp = [1.0, 2.0]
[index]
rule = "grid"
connectivity = 8
[pretrain]
preset = "quick"
exclude_patients = ["p1"]
[pretrain.run]
epochs = 3
"""
SETTINGS = """[data]
image_size_px = 64
[views]
crop_scale = [0.2, 1.0]
[model]
backbone = "resnet18"
[optimiser]
base_lr = 0.05
warmup_epochs = 1
[run]
epochs = 3
batch_size = 32
"""
PLACES = np.array([[0, 0], [200, 100], [2**40, 5]], np.int64)


def read_areas(path: Path) -> Any:
    """Read regions and give tiles their classes, as tiling does."""
    regions = read_annotations(path)
    assert not any(SECRET in region.name for region in regions)
    label_tiles(regions, PLACES, 224.0, min_cover=0.5)
    assert all(0 < region.area.area < 1e20 for region in regions)
    return [(region.name, region.area.wkt) for region in regions]


def read_training(path: Path) -> Any:
    settings = load_settings(file=path)
    load_settings(
        overrides=[f"run.epochs={path.read_bytes()[:200].decode('latin-1')}"]
    ) if path.stat().st_size % 5 == 0 else None
    return settings


FORMATS: tuple[tuple[str, str, Callable[[Path], Any]], ...] = (
    ("a.geojson", json.dumps(QUPATH), read_areas),
    ("a.xml", ASAP, read_areas),
    ("b.xml", APERIO, read_areas),
    (
        "a.csv",
        "class,region,x,y\nTumor,1,0,0\nTumor,1,90.5,0\nTumor,1,0,90\nStroma,2,5,5\nStroma,2,9,5\nStroma,2,9,9\n",
        read_areas,
    ),
    (
        "b.csv",
        'class,wkt\nTumor,"POLYGON ((0 0, 9 0, 9 9, 0 0))"\nStroma,"MULTIPOLYGON (((1 1, 8 1, 8 8, 1 1)))"\n',
        read_areas,
    ),
    (
        "labels.csv",
        "slide_id,label,patient_id,x,y\ns1,a,p1,0,224\ns1,b,p1,224,224\ns2,a,p2,0,0\n",
        lambda path: read_label_file(path, label_column="label"),
    ),
    ("manifest.csv", "path,slide_id,patient_id,label,slide_mpp\na.svs,s1,p1,x,0.25\nb.svs,s2,p2,,\n", read_manifest),
    ("recipe.toml", RECIPE, read_recipe),
    ("settings.toml", SETTINGS, read_training),
    ("patients.txt", "p1\np2\n", read_patients),
)
KINDS = {
    kind: tuple(one for one in FORMATS if one[0].endswith(suffix))
    for kind, suffix in (("geojson", ".geojson"), ("xml", ".xml"), ("csv", ".csv"), ("toml", ".toml"), ("list", ".txt"))
}
TOKENS = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "inf",
        "1e999",
        "-1e308",
        "1e308",
        "9" * 5000,
        "0x" + "f" * 6000,
        "-0",
        "1_0",
    ),
    *(
        "1e-320",
        "null",
        "true",
        '""',
        "[]",
        "{}",
        "\0",
        "\ufeff",
        "\u202e",
        "\ud800",
        '"\\ud800"',
        "\r",
        "\r\n",
        "\u2028",
    ),
    *(
        "=",
        ",",
        ";",
        '"',
        "'",
        "<",
        ">",
        "&lt;",
        "&amp;",
        "&x;",
        "<![CDATA[",
        "]]>",
        "<!--",
        "../../../etc/passwd",
        "\t",
    ),
    *("]" * 50, "[" * 50, "1979-05-27T07:32:00Z", "12:00:00", "POLYGON EMPTY", "POLYGON ((0 0, 1 1, nan nan, 0 0))"),
)


def tokens_of(text: str) -> list[str]:
    """Part a text where its signs change their kind, so that numbers, words and signs can be exchanged whole."""
    parts: list[str] = []
    for letter in text:
        kind = letter.isalnum() or letter in "._-"
        if parts and kind and (parts[-1][-1].isalnum() or parts[-1][-1] in "._-"):
            parts[-1] += letter
        else:
            parts.append(letter)
    return parts


def exchange(text: str, rng: Rng, path: Path) -> bytes:
    parts = tokens_of(text)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(parts)))
        how = int(rng.integers(4))
        token = TOKENS[int(rng.integers(len(TOKENS)))] if how else parts[int(rng.integers(len(parts)))]
        parts[at] = token if how < 3 else parts[at] + token
    return "".join(parts).encode("utf-8", "surrogatepass")


def drop(text: str, rng: Rng, path: Path) -> bytes:
    parts = tokens_of(text)
    at, length = int(rng.integers(len(parts))), int(rng.integers(1, 30))
    return "".join(parts[:at] + parts[at + length :]).encode()


def repeat(text: str, rng: Rng, path: Path) -> bytes:
    at, length = int(rng.integers(len(text))), int(rng.integers(1, 60))
    return (text[:at] + text[at : at + length] * int(rng.integers(2, 2000)) + text[at + length :]).encode()


def flip(text: str, rng: Rng, path: Path) -> bytes:
    data = bytearray(text.encode())
    for at in rng.integers(len(data), size=int(rng.integers(1, 6))).tolist():
        data[at] ^= int(rng.integers(1, 256))
    return bytes(data)


def cut(text: str, rng: Rng, path: Path) -> bytes:
    return text.encode()[: int(rng.integers(len(text)))]


def encode(text: str, rng: Rng, path: Path) -> bytes:
    codings = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037", "utf-7")
    return text.encode(codings[int(rng.integers(len(codings)))])


def nest(text: str, rng: Rng, path: Path) -> bytes:
    depth = int(rng.choice([200, 900, 990, 1000, 3000, 100_000]))
    opened, closed = (("[", "]"), ('{"a":', "}"), ("<a>", "</a>"), ("<Annotation>", "</Annotation>"))[
        int(rng.integers(4))
    ]
    deep = opened * depth + ("1" if rng.random() < 0.5 else "") + (closed * depth if rng.random() < 0.7 else "")
    if text[0] == "<":
        inside = text.find(">", int(rng.integers(len(text) - 20))) + 1
        return (text[:inside] + deep + text[inside:]).encode()
    for mark in ('"coordinates": [', '"properties": ', "mpp = ", "_px = ", "inputs = "):
        if mark in text and rng.random() < 0.6:
            return text.replace(mark, f"{mark}{deep}", 1).encode()
    return deep.encode() if rng.random() < 0.5 else f"a = {deep}".encode()


def entity(text: str, rng: Rng, path: Path) -> bytes:
    """XML whose entities grow, or fetch a file or an address."""
    secret = path.with_name("secret.txt")
    secret.write_text(SECRET)
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    doctypes = (
        f'<!DOCTYPE a [<!ENTITY l0 "lol">{laughs}]>',
        f'<!DOCTYPE a [<!ENTITY l9 SYSTEM "file://{secret}">]>',
        '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://127.0.0.1:9/a.dtd"> %p; <!ENTITY l9 "x">]>',
        f'<!DOCTYPE a SYSTEM "file://{secret}" [<!ENTITY l9 "{"x" * 10_000}">]>',
        '<!DOCTYPE a [<!ATTLIST Annotation Name CDATA "&l9;"><!ENTITY l9 "x">]>',
    )
    if text[0] != "<":
        text = ASAP if rng.random() < 0.5 else APERIO
    body = text.partition("?>")[2] or text
    body = body.replace("Tumor", "&l9;") if rng.random() < 0.7 else body
    made = doctypes[int(rng.integers(len(doctypes)))] + body
    heads = (
        '<?xml version="1.0"?>',
        "",
        '<?xml version="1.0" encoding="utf-16"?>',
        '<?xml version="1.0" encoding="no-such"?>',
    )
    head = heads[int(rng.integers(len(heads)))]
    return (head + made).encode("utf-16" if "utf-16" in head else "utf-8")


def noise(text: str, rng: Rng, path: Path) -> bytes:
    return rng.bytes(int(rng.integers(0, 4000)))


MUTATIONS: tuple[Callable[[str, Rng, Path], bytes], ...] = (
    *(exchange, exchange, exchange, exchange, drop, repeat, flip, flip, cut, encode, nest, nest, entity, noise),
)


class Attempts:
    """Damaged texts of every format of a kind.

    Args:
        scratch: where they are written.
        kind: of text.
    """

    def __init__(self, scratch: Path, kind: str) -> None:
        self.scratch, self.formats = scratch, KINDS[kind]
        for name, text, read in self.formats:
            (scratch / name).write_text(text, encoding="utf-8")
            assert read(scratch / name), name

    def __call__(self, number: int) -> str:
        name, text, read = self.formats[number % len(self.formats)]
        path = self.scratch / name
        mutate = MUTATIONS[number // len(self.formats) % len(MUTATIONS)]
        path.write_bytes(mutate(text, np.random.default_rng(number), path))
        try:
            read(path)
        except SimTripletError as error:
            if len(str(error)) > 1300:
                return f"!an error of {len(str(error))} letters"
            raise
        return "read"


def main() -> None:
    """Run the attempts that the command line names."""
    scratch, kind, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    report = run_contained(Attempts(scratch, kind), range(first, first + count))
    sys.stdout.write(json.dumps(dataclasses.asdict(report)))


if __name__ == "__main__":
    main()

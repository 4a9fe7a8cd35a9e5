"""Files and names from others: nothing in them is run, leaves its folder or asks the network for anything."""

import ast
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import torch

from simtriplet.evaluate.embed import embed_store
from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.saved_head import load_head
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.pipelines.recipe import read_recipe
from simtriplet.pipelines.slide_steps import make_folder
from simtriplet.pretrain.backbone import read_state_dict
from simtriplet.pretrain.checkpoint import read_checkpoint
from simtriplet.pretrain.encoder import load_encoder, save_encoder
from simtriplet.pretrain.settings import load_settings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import NeighbourError, SettingsError, SimTripletError, StoreError
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("wsi", "pretrain", "evaluate", "pipelines") for path in (ROOT / folder).rglob("*.py")
)

# --- what the source must not call -----------------------------------------------------------------------------------

_MODULES_THAT_RUN_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "code"}
_XML_PARSERS = {"xml", "lxml", "xmltodict"}
_XML_PARTS_THAT_PARSE_NOTHING = {"Element", "ParseError"}
_CALLS_THAT_RUN_DATA = {"eval", "exec", "compile", "__import__"}
_METHODS_THAT_RUN_DATA = {
    ("os", "system"),
    ("os", "popen"),
    ("jit", "load"),
    ("hub", "load"),
    ("pandas", "read_pickle"),
    ("pd", "read_pickle"),
}


def faults(source: str) -> Iterator[str]:
    """Yield what in a module could run, or be made to fetch, what a file says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if _runs_data(one.name))
        elif isinstance(node, ast.ImportFrom) and not node.level and _runs_data(node.module or ""):
            names = {one.name for one in node.names} - _XML_PARTS_THAT_PARSE_NOTHING
            if names or not (node.module or "").startswith("xml.etree"):
                yield f"from {node.module} import {', '.join(sorted(names))}"
        elif isinstance(node, ast.Call):
            yield from _call_faults(node)


def _runs_data(module: str) -> bool:
    return module.partition(".")[0] in _MODULES_THAT_RUN_DATA | _XML_PARSERS


def _call_faults(call: ast.Call) -> Iterator[str]:
    told = {keyword.arg: getattr(keyword.value, "value", "?") for keyword in call.keywords}
    if told.get("shell"):
        yield "shell=True"
    if told.get("allow_pickle"):
        yield "allow_pickle"
    if isinstance(call.func, ast.Name) and call.func.id in _CALLS_THAT_RUN_DATA:
        yield call.func.id
    if not isinstance(call.func, ast.Attribute):
        return
    whole = ast.unparse(call.func.value)
    owner = whole.rpartition(".")[2]
    if (owner, call.func.attr) in _METHODS_THAT_RUN_DATA:
        yield f"{owner}.{call.func.attr}"
    loads = (whole, call.func.attr) in (("torch", "load"), ("torch.hub", "load_state_dict_from_url"))
    if loads and told.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if call.func.attr == "load_state_dict_from_url" and told.get("check_hash") is not True:
        yield "a download without check_hash=True"


def test_no_module_runs_what_a_file_says():
    found = {str(path.relative_to(ROOT)): list(faults(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert len(found) > 150
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import xml.etree.ElementTree",
        "from xml.etree.ElementTree import parse, Element",
        "from lxml import etree",
        "import yaml",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "torch.jit.load(path)",
        "torch.hub.load('owner/name', 'model')",
        "torch.hub.load_state_dict_from_url(url, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=told)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_look_at_the_source_finds_each_fault(source):
    assert list(faults(source))


# --- files that would run code ---------------------------------------------------------------------------------------


class Evil:
    """Makes a file when it is unpickled by who lets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def save_zip(path: Path, value: Any) -> None:
    torch.save(value, path)


def save_legacy(path: Path, value: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_plain(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value))


SAVERS = [save_zip, save_legacy, save_plain]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    """A saved encoder as a run leaves it."""
    folder = tmp_path_factory.mktemp("encoder")
    encoder = load_encoder("random:resnet18:32")
    save_encoder(folder, encoder.backbone, encoder.info)
    return folder


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "code-was-run"


def test_the_evil_object_is_one(mark):
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.is_dir()


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("shape", ["bare", "checkpoint", "state dict"])
def test_a_foreign_checkpoint_is_refused_unrun(tmp_path, mark, save, shape):
    evil: Any = Evil(mark)
    value = {
        "bare": evil,
        "checkpoint": {"format": 1, "finished": False, "step": 0, "model": {}, "encoder": evil},
        "state dict": {"conv1.weight": torch.zeros(64, 3, 7, 7), "extra": evil},
    }[shape]
    for name, read in {
        "evil.pt": read_checkpoint,
        "encoder.pt": load_encoder,
        "weights.pth": read_state_dict,
        "weights.safetensors": read_state_dict,
        "tv.pth": lambda path: load_encoder(f"torchvision:resnet18:{path}"),
    }.items():
        save(tmp_path / name, value)
        with pytest.raises(SimTripletError, match=r"cannot be read|another network"):
            read(tmp_path / name)
        assert not mark.exists(), name


@pytest.mark.parametrize("save", SAVERS)
def test_an_encoder_that_is_a_pickle_is_refused_unrun(tmp_path, mark, encoder_folder, save):
    save(tmp_path / "encoder.safetensors", {"conv1.weight": Evil(mark)})
    (tmp_path / "encoder.json").write_bytes((encoder_folder / "encoder.json").read_bytes())
    for source in (tmp_path, tmp_path / "encoder.safetensors"):
        with pytest.raises(SimTripletError, match="cannot be read"):
            load_encoder(source)
    assert not mark.exists()


def test_a_run_is_not_resumed_from_a_foreign_checkpoint(store_factory, tmp_path, mark):
    small = ["model.backbone=resnet18", "data.image_size_px=32", "run.batch_size=4", "run.device=cpu", "run.threads=1"]
    short = ["run.max_steps=1", "run.monitor_every_epochs=0", "run.tensorboard=off"]
    settings = load_settings(preset="quick", overrides=[*small, *short])
    store, run = store_factory(rows=2, cols=2), tmp_path / "run"
    pretrain([store], settings, run)
    save_zip(run / "checkpoints" / "last.pt", {"format": 1, "finished": False, "settings": Evil(mark)})
    with pytest.raises(SimTripletError, match="cannot be read"):
        pretrain([store], settings, run, resume=True)
    assert not mark.exists()


def test_a_head_that_is_a_pickle_is_refused_unrun(tmp_path, mark):
    save_plain(tmp_path / "head.json", Evil(mark))
    with pytest.raises(SimTripletError):
        load_head(tmp_path / "head.json")
    assert not mark.exists()


@pytest.mark.parametrize("where", ["filters", "compressor", "objects"])
def test_an_array_of_a_store_that_unpickles_is_refused_unrun(store_factory, mark, where):
    """Zarr's older format has a codec that does; a store is Zarr v3, but whoever made it could mix the two."""
    store = store_factory(rows=2, cols=2)
    data = bytes(numcodecs.pickles.Pickle().encode(np.array([Evil(mark)], dtype=object)))
    node: dict[str, Any] = {"zarr_format": 2, "shape": [1], "chunks": [1], "order": "C", "fill_value": None}
    unpickle = {"id": "pickle", "protocol": 5}
    node |= {"dtype": "|O" if where == "objects" else "<i8"}
    node |= {"compressor": unpickle if where == "compressor" else None}
    node |= {"filters": None if where == "compressor" else [unpickle]}
    column = store.path / "tables/tiles/obs/x"
    for old in column.iterdir():
        if old.is_file():
            old.unlink()
    (column / ".zarray").write_text(json.dumps(node))
    (column / "0").write_bytes(data)
    with pytest.raises(SimTripletError):
        TileStore(store.path).column("x")
    assert not mark.exists()


# --- names that would lead out of the output folder --------------------------------------------------------------------

ESCAPES = {
    "above": "../x",
    "absolute": "/tmp/x",
    "folder": "a/b",
    "Windows folder": "a\\b",
    "drive": "C:x",
    "here": ".",
    "up": "..",
    "hidden": ".x",
    "NUL": "a\0b",
    "line": "a\nb",
    "return": "a\rb",
    "escape": "a\x1b[2Jb",
    "direction": "a\u202eb",
    "long": "x" * 201,
    "long in bytes": "ä" * 101,
    "device": "CON",
    "device with an ending": "nul.slide",
    "option": "-x",
    "formula": "=1+1",
    "markup": "<b>",
}


@pytest.mark.parametrize("slide_id", ESCAPES.values(), ids=ESCAPES.keys())
def test_no_manifest_gives_a_slide_a_name_that_leads_out(tmp_path, slide_id):
    manifest = tmp_path / "slides.csv"
    quoted = slide_id.replace('"', '""')
    manifest.write_text(f'path,slide_id\nslide.svs,"{quoted}"\n', encoding="utf-8", newline="")
    with pytest.raises(SettingsError, match="slide id"):
        collect_jobs([manifest])


@pytest.mark.parametrize("name", ["<b>.svs", "-x.svs", "a\nb.svs", "\u202e.svs", "COM1.svs", f"{'x' * 202}.svs"])
def test_no_file_gives_a_slide_a_name_that_leads_out(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(SettingsError, match="slide id"):
        collect_jobs([tmp_path])


@pytest.mark.parametrize(
    ("one", "other"), [("Slide-1", "slide-1"), ("Straße", "STRASSE"), ("\u00e4", "a\u0308"), ("İx", "i̇x")]
)
def test_names_that_some_file_systems_take_for_one_are_refused_together(tmp_path, one, other):
    manifest = tmp_path / "slides.csv"
    manifest.write_text(f"path,slide_id\na.svs,{one}\nb.svs,{other}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"slide id"):
        collect_jobs([manifest])


def test_plain_names_in_any_script_are_taken(tmp_path):
    names = ["TCGA-A1-A0SB-01Z-00-DX1.B34C", "Präparat 3 (HE)", "切片1", "7", "x" * 200, "console", "a..b"]
    manifest = tmp_path / "slides.csv"
    manifest.write_text(
        "path,slide_id\n" + "".join(f"{n}.svs,{name}\n" for n, name in enumerate(names)), encoding="utf-8"
    )
    assert [job.slide_id for job in collect_jobs([manifest])] == names


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", "a\0b", "a\nb", "\u202e"])
def test_no_features_or_index_leave_their_store(store_factory, tmp_path, name):
    store = store_factory(rows=2, cols=2)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match="features name"):
        embed_store(store, load_encoder("random:resnet18:32"), name=name)
    with pytest.raises(SettingsError, match="features name"):
        write_features(store, name, np.zeros((4, 2), np.float32), {})
    with pytest.raises(NeighbourError, match="index name"):
        index_store(store, name=name)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "a\\u0000b"])
def test_a_recipe_with_such_a_name_is_refused_before_it_begins(tmp_path, name):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'out = "out"\n[slides]\ninputs = ["x.svs"]\n[embed]\nname = "{name}"\n')
    with pytest.raises(SettingsError, match="features name"):
        read_recipe(recipe)


def test_an_output_folder_that_cannot_be_is_told_in_a_line(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('out = "a\\u0000b"\n[slides]\ninputs = ["x.svs"]\n')
    with pytest.raises(SettingsError, match="'out'"):
        read_recipe(recipe)
    for name in ("a\0b", "x" * 300):
        with pytest.raises(StoreError, match="cannot be written"):
            make_folder(tmp_path / name)


def test_a_link_where_a_folder_is_tried_is_not_followed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    (out / ".write-test.partial").symlink_to(elsewhere)
    make_folder(out)
    assert not elsewhere.exists()
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("ending", ["", ".partial"])
def test_a_link_in_the_output_folder_is_not_followed(store_factory, tmp_path, ending):
    """Where a store, or its half-written one, should be, a link leads to somebody's other work."""
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "work.txt").write_text("years")
    (precious / "notes.txt").write_text("more")
    stores = tmp_path / "stores"
    stores.mkdir()
    (stores / f"slide.tiles.zarr{ending}").symlink_to(precious)
    for _ in range(2):  # the second time, what the first one left behind is met
        store = store_factory("slide", rows=2, cols=2, folder=stores)
        assert len(store) == 4
        assert not store.path.is_symlink()
        assert (precious / "deep" / "work.txt").read_text() == "years"
        assert (precious / "notes.txt").read_text() == "more"
        assert sorted(path.name for path in stores.iterdir()) == ["slide.tiles.zarr"]


def test_an_output_folder_may_be_a_link_itself(store_factory, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "stores").symlink_to(disk)
    store_factory("slide", rows=2, cols=2, folder=tmp_path / "stores")
    assert [path.name for path in disk.iterdir()] == ["slide.tiles.zarr"]


# --- the network -------------------------------------------------------------------------------------------------------

_WITHOUT_NETWORK = """
import json, socket, sys

tried = []

def refuse(*arguments, **named):
    tried.append(repr(arguments)[:200])
    raise OSError(101, "Network is unreachable")

for name in ("connect", "connect_ex", "sendto", "bind", "listen"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection", "create_server"):
    setattr(socket, name, refuse)

from simtriplet.pipelines.cli import cli
from simtriplet.wsi.errors import SimTripletError

outcomes = []
for arguments in json.loads(sys.argv[1]):
    tried.clear()
    try:
        cli(arguments, standalone_mode=False)
        said = ""
    except SimTripletError as error:
        said = f"{type(error).__name__}: {error}"
    outcomes.append([said, list(tried)])
print("OUTCOMES" + json.dumps(outcomes))
"""

Outcomes = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def without_network(tmp_path_factory) -> Callable[..., Outcomes]:
    """Run commands, one after the other, in a process whose sockets refuse and note every use."""

    def run(*commands: list[str]) -> Outcomes:
        empty = tmp_path_factory.mktemp("home")
        env = {**os.environ, "TORCH_HOME": str(empty), "HF_HOME": str(empty), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [sys.executable, "-c", _WITHOUT_NETWORK, json.dumps(commands)],
            capture_output=True,
            text=True,
            env=env,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return [tuple(one) for one in json.loads(ended.stdout.rpartition("OUTCOMES")[2])]

    return run


def test_no_command_asks_the_network_for_anything(store_factory, without_network, tmp_path):
    """From a slide to a report, and evaluation, comparison and prediction of labelled stores."""
    spec = SyntheticSlideSpec(width_px=1024, height_px=768, region_um=150.0, tissue_fraction=0.5, n_pieces=1)
    slide = draw_slide(tmp_path / "drawn.svs", spec).path
    stores, rng = [], np.random.default_rng(0)
    for number in range(4):
        store = store_factory(f"s{number}", patient_id=f"p{number}", seed=number, rows=2, cols=4)
        for name in ("f", "g"):
            features = rng.normal(size=(len(store), 4)).astype(np.float32)
            write_features(store, name, features, {"encoder_hash": name, "backbone": "resnet18", "image_size_px": 32})
        stores.append(str(store.path))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'out = "out"\n[slides]\ninputs = ["{slide}"]\n[tiling]\nmpp = 1.0\nsize_px = 64\n[pretrain]\npreset = "quick"\n'
    )
    small = {"max_steps": 2, "batch_size": 4, "threads": 1, "device": '"cpu"'}
    tiny = [part for key, value in small.items() for part in ("--set", f"pretrain.run.{key}={value}")]
    head, out = str(tmp_path / "head.json"), str(tmp_path / "evaluated")
    commands = {
        "info": ["info", str(slide)],
        "run": ["run", str(recipe), *tiny, "--set", "pretrain.data.image_size_px=32"],
        "check": ["check", str(tmp_path / "out" / "stores")],
        "evaluate": ["evaluate", *stores, "--features", "f", "--out", out, "--save-head", head],
        "predict": ["predict", *stores, "--head", head, "--out", str(tmp_path / "predicted")],
        "compare": [
            "compare",
            *stores,
            "--features",
            "f",
            "--features",
            "g",
            "--no-curves",
            "--out",
            str(tmp_path / "c"),
        ],
    }
    found = dict(zip(commands, without_network(*commands.values()), strict=True))
    assert found == dict.fromkeys(commands, ("", []))
    assert (tmp_path / "out" / "evaluation" / "report.html").exists()


def test_weights_and_addresses_are_fetched_only_where_that_is_asked_for(store_factory, without_network, tmp_path):
    store = str(store_factory(rows=2, cols=2).path)
    embed, run = ["embed", store, "--encoder"], str(tmp_path / "run")
    small = ["--set", "data.image_size_px=32", "--set", "run.batch_size=4", "--set", "run.device=cpu"]
    weights = ["--set", "model.backbone=resnet18", "--set", "model.weights=https://example.org/weights.pth"]
    refused = [
        [*embed, "torchvision:resnet18"],
        [*embed, "timm:resnet18"],
        [*embed, "https://example.org/encoder.safetensors"],
        [*embed, "hf-hub:owner/name"],
        ["pretrain", store, "--preset", "quick", "--out", run, *small, *weights],
        ["check", "https://example.org/slide.tiles.zarr"],
        ["check", "s3://bucket/slide.tiles.zarr"],
        ["info", "https://example.org/slide.svs"],
        ["tile", "https://example.org/slide.svs", "--out", str(tmp_path / "tiled")],
    ]
    asked = [*embed, "torchvision:resnet18", "--allow-download"]
    *quiet, (said, tried) = without_network(*refused, asked)
    for command, (error, attempts) in zip(refused, quiet, strict=True):
        assert error, command
        assert attempts == [], command
    assert "pass --allow-download" in quiet[0][0]
    assert "cannot be fetched" in said
    assert tried  # so that an attempt would have been noted

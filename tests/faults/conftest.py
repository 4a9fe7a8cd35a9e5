"""What the fault tests share: a warm process that forks commands, drawn slides, and what must hold after every kill."""

import csv
import json
import random
import shutil
import signal
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from simtriplet.pretrain.backbone import BACKBONES, Backbone
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.wsi.check import check_store
from simtriplet.wsi.store import STORE_SUFFIX, TileStore
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_cohort

TILING = ("--mpp", "1.0", "--size", "32")
TRAINING = {
    "data.image_size_px": 16,
    "model.backbone": "tiny",
    "model.projector_dim": 16,
    "model.predictor_dim": 8,
    "optimiser.warmup_epochs": 0.5,
    "run.batch_size": 64,
    "run.epochs": 6,
    "run.device": "cpu",
    "run.threads": 1,
    "run.log_every_steps": 1,
    "run.checkpoint_every_epochs": 1,
    "run.keep_every_epochs": 2,
    "run.monitor_every_epochs": 3,
    "run.monitor_tiles": 64,
    "run.tensorboard": "off",
}


@pytest.fixture(scope="session", autouse=True)
def tiny_backbone() -> None:
    """The network that the warm process trains, so that its encoders can be opened here."""

    def make(zero_init_residual: bool) -> Backbone:
        layers = [nn.Conv2d(3, 8, 5, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)

    if "tiny" not in BACKBONES:
        BACKBONES.add("tiny", make)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients' small slides with ground truth; returns the manifest."""
    spec = SyntheticSlideSpec(width_px=1024, height_px=768, region_um=120.0, tissue_fraction=0.6, n_pieces=1)
    return draw_cohort(tmp_path_factory.mktemp("drawn"), n_patients=4, slides_per_patient=1, spec=spec, seed=5)


@pytest.fixture(scope="session")
def tile_command(drawn: Path) -> Callable[..., list[object]]:
    """Arguments of `tile` for the first slides."""

    def command(out: Path, existing: str = "skip", n_slides: int = 2) -> list[object]:
        slides = sorted(drawn.parent.glob("*.svs"))[:n_slides]
        labels = ("--annotations", drawn.parent / "annotations")
        return ["-q", "tile", *slides, "--out", out, *TILING, *labels, "--existing", existing]

    return command


@pytest.fixture(scope="session")
def tiled(zygote: Any, tile_command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of two slides, without an index: not to be changed."""
    out = tmp_path_factory.mktemp("tiled") / "stores"
    zygote.done(*tile_command(out))
    return out


@pytest.fixture(scope="session")
def indexed(zygote: Any, tiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with their neighbours: not to be changed."""
    out = tmp_path_factory.mktemp("indexed") / "stores"
    shutil.copytree(tiled, out)
    zygote.done("-q", "index", out)
    return out


@pytest.fixture(scope="session")
def pretrain_command(indexed: Path) -> Callable[..., list[object]]:
    """Arguments of `pretrain` on these stores."""

    def command(out: Path, *changes: str) -> list[object]:
        values = [f"{key}={value}" for key, value in TRAINING.items()]
        return [
            "-q",
            "pretrain",
            indexed,
            "--out",
            out,
            *(part for value in (*values, *changes) for part in ("--set", value)),
        ]

    return command


@pytest.fixture(scope="session")
def training() -> dict[str, Any]:
    """Settings of a training that takes a second."""
    return TRAINING


@pytest.fixture(scope="session")
def trained(zygote: Any, pretrain_command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted: not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    zygote.done(*pretrain_command(out))
    return out


def whole_files(folder: Path) -> None:
    """Open whatever exists under a final name."""
    stores = [path for path in folder.rglob(f"*{STORE_SUFFIX}") if path.is_dir()]
    for path in stores:
        assert check_store(path) == [], path
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".toml": lambda path: tomllib.loads(path.read_text()),
        ".csv": lambda path: list(csv.reader(path.read_text().splitlines(), strict=True)),
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".safetensors": lambda path: safetensors.torch.load_file(path),
        ".jpg": lambda path: _ends_with(path, b"\xff\xd9"),
        ".png": lambda path: _ends_with(path, b"IEND\xaeB`\x82"),
        ".html": lambda path: _ends_with(path, b"</html>"),
    }
    for path in folder.rglob("*"):
        inside = any(part.endswith((STORE_SUFFIX, ".partial")) for part in path.relative_to(folder).parts)
        if path.is_file() and not inside and path.suffix in readers:
            readers[path.suffix](path)
    for weights in folder.rglob("encoder.safetensors"):
        load_encoder(weights)


def _ends_with(path: Path, end: bytes) -> None:
    assert path.read_bytes().rstrip().endswith(end), path


def leftovers(folder: Path) -> list[str]:
    """Name what a killed run left that a finished one must not leave."""
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if ".partial" in path.name or ".old" in path.name
    ]


def same_stores(folder: Path, other: Path) -> None:
    """Two folders hold equal stores: pixels, columns, attributes, neighbours, features."""
    names = sorted(path.name for path in folder.glob(f"*{STORE_SUFFIX}"))
    assert names == sorted(path.name for path in other.glob(f"*{STORE_SUFFIX}"))
    for name in names:
        one, two = TileStore(folder / name), TileStore(other / name)
        assert _lasting(one.attributes) == _lasting(two.attributes)
        assert len(one) == len(two) > 0
        for tile in range(len(one)):
            assert one.images.read_encoded(tile) == two.images.read_encoded(tile)
        assert one.columns() == two.columns()
        for column in one.columns():
            assert all(map(np.array_equal, _parts(one.column(column)), _parts(two.column(column)))), column
        assert np.array_equal(one.centres(), two.centres())
        assert np.array_equal(one.thumbnail(), two.thumbnail())
        assert one.neighbour_names() == two.neighbour_names()
        for index in one.neighbour_names():
            mine, theirs = one.neighbours(index), two.neighbours(index)
            for part in ("indptr", "indices", "distances_um"):
                assert np.array_equal(getattr(mine, part), getattr(theirs, part)), part
            assert mine.rule["params"] == theirs.rule["params"]
        assert one.feature_names() == two.feature_names()
        for features in one.feature_names():
            assert np.array_equal(one.features(features), two.features(features))
            assert _lasting(one.feature_attributes(features)) == _lasting(two.feature_attributes(features))


def _parts(column: Any) -> tuple[Any, ...]:
    return tuple(column) if isinstance(column, tuple) else (column,)


def _lasting(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key != "provenance"}


def same_runs(folder: Path, other: Path) -> None:
    """Two runs ended alike: encoder, checkpoints and measured numbers, bit for bit."""
    assert (folder / "encoder.safetensors").read_bytes() == (other / "encoder.safetensors").read_bytes()
    assert (folder / "encoder.json").read_bytes() == (other / "encoder.json").read_bytes()
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (other / "checkpoints").iterdir())
    for name in names:
        one, two = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (folder, other))
        for part in ("model", "optimiser", "rng", "step", "finished", "best"):
            assert _equal(one[part], two[part]), (name, part)
    for name in ("metrics.jsonl", "monitor.jsonl"):
        assert _numbers(folder / name) == _numbers(other / name)


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_equal, one, two))
    return bool(one == two)


def _numbers(path: Path) -> list[dict[str, Any]]:
    timing = ("triplets_per_s", "data_wait_share", "seconds")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


@dataclass
class Rules:
    """What must hold, as functions."""

    whole_files: Callable[[Path], None] = whole_files
    leftovers: Callable[[Path], list[str]] = leftovers
    same_stores: Callable[[Path, Path], None] = same_stores
    same_runs: Callable[[Path, Path], None] = same_runs


@pytest.fixture(scope="session")
def rules() -> Rules:
    """What must hold after a kill, and after the run that follows."""
    return Rules()


Command = Sequence[object]


@pytest.fixture(scope="session")
def torture(zygote: Any, rules: Rules) -> Callable[..., int]:
    """Kill a command again and again; each time look at what it left, and now and then let it finish and compare."""

    def kill(
        n_kills: int,
        seconds: float,
        begin: Callable[[int], tuple[Path, Command]],
        compare: Callable[[Path], None],
        *,
        kills_a_round: int = 1,
        seed: int = 0,
    ) -> int:
        """Kill at random moments.

        Args:
            n_kills: kills that hit a running process.
            seconds: of an uninterrupted run.
            begin: makes a folder of its own for a round and gives the command.
            compare: looks at the folder when the command has finished.
            kills_a_round: kills before it may finish.
            seed: of the moments.
        """
        moments, hits, round_number = random.Random(seed), 0, 0
        while hits < n_kills:
            round_number += 1
            assert round_number < 5 * n_kills, "the command ends before it can be killed"
            folder, command = begin(round_number)
            for _ in range(min(kills_a_round, n_kills - hits)):
                pid = zygote.start(*command)
                time.sleep(moments.uniform(0, seconds))
                ended = zygote.kill(pid)
                assert ended.status in (0, -signal.SIGKILL), ended.said
                rules.whole_files(folder)
                if ended.status == 0:
                    break
                hits += 1
            zygote.done(*command)
            rules.whole_files(folder)
            assert rules.leftovers(folder) == []
            compare(folder)
            shutil.rmtree(folder)
        return hits

    return kill


@pytest.fixture(scope="session")
def kill_at_writes(zygote: Any, rules: Rules) -> Callable[..., tuple[int, int]]:
    """Kill a command before a write, a rename or a removal of its own: where a kill hurts, which random moments rarely hit."""

    def kill(
        n_kills: int,
        begin: Callable[[int], tuple[Path, Command]],
        compare: Callable[[Path], None],
        *,
        n_writes: int | None = None,
        seed: int = 0,
    ) -> tuple[int, int]:
        """Kill before writes that are spread over all of the command's, the last ones always among them.

        Returns:
            How many hit, and how many were tried: a command has so many writes and no more.
        """
        if n_writes is None:
            folder, command = begin(0)
            n_writes = zygote.n_writes(folder, *command)
            shutil.rmtree(folder)
        hits = 0
        last = range(max(1, n_writes - n_kills // 4), n_writes + 1)
        others = [number for number in range(1, n_writes + 1) if number not in last]
        chosen = random.Random(seed).sample(others, min(len(others), n_kills - len(last)))
        numbers = sorted([*chosen, *last])
        for number in numbers:
            folder, command = begin(number)
            ended = zygote.run(*command, writes_below=folder, die_at=number)
            assert ended.status in (0, -signal.SIGKILL), ended.said  # threads do not write in the same order each time
            hits += ended.status != 0
            rules.whole_files(folder)
            zygote.done(*command)
            rules.whole_files(folder)
            assert rules.leftovers(folder) == [], number
            compare(folder)
            shutil.rmtree(folder)
        return hits, len(numbers)

    return kill

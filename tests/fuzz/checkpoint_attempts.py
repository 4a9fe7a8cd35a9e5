"""Read damaged checkpoints, encoders and heads as the program does, in child processes; prints what came of them as JSON.

python checkpoint_attempts.py STORES SCRATCH FIRST COUNT
"""

import copy
import dataclasses
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contained import run_contained
from store_mutants import VALUES, change_value, choose
from torch import nn

from simtriplet.evaluate.linear_head import LinearHead
from simtriplet.evaluate.saved_head import SavedHead, load_head, save_head
from simtriplet.pretrain.backbone import BACKBONES, Backbone, read_state_dict
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.settings import load_settings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.metadata import CHECKSUM, signed_json
from simtriplet.wsi.store import open_stores

Rng = np.random.Generator
FILES = ("checkpoints/last.pt", "encoder.safetensors", "encoder.json", "head.json", "weights.pt")
SETTINGS = load_settings(
    overrides=[
        *("data.image_size_px=16", "model.backbone=tiny", "model.projector_dim=8", "model.predictor_dim=4"),
        *("optimiser.warmup_epochs=0", "run.max_steps=2", "run.batch_size=4", "run.device=cpu", "run.threads=1"),
        "data.storage=stream",
    ]
)


def tiny(_: bool) -> Backbone:
    layers = [nn.Conv2d(3, 4, 5, 4, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers), 4)


class Evil:
    """A pickle that writes a file when it is loaded by a reader that runs what it says."""

    def __init__(self, mark: Path, way: int) -> None:
        self.mark, self.way = str(mark), way

    def __reduce__(self) -> Any:
        code = f"open({self.mark!r}, 'w').close()"
        ways: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (os.system, (f"touch {self.mark}",)),
            (eval, (code,)),
            (exec, (code,)),
            (open, (self.mark, "w")),
            (Path.touch, (Path(self.mark),)),
            (__import__, ("antigravity",)),
        ]
        return ways[self.way % len(ways)]


class Attempts:
    """Damaged copies of what one run left.

    Args:
        stores: to train on.
        scratch: for the run and its damaged files.
    """

    def __init__(self, stores: Path, scratch: Path) -> None:
        self.stores = open_stores([stores])[:1]
        self.run, self.mark = scratch / "run", scratch / "mark"
        pretrain(self.stores, SETTINGS, self.run)
        head = LinearHead(np.zeros(4), np.ones(4), np.eye(2, 4), np.zeros(2), 1.0, True)
        about = ({"encoder_hash": "0" * 64}, {"C": 1.0, "converged": True}, 12, ("p",), ("s",))
        save_head(self.run / "head.json", SavedHead(head, ("a", "b"), "net", *about))
        torch.save(load_encoder(self.run).backbone.state_dict(), self.run / "weights.pt")
        self.files = {name: (self.run / name).read_bytes() for name in FILES}
        self.expected = {name: self._read(name) for name in FILES}

    def __call__(self, number: int) -> str:
        for name, data in self.files.items():
            (self.run / name).write_bytes(data)
        self.mark.unlink(missing_ok=True)
        rng = np.random.default_rng(number)
        name = FILES[number % len(FILES)]
        kinds = KINDS[name]
        data, is_meant = kinds[number // len(FILES) % len(kinds)](self, name, rng)
        (self.run / name).write_bytes(data)
        try:
            found = self._read(name)
            same = all(
                torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                for a, b in zip(found, self.expected[name], strict=True)
            )
            if not same and not is_meant:
                return f"!silently wrong {name}"
            if name.startswith("checkpoints") and number // len(FILES) % 4 == 0:
                pretrain(self.stores, SETTINGS, self.run, resume=True)
            return "read"
        finally:
            if self.mark.exists():
                self.mark.unlink()
                os.write(2, b"a pickle was run")

    def _read(self, name: str) -> list[Any]:
        if name == "head.json":
            return list(dataclasses.astuple(load_head(self.run / name).head))[:4]
        if name == "weights.pt":
            return list(read_state_dict(self.run / name).values())
        encoder = load_encoder(self.run / name if name.endswith(".pt") else self.run)
        info = encoder.info
        facts = [torch.tensor([info.image_size_px, info.feature_dim, info.steps, info.mpp or 0.0])]
        return [*encoder.state_dict().values(), encoder.mean, encoder.std, *facts]


Made = tuple[bytes, bool]


def flip(attempts: Attempts, name: str, rng: Rng) -> Made:
    data = bytearray(attempts.files[name])
    for at in rng.integers(len(data), size=int(rng.integers(1, 4))).tolist():
        data[at] ^= int(rng.integers(1, 256))
    return bytes(data), name == "weights.pt" and False


def cut(attempts: Attempts, name: str, rng: Rng) -> Made:
    data = attempts.files[name]
    return data[: int(rng.integers(len(data)))], False


def scribble(attempts: Attempts, name: str, rng: Rng) -> Made:
    data, noise = attempts.files[name], rng.bytes(int(rng.integers(1, 2000)))
    return choose(rng, [noise, b"", noise + data, b"\0" * len(data), b"[" * 200_000, b'{"a":' * 200_000]), False


def evil_pickle(attempts: Attempts, name: str, rng: Rng) -> Made:
    evil = Evil(attempts.mark, int(rng.integers(6)))
    state = choose(rng, [evil, {"format": 1, "model": evil, "encoder": {}}, [evil], {"conv1.weight": evil}])
    return choose(rng, [pickle.dumps(state), pickle.dumps(state, protocol=2), saved(state), saved_old(state)]), False


def saved(state: Any) -> bytes:
    into = io.BytesIO()
    torch.save(state, into)
    return into.getvalue()


def saved_old(state: Any) -> bytes:
    into = io.BytesIO()
    torch.save(state, into, _use_new_zipfile_serialization=False)
    return into.getvalue()


def other_values(attempts: Attempts, name: str, rng: Rng) -> Made:
    """A checkpoint as torch writes it, of other keys, types and shapes."""
    state = torch.load(io.BytesIO(attempts.files[name]), weights_only=True)
    state = copy.deepcopy(dict(state))
    at: Any = state
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = choose(rng, keys)
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        tensors = [
            torch.zeros(3),
            torch.zeros(1).expand(10**12),
            torch.full((4, 3, 5, 5), torch.nan),
            torch.zeros((), dtype=torch.int8),
        ]
        if isinstance(at, tuple):
            break
        at[key] = choose(rng, [*VALUES, *tensors])
        break
    return saved(state), True


def bomb(attempts: Attempts, name: str, rng: Rng) -> Made:
    """An archive whose entries are, or say that they are, far larger than the file."""
    into = io.BytesIO()
    original = zipfile.ZipFile(io.BytesIO(attempts.files[name]))
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for entry in original.infolist():
            big = entry.filename.endswith("/data/0") and rng.random() < 0.3
            archive.writestr(entry.filename, b"\0" * (1 << 24) if big else original.read(entry))
    if rng.random() < 0.3:
        return into.getvalue(), False
    data = bytearray(attempts.files[name])
    at = data.rfind(b"PK\x01\x02", 0, int(rng.integers(len(data) // 2, len(data))))
    lie = struct.pack("<II", *rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0, 1 << 30], 2).tolist())
    data[at + 20 : at + 28] = lie
    return bytes(data), False


def lying_header(attempts: Attempts, name: str, rng: Rng) -> Made:
    """A safetensors file whose header lies, described as it is by encoder.json."""
    data = attempts.files[name]
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    claimed: int | None = None
    if rng.random() < 0.3:
        claimed = int(choose(rng, [2**40, 2**63, 2**64 - 1, 0, length - 1, length + 1, 100_000_001]))
    else:
        change_value(header, rng)
    text = json.dumps(header).encode()
    made = struct.pack("<Q", len(text) if claimed is None else claimed) + text + body
    info = json.loads(attempts.files["encoder.json"])
    info["checkpoint_hash"] = hashlib.sha256(made).hexdigest()
    info.pop(CHECKSUM)
    (attempts.run / "encoder.json").write_text(signed_json(info))
    return made, True


def edit_json(attempts: Attempts, name: str, rng: Rng) -> Made:
    values = json.loads(attempts.files[name])
    change_value(values, rng)
    how = choose(rng, ["left", "anew", "gone"])
    if how != "left":
        values.pop(CHECKSUM, None)
    try:
        text = signed_json(values) if how == "anew" else json.dumps(values)
    except ValueError:  # not finite
        text = json.dumps(values)
    return text.encode(), how != "left"


DAMAGE = (flip, flip, cut, scribble, evil_pickle)
KINDS: dict[str, tuple[Callable[[Attempts, str, Rng], Made], ...]] = {
    "checkpoints/last.pt": (*DAMAGE, other_values, other_values, bomb),
    "weights.pt": (*DAMAGE, other_values, bomb),
    "encoder.safetensors": (*DAMAGE, lying_header, lying_header),
    "encoder.json": (*DAMAGE, edit_json, edit_json),
    "head.json": (*DAMAGE, edit_json, edit_json),
}


def main() -> None:
    """Run the attempts that the command line names."""
    stores, scratch, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    BACKBONES.add("tiny", tiny)
    report = run_contained(Attempts(stores, scratch), range(first, first + count))
    sys.stdout.write(json.dumps(dataclasses.asdict(report)))


if __name__ == "__main__":
    main()

"""Real processes that are told to stop: a checkpoint first, the right status, and a run that goes on bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from simtriplet.pretrain.settings import load_settings
from simtriplet.pretrain.trainer import pretrain

SMALL = [
    "data.image_size_px=16",
    "model.backbone=resnet18",
    "model.projector_dim=16",
    "model.predictor_dim=8",
    "optimiser.warmup_epochs=0.5",
    "run.epochs=20",
    "run.batch_size=8",
    "run.device=cpu",
    "run.threads=1",
    "run.checkpoint_every_epochs=1000",
    "run.monitor_every_epochs=0",
    "run.tensorboard=off",
]
pytestmark = pytest.mark.slow  # processes that import torch

PROGRAM = "from simtriplet.pipelines.cli import main; main()"


def command(store, out, *changes, resume=False):
    """`simtriplet pretrain`; the signals of a terminal heeded, whatever the shell that began the tests made of them."""
    settings = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words = ["pretrain", str(store.path), "--out", str(out), *settings, *(["--resume"] if resume else [])]
    return [sys.executable, "-c", heed + PROGRAM, *words]


def start(words, **environment):
    settings = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)


def wait_for_steps(process, out, steps):
    """Wait until a run has reported so many steps."""
    deadline = time.monotonic() + 120
    file = out / "metrics.jsonl"
    while not file.exists() or not file.read_text().count("\n") >= steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.02)


def state_of(out):
    return torch.load(out / "checkpoints" / "last.pt", weights_only=True)


@pytest.fixture
def store(store_factory):
    return store_factory(rows=4, cols=6)


@pytest.mark.parametrize(
    ("signals", "status", "word"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 143, "terminated"),  # 50 ms apart, as some batch systems do
        ([signal.SIGINT], 130, "interrupted"),
    ],
    ids=["SIGTERM twice", "SIGINT"],
)
def test_a_stopped_run_goes_on_in_another_process_bit_for_bit(store, tmp_path, assert_same, signals, status, word):
    every_step = "run.log_every_steps=1"
    whole = pretrain([store], load_settings(overrides=[*SMALL, every_step]), tmp_path / "whole")
    out = tmp_path / "parts"
    process = start(command(store, out, every_step))
    wait_for_steps(process, out, 4)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    _, told = process.communicate(timeout=60)
    assert process.returncode == status, told
    assert f"Error: {word}; run the same command with --resume to go on" in told
    assert "Traceback" not in told
    stopped = state_of(out)
    assert 4 <= stopped["step"] < whole.steps
    assert not stopped["finished"]
    resumed = start(command(store, out, every_step, resume=True))
    _, told = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, told
    assert_same(state_of(out), state_of(whole.out))
    assert (out / "encoder.safetensors").read_bytes() == whole.encoder.read_bytes()


def test_processes_that_share_a_run_stop_within_ten_seconds_and_one_of_them_warns(store, tmp_path):
    """They report every thousand steps, and only torchrun gets the signal, which it passes on."""
    out = tmp_path / "run"
    words = command(store, out, "run.log_every_steps=100000", "run.epochs=100000")
    program = tmp_path / "program.py"
    program.write_text(words[2])
    runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), *words[3:]]
    process = start([sys.executable, *runner])
    wait_for_steps(process, out, 3)  # the first step, and two epochs
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode != 0
    step = state_of(out)["step"]
    assert step >= 6
    assert told.count(f"interrupted after step {step}") == 1, told
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps[:2] == [1, 3]

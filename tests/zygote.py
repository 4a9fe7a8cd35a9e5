"""A warm process that forks one child a command: `simtriplet ARGS...` without the seconds that its imports take.

It reads a line of JSON a command from stdin and answers with a line on stdout. It has one thread, so that its children
are as good as processes that were started anew.
"""

import atexit
import gc
import importlib
import json
import mmap
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from torch import nn

from simtriplet.pipelines import cli
from simtriplet.pretrain.backbone import BACKBONES, Backbone

WARM = (
    "simtriplet.pipelines.commands_slides",
    "simtriplet.pipelines.command_check",
    "simtriplet.pipelines.command_compare",
    "simtriplet.pipelines.command_evaluate",
    "simtriplet.pipelines.command_export",
    "simtriplet.pipelines.command_import",
    "simtriplet.pipelines.command_index",
    "simtriplet.pipelines.command_predict",
    "simtriplet.pipelines.commands_model",
    "simtriplet.pipelines.commands_flow",
    "simtriplet.wsi.readers",
    "simtriplet.evaluate.comparison_report",
    "simtriplet.evaluate.report",
    "simtriplet.evaluate.results",
    "simtriplet.evaluate.unlabelled_report",
    "matplotlib.backends.backend_agg",
    "sklearn.linear_model",
    "torch._dynamo",  # which the first optimiser asks for
)

WRITES = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
"""Audit events before which a child can be killed."""


def tiny(zero_init_residual: bool) -> Backbone:
    """A network whose checkpoints take milliseconds to write."""
    layers = [nn.Conv2d(3, 8, 5, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)


class DieAt:
    """An audit hook that kills a command before its k-th write below a folder, or counts them.

    Slides are tiled in processes that the command forks: their writes count like its own, and the whole command dies.
    """

    def __init__(self, folder: str, event: int | None) -> None:
        self.folder, self.event, self.command = folder, event, os.getpid()
        self._seen = mmap.mmap(-1, 8)  # one for all of its processes

    @property
    def seen(self) -> int:
        """Writes so far."""
        return int.from_bytes(self._seen[:8], "little")

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name not in WRITES or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if name == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if not os.fspath(arguments[0]).startswith(self.folder):
            return
        seen = self.seen + 1
        self._seen[:8] = seen.to_bytes(8, "little")
        if seen == self.event:
            os.kill(self.command, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def become(order: dict[str, Any]) -> None:
    """Turn a child into the program; its results and what it says go to two files."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, Path(order["log"]).with_suffix(".out")), (2, order["log"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644), number)
    os.chdir(order["cwd"])
    if order["fsize"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["fsize"], order["fsize"]))
    if order["writes_below"] is not None:
        hook = DieAt(order["writes_below"], order["die_at"])
        sys.addaudithook(hook)
        if order["die_at"] is None:
            atexit.register(lambda: Path(order["log"]).with_suffix(".count").write_text(str(hook.seen)))
    sys.argv = ["simtriplet", *order["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    # what the interpreter's own end does, but for taking apart all modules, which takes seconds after a fork
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def tell(line: str) -> None:
    """Answer."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until stdin ends."""
    for name in WARM:
        importlib.import_module(name)
    BACKBONES.add("tiny", tiny)
    assert threading.active_count() == 1, "a fork would copy one thread of several"
    gc.collect()
    gc.freeze()
    tell("ready")
    while line := sys.stdin.readline():
        order = json.loads(line)
        if order["do"] == "start":
            child = os.fork()
            if not child:
                become(order)
            tell(json.dumps({"pid": child}))
        else:
            deadline = time.monotonic() + order["timeout"]
            ended, status = os.waitpid(order["pid"], os.WNOHANG)
            while not ended and time.monotonic() < deadline:
                time.sleep(0.002)
                ended, status = os.waitpid(order["pid"], os.WNOHANG)
            tell(json.dumps({"status": os.waitstatus_to_exitcode(status) if ended else None}))


main()
os._exit(0)

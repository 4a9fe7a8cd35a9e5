"""The program `simtriplet`: one group, its commands, and one line for every failure a user can mend."""

import logging
import os
import signal
import sys
from typing import Any, NoReturn

import click

from simtriplet.wsi.errors import SimTripletError

__all__ = ["cli", "main"]

_COMMANDS = {
    "info": "commands_slides",
    "tile": "commands_slides",
    "index": "command_index",
    "check": "commands_slides",
    "pretrain": "commands_model",
    "embed": "commands_model",
    "evaluate": "command_evaluate",
    "compare": "command_compare",
    "predict": "command_predict",
    "run": "commands_flow",
    "demo": "commands_flow",
}


_SAME_COMMAND = "run the same command again to go on"
_GO_ON = {"pretrain": "run the same command with --resume to go on"}


class _LazyGroup(click.Group):
    """Import a command's module when it is asked for: `simtriplet info` need not wait for torch."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an interrupted one says how to go on."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # which click would make an Abort of, whatever the signal was
            _stop(stop, _GO_ON.get(ctx.invoked_subcommand or "", _SAME_COMMAND))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        import importlib

        module = importlib.import_module(f"simtriplet.pipelines.{_COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="simtriplet", prog_name="simtriplet")
@click.option("-v", "--verbose", count=True, help="More log lines; twice for debugging.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only warnings and results.")
def cli(verbose: int, quiet: bool) -> None:
    """Learn an image encoder from unlabelled pathology slides on one GPU.

    The steps: tile, index, pretrain, embed, evaluate. `run` does them all from a recipe, `demo` on slides it draws itself.
    """
    level = logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    speaks = int(os.environ.get("RANK", "0")) == 0  # of several processes that torchrun started, one warns
    silent = (quiet and not verbose) or (not speaks and verbose < 2)
    logging.getLogger("simtriplet").setLevel(logging.ERROR if silent else level)
    if verbose < 2:
        # libraries speak up only when debugging; what a user must know is said by this program
        for name in ("tifffile", "distributed", "PIL", "matplotlib", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    """Run the program: exit status 0 done, 1 a failure told in one line, 2 wrong usage, 130 interrupted, 143 terminated."""
    # torch's threads spin while they wait, which on a machine shared with others halves everybody's speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort as abort:
        _stop(abort.__cause__, _SAME_COMMAND)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except SimTripletError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt as stop:
        _stop(stop, _SAME_COMMAND)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, which schedulers send before they kill, cleans up as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _TerminatedError


def _stop(cause: BaseException | None, go_on: str) -> NoReturn:
    """End as a program does that a signal ended; another one now ends it at once, without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    click.echo(err=True)  # behind the terminal's ^C
    if isinstance(cause, _TerminatedError):
        _fail(f"terminated; {go_on}", 128 + signal.SIGTERM)
    _fail(f"interrupted; {go_on}", 128 + signal.SIGINT)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"Error: {' '.join(message.splitlines())}", err=True)
    sys.exit(status)

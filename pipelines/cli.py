"""The program `simtriplet`: one group, its commands, and one line for every failure a user can mend."""

import logging
import os
import signal
import sys

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
    "evaluate": "commands_model",
    "run": "commands_flow",
    "demo": "commands_flow",
}


class _LazyGroup(click.Group):
    """Import a command's module when it is asked for: `simtriplet info` need not wait for torch."""

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
    logging.getLogger("simtriplet").setLevel(logging.ERROR if quiet and not verbose else level)
    if verbose < 2:
        # libraries speak up only when debugging; what a user must know is said by this program
        for name in ("tifffile", "distributed", "PIL", "matplotlib", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    """Run the program: exit status 0 done, 1 a failure told in one line, 2 wrong usage, 130 interrupted."""
    # torch's threads spin while they wait, which on a machine shared with others halves everybody's speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted; run the same command again to go on", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except SimTripletError as error:
        _fail(str(error), 1)
    except _TerminatedError:
        _fail("terminated; run the same command again to go on", 143)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, which schedulers send before they kill, cleans up as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _TerminatedError


def _fail(message: str, status: int) -> None:
    click.echo(f"Error: {' '.join(message.splitlines())}", err=True)
    sys.exit(status)

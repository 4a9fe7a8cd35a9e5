"""The program `simtriplet`: one group, its commands, and one line for every failure a user can mend."""

import errno
import keyword
import logging
import os
import sys
from typing import NoReturn

import click

from simtriplet.pipelines.console import JsonFormatter, LogFormat, is_json, set_log_format, tell_error
from simtriplet.pipelines.std_streams import mend_streams
from simtriplet.pipelines.stop_signals import SAME_COMMAND, STOP
from simtriplet.wsi.disk_room import is_disk_full
from simtriplet.wsi.errors import SimTripletError
from simtriplet.wsi.registry import nearest_name

__all__ = ["cli", "main"]

log = logging.getLogger(__name__)

_COMMANDS = {
    "info": ("commands_slides", "Say what slides are: size, levels, resolution."),
    "tile": ("commands_slides", "Cut the tissue of slides into tile stores."),
    "index": ("command_index", "Pair adjacent tiles as positives; say how often they agree."),
    "check": ("command_check", "Verify stores against their checksums; say what can be redone."),
    "pretrain": ("commands_model", "Learn an encoder from the tiles and their neighbours."),
    "embed": ("commands_model", "Put an encoder's features into stores."),
    "evaluate": ("command_evaluate", "Measure features on labels, split by patient."),
    "compare": ("command_compare", "Measure several encoders on the same tiles and folds."),
    "predict": ("command_predict", "Predict classes; GeoJSON for QuPath."),
    "export": ("command_export", "Write stores for other programs."),
    "import": ("command_import", "Make stores of the tiles that CLAM or TRIDENT chose."),
    "view": ("command_view", "Look at stores in a web browser."),
    "run": ("commands_flow", "Do everything that a recipe says, from slides to a report."),
    "demo": ("commands_flow", "Show the whole job in minutes, on drawn slides."),
}
"""Module and short help of each: `simtriplet --help` imports none of them."""

_SKIP_DONE = "run the same command with --existing skip to go on"
_GO_ON = {
    "tile": _SKIP_DONE,
    "import": _SKIP_DONE,
    "export": _SKIP_DONE,
    "pretrain": "run the same command with --resume to go on",
    "view": "the page is served no more",
}


class _LazyGroup(click.Group):
    """Import a command's module when it is asked for: `simtriplet info` need not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; of a wrong name the nearest is told."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            said = error.message.rstrip(".") + (nearest_name(args[0], _COMMANDS) or ".")
            raise click.UsageError(said, ctx) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        import importlib

        STOP.go_on = _GO_ON.get(cmd_name, SAME_COMMAND)
        STOP.importing = True
        module = importlib.import_module(f"simtriplet.pipelines.{_COMMANDS[cmd_name][0]}")
        STOP.importing = False
        command = getattr(module, f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name)
        assert isinstance(command, click.Command)
        return command


def _speak(_context: click.Context, _option: click.Parameter, chosen: LogFormat) -> LogFormat:
    set_log_format(chosen)
    return chosen


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="simtriplet", prog_name="simtriplet")
@click.option("-v", "--verbose", count=True, help="More log lines; twice for debugging.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only warnings and results.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How messages, progress and errors are written to stderr: for a person, or one JSON object a line.",
    is_eager=True,  # a wrong option or command is told that way too
    callback=_speak,
)
def cli(verbose: int, quiet: bool, log_format: LogFormat) -> None:
    """Learn an image encoder from unlabelled pathology slides on one GPU.

    The steps: tile, index, pretrain, embed, evaluate. `run` does them all from a recipe, `demo` on slides it draws itself.
    """
    level = logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    if log_format == "json":
        logging.getLogger().handlers[0].setFormatter(JsonFormatter())
    speaks = int(os.environ.get("RANK", "0")) == 0  # of several processes that torchrun started, one warns
    logging.getLogger("simtriplet").setLevel(level if speaks or verbose > 1 else logging.ERROR)
    if verbose < 2:
        # libraries speak up only when debugging; what a user must know is said by this program
        for name in ("tifffile", "distributed", "PIL", "matplotlib", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    """Run the program: exit status 0 done, 1 a failure told in one line, 2 wrong usage, 130 interrupted, 143 terminated."""
    # torch's threads spin while they wait, which on a machine shared with others halves everybody's speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    STOP.heed()
    mend_streams()
    try:
        STOP.importing = False
        cli(standalone_mode=False)
        if STOP.number:  # a library swallowed what the signal raised
            STOP.end()
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except (Exception, KeyboardInterrupt) as error:  # the last boundary: an error none of these lines knows is a bug
        if STOP.number:  # whatever came of the signal on its way here
            STOP.end()
        _tell(error)
        raise
    finally:
        STOP.leave()


def _tell(error: BaseException) -> None:
    """End with one line where the failure is a user's to mend."""
    if isinstance(error, click.UsageError) and not is_json():
        error.show()  # with the usage
        sys.exit(error.exit_code)
    if isinstance(error, click.ClickException):
        _fail(error.format_message(), error.exit_code)
    if isinstance(error, SimTripletError):
        _fail(str(error), 1)
    if isinstance(error, (click.exceptions.Abort, KeyboardInterrupt)):
        _fail(f"interrupted; {STOP.go_on}", 130)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if isinstance(error, MemoryError):
        why = f" ({error})" if str(error) else ""
        _fail(f"memory: there is too little{why}; pass fewer --workers or a smaller batch, and {STOP.go_on}", 1)
    if isinstance(error, OSError) and is_disk_full(error):
        _fail(f"output{_name_of(error)}: cannot be written ({error.strerror}); free space and {STOP.go_on}", 1)
    if isinstance(error, OSError) and error.errno is not None:  # from the system; a library's own have no number
        log.debug("what the system refused", exc_info=error)
        name = "system" if error.filename is None else f"path{_name_of(error)[:200]}"
        _fail(f"{name}: cannot be used ({error.strerror}); {_cure_of(error)}", 1)


def _cure_of(error: OSError) -> str:
    """Say what to do about what the system refused."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"bring back what was there, and {STOP.go_on}"
    if isinstance(error, (FileExistsError, IsADirectoryError)):
        return "move away what is there, or choose another"
    if isinstance(error, PermissionError) or error.errno == errno.ENAMETOOLONG:
        return "check its rights, or choose another"
    return f"check its disk and network, and {STOP.go_on}"


def _name_of(error: OSError) -> str:
    return "" if error.filename is None else f" '{error.filename}'"


def _fail(message: str, status: int) -> NoReturn:
    tell_error(message, status)
    sys.exit(status)

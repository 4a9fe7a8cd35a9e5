"""Where the program begins: signals are heeded before the libraries behind its commands are loaded."""

from simtriplet.pipelines.stop_signals import STOP

__all__ = ["main"]


def main() -> None:
    """Run the program; see simtriplet.pipelines.cli."""
    STOP.importing = True
    STOP.heed()
    from simtriplet.pipelines.cli import main as run  # a tenth of a second, in which somebody may press Ctrl-C

    run()

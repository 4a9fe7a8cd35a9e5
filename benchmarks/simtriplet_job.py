"""The whole job with this program: `simtriplet tile` as a user calls it, in this process; other arguments are passed on."""

import csv
import time

from driver import read_job, report

from simtriplet.pipelines import commands_slides  # noqa: F401, so that imports are not measured, as with the peers
from simtriplet.pipelines.cli import cli
from simtriplet.wsi import readers  # noqa: F401


def main() -> None:
    """Run the command and read the number of tiles from the summary it leaves."""
    job, options = read_job()
    command = ["-q", "tile", str(job.slide), "--out", str(job.out), *options]
    if "--grid" not in options:
        command += ["--mpp", str(job.mpp), "--size", str(job.size)]
    start = time.perf_counter()
    cli.main(command, standalone_mode=False)
    seconds = time.perf_counter() - start
    with (job.out / "tile-summary.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    report(int(row["tiles"]), seconds, f"reader {row['reader']}, {row['megabytes']} MB written")


if __name__ == "__main__":
    main()

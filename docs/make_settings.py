"""Write the table of training settings into docs/training.md, from the docstrings of the settings themselves.

python docs/make_settings.py [--check]
"""

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from simtriplet.pretrain.settings import PretrainSettings

PAGE = Path(__file__).with_name("training.md")
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def describe(section: Any) -> dict[str, str]:
    """Return what the docstring's Attributes say of each field."""
    text = inspect.getdoc(type(section)) or ""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("Attributes:\n")[2].splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        elif name and line.startswith(" " * 8):
            found[name] += " " + line.strip()
    return found


def table() -> str:
    """Return the tables of all sections as Markdown."""
    lines = []
    settings = PretrainSettings()
    for field in dataclasses.fields(settings):
        section = getattr(settings, field.name)
        meanings = describe(section)
        lines += [f"### [{field.name}]", "", "| setting | default | meaning |", "|---|---|---|"]
        for entry in dataclasses.fields(section):
            meaning = meanings[entry.name].replace("|", "/")
            lines.append(f"| `{entry.name}` | `{getattr(section, entry.name)!r}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Rewrite the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where the page is behind")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    new = f"{head}{BEGIN}\n\n{table()}\n{END}{rest.split(END)[1]}"
    if check:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

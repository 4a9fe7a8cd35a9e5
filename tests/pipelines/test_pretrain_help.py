"""The settings that `pretrain --help` proposes are settings."""

import re

import pytest
from click.testing import CliRunner

from simtriplet.pipelines.cli import cli
from simtriplet.pretrain.settings import load_settings


def proposed() -> list[str]:
    """Every `section.key=value` of the help, alternatives one by one."""
    text = CliRunner().invoke(cli, ["pretrain", "--help"], catch_exceptions=False).output
    found = re.findall(r"\b(run\.\w+)=([^\s,]+)", text)
    return [f"{key}={value}" for key, values in found for value in values.split("|")]


def test_the_help_proposes_every_way_to_compile():
    assert [each for each in proposed() if "compile" in each] == [
        "run.compile=off",
        "run.compile=encoder",
        "run.compile=step",
    ]


@pytest.mark.parametrize("assignment", proposed())
def test_what_the_help_proposes_is_taken(assignment):
    key, _, value = assignment.partition("=")
    got = getattr(load_settings(overrides=[assignment]).run, key.removeprefix("run."))
    assert str(got).strip("()',").lower() == value.strip("[]'").lower()

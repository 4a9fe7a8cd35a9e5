"""A hook of MkDocs: the help of commands as Markdown. Blocks that click must not wrap become code, and `<` is no HTML."""

import textwrap

import click

from simtriplet.pipelines.cli import cli


def on_config(config: object) -> None:
    """Rewrite the help of every command before pages are made."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None and command.help is not None and "```" not in command.help:
            command.help = "\n\n".join(map(_as_markdown, command.help.split("\n\n")))


def _as_markdown(paragraph: str) -> str:
    first, _, rest = paragraph.partition("\n")
    if first.strip() == "\b":
        return f"```text\n{textwrap.dedent(rest)}\n```"
    return paragraph.replace("<", "&lt;")

"""Names as a person is shown them: nothing in a name may move a terminal's cursor or turn the text around it backwards."""

__all__ = ["visible"]

_HIDDEN = "\N{REPLACEMENT CHARACTER}"


def visible(text: str) -> str:
    """Return a text with a visible sign for every control and direction mark; blanks of any kind stay blanks."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else _HIDDEN for letter in text)

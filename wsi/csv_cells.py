"""Cells of a CSV in which no name is a formula: spreadsheets compute cells that begin like one, whoever wrote them."""

import re

__all__ = ["without_formula"]

_FORMULA = re.compile(r"[=@\t\r]|[+-].*[^\W\d_(]|[+-].*[(!]", re.DOTALL)
"""`+` and `++`, which are grades, are none."""


def without_formula(cell: object) -> object:
    """Return a cell that every spreadsheet shows as it is; numbers, and texts that are numbers, stay."""
    if not isinstance(cell, str) or not _FORMULA.match(cell) or _is_number(cell):
        return cell
    return f"'{cell}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

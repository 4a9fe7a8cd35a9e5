"""What other programs write into a cell that is empty: taken as it stands it would be a class, or the patient of many slides."""

__all__ = ["MISSING", "PERHAPS_MISSING"]

MISSING = frozenset({"nan", "<na>", "#n/a", "null"})
"""In lower case; no name is meant."""

PERHAPS_MISSING = frozenset({"na", "n/a", "none"})
"""In lower case; a class may be called so, a patient is not."""

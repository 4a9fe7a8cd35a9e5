"""What settings must keep to, told in one form of words."""

from simtriplet.wsi.errors import SettingsError

__all__ = ["require", "require_probability", "require_range"]


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Refuse a value that breaks its rule.

    Raises:
        SettingsError: if it does not hold.
    """
    if not holds:
        raise SettingsError(f"setting '{name}' is {value!r}: must {rule}; correct it")


def require_probability(name: str, value: float) -> None:
    """Refuse what does not lie in 0..1.

    Raises:
        SettingsError: if it does not.
    """
    require(0 <= value <= 1, name, value, "lie in 0..1")


def require_range(name: str, bounds: tuple[float, float], low: float, high: float) -> None:
    """Refuse two numbers that do not rise, or leave the bounds.

    Raises:
        SettingsError: if they do.
    """
    require(low <= bounds[0] <= bounds[1] <= high, name, bounds, f"be two rising numbers in {low:g}..{high:g}")

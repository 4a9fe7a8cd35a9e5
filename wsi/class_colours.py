"""Class colours that stay apart for colour-blind readers and on pink tissue."""

__all__ = ["class_colours"]

_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#F0E442", "#56B4E9", "#D55E00", "#595959", "#CC79A7")
"""Okabe and Ito's eight (https://jfly.uni-koeln.de/color/), grey for black; the one like eosin last."""

_SHADES = (1.0, 0.55)


def class_colours(n_classes: int) -> list[tuple[float, float, float]]:
    """Return one RGB colour in [0, 1] per class; they repeat, darker, after eight classes and exactly after sixteen."""
    colours = []
    for code in range(n_classes):
        turn, place = divmod(code, len(_OKABE_ITO))
        value = int(_OKABE_ITO[place][1:], 16)
        shade = _SHADES[turn % len(_SHADES)] / 255
        colours.append(((value >> 16) * shade, (value >> 8 & 255) * shade, (value & 255) * shade))
    return colours

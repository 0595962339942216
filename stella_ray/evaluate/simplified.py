"""Traditional characters to simplified ones, as the model card does with DRCD."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stella_ray.errors import SettingsError

TRADITIONAL = frozenset("這們個來時國說為會學對發過後還種與關點開")
SIMPLIFIED = frozenset("这们个来时国说为会学对发过后还种与关点开")
"""Of twenty frequent words, those with two forms."""


def is_traditional(texts: Iterable[str]) -> bool:
    """Whether frequent words stand in these texts in their traditional form, mostly."""
    traditional = simplified = 0
    for text in texts:
        traditional += sum(character in TRADITIONAL for character in text)
        simplified += sum(character in SIMPLIFIED for character in text)
    return traditional > simplified


def simplifier() -> Callable[[str], str]:
    """A function that writes a text in simplified characters (OpenCC's t2s).

    Raises:
        SettingsError: OpenCC isn't installed.
    """
    try:
        from opencc import OpenCC
    except ImportError:
        raise SettingsError(
            "texts in traditional characters need OpenCC, which isn't installed: pip install"
            " 'stella-ray[evaluate]', or leave them as they are (simplify no)"
        ) from None
    convert: Callable[[str], str] = OpenCC("t2s").convert
    return convert

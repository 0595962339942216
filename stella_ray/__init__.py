"""stella-ray: distributed batch embedding of Chinese text on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Encoder", "__version__"]

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder


def __getattr__(name: str) -> Any:
    """Import `Encoder` (and torch with it) only when it is asked for."""
    if name == "Encoder":
        from stella_ray.encode.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""stella-ray: distributed batch embedding of Chinese text on Ray."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Encoder", "EncoderSettings", "__version__"]

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder
    from stella_ray.encode.models import EncoderSettings


def __getattr__(name: str) -> Any:
    """Import `Encoder` (and torch with it) only when it is asked for."""
    if name == "EncoderSettings":
        from stella_ray.encode.models import EncoderSettings

        return EncoderSettings
    if name == "Encoder":
        # A fifth of what torch and transformers take to import goes to the garbage collector, which
        # looks again and again at what is there to stay.
        collecting = gc.isenabled()
        gc.disable()
        try:
            from stella_ray.encode.encoder import Encoder
        finally:
            if collecting:
                gc.enable()
        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

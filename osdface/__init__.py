"""One-step diffusion face restoration: `from osdface import Restorer`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osdface.restorer import Restorer

__all__ = ["Restorer"]


def __getattr__(name: str) -> Any:
    """`Restorer` when it is asked for: with it come torch and diffusers, for which nothing else here need wait."""
    if name == "Restorer":
        from osdface.restorer import Restorer

        return Restorer
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

"""Plain products for rooms: torch's library, or C where that was measured to be faster."""

from hotplate.kernels.product.choice import multiply

__all__ = ["multiply"]

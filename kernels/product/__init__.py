"""Plain products for rooms: torch's library, or C where that was measured to be faster."""

from hotplate.kernels.product.choice import multiply, takes_halves

__all__ = ["multiply", "takes_halves"]

from hotplate.kernels.native.build import load, status, why_not

__all__ = ["load", "status", "why_not"]

from hotplate.kernels.newton_schulz.op import newton_schulz

__all__ = ["newton_schulz"]

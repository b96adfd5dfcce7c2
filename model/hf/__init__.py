from hotplate.model.hf.files import load, save

__all__ = ["load", "save"]

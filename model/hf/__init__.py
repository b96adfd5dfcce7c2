from hotplate.model.hf.files import load, save
from hotplate.model.hf.start import with_vocabulary

__all__ = ["load", "save", "with_vocabulary"]

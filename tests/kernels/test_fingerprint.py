"""Code that torch.compile keeps on disk is not taken for another version's."""

import torch.compiler.config as settings
from models import TINY, build

from hotplate.kernels import fingerprint


def test_any_source_changes_it(tmp_path):
    def found():
        fingerprint.fingerprint.cache_clear()
        return fingerprint.fingerprint(tmp_path)

    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "op.py").write_text("x = 1\n")
    first = found()
    (tmp_path / "room" / "op.py").write_text("x = 2\n")
    second = found()
    (tmp_path / "room" / "op.py").rename(tmp_path / "room" / "eager.py")
    assert len({first, second, found()}) == 3 and found() == found()


def test_torch_s_keys_tell_versions_apart(monkeypatch):
    """The tag is part of the keys of torch's caches; what a user put there stays."""
    monkeypatch.setattr(fingerprint, "fingerprint", lambda: "0123")
    with settings.patch(cache_key_tag="of the user "):
        for _ in range(2):
            build(TINY["gpt"]).execute(compiled=True)
        assert settings.cache_key_tag == "of the user hotplate-0123"

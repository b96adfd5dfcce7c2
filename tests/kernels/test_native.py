import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hotplate.kernels import native
from hotplate.kernels.launch import choose_impl
from hotplate.kernels.native import build

ULPS = {"sigmoid": 1.0, "tanh_of": 1.1}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder and no memory of earlier builds."""
    monkeypatch.setenv("HOTPLATE_CACHE", str(tmp_path / "cache"))
    for cached in (build._toolchain, build._loaded):
        cached.cache_clear()
    yield tmp_path
    for cached in (build._toolchain, build._loaded):
        cached.cache_clear()


@pytest.fixture(scope="module")
def activations(tmp_path_factory):
    """name -> the function of activations.h over a tensor."""
    folder = tmp_path_factory.mktemp("activations")
    names = ("sigmoid", "tanh_of", "round_trip")
    (folder / "all.c").write_text(
        '#include "activations.h"\n'
        "static inline float round_trip(float x) { return from_bf16(to_bf16(x)); }\n"
        + "".join(
            f"void all_{name}(const float *x, float *y, int64_t n)"
            f"{{ for (int64_t j = 0; j < n; j++) y[j] = {name}(x[j]); }}\n"
            for name in names
        )
    )
    command, _ = build._toolchain()
    flags = [*build._flags(), f"-I{build.HEADERS}", "-o", str(folder / "all.so"), str(folder / "all.c")]
    subprocess.run([*command, *flags], check=True)
    library = ctypes.CDLL(str(folder / "all.so"))

    def call(name, x):
        y = torch.empty_like(x)
        getattr(library, f"all_{name}")(
            ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(x.numel())
        )
        return y

    return call


@pytest.mark.parametrize(("name", "truth"), [("sigmoid", torch.sigmoid), ("tanh_of", torch.tanh)])
def test_activations_are_within_one_unit_in_the_last_place_or_a_little_more(activations, name, truth):
    tiny = torch.logspace(-30, 1, 500_000)
    x = torch.cat([torch.linspace(-30, 30, 2_000_001), tiny, -tiny])
    true = truth(x.double())
    unit = torch.exp2(true.abs().log2().floor()) * torch.finfo(torch.float32).eps
    assert ((activations(name, x).double() - true).abs() / unit).max() <= ULPS[name]


def test_activations_at_the_ends(activations):
    ends = torch.tensor([torch.inf, -torch.inf, 1e4, -1e4, torch.nan, 0.0])
    assert activations("sigmoid", ends)[[0, 2]].tolist() == [1.0, 1.0]
    assert activations("sigmoid", ends)[[1, 3]].max() < 1e-30
    assert activations("tanh_of", ends)[[0, 1, 2, 3, 5]].tolist() == [1.0, -1.0, 1.0, -1.0, 0.0]
    assert activations("sigmoid", ends)[4].isnan() and activations("tanh_of", ends)[4].isnan()


def test_bf16_rounds_like_torch(activations):
    """Every bf16 with every interesting tail: below, at and above the tie, and the infinities and NaNs."""
    heads = torch.arange(1 << 16, dtype=torch.int64)[:, None] << 16
    bits = (heads | torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])).flatten()
    x = bits.to(torch.uint32).view(torch.float32)
    mine, own = activations("round_trip", x), x.bfloat16().float()
    assert torch.equal(mine.isnan(), own.isnan()) and torch.equal(mine.isnan(), x.isnan())
    assert torch.equal(mine.nan_to_num(0), own.nan_to_num(0))


def test_a_library_is_built_once_and_found_again(fresh):
    first = build.build("qlstm")
    stamp = first.stat().st_mtime_ns
    assert build.build("qlstm") == first and first.stat().st_mtime_ns == stamp
    assert [path.suffix for path in first.parent.iterdir()] == [".so"]


def test_another_source_or_flag_is_another_library(fresh, monkeypatch):
    first = build.build("qlstm")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    build._toolchain.cache_clear()
    assert build.build("qlstm") != first


def test_processes_may_build_at_once(fresh):
    code = "from hotplate.kernels import native; assert native.load('qlstm') is not None, native.why_not('qlstm')"
    started = [subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert len(list(build.cache_folder().iterdir())) == 1


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="no x86 processor: other flags")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3", "x86-64-v4", "sapphirerapids"])
def test_every_room_compiles_for_other_processors(march):
    """Each has forms for some instruction sets that this processor may lack, and for none."""
    command, _ = build._toolchain()
    for room in build.rooms():
        source = build.KERNELS / room / "native.c"
        flags = [*build._flags(), f"-march={march}", f"-I{build.HEADERS}", "-fsyntax-only", str(source)]
        done = subprocess.run([*command, *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_without_a_compiler_auto_is_eager_and_native_says_why(fresh, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    gates = torch.zeros(1)
    assert native.load("qlstm") is None and "no-such-compiler" in native.why_not("qlstm")
    assert choose_impl("qlstm", "auto", gates) == "eager"
    with pytest.raises(ValueError, match="^qlstm: want a library built from C .*no-such-compiler.*impl='eager'"):
        choose_impl("qlstm", "native", gates)
    assert "not qlstm: no-such-compiler" in native.status() and "\n" not in native.status()


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fno-such-option"))
    assert native.load("qlstm") is None and "no-such-option" in native.why_not("qlstm")


def test_a_cache_that_cannot_be_written_is_named(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("HOTPLATE_CACHE", str(fresh / "file"))
    assert native.load("qlstm") is None and "set HOTPLATE_CACHE" in native.why_not("qlstm")


def test_status_names_every_room():
    assert native.status() == f"native CPU kernels: {', '.join(build.rooms())}"
    assert {"qlstm", "lstm_diagonal"} <= set(build.rooms())


@pytest.mark.parametrize(
    ("dtype", "picked"),
    [(torch.float32, "native"), (torch.bfloat16, "native"), (torch.float16, "eager"), (torch.float64, "eager")],
)
def test_auto_on_a_cpu(dtype, picked):
    assert choose_impl("qlstm", "auto", torch.zeros(1, dtype=dtype)) == picked


def test_kernels_import_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from hotplate.kernels.qlstm import qlstm\n"
        "from hotplate.kernels.lstm_diagonal import lstm_diagonal\n"
        "import hotplate.kernels.compiled\n"
        "qlstm(torch.zeros(1, 2, 4, 3)); lstm_diagonal(torch.zeros(1, 2, 4, 3), torch.zeros(4, 3))\n"
        "try: qlstm(torch.zeros(1, 2, 4, 3), impl='triton')\n"
        "except ValueError as error: assert str(error).startswith('qlstm: want Triton with'), error\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sources_are_found_next_to_the_package():
    assert all((Path(build.KERNELS) / room / "native.c").is_file() for room in ("qlstm", "lstm_diagonal"))

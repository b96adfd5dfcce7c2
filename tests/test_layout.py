"""The architecture as assertions: one-way imports, shipped packages, no names that shadow, rooms that are complete."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("kernels", "model", "train", "bench")
FILES = sorted(path for part in LAYERS for path in (ROOT / part).rglob("*.py"))
ROOMS = sorted(path.parent for path in (ROOT / "kernels").glob("*/op.py"))
PROGRAMS = [ROOT / "train" / "main.py", ROOT / "bench" / "__main__.py"]
MAX_LINES = 400


def imported(path: Path) -> set[str]:
    """Every hotplate module that the file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it absolutely"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "hotplate"}


def layer(name: str) -> int:
    return LAYERS.index(name.split(".")[1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = LAYERS.index(path.relative_to(ROOT).parts[0])
    upward = [name for name in imported(path) if layer(name) > here]
    assert not upward, f"{path} imports from a higher layer: {upward}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_kernel_rooms_are_complete_and_separate(room: Path) -> None:
    for name in ("__init__.py", "op.py", "reference.py", "README.md"):
        assert (room / name).is_file(), f"{room} lacks {name}"
    assert (ROOT / "tests" / "kernels" / f"test_{room.name}.py").is_file()
    assert (ROOT / "bench" / "kernels" / f"{room.name}.py").is_file()
    for path in room.glob("*.py"):
        others = [n for n in imported(path) if n.split(".")[2] in {r.name for r in ROOMS} - {room.name}]
        assert not others, f"{path} imports another room: {others}"


def test_no_import_circle_between_modules() -> None:
    edges = {}
    for path in FILES:
        name = "hotplate." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        edges[name] = imported(path)
    modules = set(edges)

    def target(name: str) -> str | None:
        return name if name in modules else next((m for m in [name.rsplit(".", 1)[0]] if m in modules), None)

    graph = {name: {t for n in found if (t := target(n)) and t != name} for name, found in edges.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for below in graph[name]:
                visit(below, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_code_folder_is_a_package() -> None:
    for path in FILES:
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} would not be installed"


def test_no_module_shadows_the_standard_library() -> None:
    """`torchrun train/main.py` puts train/ on the path for a moment; so does running a bench file."""
    taken = set(sys.stdlib_module_names) | {"torch", "triton", "numpy", "rich", "tyro"}
    shadows = [path for part in ("train", "bench") for path in (ROOT / part).glob("*.py") if path.stem in taken]
    assert not shadows


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_one_room(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{path} has {lines} lines; split it"


@pytest.mark.parametrize("path", sorted(set(FILES) - set(PROGRAMS)), ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_has_no_effects(path: Path) -> None:
    """Modules define; they do not do."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        registered = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and "torch.library" in ast.unparse(node)
        )
        guard = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        harmless = guard in ("TYPE_CHECKING", "__name__ == '__main__'")
        assert isinstance(node, allowed) or docstring or registered or harmless, f"{path}:{node.lineno} acts on import"


def test_nothing_is_unpickled() -> None:
    banned = ("import pickle", "torch.load(", "pickle.load", "allow_pickle=True", "joblib")
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in banned if word in text], f"{path} may unpickle"

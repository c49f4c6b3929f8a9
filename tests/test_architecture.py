"""The house rules that a machine can check: layers, sizes, silence, light imports."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ivideogpt

# From the ground up. A room is a module or a folder of the package; it may import rooms on layers below its own.
LAYERS = (
    ("errors",),
    ("files", "devices", "weights"),
    ("locks", "drawing"),
    ("sequence",),
    ("data",),
    ("config",),
    ("presets", "states"),
    ("official", "published"),
    ("hub",),
    ("tokenizer", "transformer"),
    ("session",),
    ("inference",),
    ("world_model",),
    ("training",),
    ("envs",),
    ("evaluation",),
    ("planning", "rl", "serving", "benchmarks"),
    ("cli",),
    ("__main__",),
)
# Rooms that not everybody above may enter.
ONLY_FOR = {"training": {"rl", "cli", "benchmarks"}}
# What the three model rooms may not load: it is optional, slow to import, or not ours to need.
HEAVY = {
    "av",
    "cv2",
    "diffusers",
    "gym_pusht",
    "gymnasium",
    "kornia",
    "matplotlib",
    "pygame",
    "tensorboard",
    "torchvision",
    "transformers",
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ivideogpt"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE_FOLDERS = ("src", "tests", "recipes", "benchmarks", "examples")
ALL_CODE = sorted(path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import of our own package in a file, wherever it stands."""
    package = ["ivideogpt", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if is_ours(module):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "ivideogpt"


def fault_of_import(importer: str, name: str) -> str | None:
    """Why `importer`, a room, may not import `name`; None if it may."""
    parts = name.split(".")
    imported = parts[1] if len(parts) > 1 else ""
    if imported in (importer, "__version__"):
        return None
    if imported not in HEIGHT:
        return f"imports {name}, which is no room: import from the room that defines it"
    if HEIGHT[imported] >= HEIGHT[importer]:
        return f"imports {imported}, which is not on a layer below {importer}"
    if importer not in ONLY_FOR.get(imported, {importer}):
        return f"imports {imported}, which is only for {', '.join(sorted(ONLY_FOR[imported]))}"
    return None


def test_every_room_has_a_layer() -> None:
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert not rooms - set(HEIGHT), "give the new room a layer in LAYERS"


def test_rooms_import_only_from_layers_below() -> None:
    faults = []
    for path in SOURCES:
        if room_of(path) == "__init__":
            continue  # the front door: it names the public names and imports them when asked
        for line, name in imports(path):
            fault = fault_of_import(room_of(path), name)
            if fault:
                faults.append(f"{name_of(path)}:{line} {fault}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("importer", "name"),
    [
        ("tokenizer", "ivideogpt.transformer.VideoTransformer"),
        ("transformer", "ivideogpt.tokenizer"),
        ("data", "ivideogpt.config.Config"),
        ("planning", "ivideogpt.training.loop"),
        ("serving", "ivideogpt.rl"),
        ("evaluation", "ivideogpt.cli.console"),
        ("cli", "ivideogpt.WorldModel"),
    ],
)
def test_a_forbidden_import_is_found(importer: str, name: str) -> None:
    assert fault_of_import(importer, name)


@pytest.mark.parametrize(
    ("importer", "name"),
    [("rl", "ivideogpt.training.loop"), ("cli", "ivideogpt.training"), ("data", "ivideogpt.data.episode")],
)
def test_an_allowed_import_passes(importer: str, name: str) -> None:
    assert fault_of_import(importer, name) is None


def test_no_file_is_too_long() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in ALL_CODE}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_no_function_is_too_long() -> None:
    faults = []
    for path in ALL_CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    faults.append(f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines")
    assert not faults, "\n".join(faults)


def test_only_the_command_line_prints() -> None:
    faults = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        if room_of(path) != "cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not faults


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_models_load_nothing_heavy() -> None:
    statement = "import ivideogpt.tokenizer, ivideogpt.transformer, ivideogpt.world_model"
    assert not modules_after(statement) & HEAVY


def test_the_package_and_the_command_load_no_torch() -> None:
    assert not modules_after("import ivideogpt, ivideogpt.cli.main") & (HEAVY | {"torch", "numpy", "tyro"})


def test_public_names_resolve() -> None:
    for name in ivideogpt.__all__:
        assert getattr(ivideogpt, name) is not None
    with pytest.raises(AttributeError, match="WorldModle"):
        _ = ivideogpt.WorldModle  # type: ignore[attr-defined]


def test_torchvision_is_not_installed() -> None:
    """The builds that other packages pull in break a CPU install of torch."""
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("torchvision")

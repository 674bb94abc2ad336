"""Every import of the package points down: this is the list of its layers."""

import ast
from pathlib import Path

import espnet2_lamer

ROOT = Path(espnet2_lamer.__file__).parent
NAME = ROOT.name
#: Bottom to top. A package imports from its own line and from those above it here.
LAYERS = (
    "errors constants fileio compat precision parallel gpus",
    "layers",
    "metrics",
    "convert",
    "asr",
    "hubert",
    "data",
    "whisper",
    "train",
    "tasks upstream",
    "s3prl_hub",
    "registry",
    "units",
    "analysis",
    "evaluation",
    "report",
    "export",
    "recipe",
    "experiments demo",
    "bin",
)
HEIGHT = {name: height for height, line in enumerate(LAYERS) for name in line.split()}


def modules():
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join((NAME, *parts))] = path
    return found


def imported(module, path, known):
    """Yield what a module imports of the package, wherever in the file it says so."""
    package = module.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] != NAME:
                continue
            # The package itself is lazy: its names live elsewhere.
            name = f"{espnet2_lamer._HOMES.get(name.removeprefix(NAME + '.'), name)}"
            while name not in known:
                name = name.rpartition(".")[0]
            yield name


def arrows():
    known = modules()
    return {
        module: set(imported(module, path, known)) - {module, NAME}
        for module, path in known.items()
        if module != NAME
    }


def test_every_package_is_in_the_list_of_layers():
    assert {name.split(".")[1] for name in modules() if name != NAME} == set(HEIGHT)


def test_no_import_points_up():
    def height(module):
        return HEIGHT[module.split(".")[1]]

    up = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in others
        if height(other) > height(module)
    ]
    assert up == []


def test_no_imports_run_in_a_circle():
    left = arrows()
    while free := {module for module, others in left.items() if not others & {*left}}:
        left = {m: others for m, others in left.items() if m not in free}
    assert left == {}, "these import each other, or what does"

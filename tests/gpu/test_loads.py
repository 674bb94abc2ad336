"""Whatever the device, files are read onto the CPU."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = {"cpu", "meta"}


def _places(tree):
    """Values of every ``map_location``, as argument or in a dictionary of options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "map_location":
            yield node.value
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "map_location":
                    yield value


def _loads(tree):
    """Calls of ``torch.load``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            yield node


def test_no_file_is_read_onto_a_device():
    found = 0
    for folder in ("espnet2_lamer", "benchmarks", "local"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for value in _places(tree):
                passed_on = isinstance(value, ast.Name) and value.id == "map_location"
                place = getattr(value, "value", None)
                assert passed_on or place in PLACES, f"{path}:{value.lineno}"
            for call in _loads(tree):
                found += 1
                # None stands for **options, whose dictionary is among the above.
                named = {keyword.arg for keyword in call.keywords}
                assert named & {"map_location", None}, f"{path}:{call.lineno}"
    assert found

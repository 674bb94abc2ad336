"""Run by test_challenge in a fresh, isolated process: a folder, and its requirements.

Usage: only_required.py FOLDER [AUDIO ...]. Packages that are installed but neither in
requirements.txt nor asked for by those in it cannot be imported, as in an environment
that has nothing else. Writes found.json into the working directory.
"""

import importlib.abc
import importlib.metadata
import json
import runpy
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(sys.argv[1])
lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").split()
waiting = [line.split("==")[0] for line in lines]
allowed = set()
while waiting:
    name = canonicalize_name(waiting.pop())
    if name in allowed:
        continue
    allowed.add(name)
    try:
        asked = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        continue
    for one in map(Requirement, asked):
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            waiting.append(one.name)
owners = importlib.metadata.packages_distributions()
hidden = {
    module
    for module, names in owners.items()
    if not allowed & {*map(canonicalize_name, names)}
} - {"espnet2_lamer"}


class Hiding(importlib.abc.MetaPathFinder):
    """A finder that finds nothing of what would not be there."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        """Find what is not hidden."""
        if name.split(".")[0] in hidden:
            return None
        return self.finder.find_spec(name, path, target)


assert "torch" not in hidden and hidden, hidden
for name in [m for m in sys.modules if m.split(".")[0] in hidden]:
    del sys.modules[name]
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
report = Path.cwd() / "found.json"
sys.argv = [str(FOLDER / "check.py"), "--json", str(report), *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
found = json.loads(report.read_text(encoding="utf-8"))
package = sys.modules["espnet2_lamer"].__file__
found["package"] = str(Path(package).parent)
report.write_text(json.dumps(found), encoding="utf-8")

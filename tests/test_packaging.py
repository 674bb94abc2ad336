"""The package as a whole: metadata, imports, command lines, no machine's own paths."""

import ast
import configparser
import hashlib
import importlib
import importlib.metadata
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

NAME = "espnet2-lamer"
ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path.relative_to(ROOT) for path in (ROOT / "espnet2_lamer").rglob("*.py")
)
MODULES = [
    ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in SOURCES
]
COMMANDS = [
    path.stem
    for path in SOURCES
    if path.parts[1] == "bin" and path.stem not in ("__init__", "__main__", "common")
]


def _setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _requirements():
    cfg = _setup_cfg()
    text = cfg["options"]["install_requires"]
    for extra in cfg["options.extras_require"].values():
        text += extra
    found = [Requirement(line) for line in text.splitlines() if line.strip()]
    # An extra may name others of this package.
    return [requirement for requirement in found if requirement.name != NAME]


# Python's version to what was tested on it.
CONSTRAINTS = {
    path.stem.removeprefix("python"): [
        Requirement(line)
        for line in path.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    for path in sorted((ROOT / "constraints").glob("python*.txt"))
}


def _tracked_files():
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [ROOT / name for name in listing.split("\0") if name]


def test_there_are_constraints_for_every_python_that_is_named():
    named = re.findall(r"Python :: (3\.\d+)", _setup_cfg()["metadata"]["classifiers"])
    assert sorted(CONSTRAINTS) == named
    for version in CONSTRAINTS:
        assert version in SpecifierSet(_setup_cfg()["options"]["python_requires"])


@pytest.mark.parametrize("python", CONSTRAINTS)
def test_every_requirement_is_pinned_inside_its_range(python):
    pins = {canonicalize_name(pin.name): pin for pin in CONSTRAINTS[python]}
    for requirement in _requirements():
        marker = requirement.marker
        if marker is not None and not marker.evaluate({"python_version": python}):
            continue
        pin = pins[canonicalize_name(requirement.name)]
        (version,) = pin.specifier
        assert requirement.specifier.contains(version.version), (requirement, pin)


@pytest.mark.parametrize("python", CONSTRAINTS)
def test_constraints_are_exact_versions_without_paths(python):
    for pin in CONSTRAINTS[python]:
        assert pin.url is None, pin
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin


def test_every_third_party_import_is_a_declared_requirement():
    declared = {canonicalize_name(requirement.name) for requirement in _requirements()}
    providers = importlib.metadata.packages_distributions()
    local = {path.stem for path in (ROOT / "local").glob("*.py")}
    undeclared = {}
    for path in [*SOURCES, *(p.relative_to(ROOT) for p in ROOT.glob("local/*.py"))]:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in {name.partition(".")[0] for name in names}:
                if name in sys.stdlib_module_names or name in {"espnet2_lamer", *local}:
                    continue
                owners = {canonicalize_name(d) for d in providers.get(name, [name])}
                if not owners & declared:
                    undeclared.setdefault(name, []).append(str(path))
    assert not undeclared


def test_license_is_the_unmodified_apache_text():
    # The digest of https://www.apache.org/licenses/LICENSE-2.0.txt.
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert _setup_cfg()["metadata"]["license"] == "Apache-2.0"


def test_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == _setup_cfg()["metadata"]["version"]


def test_no_tracked_file_names_a_path_of_one_machine():
    private = re.compile(rb"(?<![\w.-])/(?:work|root|home/\w|Users/\w)[/\w]")
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in _tracked_files()
        if path.is_file() and b"\0" not in (content := path.read_bytes())
        for match in [private.search(content)]
        if match
    ]
    assert not found


def test_every_config_is_a_yaml_mapping():
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(value, dict), path


@pytest.mark.parametrize("name", ["espnet2_lamer", "espnet2_lamer.layers"])
def test_light_modules_load_neither_espnet_nor_s3prl(name):
    code = (
        f"import sys, {name}; "
        "print(sorted({m.partition('.')[0] for m in sys.modules}"
        " & {'espnet', 'espnet2', 's3prl', 'transformers'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_line_explains_itself(name, capsys):
    module = importlib.import_module(f"espnet2_lamer.bin.{name}")
    assert module.get_parser().format_help()
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_tests_cannot_reach_the_network():
    with pytest.raises(RuntimeError, match="offline"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="offline"):
        socket.getaddrinfo("huggingface.co", 443)

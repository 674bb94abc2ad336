"""The wheel, installed where no checkout is, does what docs/library.md shows."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")


def run(*words, **options):
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Sdist of the checkout, and the wheel made of that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    ignored = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "exp*",
        "dump*",
        "data_*",
        "downloads",
        "_build",
        "__pycache__",
    )
    source.mkdir()
    for name in (
        "egs2",
        "espnet2_lamer",
        "conf",
        "constraints",
        "local",
        "docs",
        "tests",
    ):
        keep = name in ("espnet2_lamer", "conf")
        shutil.copytree(
            ROOT / name, source / name, ignore=None if keep else ignored, symlinks=True
        )
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source / path.name)
    code = "import setuptools.build_meta as b, sys; print(b.build_{}(sys.argv[1]))"
    sdist = run(sys.executable, "-c", code.format("sdist"), folder, cwd=source)
    with tarfile.open(folder / sdist.split()[-1]) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    wheel = run(sys.executable, "-c", code.format("wheel"), folder, cwd=unpacked)
    return unpacked, folder / wheel.split()[-1]


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """An environment with the wheel, with this one's other packages beside it."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    # A plain line is a folder to look in: what lies there is found, but no .pth file
    # of it is read, so that the checkout stays out. That of setuptools, which stands in
    # for distutils from Python 3.12 on, is repeated here.
    (site / "others.pth").write_text(
        sysconfig.get_paths()["purelib"]
        + "\nimport _distutils_hack; _distutils_hack.add_shim()\n"
    )
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", distributions[1])
    shutil.copy(
        ROOT / "tests/fixtures/version_0_1_0/packed.zip", folder / "ssl_lamer.zip"
    )
    for name in ("a.wav", "b.wav"):
        soundfile.write(folder / name, torch.randn(16000).numpy() * 0.1, 16000)
    return folder


def test_the_checkout_is_not_seen(installed):
    where = run(
        "venv/bin/python", "-c", "import espnet2_lamer as l; print(l.__file__)",
        cwd=installed,
    )  # fmt: skip
    assert Path(where.strip()).is_relative_to(installed / "venv")


def test_python_of_the_page_runs(installed):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    code = "\n".join(blocks) + "\nprint(len(states), *states[1].shape[:2], frames)"
    printed = run("venv/bin/python", "-c", code, cwd=installed).splitlines()
    assert printed[-1].split() == ["3", "1", "49", "None"]


def test_extract_of_the_page_writes_features(installed):
    (line,) = re.findall(r"`(lamer extract [^`]+)`", PAGE)
    words = line.replace("--layer 9", "--layer 1").split()
    run("venv/bin/" + words[0], *words[1:], cwd=installed)
    with zipfile.ZipFile(installed / "features.npz") as archive:
        assert sorted(archive.namelist()) == ["a.npy", "b.npy"]


@pytest.mark.slow
def test_s3prl_knows_the_upstream(installed):
    code = (
        "import espnet2_lamer; espnet2_lamer.register(s3prl=True); import s3prl.hub; "
        "print(hasattr(s3prl.hub, 'lamer_ssl_local'))"
    )
    assert run("venv/bin/python", "-c", code, cwd=installed).split()[-1] == "True"


def test_every_command_of_the_page_has_help(installed):
    text = run("venv/bin/lamer", "--help", cwd=installed)
    named = set(re.findall(r"`lamer (\w+)", PAGE))
    assert named and named <= set(re.findall(r"^  (\w+) ", text, re.MULTILINE))
    for name in sorted(named):
        assert f"usage: lamer {name}" in run(
            "venv/bin/lamer", name, "--help", cwd=installed
        )


def test_an_unknown_command_is_named(installed):
    done = subprocess.run(
        [installed / "venv/bin/lamer", "extrct"], capture_output=True, text=True
    )
    assert (
        done.returncode == 2 and "'extrct'" in done.stdout and "extract" in done.stdout
    )


def test_the_wheel_holds_the_package_alone(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"espnet2_lamer"}
    assert "espnet2_lamer/py.typed" in names
    assert any(name.endswith(".jinja") for name in names)


def test_the_source_distribution_holds_recipe_configs_and_tests(distributions):
    source = distributions[0]
    for name in (
        "egs2/lamer_ssl/ssl1/run.sh conf/train_ssl_lamer.yaml tests/conftest.py "
        "egs2/lamer_ssl/ssl1/mini/SHA256SUMS Makefile constraints/python3.11.txt"
    ).split():
        assert (source / name).is_file(), name

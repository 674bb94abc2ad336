"""What ESPnet would be sent: small, clean by its own checkers, and the same model."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet2_lamer.bin.espnet_tree import main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.espnet_pull_request import (
    ONE_HEAD,
    TASK_FILE,
    write_pull_request,
)
from tests.export.espnet_checkout import DB, INDEX, copy_espnet2, write_checkout

ROOT = Path(__file__).parents[2]
SSL1 = "egs2/lamer_ssl/ssl1"


def files_below(root):
    return {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = write_checkout(tmp_path_factory.mktemp("espnet"))
    copy_espnet2(root)
    return root


@pytest.fixture(scope="module")
def parts(checkout, tmp_path_factory):
    """Files of core and of recipe, by ESPnet's paths."""
    output = tmp_path_factory.mktemp("pull_request")
    before = {name: path.stat().st_mtime_ns for name, path in walk(checkout)}
    main([f"--checkout={checkout}", f"--repository={ROOT}", f"--pull_request={output}"])
    assert {n: path.stat().st_mtime_ns for n, path in walk(checkout)} == before
    assert {path.name for path in output.iterdir()} == {"core", "recipe"}
    return {name: files_below(output / name) for name in ("core", "recipe")}


def walk(root):
    return files_below(root).items()


@pytest.fixture(scope="module")
def merged(checkout, parts, tmp_path_factory):
    """ESPnet after both were merged."""
    root = tmp_path_factory.mktemp("merged") / "espnet"
    shutil.copytree(checkout, root, symlinks=True)
    for files in parts.values():
        for name, path in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, root / name, follow_symlinks=False)
    return root


def count_lines(path):
    return 1 if path.is_symlink() else len(path.read_text().splitlines())


def test_each_part_is_small_enough_to_be_read(checkout, parts):
    core, recipe = parts["core"], parts["recipe"]
    old = len((checkout / TASK_FILE).read_text().splitlines())
    assert sum(map(count_lines, core.values())) - old < 1000
    assert len(core) < 20
    # Everything is counted: links, copies of ESPnet's files, and its changed ones.
    assert len(recipe) < 20
    old = len(INDEX.splitlines()) + len(DB.splitlines())
    assert sum(map(count_lines, recipe.values())) - old < 1500
    assert not core.keys() & recipe.keys()


def test_the_core_has_encoder_model_entries_and_tests(checkout, parts):
    names = parts["core"].keys()
    assert {
        "espnet2/asr/encoder/lamer_hubert_encoder.py",
        "espnet2/hubert/lamer_espnet_model.py",
        "test/espnet2/asr/encoder/test_lamer_hubert_encoder.py",
        "test/espnet2/hubert/test_lamer_espnet_model.py",
        "test/espnet2/layers/test_lamer.py",
    } < names
    assert all(name.startswith(("espnet2/", "test/espnet2/")) for name in names)
    assert [name for name in names if (checkout / name).exists()] == [TASK_FILE]
    before = (checkout / TASK_FILE).read_text().splitlines()
    after = parts["core"][TASK_FILE].read_text().splitlines()
    assert len(after) == len(before) + 4
    assert [line for line in after if "amer" not in line] == before
    for path in parts["core"].values():
        assert "espnet2_lamer" not in path.read_text(), path


def test_the_recipe_is_what_is_laid_into_a_checkout_and_nothing_it_names_is_missing(
    parts, merged, checkout
):
    recipe = parts["recipe"]
    theirs = {"egs2/README.md", "egs2/TEMPLATE/asr1/db.sh"}
    assert {name for name in recipe if not name.startswith(SSL1)} == theirs
    assert os.access(recipe["egs2/TEMPLATE/asr1/db.sh"], os.X_OK)
    assert os.access(recipe[f"{SSL1}/run.sh"], os.X_OK)
    for name, path in recipe.items():
        if path.is_symlink():
            assert (merged / name).exists(), f"{name} leads nowhere"
    template = checkout / "egs2/TEMPLATE/asr1/cmd.sh"
    assert recipe[f"{SSL1}/cmd.sh"].read_bytes() == template.read_bytes()
    for preset in ("mini", "paper"):
        text = recipe[f"{SSL1}/conf/presets/{preset}.sh"].read_text()
        named = re.findall(r"=(conf/\S+)", text)
        assert len(named) == 4
        assert {f"{SSL1}/{name}" for name in named} <= recipe.keys()


def test_one_config_does_for_two_heads_since_their_values_are_the_same():
    several, lid = (
        yaml.safe_load((ROOT / "conf" / name.decode()).read_text()) for name in ONE_HEAD
    )
    assert several == lid


def test_run_sh_accepts_both_presets_of_the_pull_request(merged):
    for preset in ("mini", "paper"):
        done = subprocess.run(
            ["./run.sh", "--python", sys.executable, "--preset", preset]
            + ["--print_commands", "true"],
            cwd=merged / SSL1,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        assert "# stage 14: upload" in done.stdout or "# stage 13" in done.stdout


def lint(command, cwd, skip):
    pytest.importorskip(skip, reason="comes with the extra lint")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [["black", "--check", "--quiet"], ["isort", "--check-only"], ["pycodestyle"]],
    ids=lambda command: command[0],
)
def test_python_files_pass_espnets_checkers_with_its_settings(parts, merged, command):
    names = [name for name in parts["core"] if name.endswith(".py")]
    assert len(names) > 8
    # From its top directory: there are its settings, and espnet2 is the package itself.
    lint([sys.executable, "-m", *command, *names], merged, command[0])


def test_scripts_pass_shellcheck_with_espnets_flags(merged):
    program = Path(sys.executable).with_name("shellcheck")
    if not program.exists():
        pytest.skip("shellcheck comes with the extra lint")
    flags = "-Calways -x -e SC2001 -e SC1091 -e SC2086".split()
    names = ["run.sh", "local/path.sh", "conf/presets/mini.sh", "conf/presets/paper.sh"]
    done = subprocess.run(
        [program, *flags, *names], cwd=merged / SSL1, capture_output=True, text=True
    )
    assert not re.search(r"SC[0-9]{4}", done.stdout), done.stdout
    assert done.returncode == 0, done.stderr


def test_texts_pass_the_pre_commit_hooks(parts):
    for part, files in parts.items():
        for name, path in files.items():
            if path.is_symlink():
                continue
            text = path.read_bytes().decode()
            if text:
                assert text.endswith("\n") and not text.endswith("\n\n"), name
            assert "\r" not in text and path.stat().st_size < 500_000, name
            # ESPnet's own table may have a tab or blank at the end of a line.
            if part == "core" or name.startswith(SSL1):
                assert not re.search(r"[ \t]+$", text, re.MULTILINE), name


def run_merged(merged, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=merged,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{merged}{os.pathsep}{ROOT}"},
        timeout=400,
    )


@pytest.mark.slow
def test_the_cores_own_tests_pass_in_espnet(parts, merged):
    names = [name for name in parts["core"] if name.startswith("test/")]
    flags = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=."]
    done = run_merged(merged, "-m", "pytest", *flags, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d\d passed", done.stdout.splitlines()[-1]), done.stdout


def test_espnet_with_the_core_is_the_same_model_as_this_package(merged):
    done = run_merged(merged, ROOT / "tests/export/core_is_the_package.py")
    assert done.stdout.splitlines()[-1:] == ["the same"], done.stderr


def test_writing_it_again_changes_nothing_and_other_files_are_left_alone(
    checkout, tmp_path
):
    (tmp_path / "core").mkdir()
    assert len(write_pull_request(ROOT, checkout, tmp_path)) > 20
    assert write_pull_request(ROOT, checkout, tmp_path) == []
    script = tmp_path / "recipe" / SSL1 / "run.sh"
    script.write_text(script.read_text() + "# mine\n")
    shutil.rmtree(tmp_path / "core")
    with pytest.raises(RecipeError, match="recipe: holds other files .* remove it, or"):
        write_pull_request(ROOT, checkout, tmp_path)
    assert script.read_text().endswith("# mine\n")
    # Nothing half-written.
    assert not (tmp_path / "core").exists()


def test_an_espnet_whose_task_changed_is_refused_by_name(checkout, tmp_path):
    root = tmp_path / "espnet"
    shutil.copytree(checkout, root, symlinks=True)
    task = root / TASK_FILE
    task.write_text(task.read_text().replace("torchaudio_hubert=", "renamed="))
    with pytest.raises(RecipeError, match="hubert.py: found 'torchaudio_hubert=.* 0 "):
        write_pull_request(ROOT, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    task.unlink()
    with pytest.raises(RecipeError, match="no espnet2/tasks/hubert.py; expected the "):
        write_pull_request(ROOT, root, tmp_path / "out")

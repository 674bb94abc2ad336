"""The recipe in an ESPnet checkout keeps to ESPnet's published rules for recipes.

The rules are those of its CONTRIBUTING, ``ci/test_configuration_espnet2.sh``,
``ci/test_shell_espnet2.sh``, ``ci/test_python_espnet2.sh`` and pre-commit hooks. The
checkout here is a stand-in that we wrote: the files that the recipe links to or copies.
"""

import difflib
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
from espnet2_lamer.export.espnet_tree import VARIABLES, add_row, add_variables, lay_tree
from tests.export.espnet_checkout import DB, INDEX, write_checkout

ROOT = Path(__file__).parents[2]
# Globs that its configuration test builds with stock classes.
BUILT_BY_CI = (
    *("egs2/*/asr1/conf/train_asr*.yaml", "egs2/*/asr1/conf/train_lm*.yaml"),
    *("egs2/*/tts1/conf/train*.yaml", "egs2/*/enh1/conf/train*.yaml"),
    *("egs2/*/ssl1/conf/train*.yaml", "egs2/*/enh_asr1/conf/train_enh_asr*.yaml"),
)
IDENTICAL = ("cmd.sh", "conf/slurm.conf", "conf/queue.conf", "conf/pbs.conf")


def snapshot(root):
    """Content, link target and mode of everything."""
    return {
        path.relative_to(root).as_posix(): (
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
            path.lstat().st_mode,
        )
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = write_checkout(tmp_path_factory.mktemp("espnet"))
    main([f"--checkout={root}", f"--repository={ROOT}"])
    return root


@pytest.fixture(scope="module")
def recipes(checkout):
    found = sorted(path.parent for path in checkout.glob("egs2/lamer_ssl/*/run.sh"))
    assert checkout / "egs2/lamer_ssl/ssl1" in found
    return found


def files_of(recipes, *suffixes):
    return [
        path
        for recipe in recipes
        for path in sorted(recipe.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.suffix in suffixes
    ]


def test_shared_files_are_relative_links_into_the_template(checkout, recipes):
    for recipe in recipes:
        links = {p.name: os.readlink(p) for p in recipe.rglob("*") if p.is_symlink()}
        assert links.keys() == {
            *("path.sh", "db.sh", "scripts", "pyscripts", "steps", "utils")
        }
        for name, target in links.items():
            assert re.fullmatch(rf"\.\./\.\./TEMPLATE/(ssl1|asr1)/{name}", target)
            assert (recipe / name).exists(), name
    assert (
        os.readlink(checkout / "egs2/lamer_ssl/ssl1/path.sh")
        == "../../TEMPLATE/ssl1/path.sh"
    )


def test_files_that_must_be_identical_in_all_recipes_are(checkout, recipes):
    for recipe in recipes:
        for name in IDENTICAL:
            template = checkout / "egs2/TEMPLATE/asr1" / name
            assert (recipe / name).read_bytes() == template.read_bytes()
            assert not (recipe / name).is_symlink()


def test_own_files_are_files_where_this_repository_has_links(recipes):
    for recipe in recipes:
        for name in ("conf", "local"):
            assert (recipe / name).is_dir() and not (recipe / name).is_symlink()
        assert os.access(recipe / "run.sh", os.X_OK)


def test_the_configuration_test_of_all_recipes_meets_none_of_our_configs(checkout):
    for pattern in BUILT_BY_CI:
        assert not list(checkout.glob(pattern)), pattern
    # The same globs do meet those of this repository: something was moved.
    assert list(ROOT.glob("egs2/lamer_ssl/ssl1/conf/train*.yaml"))


def test_no_config_is_lost_and_every_config_that_is_named_is_there(recipes):
    here = {path.name for path in (ROOT / "conf").rglob("*.yaml")}
    there = {p.name for recipe in recipes for p in (recipe / "conf").rglob("*.yaml")}
    assert here - there <= {n for n in here if "whisper" in n}
    for recipe in recipes:
        for path in files_of([recipe], ".sh", ".yaml", ".md"):
            named = re.findall(
                r"(?<![\w/])conf/[\w/.-]+\.(?:yaml|sh)\b", path.read_text()
            )
            for name in named:
                if "NAME" not in name:
                    assert (recipe / name).is_file(), f"{path} names {name}"


def test_shellcheck_with_espnets_flags_finds_nothing(recipes):
    flags = "-Calways -x -e SC2001 -e SC1091 -e SC2086".split()
    program = Path(sys.executable).with_name("shellcheck")
    if not program.exists():
        pytest.skip("shellcheck comes with the extra lint")
    for recipe in recipes:
        scripts = [p.relative_to(recipe) for p in files_of([recipe], ".sh")]
        assert Path("run.sh") in scripts
        scripts.remove(Path("cmd.sh"))  # ESPnet's
        done = subprocess.run(
            [program, *flags, *scripts], cwd=recipe, capture_output=True, text=True
        )
        assert not re.search(r"SC[0-9]{4}", done.stdout), done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["black", "--check", "--quiet"],
        ["isort", "--profile", "black", "--check-only"],
        ["pycodestyle", "--max-line-length=88", "--ignore=E203,W503"],
    ],
    ids=lambda command: command[0],
)
def test_python_files_pass_espnets_own_checkers(recipes, command, tmp_path):
    pytest.importorskip(command[0], reason="comes with the extra lint")
    scripts = files_of(recipes, ".py")
    assert scripts
    done = subprocess.run(
        [sys.executable, "-m", *command, *scripts],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_files_have_a_parser(recipes):
    for path in files_of(recipes, ".py"):
        assert "def get_parser(" in path.read_text(), path


def test_texts_pass_the_pre_commit_hooks(recipes):
    for path in files_of(recipes, ".sh", ".py", ".yaml", ".md", ".json", ".conf"):
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n") and not text.endswith("\n\n"), path
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), path
        if path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(text), dict), path


def test_what_is_too_large_for_a_repository_lies_where_git_does_not_look(checkout):
    if shutil.which("git") is None:
        pytest.skip("git is needed to ask what it ignores")
    shown = subprocess.run(
        ["git", "-c", "init.defaultBranch=x", "init", "-q"], cwd=checkout, check=False
    )
    assert shown.returncode == 0
    listed = subprocess.run(
        ["git", "ls-files", "-o", "--exclude-standard", "-z"],
        cwd=checkout,
        capture_output=True,
        check=True,
    ).stdout.decode()
    names = listed.strip("\0").split("\0")
    assert "egs2/lamer_ssl/ssl1/run.sh" in names
    for name in names:
        assert (checkout / name).lstat().st_size < 500_000, f"{name} is a large file"
    mini = checkout / "egs2/lamer_ssl/ssl1/downloads/mini"
    for name in ("base", "teacher"):
        assert (mini / name / "model.safetensors").stat().st_size > 3_000_000


def test_the_readme_has_the_form_of_espnets_recipes(checkout):
    text = (checkout / "egs2/lamer_ssl/ssl1/README.md").read_text()
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    assert "# RESULTS" in lines and "## Environments" in lines
    for name in ("date", "python version", "espnet version", "pytorch version"):
        assert re.search(rf"^- {name}: `", text, re.MULTILINE), name
    assert re.search(r"^- Git hash: `\w{40}`", text, re.MULTILINE)
    header = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|"
    assert re.search(
        rf"^### [CWT]ER.*\n\n{re.escape(header)}\n(\|---)+\|\n", text, re.MULTILINE
    )
    # Links lead to the web: other files of this repository are not there.
    assert not re.search(r"\]\((?!https?://|#)", text)


def test_no_path_of_one_machine_is_laid_out(recipes):
    for path in files_of(recipes, ".sh", ".py", ".yaml", ".md"):
        text = path.read_text()
        assert not re.search(r"/(home|root|work|Users)/\w", text), path
        assert "CUDA_VISIBLE_DEVICES" not in text


def added_lines(before, after):
    """Lines that came in; nothing else may differ."""
    found = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    assert not [line for line in found if line.startswith("- ")]
    return [line[2:] for line in found if line.startswith("+ ")]


def test_the_index_has_one_row_in_its_place_and_keeps_the_rest(checkout):
    text = (checkout / "egs2/README.md").read_text()
    (row,) = added_lines(INDEX, text)
    # The last rows of the table are out of order, as the newest of ESPnet's are.
    lines = text.splitlines()
    place = lines.index(row)
    assert lines[place - 1].startswith("| laborotv ")
    assert lines[place + 1].startswith("| libriheavy_medium ")
    assert row.startswith("| lamer_ssl |") and row.count("|") == 7
    assert add_row(text) == text
    assert add_row("no table\n") == "no table\n"


@pytest.mark.parametrize(
    ("names", "place"), [("aishell", 1), ("zeroth", 0), ("kss lrs2 wsj an4", 1)]
)
def test_the_row_comes_first_or_last_where_that_is_its_place(names, place):
    table = "".join(f"| {name} | x |\n" for name in ("Name", "--", *names.split()))
    rows = add_row(table).splitlines()[2:]
    assert [row.split()[1] for row in rows].index("lamer_ssl") == place


def test_db_sh_gets_the_corpora_that_it_lacks_and_no_other_line(checkout):
    text = (checkout / "egs2/TEMPLATE/asr1/db.sh").read_text()
    lacking = ["MHUBERT147_AUDIO=", "MHUBERT147_MANIFEST=", "MLSUPERB2="]
    assert added_lines(DB, text) == lacking
    added = "\n".join(["NOISE=  # a local path", *lacking, "\n\n# For only one site\n"])
    assert added in text
    assert add_variables(text) == text
    general, _ = text.split("# For only one site")
    assert set(VARIABLES) < set(re.findall(r"^(\w+)=", general, re.MULTILINE))
    assert add_variables("AN4=x").startswith("AN4=x\nAISHELL=\nAISHELL3=")


def run(checkout, *arguments, **options):
    return subprocess.run(
        ["./run.sh", *arguments],
        cwd=checkout / "egs2/lamer_ssl/ssl1",
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def test_run_sh_shows_its_help_there(checkout):
    here = subprocess.run(
        ["./run.sh", "--python", sys.executable, "--help"],
        cwd=ROOT / "egs2/lamer_ssl/ssl1",
        capture_output=True,
        text=True,
    )
    there = run(checkout, "--python", sys.executable, "--help")
    assert there.returncode == 0 and there.stderr == ""
    # ESPnet's path.sh says something first.
    shown = there.stdout.partition("is not present\n")[2]
    # Longer names are wrapped elsewhere.
    here = here.stdout.replace("(conf/train_", "(conf/tuning/train_")
    here = here.replace("(mini/", "(downloads/mini/")
    assert shown.split() == here.split()


def test_run_sh_starts_through_espnets_launcher_with_espnets_corpora(
    checkout, tmp_path
):
    # What would run, instead of running it; --python is two words, as in ESPnet's CI.
    probe = tmp_path / "probe"
    probe.write_text('#!/usr/bin/env bash\necho "$@"\nenv\n')
    probe.chmod(0o755)
    options = ("--expdir", str(tmp_path / "exp"), "--new_langs", "cmn yue")
    done = run(
        checkout,
        *("--python", f"{probe} run", *options, "--stage", "3"),
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    log = tmp_path / "exp/logs/run.log"
    assert done.stderr == f"run.sh: by run.pl; what it does stands in {log}\n"
    lines = log.read_text().splitlines()
    command, *environment = (line for line in lines if not line.startswith("#"))
    assert command.startswith("run -m espnet2_lamer.bin.recipe --python ")
    assert command.endswith("--new_langs cmn yue --stage 3")
    preset = (checkout / "egs2/lamer_ssl/ssl1/conf/presets/mini.sh").read_text()
    assert "ssl_config=conf/tuning/train_ssl_lamer_mini.yaml" in preset
    assert "AISHELL1=/corpora/aishell" in environment
    # "downloads" names no folder.
    assert "COMMONVOICE=" in environment and "MLSUPERB=" in environment
    wrong = run(checkout, "--python", sys.executable, "--no_such_option", "1")
    assert wrong.returncode == 2 and "unrecognized arguments" in wrong.stderr


def test_laying_it_again_changes_nothing(checkout):
    before = snapshot(checkout)
    assert lay_tree(ROOT, checkout) == []
    assert snapshot(checkout) == before


def test_what_changed_here_is_brought_up_to_date_there(tmp_path):
    repository, root = tmp_path / "here", write_checkout(tmp_path / "espnet")
    for name in ("egs2", "conf", "local"):
        shutil.copytree(
            ROOT / name,
            repository / name,
            symlinks=True,
            ignore=shutil.ignore_patterns(
                "exp*", "dump*", "data", "data_*", "downloads", "*.pyc"
            ),
        )
    lay_tree(repository, root)
    recipe = root / "egs2/lamer_ssl/ssl1"
    (recipe / "exp").mkdir()
    (recipe / "exp" / "mine").write_text("a result")
    changed = repository / "conf/upstreams/milore.yaml"
    changed.write_text(changed.read_text() + "# more\n")
    (repository / "local/data.py").unlink()
    written = lay_tree(repository, root)
    assert written == [recipe / "conf/upstreams/milore.yaml"]
    assert written[0].read_text().endswith("# more\n")
    assert not (recipe / "local/data.py").exists()
    assert (recipe / "exp" / "mine").read_text() == "a result"


@pytest.mark.parametrize("name", ["run.sh", "local/path.sh", "db.sh"])
def test_files_of_others_are_never_overwritten(tmp_path, name):
    root = write_checkout(tmp_path)
    foreign = root / "egs2/lamer_ssl/ssl1" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("somebody's work\n")
    before = snapshot(root)
    with pytest.raises(RecipeError, match=f"1 files .* first .*/{name}; move them"):
        lay_tree(ROOT, root)
    assert snapshot(root) == before


def test_changes_made_there_are_not_overwritten_either(tmp_path):
    root = write_checkout(tmp_path)
    lay_tree(ROOT, root)
    edited = root / "egs2/lamer_ssl/ssl1/run.sh"
    edited.write_text(edited.read_text() + "# mine\n")
    with pytest.raises(RecipeError, match="run.sh; move them away, or keep your"):
        lay_tree(ROOT, root)
    assert edited.read_text().endswith("# mine\n")


def test_another_directory_is_no_checkout(tmp_path):
    with pytest.raises(RecipeError, match="expected the top directory of an ESPnet ch"):
        main([f"--checkout={tmp_path}", f"--repository={ROOT}"])
    root = write_checkout(tmp_path)
    with pytest.raises(RecipeError, match="expected the top directory of this project"):
        main([f"--checkout={root}", f"--repository={tmp_path}"])
    assert not (root / "egs2/lamer_ssl").exists()

"""Lay the recipes into an ESPnet checkout, in the form that ESPnet keeps its own."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import (
    atomic_dir,
    atomic_path,
    link,
    write_json,
    write_text,
)

CORPUS = "lamer_ssl"
TASKS = ("ssl1", "asr1")
TEMPLATE = "egs2/TEMPLATE"
# As TEMPLATE's setup.sh: links to the task's own template, links to ASR's, copies.
TASK_LINKS = ("path.sh", "scripts")
ASR_LINKS = ("db.sh", "pyscripts", "steps", "utils")
COPIES = ("cmd.sh", "conf/pbs.conf", "conf/queue.conf", "conf/slurm.conf")
# Own files; conf and local are links here and folders there.
PATTERNS = (
    "run.sh mini/SHA256SUMS mini/*/* conf/**/*.yaml conf/**/*.sh "
    "conf/**/*.csv local/*.py"
).split()
# Where ESPnet's .gitignore looks away: the checkpoints are too large for it.
MINI = "downloads/mini"
_MINI = re.compile(r"(?<![\w/])mini/(?=base|teacher)")
# ESPnet's tests build every conf/train*.yaml with classes of its own.
_CONFIG = re.compile(r"(?<![\w/])conf/train_")
# Each must be found, or run.sh changed and this list must follow.
_SHELL = (
    (". ../utils/options.sh\n", "export_corpora\n"),
    # ESPnet's launchers want a log file; --python may be several words.
    (
        'exec ${train_cmd} "${python}"',
        'launch "$(given expdir exp "$@")/logs/run.log" "$(given ngpu 0 "$@")" '
        "${python}",
    ),
    ('"${python}" -m', "${python} -m"),
)

# What a new recipe adds to the table of egs2/README.md.
ROW = (
    "| lamer_ssl | Lamer-SSL: Common Voice, THCHS-30, AISHELL-1/3, FLEURS, ML-SUPERB | "
    "SSL/ASR/LID | ENG, CMN, YUE | https://arxiv.org/abs/2602.12746 | |"
)
# Names of corpora in db.sh; AISHELL-1 is AISHELL there.
VARIABLES = (
    "AISHELL AISHELL3 COMMONVOICE FLEURS MHUBERT147_AUDIO MHUBERT147_MANIFEST MLSUPERB "
    "MLSUPERB2 THCHS30"
).split()


# Of a file, or the target of a symbolic link.
Content = bytes | str


def lay_tree(repository: str | Path, checkout: str | Path) -> list[Path]:
    """Write every recipe to ``<checkout>/egs2/lamer_ssl/<task>``; return what changed.

    Files of others are never overwritten; run again, it changes only what changed in
    ``repository``, this project's top directory. ``egs2/README.md`` gets a row and
    ``db.sh`` the corpora it lacks.

    Raises:
        RecipeError: It is no ESPnet checkout, or a file of others is in the way; then
            nothing was written.
    """
    repository, checkout = Path(repository), Path(checkout)
    check_places(repository, checkout)
    # What was written is noted where nothing is committed.
    inside, record = checkout / ".git", f"{CORPUS}_tree.json"
    record = inside / record if inside.is_dir() else checkout / f".{record}"
    known: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    trees = {
        Path("egs2", CORPUS, task): dict(recipe_files(repository, checkout, task))
        for task in TASKS
        if (repository / "egs2" / CORPUS / task / "run.sh").is_file()
    }
    wanted = {
        (folder / name).as_posix(): content
        for folder, files in trees.items()
        for name, content in files.items()
    }
    foreign = [
        name
        for name, content in wanted.items()
        if (found := digest_at(checkout / name)) is not None
        and found not in (digest_of(content), known.get(name))
    ]
    if foreign:
        raise RecipeError(
            f"{checkout}: {len(foreign)} files are not as this program left them, "
            f"first {foreign[0]}; move them away, or keep your changes in this "
            "repository"
        )
    written = []
    for folder, files in trees.items():
        there = checkout / folder
        changed = {
            name: content
            for name, content in files.items()
            if digest_at(there / name) != digest_of(content)
        }
        # A new recipe appears whole.
        with nullcontext(there) if there.exists() else atomic_dir(there) as place:
            for name, content in changed.items():
                put(place / name, content)
        written += [there / name for name in changed]
    for name in sorted(set(known) - set(wanted)):
        if digest_at(checkout / name) == known[name]:
            (checkout / name).unlink()
    write_json(record, {name: digest_of(content) for name, content in wanted.items()})
    for name, change in CHANGES.items():
        path = checkout / name
        text = path.read_text(encoding="utf-8")
        if (changed := change(text)) != text:
            mode = path.stat().st_mode
            write_text(path, changed)
            path.chmod(mode)
            written.append(path)
            logging.info("added to %s", path)
    return written


def check_places(repository: Path, checkout: Path, *others: str) -> None:
    """Refuse other directories than these; ``others`` are needed of ESPnet's, too."""
    theirs = (f"{TEMPLATE}/asr1/cmd.sh", f"{TEMPLATE}/asr1/db.sh", "egs2/README.md")
    for root, name, what in (
        *((checkout, name, "an ESPnet checkout") for name in (*theirs, *others)),
        (repository, f"egs2/{CORPUS}/ssl1/run.sh", "this project"),
    ):
        if not (root / name).is_file():
            raise RecipeError(
                f"{root}: no {name}; expected the top directory of {what}"
            )


def recipe_files(
    repository: Path, checkout: Path, task: str
) -> Iterator[tuple[str, Content]]:
    """Yield path below the recipe's folder, and what belongs there."""
    recipe = repository / "egs2" / CORPUS / task
    template = checkout / TEMPLATE
    for name in (*TASK_LINKS, *ASR_LINKS, *COPIES):
        of_task = name not in ASR_LINKS and (template / task / name).exists()
        source = template / (task if of_task else "asr1") / name
        if source.exists() and name in COPIES:
            yield name, source.read_bytes()
        elif source.exists():
            yield name, f"../../TEMPLATE/{source.relative_to(template)}"
    shared = repository / "egs2" / CORPUS / "espnet"
    yield "README.md", _readme(recipe, shared, task)
    found = {path for pattern in PATTERNS for path in recipe.glob(pattern)}
    texts = {}
    for path in sorted(filter(Path.is_file, found)):
        name = path.relative_to(recipe).as_posix()
        if name.startswith("mini/"):
            yield name.replace("mini", MINI, 1), path.read_bytes()
        elif _belongs(path.relative_to(recipe), task):
            texts[name] = path.read_text(encoding="utf-8")
    # One file for all that run.sh needs beside ESPnet's own.
    first = (shared / "path.sh").read_text(encoding="utf-8")
    _, _, second = (
        (shared.with_name("utils") / "options.sh")
        .read_text(encoding="utf-8")
        .partition("\n")
    )
    texts["local/path.sh"] = f"{first}\n{second}"
    for old, new in _SHELL:
        if old not in texts["run.sh"]:
            raise RecipeError(
                f"{recipe / 'run.sh'}: found no {old!r}; the script changed, and "
                f"{__name__} must follow"
            )
        texts["run.sh"] = texts["run.sh"].replace(old, new)
    for name, text in texts.items():
        if name.startswith("conf/train_"):
            name = name.replace("conf/", "conf/tuning/")
        yield name, (text if name.endswith(".py") else _moved(text)).encode()


def _belongs(path: Path, task: str) -> bool:
    """Whether a config is this recipe's: those of Whisper are named so."""
    if path.parts[0] != "conf":
        return True
    of_whisper = "whisper" in path.as_posix()
    shared = path.name.startswith("decode") and not of_whisper
    return shared or of_whisper == (task == "asr1")


def _readme(recipe: Path, shared: Path, task: str) -> bytes:
    """The recipe's README, and its results below, as ESPnet has them."""
    paths = [(shared if task == "ssl1" else recipe) / "README.md"]
    if (recipe / "RESULTS.md").is_file():
        paths.append(recipe / "RESULTS.md")
    texts = (path.read_text(encoding="utf-8").strip() for path in paths)
    text = "\n\n".join(texts) + "\n"
    # Links to files of this repository lead nowhere there.
    text = re.sub(r"\[([^]]+)\]\((?!https?://|#)[^)]*\)", r"\1", text)
    return _moved(text).encode()


def _moved(text: str) -> str:
    """Name files where they lie there."""
    return _MINI.sub(f"{MINI}/", _CONFIG.sub("conf/tuning/train_", text))


def put(path: Path, content: Content) -> None:
    """Write a file or link at once, and its folder."""
    if isinstance(content, str):
        link(path, content)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        if path.name == "run.sh":
            temporary.chmod(0o755)


def digest_of(content: Content) -> str:
    """Tell contents apart."""
    if isinstance(content, str):
        return f"link to {content}"
    return hashlib.sha256(content).hexdigest()


def digest_at(path: Path) -> str | None:
    """``digest_of`` what lies there, ``None`` for nothing."""
    if path.is_symlink():
        return digest_of(os.readlink(path))
    if path.is_dir():
        return "a folder"
    return digest_of(path.read_bytes()) if path.exists() else None


def add_row(text: str) -> str:
    """Add the recipe to the table of ``egs2/README.md``, in alphabetical order.

    Some of ESPnet's rows are out of order: the place is where fewest are on the wrong
    side. The text is unchanged where the row is there or where there is no table.
    """
    lines = text.split("\n")
    rows = {
        number: line.split("|")[1].strip().lower()
        for number, line in enumerate(lines)
        if line.startswith("|") and line.count("|") > 2
    }
    numbers, names = [*rows][2:], [*rows.values()][2:]
    if not names or CORPUS in names:
        return text
    wrong = [
        sum(name > CORPUS for name in names[:i])
        + sum(name < CORPUS for name in names[i:])
        for i in range(len(names) + 1)
    ]
    place = [*numbers, numbers[-1] + 1][wrong.index(min(wrong))]
    return "\n".join([*lines[:place], ROW, *lines[place:]])


def add_variables(text: str) -> str:
    """Add the corpora that ``db.sh`` lacks, before what belongs to single sites.

    A variable that is set anywhere in the text is left alone.
    """
    missing = [
        name for name in VARIABLES if not re.search(rf"^\s*{name}=", text, re.MULTILINE)
    ]
    if not missing:
        return text
    site = re.search(r"^(# For only|if )", text, re.MULTILINE)
    general = text if site is None else text[: site.start()]
    # After the last line, so that no other line changes.
    place = len(general.rstrip("\n"))
    return text[:place] + "".join(f"\n{name}=" for name in missing) + text[place:]


#: ESPnet's own files that get lines.
CHANGES: dict[str, Callable[[str], str]] = {
    "egs2/README.md": add_row,
    f"{TEMPLATE}/asr1/db.sh": add_variables,
}

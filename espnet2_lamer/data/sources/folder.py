"""A folder of audio per language."""

import os
from collections.abc import Iterator
from pathlib import Path

from espnet2_lamer.data.audio import listed
from espnet2_lamer.data.audio_files import EXTENSIONS, is_hidden
from espnet2_lamer.data.languages import language_code
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.data.sources.rows import COMPANION, LOOSE, Reading, check_unique
from espnet2_lamer.data.sources.source import Source
from espnet2_lamer.errors import RecipeError


def read(source: Source, reading: Reading) -> list[Utterance]:
    """List the audio of ``<root>/<lang>/**``; ids are made of the paths.

    With ``lang`` all audio below the root is of that language. Folders inside a
    language's folder are taken for speakers, files that lie in none are of speakers of
    their own; links are followed. Hidden files, and those whose suffix is not known,
    are counted.

    Raises:
        RecipeError: A folder is no language, a name cannot stand in a table, or there
            is no audio.
    """
    root = Path(source.path)
    if not root.is_dir():
        raise RecipeError(f"{root}: folder not found; expected one of audio")
    folders = _folders(source, root, reading)
    rows = []
    for folder, lang in folders.items():
        for path in _files_below(folder):
            relative, suffix = path.relative_to(folder), path.suffix.lower()
            if is_hidden(relative):
                reading.leave_out(COMPANION, lang)
                continue
            if suffix not in EXTENSIONS:
                reading.leave_out(f"suffix {suffix or 'none'}, not read", lang)
                continue
            name = "_".join(relative.with_suffix("").as_posix().split())
            inner = "_".join(relative.parent.as_posix().split())
            speaker = "" if inner == "." else f"{lang}_{inner}".replace("/", "-")
            rows.append(
                Utterance(
                    utt_id=f"{lang}_{name}".replace("/", "-"),
                    path=os.path.abspath(path),
                    lang=lang,
                    speaker=speaker,
                    where=str(path),
                )
            )
    wrong = [ascii(row.path) for row in rows if not _can_be_written(row.path)]
    if wrong:
        raise RecipeError(
            f"{root}: {len(wrong)} of {len(rows)} file names are not UTF-8, or hold a "
            "line break, so no table can name them; rename them, e.g. convmv -f latin1 "
            f"-t utf8 -r --notest {root}, with the encoding they have:\n{listed(wrong)}"
        )
    if not rows:
        raise RecipeError(
            f"{root}: no audio; expected files {' '.join(EXTENSIONS)} in one folder "
            f"per language, such as {root}/eng/a.wav; if all below it is of one "
            f"language, say folder:{root},lang=CODE"
        )
    check_unique(rows)
    return rows


def _folders(source: Source, root: Path, reading: Reading) -> dict[Path, str]:
    """Return the folders to look into, and the language of each."""
    if lang := source.settings.get("lang"):
        return {root: language_code(lang, f"--manifest {source.path}")}
    found = {}
    for path in sorted(p for p in root.iterdir() if not is_hidden(p.name)):
        if path.is_dir():
            found[path] = language_code(path.name, str(path))
        elif path.suffix.lower() in EXTENSIONS:
            reading.leave_out(LOOSE, "unknown language")
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        # A link may lead back up.
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(where, name) for name in sorted(names))


def _can_be_written(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(name.splitlines()) == 1

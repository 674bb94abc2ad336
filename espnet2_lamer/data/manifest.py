"""Data directories from a TSV manifest, or from a folder of audio per language."""

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from espnet2_lamer.data.audio import listed
from espnet2_lamer.data.audio_files import EXTENSIONS, is_companion, is_hidden
from espnet2_lamer.data.division import divide, shares_in_train
from espnet2_lamer.data.segments import read_times, read_wavs
from espnet2_lamer.data.sets import (
    SPLITS,
    Utterance,
    language_code,
    remove_other_sets,
    write_set,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.text import read_text

REQUIRED = ("utt_id", "path", "lang")
_AS_THEY_ARE = ("split", "text", "romanisation", "source")
#: Files that are not read: why, and how many of each language.
LeftOut = dict[str, Counter[str]]
_COMPANION = "hidden or added by a Mac's copy"
_AGAIN = "the same file under another id"
_LOOSE = "audio in no language's folder"
_LOUD = ("suffix", _AGAIN, _LOOSE)


def prepare_manifest(
    manifest: str | Path,
    output_dir: str | Path,
    langs: Sequence[str] = (),
    exclude_sources: Sequence[str] = (),
    seed: int = 0,
) -> dict:
    """Write ``<output_dir>/<split>_<lang>`` and ``<output_dir>/manifest.json``.

    ``manifest`` is a TSV file (header line; utt_id, path, lang required; no quoting;
    paths relative to its folder; start and end, in seconds, of what is a part of a
    recording) or a folder ``<lang>/**/*.wav``. Rows without a split are divided by
    :func:`~espnet2_lamer.data.division.divide`. Sets of the embedded corpus are
    removed, since evaluation would prefer them. Without ``langs`` all languages are
    used; rows of ``exclude_sources`` (column ``source``) are not.

    Returns:
        What ``manifest.json`` holds.

    Raises:
        RecipeError: Anything wrong with the manifest: nothing is written then.
    """
    manifest, output_dir = Path(manifest), Path(output_dir)
    left_out: LeftOut = defaultdict(Counter)
    read = read_folder if manifest.is_dir() else read_manifest
    rows = read(manifest, left_out)
    langs = [language_code(lang, "--langs") for lang in langs]
    langs = list(dict.fromkeys(langs)) or sorted({row.lang for row in rows})
    wanted = [row for row in rows if row.lang in langs]
    kept = [row for row in wanted if row.source not in exclude_sources]
    _check_choice(rows, kept, langs, exclude_sources, manifest)
    _check_files(kept, manifest)
    kept = _once(kept, left_out)
    apart = divide(kept, seed)
    sources = _sources(kept)
    excluded = [row for row in wanted if row.source in exclude_sources]
    sets: dict[str, list[Utterance]] = defaultdict(list)
    for row in kept:
        sets[f"{row.split}_{row.lang}"].append(row)
    stats = {
        "manifest": manifest.as_posix(),
        "seed": seed,
        "langs": langs,
        "rows": len(rows),
        "used": len(kept),
        "dropped": {
            "other_language": _by_lang(row for row in rows if row.lang not in langs),
            "excluded_source": _by_lang(excluded),
            **{why: counts for why, counts in left_out.items() if counts.total()},
        },
        "no_text": _by_lang(row for row in kept if not row.text),
        "kept_apart": apart,
        "test_in_train": shares_in_train(kept),
        "sets": {name: len(rows) for name, rows in sorted(sets.items())},
        "sources": sources,
        "channel_confounded": channel_confounded(kept),
    }
    _warn_of_moves(output_dir, kept)
    remove_other_sets(output_dir, langs, sets)
    for name, own in sets.items():
        write_set(output_dir / name, own)
    write_json(output_dir / "manifest.json", stats)
    _log(stats)
    return stats


def read_manifest(path: str | Path, left_out: LeftOut | None = None) -> list[Utterance]:
    """Read a TSV manifest; other columns than the known ones are ignored.

    Rows with what a Mac's copy adds (``._a.wav``) are no audio: ``left_out`` counts.

    Raises:
        RecipeError: Missing file or column, a line with another number of columns than
            the header, a duplicate or unusable id, an unknown language or split, no
            rows.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: manifest not found (a TSV file or a folder)")
    first, *lines = (line.rstrip("\r") for line in read_text(path).split("\n"))
    header = first.split("\t")
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise RecipeError(
            f"{path}:1: missing column {', '.join(missing)}; found "
            f"{', '.join(header)}; the first line must name the columns, separated by "
            "tabs"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise RecipeError(f"{path}:1: column {twice[0]!r} occurs twice; rename one")
    rows = [
        _parse(path, f"{path}:{number}", line.split("\t"), header)
        for number, line in enumerate(lines, 2)
        if line.strip()
    ]
    kept = [row for row in rows if not is_companion(row.path)]
    if left_out is not None and len(kept) < len(rows):
        left_out[_COMPANION].update(r.lang for r in rows if is_companion(r.path))
    rows = kept
    if not rows:
        raise RecipeError(f"{path}: only a header line; add one line per utterance")
    _check_unique(rows)
    return rows


def _parse(path: Path, where: str, values: list[str], header: list[str]) -> Utterance:
    if len(values) != len(header):
        raise RecipeError(
            f"{where}: found {len(values)} columns, expected {len(header)} as in the "
            "header; fields are separated by one tab and must not hold tabs"
        )
    record = {k: " ".join(v.split()) for k, v in zip(header, values, strict=True)}
    for name in REQUIRED:
        if not record[name]:
            raise RecipeError(f"{where}: column {name} is empty")
    split, utt_id = record.get("split", ""), record["utt_id"]
    if split not in ("", *SPLITS):
        raise RecipeError(
            f"{where}: split {split!r}; expected {', '.join(SPLITS)} or nothing"
        )
    if "/" in utt_id or " " in utt_id:
        raise RecipeError(
            f"{where}: utterance id {utt_id!r} holds a space or a slash; files are "
            "named by it: use letters, digits, - and _"
        )
    # A file name may hold runs of spaces.
    file_name = values[header.index("path")].strip()
    times = record.get("start", ""), record.get("end", "")
    start, end = read_times(*times, where) if any(times) else (None, None)
    return Utterance(
        utt_id,
        path=os.path.abspath(path.parent / file_name),
        lang=language_code(record["lang"], where),
        speaker=record.get("speaker", "").replace(" ", "_"),
        where=where,
        start=start,
        end=end,
        **{name: record[name] for name in _AS_THEY_ARE if name in record},
    )


def read_folder(root: str | Path, left_out: LeftOut | None = None) -> list[Utterance]:
    """List the audio of ``<root>/<lang>/**``; ids are made of the paths.

    Folders inside a language's folder are taken for speakers, files that lie in none
    are of speakers of their own; links are followed. Hidden files, and those whose
    suffix is not known, are counted in ``left_out``.

    Raises:
        RecipeError: A folder is no language, a name cannot stand in a table, or there
            is no audio.
    """
    root = Path(root)
    left_out = defaultdict(Counter) if left_out is None else left_out
    rows = []
    for folder in sorted(p for p in root.iterdir() if not is_hidden(p.name)):
        if not folder.is_dir():
            loose = folder.suffix.lower() in EXTENSIONS
            left_out[_LOOSE]["unknown language"] += loose
            continue
        lang = language_code(folder.name, str(folder))
        for path in _files_below(folder):
            relative, suffix = path.relative_to(folder), path.suffix.lower()
            if is_hidden(relative):
                left_out[_COMPANION][lang] += 1
                continue
            if suffix not in EXTENSIONS:
                left_out[f"suffix {suffix or 'none'}, not read"][lang] += 1
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
            f"per language, such as {root}/eng/a.wav"
        )
    _check_unique(rows)
    return rows


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


def _check_unique(rows: list[Utterance]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if row.utt_id in seen:
            raise RecipeError(
                f"{row.where}: utterance id {row.utt_id!r} occurs twice, first at "
                f"{seen[row.utt_id]}; ids must be unique"
            )
        seen[row.utt_id] = row.where


def _check_choice(rows, kept, langs, exclude_sources, manifest) -> None:
    sources = {row.source for row in rows}
    unknown = [source for source in exclude_sources if source not in sources]
    if unknown:
        raise RecipeError(
            f"{manifest}: no source {unknown[0]!r} to exclude; found "
            f"{', '.join(sorted(sources - {''})) or 'no column source'}"
        )
    empty = [lang for lang in langs if lang not in {row.lang for row in kept}]
    if empty:
        raise RecipeError(
            f"{manifest}: no utterance of language {empty[0]}; found "
            f"{', '.join(sorted({row.lang for row in rows}))}"
            + (" before sources were excluded" if exclude_sources else "")
        )


def _by_lang(rows: Iterable[Utterance]) -> dict[str, int]:
    return dict(sorted(Counter(row.lang for row in rows).items()))


def _check_files(rows: list[Utterance], manifest: Path) -> None:
    missing = [row for row in rows if not _find(row)]
    if missing:
        lines = listed([f"{row.where}: {row.path}" for row in missing])
        raise RecipeError(
            f"{manifest}: {len(missing)} of {len(rows)} audio files not found; paths "
            f"are relative to the manifest's folder:\n{lines}"
        )


def _find(row: Utterance) -> bool:
    """Whether the file is there; a Mac composes letters with accents otherwise."""
    for form in ("", "NFC", "NFD"):
        path = unicodedata.normalize(form, row.path) if form else row.path
        if os.path.isfile(path):
            row.path = path
            return True
    return False


def _warn_of_moves(output_dir: Path, rows: list[Utterance]) -> None:
    """Say how many utterances train has now that earlier models were tested on."""
    tested: set[str] = set()
    for lang in {row.lang for row in rows}:
        folder = output_dir / f"test_{lang}"
        tested |= read_wavs(folder).keys() if (folder / "wav.scp").is_file() else set()
    moved = sum(row.split == "train" and row.utt_id in tested for row in rows)
    if moved:
        text = "%d utterances that were in test are in train now: results from before "
        text += "do not compare; a column split would have kept them"
        logging.warning(text, moved)


def _once(rows: list[Utterance], left_out: LeftOut) -> list[Utterance]:
    """Keep one row of every file, or part, that of test before dev before train."""
    of_file = {}
    ranks = {split: rank for rank, split in enumerate(("", *SPLITS))}
    for row in sorted(rows, key=lambda row: ranks[row.split]):
        if row.audio in of_file:
            left_out[_AGAIN][row.lang] += 1
        of_file[row.audio] = row.utt_id
    return [row for row in rows if of_file[row.audio] == row.utt_id]


def _sources(rows: list[Utterance]) -> dict[str, dict]:
    sources = {}
    for source in sorted({row.source for row in rows if row.source}):
        counts = _by_lang(row for row in rows if row.source == source)
        several = len(counts) > 1
        sources[source] = {"utterances": counts, "covers_several_languages": several}
    return sources


def channel_confounded(rows: Sequence[Utterance]) -> bool | None:
    """Whether the source tells the language; None where sources are not known."""
    covered: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        covered[row.source].add(row.lang)
    if len(set().union(*covered.values())) < 2:
        return False
    if "" in covered:
        return None
    if any(len(langs) > 1 for langs in covered.values()):
        return False
    logging.warning(
        "channel-confounded: no source covers two languages, so the recording tells "
        "the language; language identification on it is no evidence"
    )
    return True


def _log(stats: dict) -> None:
    figures = stats["manifest"], stats["used"], stats["rows"]
    logging.info("%s: %d of %d rows used", *figures)
    for name, count in stats["sets"].items():
        logging.info("  %s: %d utterances", name, count)
    for lang, kept in stats["kept_apart"].items():
        for split, what in kept.items():
            logging.info("  %s: %s has %s of its own", lang, split, what)
    for lang, shares in stats["test_in_train"].items():
        for name, share in shares.items():
            if share:
                text = "%s: train has %.0f %% of the %s of the test set, whose scores "
                logging.warning(text + "flatter; results say so", lang, share, name)
    for reason, counts in {**stats["dropped"], "no_text": stats["no_text"]}.items():
        level = logging.WARNING if reason.startswith(_LOUD) else logging.INFO
        for lang, count in counts.items():
            logging.log(level, "  %s: %d of %s", reason, count, lang)

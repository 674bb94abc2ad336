"""What all corpora share: find the archive, look at files, write sets and report."""

import logging
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from espnet2_lamer.data.corpora import CORPORA, EVAL_DIR, PRETRAIN_DIR
from espnet2_lamer.data.corpora.ledger import Ledger
from espnet2_lamer.data.corpora.text import clean_text, has_control_characters
from espnet2_lamer.data.sets import Utterance, write_set
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json

_BATCH = 256
# Formats whose header tells the duration without decoding.
_CHEAP = (".wav", ".flac")
_SHOWN = 8


def locate(
    corpus: str, root: str | Path, marker: str, names: Sequence[str] = ()
) -> Path:
    """Return the folder of an archive as an absolute path.

    Args:
        corpus: Name of the corpus.
        root: What the user gave: the archive's folder or the one around it.
        marker: File or folder that every such archive has.
        names: Names of the archive's folder inside ``root``.

    Raises:
        RecipeError: ``marker`` is in none of them.
    """
    root = Path(root)
    for folder in (root, *(root / name for name in names)):
        if (folder / marker).exists():
            return Path(os.path.abspath(folder))
    raise RecipeError(
        f"{root}: {found_in(root)}, expected {marker} of {corpus}; correct "
        f"{CORPORA[corpus]} in db.sh, or --root"
    )


def found_in(folder: Path) -> str:
    """Say what is in a folder, for errors."""
    if not folder.is_dir():
        return "folder not found"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"found {', '.join(names[:_SHOWN])}{more}" if names else "found nothing"


def write_corpus(
    corpus: str,
    root: Path,
    sets: Iterable[tuple[str, list[Utterance]]],
    ledger: Ledger,
    output_dir: str | Path,
    max_missing: float = 1.0,
    nj: int = 1,
    details: Mapping[str, object] | None = None,
    expected: Mapping[str, int] | None = None,
) -> dict:
    """Write the sets of a corpus and ``<output_dir>/<corpus>.json``.

    Audio that is missing, empty or without a readable header is left out and listed in
    ``<corpus>.left_out.tsv``, and so are duplicated ids. Transcripts are cleaned; an
    utterance without text stays in the set and has no line in ``text``.

    Args:
        corpus: Its name, also the folder's.
        root: The archive, for the report.
        sets: Pairs of ``pretrain/<split>_<lang>`` or ``eval/<split>_<lang>`` and
            utterances; read one by one. Sets of one kind appear together, by rename.
        ledger: In which the reader of ``sets`` has booked what it left out.
        output_dir: Where stage 1 writes.
        max_missing: Most defective rows per set and source, in per cent.
        nj: Threads that look at files.
        details: More for the report.
        expected: Set to the number of rows in the complete archive; a set that has
            fewer is warned about.

    Returns:
        What the report holds.

    Raises:
        RecipeError: Too much is defective (sets of an earlier run stay), or the reader
            of ``sets`` found another archive than expected.
    """
    output_dir = Path(output_dir)
    listing = output_dir / f"{corpus}.left_out.tsv"
    targets = {kind: output_dir / kind / corpus for kind in (PRETRAIN_DIR, EVAL_DIR)}
    written: dict[str, Path] = {}
    try:
        with ExitStack() as stack:
            for name, utterances in sets:
                kept = _check(name, utterances, ledger, nj)
                ledger.check_shares(max_missing, listing)
                if not kept:
                    logging.warning("%s %s: no utterance", corpus, name)
                    continue
                kind, base = name.split("/")
                if kind not in written:
                    folder = atomic_dir(targets[kind])
                    written[kind] = stack.enter_context(folder)
                write_set(written[kind] / base, kept)
            ledger.check_shares(max_missing, listing)
    finally:
        ledger.write_listing(listing)
    for kind in set(targets) - set(written):
        shutil.rmtree(targets[kind], ignore_errors=True)
    report = {
        "corpus": corpus,
        "root": root.as_posix(),
        **(details or {}),
        "max_missing": max_missing,
        "listing": listing.name,
        "sets": ledger.report(),
    }
    report["pretraining_hours"] = {
        name.removeprefix(f"{PRETRAIN_DIR}/train_"): entry["hours"]
        for name, entry in report["sets"].items()
        if name.startswith(f"{PRETRAIN_DIR}/train_")
    }
    for name, count in (expected or {}).items():
        entry = report["sets"].get(name)
        if entry is not None:
            entry["expected"] = count
    write_json(output_dir / f"{corpus}.json", report)
    _log(report)
    return report


def _check(
    name: str, utterances: list[Utterance], ledger: Ledger, nj: int
) -> list[Utterance]:
    kept = []
    seen: set[str] = set()
    for utterance, problem in zip(
        utterances, _inspect_all(utterances, nj), strict=True
    ):
        if utterance.utt_id in seen:
            problem = "duplicate"
        if problem:
            ledger.leave_out(name, utterance.source, problem, utterance.path)
            continue
        seen.add(utterance.utt_id)
        if has_control_characters(utterance.text):
            ledger.remark(name, utterance.source, "control_characters_in_text")
        utterance.text = clean_text(utterance.text, utterance.lang)
        if not utterance.text:
            ledger.remark(name, utterance.source, "no_text")
        ledger.keep(name, utterance.source, utterance.seconds)
        kept.append(utterance)
    return kept


def _inspect_all(utterances: list[Utterance], nj: int) -> Iterable[str]:
    from joblib import Parallel, delayed
    from tqdm import tqdm

    batches = [utterances[i : i + _BATCH] for i in range(0, len(utterances), _BATCH)]
    bar = tqdm(
        total=len(utterances),
        desc="look at files",
        unit="file",
        disable=not sys.stderr.isatty(),
    )
    # Threads: the work is system calls, and the utterances are changed in place.
    parallel = Parallel(n_jobs=nj, prefer="threads", return_as="generator")
    with bar:
        for problems in parallel(delayed(_inspect)(batch) for batch in batches):
            yield from problems
            bar.update(len(problems))


def _inspect(batch: list[Utterance]) -> list[str]:
    """Return what is wrong with each file, or nothing; fill in durations."""
    import soundfile

    problems = []
    for utterance in batch:
        problem = ""
        try:
            if os.stat(utterance.path).st_size == 0:
                problem = "empty_file"
            elif utterance.seconds is None and utterance.path.endswith(_CHEAP):
                utterance.seconds = soundfile.info(utterance.path).duration
        except OSError:
            problem = "missing"
        except RuntimeError:
            problem = "unreadable"
        problems.append(problem)
    return problems


def _log(report: dict) -> None:
    for name, entry in report["sets"].items():
        hours = "" if entry["hours"] is None else f", {entry['hours']:.3f} h"
        logging.info(
            "%s %s: %d utterances%s",
            report["corpus"],
            name,
            entry["utterances"],
            hours,
        )
        if entry["utterances"] < entry.get("expected", 0):
            logging.warning(
                "%s %s: the complete archive has %d; parts of it may not be unpacked",
                report["corpus"],
                name,
                entry["expected"],
            )
        for source, counts in entry["sources"].items():
            for reason, count in (
                *counts["left_out"].items(),
                *counts["remarks"].items(),
            ):
                logging.info("  %s: %d %s", source, count, reason)

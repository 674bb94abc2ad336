"""Public corpora as they are distributed become data directories with a report."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from espnet2_lamer.data.corpora import (
    CORPORA,
    EVAL_DIR,
    PRETRAIN_DIR,
    commonvoice,
    fleurs,
    mandarin,
    mhubert147,
)
from espnet2_lamer.data.corpora.archive import Archive, Ledger
from espnet2_lamer.data.sets import Utterance, write_set
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json

#: How each corpus of ``CORPORA`` is read: ``read(name, root, langs, ledger)``.
READERS: dict[str, Callable[..., Archive]] = {
    "commonvoice": commonvoice.read,
    **dict.fromkeys(mandarin.MANDARIN, mandarin.read),
    "fleurs": fleurs.read,
    "mhubert147": mhubert147.read,
}
_BATCH = 256
# Formats whose header tells the duration without decoding.
_CHEAP = (".wav", ".flac")
# Control characters, line separators and marks without width.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\ufeff]"
)
_HANZI = (
    "\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff"
)
_BETWEEN_HANZI = re.compile(f"(?<=[{_HANZI}]) (?=[{_HANZI}])")
# Languages written without spaces.
_UNSPACED = ("cmn", "yue")


def prepare(
    corpus: str,
    root: str | Path,
    output_dir: str | Path,
    langs: Sequence[str],
    max_missing: float = 1.0,
    nj: int = 1,
    **options: object,
) -> dict:
    """Write the sets of a corpus and ``<output_dir>/<corpus>.json``.

    Sets are ``pretrain/<corpus>/train_<lang>``, and
    ``eval/<corpus>/{train,dev,test}_<lang>``; those of one kind appear together, by
    rename. Audio that is missing, empty or without a readable header is left out and
    listed in ``<corpus>.left_out.tsv``, and so are duplicated ids. Transcripts are
    cleaned; an utterance without text stays in the set and has no line in ``text``.

    ``root`` is the archive of a corpus of :data:`~espnet2_lamer.data.corpora.CORPORA`,
    or the folder around it; ``langs`` that it does not have are skipped.
    ``max_missing`` is the most defective rows per set and source, in per cent, ``nj``
    the threads that look at files; ``options`` go to the reader (``mhubert147.read``).
    Returns what the report holds.

    Raises:
        RecipeError: Nothing says where the corpus is, it is another archive, or too
            much of it is defective; sets of an earlier run stay.
    """
    if not root:
        raise RecipeError(
            f"{corpus}: nothing says where it is; set {CORPORA[corpus]} in db.sh (or "
            "in the environment), or give --root"
        )
    output_dir = Path(output_dir)
    if corpus == "fleurs":
        options["unpacked"] = output_dir / "audio" / corpus
    ledger = Ledger(output_dir / f"{corpus}.left_out.tsv", max_missing)
    archive = READERS[corpus](corpus, Path(root), langs, ledger, **options)
    try:
        _write_sets(corpus, archive, ledger, output_dir, nj)
    finally:
        ledger.write_listing()
    report = {
        "corpus": corpus,
        "root": archive.folder.as_posix(),
        **archive.details,
        "max_missing": max_missing,
        "listing": ledger.listing.name,
        "sets": ledger.report(),
    }
    prefix = f"{PRETRAIN_DIR}/train_"
    report["pretraining_hours"] = {
        name.removeprefix(prefix): entry["hours"]
        for name, entry in report["sets"].items()
        if name.startswith(prefix)
    }
    for name, count in archive.complete.items():
        if name in report["sets"]:
            report["sets"][name]["expected"] = count
    write_json(output_dir / f"{corpus}.json", report)
    _log(report)
    return report


def _write_sets(
    corpus: str, archive: Archive, ledger: Ledger, output_dir: Path, nj: int
) -> None:
    targets = {kind: output_dir / kind / corpus for kind in (PRETRAIN_DIR, EVAL_DIR)}
    written: dict[str, Path] = {}
    with ExitStack() as stack:
        for name, utterances in archive.sets:
            kept = _check(name, utterances, ledger, nj)
            ledger.check_shares()
            if not kept:
                logging.warning("%s %s: no utterance", corpus, name)
                continue
            kind, base = name.split("/")
            if kind not in written:
                written[kind] = stack.enter_context(atomic_dir(targets[kind]))
            write_set(written[kind] / base, kept)
        ledger.check_shares()
    for kind in set(targets) - set(written):
        shutil.rmtree(targets[kind], ignore_errors=True)


def _check(
    name: str, utterances: list[Utterance], ledger: Ledger, nj: int
) -> list[Utterance]:
    from joblib import Parallel, delayed
    from tqdm import tqdm

    kept = []
    seen: set[str] = set()
    # Threads: the work is system calls, and the utterances are changed in place.
    parallel = Parallel(nj, prefer="threads", batch_size=_BATCH, return_as="generator")
    problems = parallel(delayed(_inspect)(utterance) for utterance in utterances)
    bar = {"desc": "look at files", "unit": "file", "disable": None}
    for utterance, problem in zip(
        utterances, tqdm(problems, total=len(utterances), **bar), strict=True
    ):
        source = utterance.source
        if utterance.utt_id in seen:
            problem = "duplicate"
        if problem:
            ledger.leave_out(name, source, problem, utterance.path)
            continue
        seen.add(utterance.utt_id)
        if has_control_characters(utterance.text):
            ledger.remark(name, source, "control_characters_in_text")
        utterance.text = clean_text(utterance.text, utterance.lang)
        if not utterance.text:
            ledger.remark(name, source, "no_text")
        ledger.keep(name, source, utterance.seconds)
        kept.append(utterance)
    return kept


def has_control_characters(text: str) -> bool:
    """Whether a transcript holds tabs, other control characters or invisible marks."""
    return _CONTROL.search(text) is not None


def clean_text(text: str, lang: str) -> str:
    """Return a transcript on one line, with single spaces.

    Control characters become spaces. In Mandarin and Cantonese spaces between hanzi
    go: THCHS-30 and AISHELL-1 segment words, FLEURS separates every character,
    CommonVoice does neither, and a space would count as a character.
    """
    text = " ".join(_CONTROL.sub(" ", text).split())
    return _BETWEEN_HANZI.sub("", text) if lang in _UNSPACED else text


def _inspect(utterance: Utterance) -> str:
    """Return what is wrong with a file, or nothing; fill in its duration."""
    import soundfile

    try:
        if os.stat(utterance.path).st_size == 0:
            return "empty_file"
        if utterance.seconds is None and utterance.path.endswith(_CHEAP):
            utterance.seconds = soundfile.info(utterance.path).duration
    except OSError:
        return "missing"
    except RuntimeError:
        return "unreadable"
    return ""


def _log(report: dict) -> None:
    corpus = report["corpus"]
    for name, entry in report["sets"].items():
        hours = "" if entry["hours"] is None else f", {entry['hours']:.3f} h"
        logging.info("%s %s: %d utterances%s", corpus, name, entry["utterances"], hours)
        if entry["utterances"] < (whole := entry.get("expected", 0)):
            text = "%s %s: the complete archive has %d; parts of it may not be unpacked"
            logging.warning(text, corpus, name, whole)
        for source, counts in entry["sources"].items():
            for reason, count in {**counts["left_out"], **counts["remarks"]}.items():
                logging.info("  %s: %d %s", source, count, reason)

"""Public corpora as they are distributed become data directories, and are joined."""

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from espnet2_lamer.data.corpora import (
    CORPORA,
    EVAL_DIR,
    OWN,
    PRETRAIN_DIR,
    commonvoice,
    fleurs,
    mandarin,
    mhubert147,
)
from espnet2_lamer.data.corpora.archive import Archive, Ledger
from espnet2_lamer.data.sampling import seed_of
from espnet2_lamer.data.segments import audio_tables, read_wavs
from espnet2_lamer.data.sets import (
    SPLITS,
    Utterance,
    read_if_there,
    remove_other_sets,
    write_set,
    write_tables,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.datadir import read_table

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
# The corpus that is a selection from others.
_SELECTION = "mhubert147"
_TABLES = ("utt2spk", "utt2lang", "utt2source", "text", "romanisation")
# Where no corpus has a dev set: as many per source as mHuBERT-147's validation set has
# per language and dataset, and never more than a tenth.
_HELD_OUT = 5
_LARGEST_SHARE = 0.1


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


def join_corpora(
    corpora: Sequence[str], output_dir: str | Path, langs: Sequence[str], seed: int = 0
) -> dict:
    """Write ``<output_dir>/{train,dev,test}_<lang>`` and ``corpora.json``.

    ``train`` joins what all corpora give to pretraining; with ``mhubert147`` among them
    its manifests say what pretraining takes, and other public corpora only give
    evaluation sets; ``manifest`` and ``mini`` are always trained on.
    ``dev`` and ``test`` join the evaluation sets of the corpora that have pretraining
    data, so those for out-of-domain evaluation do not get in. A language without a dev
    set gets a few utterances of ``train``, drawn by a hash of their ids. Sets of other
    corpora in these languages are removed. Returns what ``corpora.json`` holds.

    Raises:
        RecipeError: A language is in none of the corpora: nothing is written then.
    """
    output_dir = Path(output_dir)
    plan = {lang: _plan(output_dir, corpora, lang) for lang in langs}
    for lang, folders in plan.items():
        if not folders["train"]:
            raise RecipeError(
                f"--corpus {' '.join(corpora)}: no pretraining speech in language "
                f"{lang}; add a corpus that has it ({', '.join((*CORPORA, *OWN))}"
                "), or take it out of --new_langs/--replay_langs"
            )
    _check_ids(plan)
    report: dict = {"corpora": list(corpora), "seed": seed, "sets": {}}
    for lang, folders in plan.items():
        held_out = set() if folders["dev"] else _hold_out(folders["train"], seed)
        if held_out:
            folders["dev"] = folders["train"]
            text = "%s: no corpus has a dev set; %d utterances of train become one"
            logging.warning(text, lang, len(held_out))
        for split, parts in folders.items():
            if not parts:
                continue
            name = f"{split}_{lang}"
            is_dev = split == "dev" if held_out and split != "test" else None
            counts = _join(output_dir / name, parts, held_out, is_dev)
            report["sets"][name] = {
                "utterances": sum(counts.values()),
                "held_out_of_train": len(held_out) if split == "dev" else 0,
                "sources": dict(sorted(counts.items())),
            }
    remove_other_sets(output_dir, langs, report["sets"], corpora)
    write_json(output_dir / "corpora.json", report)
    for name, entry in report["sets"].items():
        logging.info("%s: %d utterances", name, entry["utterances"])
    return report


def _check_ids(plan: dict[str, dict[str, list[Path]]]) -> None:
    """Raise RecipeError where two corpora share an id: one would hide the other."""
    for folders in plan.values():
        for parts in folders.values():
            seen: dict[str, Path] = {}
            for folder in parts if len(parts) > 1 else ():
                for utt in read_wavs(folder):
                    if utt in seen:
                        raise RecipeError(
                            f"{folder}: utterance id {utt!r} is in {seen[utt]}, too; "
                            "put a name before your own: --manifest SOURCE,prefix=NAME"
                        )
                    seen[utt] = folder


def _plan(output_dir: Path, corpora: Sequence[str], lang: str) -> dict[str, list[Path]]:
    in_domain = [c for c in corpora if (output_dir / PRETRAIN_DIR / c).is_dir()]
    selected = in_domain
    if _SELECTION in corpora:
        selected = [_SELECTION, *(c for c in in_domain if c in OWN)]
    pretrain = [output_dir / PRETRAIN_DIR / c / f"train_{lang}" for c in selected]
    folders = {"train": [folder for folder in pretrain if folder.is_dir()]}
    for split in SPLITS[1:]:
        own = [output_dir / EVAL_DIR / c / f"{split}_{lang}" for c in in_domain]
        folders[split] = [folder for folder in own if folder.is_dir()]
    return folders


def _hold_out(folders: list[Path], seed: int) -> set[str]:
    by_source: dict[str, list[str]] = {}
    for folder in folders:
        for utt, source in read_table(folder / "utt2source").items():
            by_source.setdefault(source, []).append(utt)
    held_out: set[str] = set()
    for utts in by_source.values():
        ranked = sorted(utts, key=lambda utt: seed_of(seed, "dev", utt))
        count = min(_HELD_OUT, max(1, round(len(utts) * _LARGEST_SHARE)))
        held_out.update(ranked[: count if len(utts) > 1 else 0])
    return held_out


def _join(
    directory: Path, folders: list[Path], held_out: set[str], is_dev: bool | None
) -> Counter[str]:
    """Join data directories; ``is_dev`` None: whole, else with or without held_out."""
    counts: Counter[str] = Counter()

    def joined(read: Callable[[Path], dict[str, str]]) -> dict[str, str]:
        return {
            utt: value
            for folder in folders
            for utt, value in read(folder).items()
            if is_dev is None or (utt in held_out) == is_dev
        }

    with atomic_dir(directory) as temporary:
        write_tables(temporary, audio_tables(joined(read_wavs)))
        # One table after the other: each may have more than a million lines.
        for name in _TABLES:
            table = joined(lambda folder, name=name: read_if_there(folder / name))
            write_tables(temporary, {name: table})
            if name == "utt2source":
                counts.update(table.values())
    return counts

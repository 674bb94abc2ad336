"""The public manifests of mHuBERT-147: which clips that model was trained on.

A manifest's first line is the folder of its audio; each further line is
``wav, samples at 16 kHz, language, dataset``, separated by tabs. Languages are mixed in
a file. The manifests are older than some removals from CommonVoice, so part of what
they list is gone.

The paper selects from them, and leaves out VoxLingua107; zh-TW is neither of its two
languages.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet2_lamer.data.corpora.ledger import Ledger
from espnet2_lamer.data.corpora.lines import read_lines
from espnet2_lamer.data.corpora.prepare import found_in, write_corpus
from espnet2_lamer.data.languages import language_code
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError

#: The paper's choice of datasets, spelled as :func:`_plain` does.
DATASETS = ("cv", "thchs30", "aishell", "aishell3")
_LEFT_OUT_LABELS = ("zh-TW",)
_RATE = 16000
# Where the report counts the rows of each manifest.
_MANIFESTS = "manifests"


def prepare(
    root: str | Path,
    output_dir: str | Path,
    langs: Sequence[str],
    max_missing: float = 1.0,
    nj: int = 1,
    audio_root: str | Path = "",
    datasets: Sequence[str] = DATASETS,
) -> dict:
    """Write ``pretrain/mhubert147/train_<lang>``.

    A file is looked for under its name, then with ``.mp3`` or ``.flac`` for ``.wav``
    (the manifests name converted files), also where CommonVoice's archive has it:
    ``<language>/clips/``.

    Args:
        root: A manifest, or a folder of ``*.tsv``.
        output_dir: Where stage 1 writes.
        langs: ISO 639-3 codes.
        max_missing: See :func:`~espnet2_lamer.data.corpora.prepare.write_corpus`.
        nj: Threads that look at files.
        audio_root: Folder of the audio instead of the manifests' first lines.
        datasets: Datasets to take; empty: all.

    Returns:
        The report, ``<output_dir>/mhubert147.json``.

    Raises:
        RecipeError: No manifest, a file that is none, audio folders that do not exist,
            or too many files are missing.
    """
    root = Path(root)
    manifests = [root] if root.is_file() else sorted(root.glob("*.tsv"))
    if not manifests:
        raise RecipeError(
            f"{root}: {found_in(root)}, expected manifests *.tsv of mHuBERT-147; "
            "correct MHUBERT147_MANIFEST in db.sh, or --root"
        )
    wanted = {_plain(name) for name in datasets}
    ledger = Ledger()
    return write_corpus(
        "mhubert147",
        root.absolute(),
        _sets(manifests, audio_root, langs, wanted, ledger),
        ledger,
        output_dir,
        max_missing,
        nj,
        {"audio_root": str(audio_root), "datasets": sorted(wanted)},
    )


def _plain(dataset: str) -> str:
    """Spell a dataset without part number, case and marks: ``CV_12`` is ``cv``."""
    name = re.sub(r"[^a-z0-9_]", "", re.sub(r"_\d+$", "", dataset).lower())
    return "cv" if name == "commonvoice" else name


def _sets(
    manifests: list[Path],
    audio_root: str | Path,
    langs: Sequence[str],
    datasets: set[str],
    ledger: Ledger,
) -> Iterator[tuple[str, list[Utterance]]]:
    utterances: dict[str, list[Utterance]] = {lang: [] for lang in langs}
    for manifest in manifests:
        for utterance in _read(manifest, audio_root, langs, datasets, ledger):
            utterances[utterance.lang].append(utterance)
    for lang in langs:
        yield f"pretrain/train_{lang}", utterances.pop(lang)


def _read(
    manifest: Path,
    audio_root: str | Path,
    langs: Sequence[str],
    datasets: set[str],
    ledger: Ledger,
) -> Iterator[Utterance]:
    lines = read_lines(manifest)
    _, first = next(lines, (1, None))
    if first is None or "\t" in first:
        raise RecipeError(
            f"{manifest}:1: found {first!r}, expected the folder of the audio; this is "
            "no manifest of mHuBERT-147"
        )
    folder = Path(audio_root or first)
    if not folder.is_dir():
        raise RecipeError(
            f"{manifest}:1: the audio's folder {folder} is not here; set "
            "MHUBERT147_AUDIO in db.sh, or give --audio_root"
        )
    folder = folder.absolute()
    for number, line in lines:
        if line == "":
            continue
        values = (line or "").split("\t")
        if len(values) != 4 or not values[1].isdigit() or not _is_inside(values[0]):
            where = f"{manifest}:{number}"
            ledger.leave_out(_MANIFESTS, manifest.name, "broken_row", where)
            continue
        file_name, samples, label, dataset = values
        lang, dataset = _lang(label), _plain(dataset)
        if lang not in langs:
            ledger.leave_out(_MANIFESTS, manifest.name, "other_language")
            continue
        if datasets and dataset not in datasets:
            ledger.leave_out(_MANIFESTS, manifest.name, f"other_dataset_{dataset}")
            continue
        seconds = int(samples) / _RATE
        ledger.keep(_MANIFESTS, manifest.name, seconds)
        stem = "_".join(file_name.rpartition(".")[0].split()).replace("/", "-")
        yield Utterance(
            utt_id=f"mhubert147_{dataset}_{stem}",
            path=_find(folder, file_name, label).as_posix(),
            lang=lang,
            source=f"mhubert147-{dataset}-{label}",
            seconds=seconds,
        )


def _is_inside(file_name: str) -> bool:
    parts = Path(file_name).parts
    return bool(parts) and ".." not in parts and not Path(file_name).is_absolute()


def _lang(label: str) -> str:
    if label in _LEFT_OUT_LABELS:
        return ""
    try:
        return language_code(label, "")
    except RecipeError:
        return ""


def _find(folder: Path, file_name: str, label: str) -> Path:
    named = folder / file_name
    for path in (named, folder / label / "clips" / file_name):
        for suffix in (path.suffix, ".mp3", ".flac"):
            if path.with_suffix(suffix).is_file():
                return path.with_suffix(suffix)
    return named

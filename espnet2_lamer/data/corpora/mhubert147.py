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

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.corpora.archive import (
    Archive,
    Ledger,
    locate,
    read_rows,
    visible,
)
from espnet2_lamer.data.languages import language_code
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError

#: The paper's choice of datasets, spelled as :func:`_plain` does.
DATASETS = ("cv", "thchs30", "aishell", "aishell3")
_LEFT_OUT_LABELS = ("zh-TW",)
# Where the report counts the rows of each manifest.
_MANIFESTS = "manifests"


def read(
    corpus: str,
    root: Path,
    langs: Sequence[str],
    ledger: Ledger,
    audio_root: str | Path = "",
    datasets: Sequence[str] = DATASETS,
) -> Archive:
    """Read a manifest, or a folder of ``*.tsv``; empty ``datasets``: all.

    A file is looked for under its name, then with ``.mp3`` or ``.flac`` for ``.wav``
    (the manifests name converted files), also where CommonVoice's archive has it:
    ``<language>/clips/``. ``audio_root`` is its folder instead of the first line's.

    Raises:
        RecipeError: No manifest, a file that is none, or audio folders that do not
            exist.
    """
    if root.is_file():
        manifests = [root]
    else:
        manifests = visible(locate(corpus, root, ["*.tsv"]), "*.tsv")
    wanted = {_plain(name) for name in datasets}
    utterances: dict[str, list[Utterance]] = {lang: [] for lang in langs}
    for manifest in manifests:
        for utterance in _read(manifest, audio_root, langs, wanted, ledger):
            utterances[utterance.lang].append(utterance)
    sets = ((f"pretrain/train_{lang}", utterances.pop(lang)) for lang in langs)
    details = {"audio_root": str(audio_root), "datasets": sorted(wanted)}
    return Archive(root.absolute(), sets, details)


def _plain(dataset: str) -> str:
    """Spell a dataset without part number, case and marks: ``CV_12`` is ``cv``."""
    name = re.sub(r"[^a-z0-9_]", "", re.sub(r"_\d+$", "", dataset).lower())
    return "cv" if name == "commonvoice" else name


def _read(
    manifest: Path,
    audio_root: str | Path,
    langs: Sequence[str],
    datasets: set[str],
    ledger: Ledger,
) -> Iterator[Utterance]:
    rows = read_rows(manifest)
    where, first = next(rows, (f"{manifest}:1", []))
    if len(first) != 1:
        raise RecipeError(
            f"{where}: found {' '.join(first)!r}, expected the folder of the audio; "
            "this is no manifest of mHuBERT-147"
        )
    folder = Path(audio_root or first[0])
    if not folder.is_dir():
        raise RecipeError(
            f"{where}: the audio's folder {folder} is not here; set "
            "MHUBERT147_AUDIO in db.sh, or give --audio_root"
        )
    folder = folder.absolute()
    for where, values in rows:
        if len(values) != 4 or not values[1].isdigit() or not _is_inside(values[0]):
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
        seconds = int(samples) / SAMPLE_RATE
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
    path = Path(file_name)
    return bool(path.parts) and ".." not in path.parts and not path.is_absolute()


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

"""Join what corpora gave into the sets that training and evaluation read."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.data.corpora import CORPORA, EVAL_DIR, PRETRAIN_DIR
from espnet2_lamer.data.sampling import seed_of
from espnet2_lamer.data.sets import (
    SPLITS,
    read_if_there,
    remove_other_sets,
    write_tables,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.datadir import read_table

# The corpus that is a selection from others.
_SELECTION = "mhubert147"
_TABLES = ("wav.scp", "utt2spk", "utt2lang", "utt2source", "text", "romanisation")
# Where no corpus has a dev set: as many per source as mHuBERT-147's validation set has
# per language and dataset, and never more than a tenth.
_HELD_OUT = 5
_LARGEST_SHARE = 0.1


def join_corpora(
    corpora: Sequence[str], output_dir: str | Path, langs: Sequence[str], seed: int = 0
) -> dict:
    """Write ``<output_dir>/{train,dev,test}_<lang>`` and ``corpora.json``.

    ``train`` joins what all corpora give to pretraining; with ``mhubert147`` among them
    its manifests say what pretraining takes, and the others only give evaluation sets.
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
                f"{lang}; add a corpus that has it ({', '.join(CORPORA)}, or "
                "--corpus manifest), or take it out of --new_langs/--replay_langs"
            )
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


def _plan(output_dir: Path, corpora: Sequence[str], lang: str) -> dict[str, list[Path]]:
    in_domain = [c for c in corpora if (output_dir / PRETRAIN_DIR / c).is_dir()]
    selected = [_SELECTION] if _SELECTION in corpora else in_domain
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
    with atomic_dir(directory) as temporary:
        # One table after the other: each may have more than a million lines.
        for name in _TABLES:
            table = {
                utt: value
                for folder in folders
                for utt, value in read_if_there(folder / name).items()
                if is_dev is None or (utt in held_out) == is_dev
            }
            write_tables(temporary, {name: table})
            if name == "utt2source":
                counts.update(table.values())
    return counts

"""The held-out utterances that the forgetting monitor listens to."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet2_lamer.constants import num_frames
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.probe import Phones, frame_phones

# Of longer utterances only the beginning, so that memory and time are bounded.
MAX_SAMPLES = 160_000
# A language without a name, where the data have no `lang`.
ALL = "all"


@dataclass(frozen=True)
class Sample:
    """Held-out speech of every language.

    Attributes:
        speech: Per language and utterance a waveform ``[n]``.
        phones: Per utterance the phone of every frame, where they are known.
        with_phones: Languages in which a phone probe can be trained and tested.
    """

    speech: dict[str, dict[str, Tensor]]
    phones: dict[str, Phones] = field(default_factory=dict)
    with_phones: frozenset[str] = frozenset()


def monitor_sample(
    factory: Any,
    data: Sequence[Sequence[str]],
    langs: Sequence[str],
    number: int,
    seed: int,
) -> Sample:
    """Choose and read the utterances; the same ones whenever the seed is the same.

    Args:
        factory: The validation's ``BucketIterFactory``.
        data: ESPnet's ``(path, name, type)`` of the validation data. ``phones.ctm`` is
            looked for beside the speech's file.
        langs: Names of the languages that the data ``lang`` counts.
        number: At most so many utterances per language.
        seed: Of the choice, from a generator of its own.

    Raises:
        RecipeError: An utterance or ``phones.ctm`` cannot be read.
    """
    paths = {name: Path(path) for path, name, _ in data}
    numbers = read_table(paths["lang"], "stage 7") if "lang" in paths else {}
    groups: dict[str, list[str]] = {}
    for utt in sorted(factory.lengths, key=str.encode):
        index = int(numbers[utt].split()[0]) if utt in numbers else -1
        lang = langs[index] if 0 <= index < len(langs) else ALL
        groups.setdefault(lang, []).append(utt)
    generator = np.random.default_rng(seed)
    speech: dict[str, dict[str, Tensor]] = {}
    for lang, utts in sorted(groups.items()):
        if len(utts) > number:
            chosen = generator.choice(len(utts), number, replace=False)
            utts = [utts[i] for i in sorted(chosen)]
        speech[lang] = {
            utt: torch.from_numpy(
                np.asarray(factory.dataset[utt][1]["speech"], np.float32)[:MAX_SAMPLES]
            )
            for utt in utts
        }
    phones = _phones(paths["speech"].with_name("phones.ctm"), speech)
    usable = frozenset(
        lang for lang, u in speech.items() if _can_probe(list(u), phones)
    )
    logging.info(
        "forgetting is monitored on %s; phone probe: %s",
        ", ".join(f"{len(utts)} utterances of {lang}" for lang, utts in speech.items()),
        ", ".join(sorted(usable)) or "none (no phones.ctm, or too few phones)",
    )
    return Sample(speech, phones, usable)


def _phones(ctm: Path, speech: dict[str, dict[str, Tensor]]) -> dict[str, Phones]:
    if not ctm.is_file():
        return {}
    aligned = frame_phones(ctm)
    return {
        utt: aligned[utt][: num_frames(len(waveform))]
        for utts in speech.values()
        for utt, waveform in utts.items()
        if utt in aligned
    }


def _can_probe(utts: list[str], phones: dict[str, Phones]) -> bool:
    """Whether both halves of the utterances have at least two phones."""
    known = [utt for utt in utts if utt in phones]
    return all(
        len({p for utt in known[half::2] for p in phones[utt]} - {None}) >= 2
        for half in (0, 1)
    )

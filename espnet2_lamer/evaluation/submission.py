"""The archive of prediction files that ML-SUPERB's leaderboard takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.scoring import read_pair, tokenize
from espnet2_lamer.fileio.archive import write_archive

#: A task's folder, by track, in the benchmark's own words.
FOLDERS = {
    "asr": "monolingual_asr",
    "multi_asr": "multilingual_asr",
    "lid": "lid",
    "asr_lid": "multilingual_asr_lid",
}
_README = """\
Predictions of {system} for ML-SUPERB.

predict/TASK/BUDGET/TEST_SET/text     utterance id and hypothesis, as ESPnet's decoding
                                      writes it; LID: the tag, [eng]
predict/TASK/BUDGET/TEST_SET/hyp.trn  the same in sclite's trn format, in the unit that
                                      is scored (not for LID)

Heads: {heads}
"""


@dataclass(frozen=True)
class Prediction:
    """Hypotheses ``hyp`` of one test set with its reference ``text``.

    In the monolingual track ``test`` is the name of the official configuration
    (``eng1``); ``head`` is the experiment that made the hypotheses.
    """

    track: str
    budget: str
    test: str
    unit: str
    ref: Path
    hyp: Path
    head: str


def write_submission(
    output: Path,
    system: str,
    predictions: Sequence[Prediction],
    tracks: Sequence[str],
    budgets: Sequence[str],
) -> None:
    """Write one system's predictions for these tracks and budgets as a zip.

    The benchmark's rules ask for a folder per task, all inside a folder ``predict``,
    as one zip archive (multilingual.superbbenchmark.org/rules, "Submission example").
    Names below a task's folder are ours: the page shows them only in an example file.

    Raises:
        RecipeError: A track is missing in a budget, two predictions have one place,
            or hypotheses and reference differ in their utterances.
    """
    present = {(p.track, p.budget) for p in predictions}
    missing = [
        f"{track} {budget}"
        for budget in budgets
        for track in tracks
        if (track, budget) not in present
    ]
    if missing:
        raise RecipeError(
            f"{output}: no predictions of {system} for {', '.join(missing)}; train "
            "and decode heads with these tracks and budgets, or ask for fewer"
        )
    members: dict[str, Path | bytes] = {}
    for prediction in predictions:
        folder = f"predict/{FOLDERS[prediction.track]}"
        folder += f"/{prediction.budget}/{prediction.test}"
        if f"{folder}/text" in members:
            raise RecipeError(
                f"{output}: {folder} would hold two predictions, one of them from "
                f"{prediction.head}; keep one experiment per test set"
            )
        # An utterance that is missing would be found only after the upload.
        references, hypotheses = read_pair(prediction.ref, prediction.hyp)
        lines = {utt: hypotheses[utt] for utt in references}
        text = "".join(f"{u} {line}".rstrip() + "\n" for u, line in lines.items())
        members[f"{folder}/text"] = text.encode()
        if prediction.track != "lid":
            # As ESPnet writes it before it calls sclite: tokens, tab,
            # (speaker-utterance), with the utterance as its own speaker.
            trn = ""
            for utt, line in lines.items():
                words = tokenize(line, prediction.unit, remove_tags=True)
                trn += f"{' '.join(words)}\t({utt}-{utt})\n"
            members[f"{folder}/hyp.trn"] = trn.encode()
    heads = ", ".join(sorted({p.head for p in predictions}))
    members["README.txt"] = _README.format(system=system, heads=heads).encode()
    write_archive(output, members)

"""Linear phone probe: how well a frame's features tell which phone is spoken."""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE, STRIDE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.text import text_lines
from espnet2_lamer.metrics.measure import Measure

# Iterations of L-BFGS. Fixed, so that every model's probe gets the same budget.
_ITERATIONS = 100
# A last phone may end after the last frame's centre by a little, not by more.
_TOLERATED_FRAMES = 2

Phones = Sequence[str | None]


@dataclass(frozen=True)
class PhoneProbe:
    """Result of a phone probe.

    Attributes:
        accuracy: Frame accuracy on the test utterances, per cent.
        majority: Accuracy of always answering the most frequent training phone.
    """

    accuracy: Measure
    majority: float
    phones: int
    train_frames: int


def frame_phones(phones_ctm: str | Path) -> dict[str, list[str | None]]:
    """Align a phone CTM, ``utt channel start_s duration_s phone``, to HuBERT frames.

    Frame t covers samples 320 t to 320 t + 400 of 16 kHz audio; it gets the phone
    that is spoken at its centre, sample 320 t + 200. Returned are an utterance's
    phones, one a frame up to the last phone, None between phones.

    Raises:
        RecipeError: The file is missing or a line is not CTM.
    """
    path = Path(phones_ctm)
    if not path.is_file():
        raise RecipeError(
            f"{path}: file not found; it comes with the timed phones of a corpus"
        )
    aligned: dict[str, list[str | None]] = {}
    for number, line in text_lines(path):
        try:
            utt, _, start_s, duration_s, phone = line.split()[:5]
            start, end = float(start_s), float(start_s) + float(duration_s)
        except ValueError:
            raise RecipeError(
                f"{path}:{number}: found {line.strip()!r}; expected 'utt channel "
                "start_s duration_s phone'"
            ) from None
        frames = aligned.setdefault(utt, [])
        first, stop = _first_frame(start), _first_frame(end)
        frames.extend([None] * (stop - len(frames)))
        frames[first:stop] = [phone] * (stop - first)
    return aligned


def phone_probe(
    train_features: Mapping[str, ArrayLike],
    train_phones: Mapping[str, Phones],
    test_features: Mapping[str, ArrayLike],
    test_phones: Mapping[str, Phones],
    max_frames: int = 60_000,
    seed: int = 0,
    ridge: float | None = None,
) -> PhoneProbe:
    """Train a linear phone classifier on frames and measure it on other utterances.

    The classifier is multinomial logistic regression on features standardised with
    the training frames' mean and deviation, trained by 100 iterations of L-BFGS with
    an L2 penalty of weight 1 on the summed loss. Frames without a phone are left
    out; test frames whose phone was not seen in training count as wrong.

    Args:
        train_features: ``[T, D]`` per utterance id (arrays or CPU tensors).
        train_phones: Per utterance id its frames' phones, see :func:`frame_phones`.
            Utterances that are not in it are left out.
        max_frames: More training frames than these are sampled down.
        seed: Of that sample and of the bootstrap.
        ridge: Use a ridge classifier instead, which is solved at once (the phones'
            indicators by least squares, the highest wins), with this L2 penalty on
            the mean squared error.

    Raises:
        RecipeError: No frame has a phone, fewer than two phones occur, or phones
            reach beyond an utterance's features.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from threadpoolctl import threadpool_limits

    features, phones, _ = _labelled_frames(train_features, train_phones, "training")
    if len(features) > max_frames:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(features), max_frames, replace=False))
        features, phones = features[chosen], phones[chosen]
    names, counts = np.unique(phones, return_counts=True)
    if len(names) < 2:
        raise RecipeError(
            f"phone probe: the only phone in the training utterances is {names[0]!r}; "
            "give utterances with at least two"
        )
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # A constant dimension carries nothing; dividing by 1 keeps it finite.
    deviation[deviation == 0] = 1
    if ridge is None:
        classifier = LogisticRegression(max_iter=_ITERATIONS)
    else:
        classifier = RidgeClassifier(ridge * len(features), solver="cholesky")
    # One thread: the sums, and so the figures, are the same on every machine, and many
    # short products gain little from more.
    with threadpool_limits(1), warnings.catch_warnings():
        # The budget is fixed on purpose, so not having converged is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((features - mean) / deviation, phones)

    tested, truth, owners = _labelled_frames(test_features, test_phones, "test")
    right = classifier.predict((tested - mean) / deviation) == truth
    unseen = np.setdiff1d(truth, names)
    if unseen.size:
        logging.debug("phone probe: never seen in training, wrong: %s", unseen)
    utts, owner = np.unique(owners, return_inverse=True)
    counts_of = zip(np.bincount(owner, right), np.bincount(owner), strict=True)
    parts = {
        str(utt): (int(correct), int(frames))
        for utt, (correct, frames) in zip(utts, counts_of, strict=True)
    }
    return PhoneProbe(
        accuracy=Measure.of_rate(parts, seed=seed),
        majority=100 * float((truth == names[counts.argmax()]).mean()),
        phones=len(names),
        train_frames=len(features),
    )


def _first_frame(seconds: float) -> int:
    """Index of the first frame whose centre is not before a point in time."""
    samples = round(seconds * SAMPLE_RATE) - RECEPTIVE_FIELD // 2
    return max(0, math.ceil(samples / STRIDE))


def _labelled_frames(
    features: Mapping[str, ArrayLike], phones: Mapping[str, Phones], what: str
) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.str_]]:
    """Concatenate the frames that have a phone: features, phones, utterance ids."""
    kept, labels, owners = [], [], []
    for utt in sorted(features, key=str.encode):
        if utt not in phones:
            continue
        frames = np.asarray(features[utt], dtype=np.float32)
        if len(phones[utt]) > len(frames) + _TOLERATED_FRAMES:
            raise RecipeError(
                f"phone probe: utterance {utt!r} has {len(frames)} frames of features "
                f"but phones up to frame {len(phones[utt])}; features and phones.ctm "
                "must be of the same 16 kHz audio at 50 frames a second"
            )
        spoken = [t for t, p in enumerate(phones[utt][: len(frames)]) if p is not None]
        kept.append(frames[spoken])
        labels += [phones[utt][t] for t in spoken]
        owners += [utt] * len(spoken)
    if not labels:
        raise RecipeError(
            f"phone probe: no frame of the {what} utterances has a phone; give "
            "utterances that phones.ctm covers"
        )
    return np.concatenate(kept), np.array(labels), np.array(owners)

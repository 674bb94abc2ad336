"""How much an expert tells about the language, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from espnet2_lamer.analysis.routing import mutual_information

if TYPE_CHECKING:
    from espnet2_lamer.layers.feed_forward import RoutingRecord

RESAMPLES = 1000


@dataclass(frozen=True)
class Information:
    """Mutual information between a frame's first expert and its language, in nats.

    Attributes:
        value: Plug-in estimate over all frames.
        interval: Central 95 % of it over bootstrap draws of utterances within each
            language. The estimate and its draws are biased upwards, so compare with
            ``chance``.
        chance: Mean of the estimate when languages are shuffled among utterances.
        p: Share of shufflings, this one included, that reach ``value``.
    """

    value: float
    interval: tuple[float, float]
    chance: float
    p: float


class ExpertChoices:
    """Collects, per router and utterance, how often each expert came first."""

    def __init__(self) -> None:
        self.langs: list[str] = []
        self._counts: dict[tuple[int, str], list[NDArray[np.int64]]] = {}

    def add(self, lang: str, record: "RoutingRecord") -> None:
        """Add one utterance without padding, recorded as ``[1, T, N]``."""
        self.langs.append(lang)
        for routing in record:
            first = routing.probs[0].argmax(dim=-1).cpu().numpy()
            counts = np.bincount(first, minlength=routing.probs.shape[-1])
            self._counts.setdefault((routing.layer, routing.name), []).append(counts)

    def information(self, seed: int = 0) -> dict[tuple[int, str], Information]:
        """Return the information of every router, by layer index from 0 and name."""
        return {
            router: expert_language_information(counts, self.langs, seed)
            for router, counts in sorted(self._counts.items())
        }


def expert_language_information(
    counts: Sequence[NDArray[np.int64]],
    langs: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Information:
    """Estimate the information, its interval and its chance level.

    Frames of an utterance are not independent, so utterances are drawn and shuffled,
    not frames.

    Args:
        counts: Frames per first expert of every utterance ``[U][N]``.
        langs: Languages ``[U]``.
        seed: Of draws and shufflings.
        resamples: How many of each.
    """
    table = np.stack(counts).astype(np.float64)
    names, owner = np.unique(np.asarray(langs), return_inverse=True)
    indicator = np.eye(len(names))[owner]
    value = mutual_information(indicator.T @ table)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(owner == lang) for lang in range(len(names))]
    drawn = _information(
        [
            [table[rng.choice(m, len(m))].sum(axis=0) for m in members]
            for _ in range(resamples)
        ]
    )
    shuffled = _information(
        [indicator[rng.permutation(len(owner))].T @ table for _ in range(resamples)]
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    # Sums in another order differ in the last digit; that is no larger value.
    reached = np.count_nonzero(shuffled >= value - 1e-12)
    return Information(
        value=value,
        interval=(float(low), float(high)),
        chance=float(shuffled.mean()),
        p=(1 + reached) / (resamples + 1),
    )


def _information(tables: ArrayLike) -> NDArray[np.float64]:
    """Plug-in mutual information of tables of counts ``[R, L, N]``, in nats ``[R]``."""
    joint = np.asarray(tables)
    joint = joint / joint.sum(axis=(1, 2), keepdims=True)
    marginals = entr(joint.sum(axis=1)).sum(-1) + entr(joint.sum(axis=2)).sum(-1)
    return marginals - entr(joint).sum(axis=(1, 2))

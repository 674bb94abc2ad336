"""Which experts a language uses, and how much an expert tells about the language."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.metrics.similarity import entropy

if TYPE_CHECKING:
    from espnet2_lamer.layers.feed_forward import RoutingRecord

RESAMPLES = 1000


class RoutingStatistics:
    """Accumulates router outputs utterance by utterance.

    Layers come in as indices from 0, as ``record_routing`` numbers them, and go out
    as block numbers from 1 (block k makes hidden state k); experts go out from 1.
    """

    def __init__(self) -> None:
        # Per router and language, over its frames: their number, sums ``[N]`` of gates,
        # probabilities, selections and first places, and the sum of entropies.
        self._sums: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
        # Per router and utterance its language, and how often each expert came first.
        self._choices: dict[tuple[int, str], list[tuple[str, NDArray[np.int64]]]] = {}

    def add(self, lang: str, record: "RoutingRecord", frames: int) -> None:
        """Add the real ``frames`` of one utterance.

        The batch that :func:`espnet2_lamer.layers.record_routing` recorded holds it
        alone. Gates are 0 where an expert was not selected.
        """
        for routing in record if frames else ():
            probs, gates = (
                tensor[0, :frames].detach().double().cpu().numpy()
                for tensor in (routing.probs, routing.gates)
            )
            first = np.bincount(probs.argmax(axis=-1), minlength=probs.shape[-1])
            new = {
                "frames": len(probs),
                "gates": gates.sum(0),
                "probs": probs.sum(0),
                "dispatched": (gates > 0).sum(0),
                "first": first,
                "entropy": float(entr(probs).sum()),
            }
            router = routing.layer, routing.name
            self._choices.setdefault(router, []).append((lang, first))
            sums = self._sums.setdefault(router, {})
            old = sums.setdefault(lang, dict.fromkeys(new, 0))
            sums[lang] = {key: old[key] + value for key, value in new.items()}

    def table(self) -> list[dict[str, Any]]:
        """Return one row per layer, router and language, in that order.

        Of the three lists of N, ``mean_gate``, ``mean_prob`` (Eq. 7's m) and
        ``dispatch_share`` (Eq. 7's f: share of the selections that went to the expert),
        each sums to 1, but top-1 gates, which are raw probabilities.
        """
        return [
            {
                "layer": layer + 1,
                "router": router,
                "lang": lang,
                "frames": s["frames"],
                "experts": len(s["gates"]),
                "mean_gate": (s["gates"] / s["frames"]).tolist(),
                "mean_prob": (s["probs"] / s["frames"]).tolist(),
                "dispatch_share": (s["dispatched"] / s["dispatched"].sum()).tolist(),
            }
            for (layer, router), by_lang in sorted(self._sums.items())
            for lang, s in sorted(by_lang.items())
        ]

    def layers(self) -> list[dict[str, Any]]:
        r"""Return one row per layer and router, over the frames of all languages.

        - ``mutual_information``: plug-in estimate, in nats, between a frame's arg-max
          expert k and its language l; with frame counts :math:`n_{lk}`

          .. math:: I = \sum_{l,k} \frac{n_{lk}}{n} \ln \frac{n\, n_{lk}}{n_l\, n_k} ;

        - ``language_entropy``, which it cannot exceed, in nats;
        - ``load``: dispatch share of each expert times N, 1 for a fair share;
        - ``load_entropy``: of the dispatch shares, in nats, ln N when balanced;
        - ``routing_entropy``: of a frame's routing probabilities, in nats, mean over
          frames: 0 where routers are sure, ln N where they are not;
        - ``dead_experts``: experts that no frame was dispatched to.
        """
        rows = []
        for (layer, router), by_lang in sorted(self._sums.items()):
            sums = [s for _, s in sorted(by_lang.items())]
            counts = np.stack([s["first"] for s in sums])
            dispatched = np.sum([s["dispatched"] for s in sums], axis=0)
            frames, uncertain = int(counts.sum()), sum(s["entropy"] for s in sums)
            rows.append(
                {
                    "layer": layer + 1,
                    "router": router,
                    "frames": frames,
                    "experts": counts.shape[1],
                    "mutual_information": mutual_information(counts),
                    # Not -0.0 where there is one language, or one expert.
                    "language_entropy": entropy(counts.sum(axis=1)) + 0.0,
                    "load": (dispatched * len(dispatched) / dispatched.sum()).tolist(),
                    "load_entropy": entropy(dispatched) + 0.0,
                    "routing_entropy": uncertain / frames,
                    "dead_experts": (np.flatnonzero(dispatched == 0) + 1).tolist(),
                }
            )
        return rows

    def information(self, seed: int = 0) -> dict[tuple[int, str], "Information"]:
        """What each router, by layer index from 0 and name, tells of the language."""
        found = {}
        for router, chosen in sorted(self._choices.items()):
            langs, counts = zip(*chosen, strict=True)
            found[router] = expert_language_information(counts, langs, seed)
        return found

    def save(self, path: str | Path) -> None:
        """Write ``{"table": ..., "layers": ...}`` as JSON."""
        write_json(path, {"table": self.table(), "layers": self.layers()})


def mutual_information(counts: NDArray[Any]) -> float:
    """Plug-in mutual information, in nats, of a table of counts ``[L, K]``; not < 0."""
    rows, columns = entropy(counts.sum(0)), entropy(counts.sum(1))
    return max(0.0, rows + columns - entropy(counts))


@dataclass(frozen=True)
class Information:
    """Mutual information between a frame's first expert and its language, in nats.

    The estimate and its draws are biased upwards, so compare with ``chance``.
    """

    value: float  # plug-in estimate over all frames
    # Central 95 % of it over bootstrap draws of utterances within each language.
    interval: tuple[float, float]
    chance: float  # its mean when languages are shuffled among utterances
    p: float  # share of shufflings, this one included, that reach it


def expert_language_information(
    counts: Sequence[NDArray[np.int64]],
    langs: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Information:
    """Estimate the information, its interval and its chance level.

    Frames of an utterance are not independent, so utterances are drawn and shuffled,
    not frames. ``counts [U][N]`` are an utterance's frames per first expert, ``langs
    [U]`` its language.
    """
    table = np.stack(counts).astype(np.float64)
    names, owner = np.unique(np.asarray(langs), return_inverse=True)
    indicator = np.eye(len(names))[owner]
    value = mutual_information(indicator.T @ table)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(owner == lang) for lang in range(len(names))]
    draws, times = [], range(resamples)
    for _ in times:
        draws.append([table[rng.choice(m, len(m))].sum(axis=0) for m in members])
    shuffles = [indicator[rng.permutation(len(owner))].T @ table for _ in times]
    drawn, shuffled = _information(draws), _information(shuffles)
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

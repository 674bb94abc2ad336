"""Which experts a language uses: routing statistics per layer, expert and language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from espnet2_lamer.fileio.atomic import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from espnet2_lamer.layers.feed_forward import RoutingRecord


@dataclass
class _Sums:
    """Sums over one language's frames at one router, each ``[N]``."""

    frames: int
    gates: NDArray[np.float64]
    probs: NDArray[np.float64]
    dispatched: NDArray[np.int64]
    first: NDArray[np.int64]
    entropy: float


class RoutingStatistics:
    """Accumulates router outputs utterance by utterance.

    Layers come in as indices from 0, as ``record_routing`` numbers them, and go out
    as block numbers from 1 (block k makes hidden state k); experts go out from 1.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], dict[str, _Sums]] = {}

    def add(
        self,
        lang: str,
        probs_per_layer: "Mapping[int, Tensor]",
        gates_per_layer: "Mapping[int, Tensor]",
        router: str = "ffn",
    ) -> None:
        """Add the real frames of one utterance.

        Args:
            lang: Language of the utterance.
            probs_per_layer: Router softmax ``[T, N]`` per layer index.
            gates_per_layer: Gates ``[T, N]`` per layer index, 0 where not selected.
            router: Name of the routers within their layers.
        """
        for layer, probs in probs_per_layer.items():
            p = probs.detach().double().cpu().numpy()
            g = gates_per_layer[layer].detach().double().cpu().numpy()
            if not len(p):
                continue
            experts = p.shape[-1]
            first = np.bincount(p.argmax(axis=-1), minlength=experts)
            uncertainty = float(entr(p).sum())
            new = _Sums(len(p), g.sum(0), p.sum(0), (g > 0).sum(0), first, uncertainty)
            by_lang = self._sums.setdefault((layer, router), {})
            if lang not in by_lang:
                by_lang[lang] = new
                continue
            old = by_lang[lang]
            by_lang[lang] = _Sums(
                old.frames + new.frames,
                old.gates + new.gates,
                old.probs + new.probs,
                old.dispatched + new.dispatched,
                old.first + new.first,
                old.entropy + new.entropy,
            )

    def add_record(
        self, langs: Sequence[str], record: "RoutingRecord", lengths: "Tensor"
    ) -> None:
        """Add a batch recorded by :func:`espnet2_lamer.layers.record_routing`.

        Args:
            langs: Language of each utterance, ``[B]``.
            record: What the routers gave, ``[B, T, N]`` each.
            lengths: Real frames of each utterance, ``[B]``.
        """
        frames = [int(n) for n in lengths]
        for routing in record:
            for b, (lang, n) in enumerate(zip(langs, frames, strict=True)):
                self.add(
                    lang,
                    {routing.layer: routing.probs[b, :n]},
                    {routing.layer: routing.gates[b, :n]},
                    routing.name,
                )

    def table(self) -> list[dict[str, Any]]:
        """Return one row per layer, router and language, in that order.

        Each row: ``layer``, ``router``, ``lang``, ``frames``, ``experts`` (N) and three
        lists of N: ``mean_gate``, ``mean_prob`` (Eq. 7's m), ``dispatch_share`` (Eq.
        7's f: share of the selections that went to the expert); each sums to 1, but
        top-1 gates, which are raw probabilities.
        """
        return [
            {
                "layer": layer + 1,
                "router": router,
                "lang": lang,
                "frames": s.frames,
                "experts": len(s.gates),
                "mean_gate": (s.gates / s.frames).tolist(),
                "mean_prob": (s.probs / s.frames).tolist(),
                "dispatch_share": (s.dispatched / s.dispatched.sum()).tolist(),
            }
            for (layer, router), by_lang in sorted(self._sums.items())
            for lang, s in sorted(by_lang.items())
        ]

    def layers(self) -> list[dict[str, Any]]:
        r"""Return one row per layer and router, over the frames of all languages.

        Each row: ``layer``, ``router``, ``frames``, ``experts`` and

        - ``mutual_information``: plug-in estimate, in nats, between a frame's arg-max
          expert k and its language l; with frame counts :math:`n_{lk}`

          .. math:: I = \sum_{l,k} \frac{n_{lk}}{n} \ln \frac{n\, n_{lk}}{n_l\, n_k} ;

        - ``language_entropy``, which it cannot exceed, in nats;
        - ``load``: dispatch share of each expert times N, 1 for a fair share;
        - ``load_entropy``: entropy of the dispatch shares, in nats, ln N when balanced;
        - ``routing_entropy``: entropy of a frame's routing probabilities, in nats, mean
          over frames: 0 where routers are sure, ln N where they are not;
        - ``dead_experts``: experts that no frame was dispatched to.
        """
        rows = []
        for (layer, router), by_lang in sorted(self._sums.items()):
            langs = sorted(by_lang)
            counts = np.stack([by_lang[lang].first for lang in langs])
            dispatched = np.sum([by_lang[lang].dispatched for lang in langs], axis=0)
            rows.append(
                {
                    "layer": layer + 1,
                    "router": router,
                    "frames": int(counts.sum()),
                    "experts": counts.shape[1],
                    "mutual_information": mutual_information(counts),
                    "language_entropy": entropy(counts.sum(axis=1)),
                    "load": (dispatched * len(dispatched) / dispatched.sum()).tolist(),
                    "load_entropy": entropy(dispatched),
                    "routing_entropy": sum(s.entropy for s in by_lang.values())
                    / int(counts.sum()),
                    "dead_experts": (np.flatnonzero(dispatched == 0) + 1).tolist(),
                }
            )
        return rows

    def save(self, path: str | Path) -> None:
        """Write ``{"table": ..., "layers": ...}`` as JSON."""
        write_json(path, {"table": self.table(), "layers": self.layers()})


def entropy(counts: NDArray[Any]) -> float:
    """Entropy, in nats, of the distribution that counts ``[K]`` are proportional to."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0


def mutual_information(counts: NDArray[Any]) -> float:
    """Plug-in mutual information, in nats, of a table of counts ``[L, K]``.

    It equals H(row) + H(column) - H(row, column), and is never negative.
    """
    joint = entropy(counts.ravel())
    return max(0.0, entropy(counts.sum(1)) + entropy(counts.sum(0)) - joint)

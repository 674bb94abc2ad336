"""CTC decoding with language models: ESPnet's time-synchronous search and scorers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet2_lamer.compat import espnet_nets
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.metrics.ngram import BEGIN, END, Ngram, TokenScores

ScorerInterface = espnet_nets("scorer_interface").ScorerInterface

#: Keys of a decoding config, ESPnet's, with their defaults.
DECODING: Mapping[str, float] = {
    "beam_size": 10,
    "ctc_weight": 1.0,
    "lm_weight": 0.5,
    "ngram_weight": 0.5,
    "penalty": 0.0,
}


def read_decoding(
    conf: Mapping[str, Any], source: object, lists: bool = False
) -> dict[str, Any]:
    """Check a decoding config and fill in what it leaves out.

    With ``lists`` a value may be a list of those to choose from on dev.

    Raises:
        RecipeError: Another key, a value that is no number, or no beam.
    """
    unknown = sorted(conf.keys() - DECODING.keys())
    if unknown:
        raise RecipeError(
            f"{source}: found {unknown[0]!r}, expected some of {', '.join(DECODING)}"
        )
    values = {**DECODING, **conf}
    for key, value in values.items():
        several = lists and isinstance(value, list) and key != "beam_size"
        least = {"beam_size": 1, "penalty": -np.inf}.get(key, 0)
        for one in value if several else [value]:
            kind = int if key == "beam_size" else int | float
            right = isinstance(one, kind) and not isinstance(one, bool)
            if not right or not one >= least:
                expected = "a number" if least < 0 else f"a number, {least} or more"
                raise RecipeError(
                    f"{source}: {key}: found {one!r}, expected {expected}"
                    + (", or a list of them" if lists and key != "beam_size" else "")
                )
        if value == []:
            raise RecipeError(f"{source}: {key}: found an empty list, expected numbers")
    return values


class NgramScorer(ScorerInterface):
    """An n-gram model as one of ESPnet's scorers, without kenlm.

    A state is the context so far, ``x`` is not used.
    """

    def __init__(self, model: Ngram, token_list: Sequence[str], eos: int) -> None:
        self.tokens = list(token_list)
        self.tokens[eos] = END
        self.scores = TokenScores(model, self.tokens)
        self.eos = eos

    def init_state(self, x: Any) -> tuple[str, ...]:
        """Return the context before the first token."""
        return ()

    def score(
        self, y: torch.Tensor, state: tuple[str, ...], x: Any
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return ``[V]`` log probabilities after the prefix ``y``, and its context."""
        last = BEGIN if len(y) == 1 else self.tokens[int(y[-1])]
        context = self.scores.context((*state, last))
        return self.scores(context), context


class WeightedScorers(ScorerInterface):
    """A weighted sum of language models, as one."""

    def __init__(self, scorers: Sequence[tuple[float, Any]]) -> None:
        self.scorers = scorers

    def init_state(self, x: Any) -> list[Any]:
        """Return each one's."""
        return [scorer.init_state(x) for _, scorer in self.scorers]

    def score(
        self, y: torch.Tensor, state: Sequence[Any], x: Any
    ) -> tuple[np.ndarray, list[Any]]:
        """Return ``[V]`` weighted log probabilities after ``y``, and the states."""
        total, states = 0.0, []
        for (weight, scorer), before in zip(self.scorers, state, strict=True):
            scores, after = scorer.score(y, before, x)
            if isinstance(scores, torch.Tensor):
                scores = scores.detach().cpu().double().numpy()
            total = total + weight * scores
            states.append(after)
        return total, states


def build_search(
    model: Any,
    decoding: Mapping[str, float],
    ngram: Ngram | None = None,
    lm: torch.nn.Module | None = None,
) -> Any:
    r"""Build ESPnet's ``BeamSearchTimeSync`` over a CTC model and language models.

    A hypothesis y of the frames x has the score

    .. math::
        w_{ctc} \log P_{ctc}(y|x) + w_{lm} \log P_{lm}(y) + w_{ngram} \log
        P_{ngram}(y) + penalty \cdot |y|

    where the first sums over alignments, as far as they are on the beam.
    """
    scorers: list[tuple[float, Any]] = []
    if lm is not None:
        scorers.append((decoding["lm_weight"], lm))
    if ngram is not None:
        scorer = NgramScorer(ngram, model.token_list, model.eos)
        scorers.append((decoding["ngram_weight"], scorer))
    search = espnet_nets("beam_search_timesync").BeamSearchTimeSync(
        sos=model.sos,
        beam_size=int(decoding["beam_size"]),
        scorers={
            "ctc": model.ctc,
            "decoder": None,
            "lm": WeightedScorers(scorers) if scorers else None,
        },
        weights={
            "ctc": decoding["ctc_weight"],
            "decoder": 0.0,
            "lm": 1.0,
            "length_bonus": decoding["penalty"],
        },
        token_list=list(model.token_list),
        blank=model.blank_id,
    )
    # It would look for the 15th best of ten tokens.
    search.pre_beam_size = min(search.pre_beam_size, len(model.token_list))
    return search


def search_tokens(search: Any, encoded: torch.Tensor, eos: int) -> list[int]:
    """Return the token ids of the best hypothesis of frames ``[T, D]``."""
    best = search(encoded)[0].yseq.tolist()
    return [token for token in best[1:-1] if token != eos]


def load_lm(config: Path, weights: Path, device: str = "cpu") -> torch.nn.Module:
    """Load a language model of ESPnet's LM task, in eval mode."""
    from espnet2.tasks.lm import LMTask

    from espnet2_lamer.compat import prepare_espnet
    from espnet2_lamer.fileio.foreign import check_weights, clear_errors

    prepare_espnet()
    check_weights(weights)
    with clear_errors(config):
        model, _ = LMTask.build_model_from_file(config, weights, device)
    return model.eval().lm

"""One pass of a model, and of its base, over speech: what all figures come from."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from espnet2_lamer.analysis.language_probe import held_out_folds
from espnet2_lamer.analysis.routing import RoutingStatistics
from espnet2_lamer.analysis.speech_set import SpeechSet, phones_of, read_waveform
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import LamerFeedForward, experts_off, record_routing
from espnet2_lamer.metrics.probe import PhoneProbe, Phones, phone_probe
from espnet2_lamer.metrics.similarity import LinearCKA

# Frames of a language that are kept in memory for the phone probe: 640 MB for four
# layers of a Large model and its base.
MAX_PROBE_FRAMES = 20_000
# A third of the utterances tests the phone probe.
_PHONE_FOLDS = 3

Frames = NDArray[np.float32]


@dataclass
class Heard:
    """What one pass over the speech found.

    Attributes:
        utterances: In the order of the vectors.
        vectors: Mean of every state over an utterance's frames ``[U, L + 1, D]``.
        base_vectors: The same of the base, or None.
        routing: Statistics of the routers; without rows where there is none.
        forgetting: Per language the ``layers`` compared, their linear ``cka`` to the
            base, a ``phone_probe`` of both systems each, and a ``note`` on the probe:
            why there is none, or how utterances were divided. Empty without a base.
        seconds: Speech heard per language.
    """

    utterances: list[Utterance]
    vectors: Frames
    base_vectors: Frames | None
    routing: RoutingStatistics
    forgetting: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def has_routers(model: nn.Module) -> bool:
    """Whether some layer of a model chooses between experts."""
    return any(isinstance(m, LamerFeedForward) and m.routers for m in model.modules())


def has_experts(model: nn.Module) -> bool:
    """Whether some layer of a model has experts that can be switched off."""
    return any(isinstance(m, LamerFeedForward) for m in model.modules())


def listen(
    model: nn.Module,
    base: nn.Module | None,
    speech: SpeechSet,
    layers: Sequence[int],
    device: str = "cpu",
    seed: int = 0,
) -> Heard:
    """Run the model and its base once over every utterance.

    Memory holds one vector per utterance and state, and the frames of one language at
    a time.

    Args:
        model: From :func:`espnet2_lamer.load_model`.
        base: Likewise; the model itself: its experts are switched off; None: nothing
            is compared.
        speech: What to listen to.
        layers: States whose frames are compared with the base's.
        device: Where to compute.
        seed: Of splits and bootstrap.

    Raises:
        RecipeError: Audio cannot be read, or the base has another number of layers.
    """
    model = model.to(device)
    if base is not None and base is not model:
        base = base.to(device)
        if base.num_layers != model.num_layers:
            raise RecipeError(
                f"--base: found a model with {base.num_layers} layers, expected "
                f"{model.num_layers} as in --model"
            )
    heard = Heard(
        utterances=[u for lang in speech.langs for u in speech.utterances[lang]],
        vectors=np.zeros(0, np.float32),
        base_vectors=None,
        routing=RoutingStatistics(),
        forgetting={},
        seconds=dict.fromkeys(speech.langs, 0.0),
    )
    vectors: list[Frames] = []
    base_vectors: list[Frames] = []
    with tqdm(total=len(heard.utterances), desc="listen", disable=None) as bar:
        for lang in speech.langs:
            language = _Language(lang, layers)
            for utterance in speech.utterances[lang]:
                samples, cut = read_waveform(utterance)
                heard.seconds[lang] += len(samples) / SAMPLE_RATE
                wave = torch.from_numpy(samples)[None].to(device)
                with record_routing(model) as record:
                    states = _states(model, wave)
                heard.routing.add_record([lang], record, torch.tensor([len(states[0])]))
                vectors.append(_means(states))
                if base is not None:
                    off = experts_off(model) if base is model else nullcontext()
                    with off:
                        base_states = _states(base, wave)
                    base_vectors.append(_means(base_states))
                    phones = phones_of(speech, utterance, len(samples), cut)
                    language.add(utterance, states, base_states, phones)
                bar.update()
            if base is not None:
                heard.forgetting[lang] = language.forgetting(seed)
    heard.vectors = np.stack(vectors)
    if base_vectors:
        heard.base_vectors = np.stack(base_vectors)
    return heard


def _compare_probes(layer: int, model: PhoneProbe, base: PhoneProbe) -> dict[str, Any]:
    """Put two phone probes on the same utterances side by side, in per cent."""
    test = model.accuracy.compare(base.accuracy)
    row: dict[str, Any] = {"layer": layer}
    for name, probe in (("model", model), ("base", base)):
        # Without the values of single utterances.
        fields = asdict(probe)
        measure = fields.pop("accuracy")
        row[name] = {key: measure[key] for key in ("value", "interval", "count")}
        row[name] |= fields
    row["difference"] = test.value
    row["interval"] = list(test.interval)
    return row | {"p": test.p}


class _Language:
    """Collects what the model and its base make of one language."""

    def __init__(self, lang: str, layers: Sequence[int]) -> None:
        self.lang = lang
        self.layers = list(layers)
        self.cka = [LinearCKA() for _ in layers]
        self.utterances: list[Utterance] = []
        self.phones: dict[str, Phones] = {}
        # Per layer the frames of every utterance, of the model and of its base.
        self.frames: list[tuple[dict[str, Frames], dict[str, Frames]]] = [
            ({}, {}) for _ in layers
        ]
        self.kept = 0

    def add(
        self,
        utterance: Utterance,
        states: list[Frames],
        base_states: list[Frames],
        phones: Phones | None,
    ) -> None:
        # S3PRL repeats the last frame of some lengths, ours does not.
        count = min(len(states[0]), len(base_states[0]))
        pairs = [(states[k][:count], base_states[k][:count]) for k in self.layers]
        for cka, (own, other) in zip(self.cka, pairs, strict=True):
            cka.add(own, other)
        if phones is None or self.kept >= MAX_PROBE_FRAMES:
            return
        self.kept += count
        self.utterances.append(utterance)
        self.phones[utterance.utt_id] = phones
        for both, pair in zip(self.frames, pairs, strict=True):
            for frames, state in zip(both, pair, strict=True):
                # A copy: a view would keep the whole state.
                frames[utterance.utt_id] = state.copy()

    def forgetting(self, seed: int) -> dict[str, Any]:
        try:
            cka = [cka.value() for cka in self.cka]
        except ValueError as error:
            raise RecipeError(f"{self.lang}: CKA to the base: {error}") from error
        result = {"layers": self.layers, "cka": cka, "phone_probe": []}
        if not self.utterances:
            note = "no phones.ctm, or no line of it for these utterances"
            return result | {"note": note}
        utts = [u.utt_id for u in self.utterances]
        langs, speakers = [self.lang] * len(utts), [u.speaker for u in self.utterances]
        try:
            folds = held_out_folds(utts, langs, speakers, _PHONE_FOLDS, seed)
            test = {u for u, part in zip(utts, folds.part, strict=True) if part == 0}
            probes = [
                _compare_probes(layer, *(self._probe(f, test, seed) for f in frames))
                for layer, frames in zip(self.layers, self.frames, strict=True)
            ]
        except RecipeError as error:
            return result | {"note": str(error)}
        held_out = "other speakers" if folds.by_speaker else "other utterances"
        note = f"tested on {len(test)} utterances of {held_out}"
        return result | {"phone_probe": probes, "note": note}

    def _probe(self, frames: dict[str, Frames], test: set[str], seed: int):
        split = [{u: f for u, f in frames.items() if (u in test) == t} for t in (0, 1)]
        return phone_probe(split[0], self.phones, split[1], self.phones, seed=seed)


def _states(model: nn.Module, wave: torch.Tensor) -> list[Frames]:
    states, _ = model.extract_features(wave)
    arrays = [state[0].float().cpu().numpy() for state in states]
    broken = [k for k, array in enumerate(arrays) if not np.isfinite(array).all()]
    if broken:
        raise RecipeError(
            f"layer {broken[0]} of the model gives values that are not numbers; its "
            "weights are damaged, or its training diverged"
        )
    return arrays


def _means(states: list[Frames]) -> Frames:
    return np.stack([state.mean(axis=0, dtype=np.float32) for state in states])

"""The speech of an analysis, and one pass of a model and its base over it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from espnet2_lamer.analysis.language_probe import held_out_folds
from espnet2_lamer.analysis.routing import RoutingStatistics
from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE, num_frames
from espnet2_lamer.data.audio import read_16k
from espnet2_lamer.data.audio_decoding import Unusable
from espnet2_lamer.data.languages import language_code
from espnet2_lamer.data.manifest import channel_confounded
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import Utterance, read_if_there
from espnet2_lamer.data.sources import READERS, Reading, Source
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.layers import LamerFeedForward, experts_off, record_routing
from espnet2_lamer.metrics.probe import Phones, frame_phones, phone_probe
from espnet2_lamer.metrics.similarity import LinearCKA

# Below this neither a held-out split nor an interval means anything.
MIN_UTTERANCES = 4
# Of longer utterances only the beginning, so that memory and time are bounded.
MAX_SECONDS = 20
# Frames of a language that are kept in memory for the phone probe: 640 MB for four
# layers of a Large model and its base.
MAX_PROBE_FRAMES = 20_000
# A third of the utterances tests the phone probe.
_PHONE_FOLDS = 3

Frames = NDArray[np.float32]


@dataclass(frozen=True)
class SpeechSet:
    """Utterances to analyse."""

    source: str
    utterances: dict[str, list[Utterance]]  # per language, in random order
    available: dict[str, int]  # per language, how many there were to choose from
    # Per utterance the phone of every frame, where phones.ctm is there.
    phones: dict[str, Phones] = field(default_factory=dict, repr=False)
    speakers_known: bool = False  # some speaker has more than one utterance
    # No source covers two languages, so that the recording tells the language; None
    # where sources are not known.
    confounded: bool | None = None

    @property
    def langs(self) -> list[str]:
        """Languages, sorted."""
        return sorted(self.utterances)


def read_speech_set(
    data: str | Path, langs: Sequence[str] = (), max_utts: int = 100, seed: int = 0
) -> SpeechSet:
    """Choose utterances of a data directory, a manifest or a folder per language.

    A directory has ``wav.scp`` and ``utt2lang`` (``utt2spk``, ``utt2source`` and
    ``phones.ctm`` are used where they are there); ``phones.ctm`` may stand beside a
    manifest, too. Without ``langs`` all languages are used.

    Raises:
        RecipeError: Something is missing or unreadable, a language is unknown or not
            there, or has fewer than :data:`MIN_UTTERANCES` utterances.
    """
    data = Path(data)
    if max_utts < MIN_UTTERANCES:
        raise RecipeError(
            f"--max_utts: found {max_utts}, expected {MIN_UTTERANCES} or more"
        )
    rows, folder = _rows(data)
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for row in rows:
        groups[row.lang].append(row)
    wanted = [language_code(lang, "--langs") for lang in langs] or sorted(groups)
    for lang in dict.fromkeys(wanted):
        count = len(groups.get(lang, []))
        if not count:
            raise RecipeError(
                f"{data}: no utterance of language {lang} (--langs); found "
                f"{', '.join(sorted(groups))}"
            )
        if count < MIN_UTTERANCES:
            rest = " ".join(sorted(set(wanted) - {lang}))
            raise RecipeError(
                f"{data}: language {lang} has {count} utterance(s), expected "
                f"{MIN_UTTERANCES} or more; add speech, or leave it out by "
                f"--langs {rest!r}"
            )
    generator = np.random.default_rng(seed)
    chosen: dict[str, list[Utterance]] = {}
    for lang in sorted(set(wanted)):
        group = sorted(groups[lang], key=lambda row: row.utt_id.encode())
        order = generator.permutation(len(group))[:max_utts]
        chosen[lang] = [group[i] for i in order]
    used = [row for group in chosen.values() for row in group]
    speakers = Counter(row.speaker for row in used if row.speaker)
    ctm = folder / "phones.ctm"
    return SpeechSet(
        source=data.as_posix(),
        utterances=chosen,
        available={lang: len(groups[lang]) for lang in chosen},
        phones=frame_phones(ctm) if ctm.is_file() else {},
        speakers_known=any(count > 1 for count in speakers.values()),
        confounded=channel_confounded(used) if len(chosen) > 1 else None,
    )


def read_waveform(utterance: Utterance) -> tuple[NDArray[np.float32], bool]:
    """Read samples ``[n]`` at 16 kHz, mono, and whether :data:`MAX_SECONDS` cut them.

    Raises:
        RecipeError: It cannot be read, or is too short for one frame.
    """
    try:
        samples = read_16k(utterance.path)
    except Unusable as error:
        raise RecipeError(
            f"{utterance.path}: utterance {utterance.utt_id!r} ({utterance.where}): "
            f"{error}; paths of wav.scp are relative to the current folder, those of a "
            "manifest to its own"
        ) from None
    if len(samples) < RECEPTIVE_FIELD:
        raise RecipeError(
            f"{utterance.path}: utterance {utterance.utt_id!r} has {len(samples)} "
            f"samples, expected at least {RECEPTIVE_FIELD} (one frame); leave it out"
        )
    most = MAX_SECONDS * SAMPLE_RATE
    return np.ascontiguousarray(samples[:most], np.float32), len(samples) > most


def phones_of(
    speech: SpeechSet, utterance: Utterance, samples: int, cut: bool
) -> Phones | None:
    """Return the phones of an utterance's frames, or None where they are not known.

    Where its ``samples`` were ``cut``, phones are cut, too; only then, so that phones
    of other audio are found out.
    """
    phones = speech.phones.get(utterance.utt_id)
    return phones[: num_frames(samples)] if phones is not None and cut else phones


def _rows(data: Path) -> tuple[list[Utterance], Path]:
    """Return all utterances, and the folder where ``phones.ctm`` may be."""
    if data.is_dir() and not (data / "wav.scp").is_file():
        if (data / "utt2lang").is_file() or (data / "text").is_file():
            raise RecipeError(f"{data / 'wav.scp'}: file not found")
        return READERS["folder"](Source("folder", str(data)), Reading()), data
    if not data.is_dir():
        return READERS["tsv"](Source("tsv", str(data)), Reading()), data.parent
    wavs, langs = read_wavs(data), read_table(data / "utt2lang")
    speakers, sources = (read_if_there(data / f"utt2{x}") for x in ("spk", "source"))
    codes = {x: language_code(x, f"{data / 'utt2lang'}") for x in set(langs.values())}
    rows = []
    for utt, path in wavs.items():
        if utt not in langs:
            raise RecipeError(
                f"{data / 'utt2lang'}: no line for utterance {utt!r} of wav.scp"
            )
        # Corpora with unknown speakers have the utterance's id there.
        speaker = speakers.get(utt, "")
        rows.append(
            Utterance(
                utt_id=utt,
                path=path,
                lang=codes[langs[utt]],
                speaker="" if speaker == utt else speaker,
                source=sources.get(utt, ""),
                where=str(data / "wav.scp"),
            )
        )
    if not rows:
        raise RecipeError(f"{data / 'wav.scp'}: no utterances")
    return rows, data


@dataclass
class Heard:
    """What one pass over the speech found."""

    utterances: list[Utterance]  # in the order of the vectors
    seconds: dict[str, float]  # of speech per language
    routing: RoutingStatistics = field(default_factory=RoutingStatistics)
    # Mean of every state over an utterance's frames [U, L + 1, D], also of the base.
    vectors: Frames | None = None
    base_vectors: Frames | None = None
    # Per language the layers compared, their linear cka to the base, a phone_probe of
    # both systems each, and a note: why there is none, or how utterances were divided.
    forgetting: dict[str, dict[str, Any]] = field(default_factory=dict)


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
    a time. Where ``base`` is the model itself, its experts are switched off; None:
    nothing is compared. ``layers`` are the states whose frames are compared; ``seed``
    is that of splits and bootstrap.

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
                heard.routing.add(lang, record, len(states[0]))
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


class _Language:
    """Collects what the model and its base make of one language."""

    def __init__(self, lang: str, layers: Sequence[int]) -> None:
        self.lang = lang
        self.layers = list(layers)
        self.cka = [LinearCKA() for _ in layers]
        self.utterances: list[Utterance] = []
        self.phones: dict[str, Phones] = {}
        # Per layer the frames of every utterance, of the model and of its base.
        self.frames: list[tuple[dict[str, Frames], ...]] = [({}, {}) for _ in layers]
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
            compared = zip(self.layers, self.frames, strict=True)
            probes = [self._probes(k, frames, test, seed) for k, frames in compared]
        except RecipeError as error:
            return result | {"note": str(error)}
        held_out = "other speakers" if folds.by_speaker else "other utterances"
        note = f"tested on {len(test)} utterances of {held_out}"
        return result | {"phone_probe": probes, "note": note}

    def _probes(
        self, layer: int, both: tuple[dict[str, Frames], ...], test: set[str], seed: int
    ) -> dict[str, Any]:
        """Put the probes of model and base side by side, in per cent."""
        row: dict[str, Any] = {"layer": layer}
        measures = []
        for name, of in zip(("model", "base"), both, strict=True):
            train, held_out = (
                {u: f for u, f in of.items() if (u in test) == tested}
                for tested in (False, True)
            )
            probe = phone_probe(train, self.phones, held_out, self.phones, seed=seed)
            measures.append(probe.accuracy)
            fields = asdict(probe)
            # Without the values of single utterances.
            measure = fields.pop("accuracy")
            row[name] = {key: measure[key] for key in ("value", "interval", "count")}
            row[name] |= fields
        paired = measures[0].compare(measures[1])
        interval = list(paired.interval)
        return row | {"difference": paired.value, "interval": interval, "p": paired.p}


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

"""What training makes the model forget, measured at each validation."""

import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Reporter
from torch import Tensor, nn

from espnet2_lamer.compat import REPORTER_TYPES
from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.atomic import append_text, atomic_path
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.foreign import check_weights
from espnet2_lamer.hubert.statistics import is_distributed, keep_json_lines
from espnet2_lamer.layers import experts_off
from espnet2_lamer.metrics.probe import Phones, frame_phones, phone_probe
from espnet2_lamer.metrics.similarity import LinearCKA, compared_layers
from espnet2_lamer.train.labels import beside

# L2 penalty of the probe, chosen on the mini base's dev set: few frames, many values.
RIDGE = 0.01
# Figures per language that a line takes over.
MASKED = ("acc_m", "bits_m", "control_acc_m", "control_bits_m")
# Of longer utterances only the beginning, so that memory and time are bounded.
MAX_SAMPLES = 160_000
# A language without a name, where the data have no `lang`.
ALL = "all"
# Figures of the control that stand beside a training's own.
_KEYS = re.compile(r"acc_m(_\w+)?|bits_m_\w+|loss_m_bits")
# One feature matrix [T, D] per layer, on the CPU.
States = list[Tensor]


@dataclass(frozen=True)
class Sample:
    """Held-out waveforms ``[n]`` by language and utterance, and frames' phones."""

    speech: dict[str, dict[str, Tensor]]
    phones: dict[str, Phones]

    @cached_property
    def with_phones(self) -> list[str]:
        """Languages both halves of whose utterances have at least two phones."""
        found = []
        for lang, utts in self.speech.items():
            known = [self.phones[utt] for utt in utts if utt in self.phones]
            halves = ({p for row in known[half::2] for p in row} for half in (0, 1))
            if all(len(half - {None}) >= 2 for half in halves):
                found.append(lang)
        return sorted(found)


@dataclass(eq=False)
class ForgettingMonitor:
    """Compares hidden states of held-out speech with those of the base.

    Per language and layer: linear CKA to the base, and the accuracy of a linear phone
    probe where phones are known (two halves of the sample, each tested by a ridge
    classifier that was trained on the other). The base is the model with its experts
    switched off; where everything trains it is the model before the first update, kept
    in ``forgetting_start.pt``. Masked accuracy stands beside that of the head-only
    control after as many epochs.

    Nothing is drawn from the random generators of the training, and no weight is
    touched. Everything is computed in the first rank, in fp32; others wait, and have no
    ``sample``. The figures of the last of ``layers`` (states, see
    :class:`~.asr.upstream.Upstream`) go into ESPnet's log; ``forgetting.jsonl`` has
    all, and loses the lines from ``epoch`` on, which is the next one.

    Raises:
        RecipeError: There is no such layer.
    """

    encoder: nn.Module
    sample: Sample | None
    layers: list[int]
    output_dir: Path
    epoch: InitVar[int]
    updates: InitVar[int]
    device: str
    control: Mapping[int, Mapping[str, dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self, epoch: int, updates: int) -> None:
        depth = self.encoder.architecture["encoder_num_layers"]
        self.layers = compared_layers(self.layers, depth, "monitor_layers")
        self.path = self.output_dir / "forgetting.jsonl"
        self.start = self.output_dir / "forgetting_start.pt"
        self._base: dict[str, States] | None = None
        self._base_probe: dict[str, list[float]] = {}
        if self.sample is None:
            return
        keep_json_lines(self.path, "epoch", epoch - 1)
        if self.encoder.lamer is None:
            self._start_states(updates)

    def measure(self, updates: int, reporter: Reporter) -> None:
        """Measure after a validation, write a line, and tell ESPnet's reporter.

        Its ``valid`` gets ``cka_<lang>`` and ``probe_<lang>`` (shares of 1) of the last
        layer, ``control_acc_m_<lang>`` and the control's other figures where it has
        that epoch, and ``monitor_time`` in seconds, in all ranks.
        """
        epoch = reporter.epoch
        control = self.control.get(epoch, {})
        figures = beside(reporter.stats[epoch]["valid"], control)
        found = [figures]
        if self.sample is not None:
            try:
                found = [figures | self._measure(epoch, updates, figures)]
            except ValueError as error:
                # A broken model (NaN) is for others to report.
                logging.warning("forgetting was not measured: %s", error)
        if is_distributed():
            torch.distributed.broadcast_object_list(found, src=0)
        reporter.stats[epoch]["valid"] = found[0]

    def _measure(
        self, epoch: int, updates: int, figures: Mapping[str, Any]
    ) -> dict[str, float]:
        started = time.perf_counter()
        if self._base is None:
            with experts_off(self.encoder):
                self._base = self._states()
        if not self._base_probe:
            self._base_probe = self._probe(self._base)
        states = self._states()
        cka, probe = self._cka(states), self._probe(states)
        seconds = time.perf_counter() - started
        masked = {
            key: {x: figures[f"{key}_{x}"] for x in cka if f"{key}_{x}" in figures}
            for key in MASKED
        }
        line = {
            "epoch": epoch,
            "updates": updates,
            "utterances": {k: len(utts) for k, utts in self.sample.speech.items()},
            "layers": self.layers,
            "cka": cka,
            "probe": probe,
            "probe_of_base": self._base_probe,
            **masked,
            "seconds": seconds,
        }
        append_text(self.path, json.dumps(line) + "\n")
        summary = {f"cka_{lang}": values[-1] for lang, values in cka.items()}
        summary |= {f"probe_{lang}": values[-1] for lang, values in probe.items()}
        said = [f"{key} {value:.3f}" for key, value in summary.items()]
        for key in ("acc_m", "control_acc_m"):
            said += [f"{key}_{lang} {x:.3f}" for lang, x in masked[key].items()]
        logging.info(
            f"forgetting after epoch {epoch}, layer {self.layers[-1]}: "
            f"{', '.join(said)} ({seconds:.1f} s)"
        )
        return summary | {"monitor_time": seconds}

    @torch.no_grad()
    def _states(self) -> dict[str, States]:
        was_training = self.encoder.training
        self.encoder.eval()
        speech = {
            u: wav for utts in self.sample.speech.values() for u, wav in utts.items()
        }
        wavs = (wav[None].to(self.device) for wav in speech.values())
        every = self.encoder.states(wavs, torch.float32)
        found: dict[str, States] = {}
        for utt, states in zip(speech, every, strict=True):
            kept = torch.stack([states[k][0] for k in self.layers]).cpu()
            found[utt] = list(kept.unbind(0))
        self.encoder.train(was_training)
        return found

    def _start_states(self, updates: int) -> None:
        """Keep what the model gives before it trains, or read it back."""
        if updates == 0:
            self._base = self._states()
            with atomic_path(self.start) as temporary:
                torch.save({"layers": self.layers, "states": self._base}, temporary)
            return
        utts = {utt for utts in self.sample.speech.values() for utt in utts}
        try:
            kept = torch.load(self.start, map_location="cpu", weights_only=True)
            if kept["layers"] != self.layers or set(kept["states"]) != utts:
                raise ValueError("it is of other layers or utterances")
            self._base = kept["states"]
        except Exception as error:  # a damaged file fails in many ways
            reason = short_reason(error)
            logging.warning(f"{self.start}: {reason}; forgetting is not measured")
            self.sample = None

    def _cka(self, states: dict[str, States]) -> dict[str, list[float]]:
        found = {}
        for lang, utts in self.sample.speech.items():
            layers = [LinearCKA() for _ in self.layers]
            for utt in utts:
                pairs = zip(self._base[utt], states[utt], strict=True)
                for cka, pair in zip(layers, pairs, strict=True):
                    cka.add(*pair)
            found[lang] = [cka.value() for cka in layers]
        return found

    def _probe(self, states: dict[str, States]) -> dict[str, list[float]]:
        return {
            lang: [
                _probe_accuracy({u: states[u][i] for u in utts}, self.sample.phones)
                for i in range(len(self.layers))
            ]
            for lang, utts in self.sample.speech.items()
            if lang in self.sample.with_phones
        }


def build_monitor(run: Any) -> ForgettingMonitor | None:
    """Build the monitor of a :class:`~espnet2_lamer.train.run.TrainingRun`.

    ``None`` where it is off, or where there is nothing that can be forgotten; a layer
    that is not there, or validation data that cannot be read, raise ``RecipeError``.
    """
    options, encoder = run.options, run.model.encoder
    if options.monitor_utts <= 0 or run.epoch > options.max_epoch:
        return None
    if not any(p.requires_grad for p in encoder.wav2vec2.parameters()):
        logging.info("the head alone trains: the base cannot be forgotten")
        return None
    begun = options.encoder_conf.get("base") or options.init_param
    if encoder.lamer is None and not begun:
        logging.info("training starts from nothing: there is nothing to forget")
        return None
    sample, control = None, {}
    if run.is_first:
        sample = monitor_sample(run.valid_factory, options)
        if options.monitor_control:
            control = read_control(options.monitor_control)
    return ForgettingMonitor(
        encoder,
        sample,
        list(options.monitor_layers),
        Path(options.output_dir),
        run.epoch,
        run.updates,
        run.device,
        control,
    )


def _probe_accuracy(
    features: Mapping[str, Tensor], phones: Mapping[str, Phones]
) -> float:
    """Frame accuracy of two probes, each on the half that the other learned from."""
    utts = [utt for utt in features if utt in phones]
    right = frames = 0.0
    for half in (0, 1):
        test = set(utts[half::2])
        result = phone_probe(
            {u: features[u] for u in utts if u not in test},
            phones,
            {u: features[u] for u in utts if u in test},
            phones,
            ridge=RIDGE,
        )
        for correct, count in result.accuracy.parts.values():
            right, frames = right + correct, frames + count
    return right / frames


def monitor_sample(factory: Any, options: Any) -> Sample:
    """Choose ``monitor_utts`` utterances of each language by ``seed`` and read them.

    The factory is the validation's; beside its speech ``phones.ctm`` is looked for, and
    its data ``lang`` count ``langs``.
    """
    data, langs = options.valid_data_path_and_name_and_type, options.langs
    paths = {name: Path(path) for path, name, _ in data}
    numbers = read_table(paths["lang"]) if "lang" in paths else {}
    groups = defaultdict(list)
    for utt in sorted(factory.lengths, key=str.encode):
        index = int(numbers[utt].split()[0]) if utt in numbers else -1
        groups[langs[index] if 0 <= index < len(langs) else ALL].append(utt)
    generator = np.random.default_rng(options.seed)
    speech: dict[str, dict[str, Tensor]] = {}
    for lang, utts in sorted(groups.items()):
        if len(utts) > options.monitor_utts:
            chosen = generator.choice(len(utts), options.monitor_utts, replace=False)
            utts = [utts[i] for i in sorted(chosen)]
        waves = {utt: factory.dataset[utt][1]["speech"][:MAX_SAMPLES] for utt in utts}
        speech[lang] = {
            utt: torch.from_numpy(np.asarray(wave, np.float32))
            for utt, wave in waves.items()
        }
    ctm = paths["speech"].with_name("phones.ctm")
    aligned = frame_phones(ctm) if ctm.is_file() else {}
    phones = {
        utt: aligned[utt][: num_frames(len(waveform))]
        for utts in speech.values()
        for utt, waveform in utts.items()
        if utt in aligned
    }
    sample = Sample(speech, phones)
    logging.info(
        "forgetting is monitored on %s; phone probe: %s",
        ", ".join(f"{len(utts)} utterances of {lang}" for lang, utts in speech.items()),
        ", ".join(sample.with_phones) or "none (no phones.ctm, or too few phones)",
    )
    return sample


def read_curves(experiment: Path) -> list[dict[str, float | int | str]]:
    """Read the reporter in ``checkpoint.pth`` of an ESPnet experiment.

    A row is an epoch's phase (``train``, ``valid``) with every numeric figure.
    """
    with torch.serialization.safe_globals(REPORTER_TYPES):
        state = check_weights(experiment / "checkpoint.pth", "cpu")
    rows = []
    for epoch, phases in sorted(state["reporter"]["stats"].items()):
        for phase in ("train", "valid"):
            figures = {
                key: float(value)
                for key, value in phases[phase].items()
                if isinstance(value, int | float) or hasattr(value, "dtype")
            }
            rows.append({"epoch": epoch, "phase": phase, **figures})
    return rows


def read_control(experiment: str | Path) -> dict[int, dict[str, dict[str, float]]]:
    """Read what a head-only control (else ``RecipeError``) logged at each validation.

    It is ``control_<name>`` by the figure of a training that it stands beside. Units
    are new to the base: what its frozen features give is what the head alone reaches on
    the same data after as many updates, not what it was before training.
    """
    path = Path(experiment) / "checkpoint.pth"
    if not path.is_file():
        raise RecipeError(
            f"monitor_control: found no {path}, expected the experiment of a head-only "
            "control (allocation 0) on the same data; train it first, or leave the "
            "option out"
        )
    return {
        row["epoch"]: {
            key: {f"control_{key}": row[key]} for key in row if _KEYS.fullmatch(key)
        }
        for row in read_curves(Path(experiment))
        if row["phase"] == "valid"
    }

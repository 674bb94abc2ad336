"""What training makes the model forget, measured at each validation."""

import argparse
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Reporter
from numpy.typing import NDArray
from torch import nn

from espnet2_lamer.asr.upstream import hidden_states
from espnet2_lamer.errors import short_reason
from espnet2_lamer.fileio.atomic import append_text, atomic_path, write_text
from espnet2_lamer.hubert.distributed import is_distributed
from espnet2_lamer.layers import experts_off
from espnet2_lamer.metrics.probe import Phones, phone_probe
from espnet2_lamer.metrics.similarity import LinearCKA, compared_layers
from espnet2_lamer.train.curves import (
    ControlCurve,
    beside_control,
    read_control,
)
from espnet2_lamer.train.monitor_sample import Sample, monitor_sample

# L2 penalty of the probe, chosen on the mini base's dev set: few frames, many values.
RIDGE = 0.01
# Figures per language that a line takes over.
MASKED = ("acc_m", "bits_m", "control_acc_m", "control_bits_m")
# One feature matrix [T, D] per layer.
States = list[NDArray[np.float32]]


class ForgettingMonitor:
    """Compares hidden states of held-out speech with those of the base.

    Per language and layer: linear CKA to the base, and the accuracy of a linear phone
    probe where phones are known (two halves of the sample, each tested by a probe that
    was trained on the other; a ridge classifier, so figures are below stage 8's). The
    base is the model with its experts switched off; where everything trains it is the
    model before the first update, kept in ``forgetting_start.pt``. Masked accuracy
    stands beside that of the head-only control after as many epochs.

    Nothing is drawn from the random generators of the training, and no weight is
    touched. Everything is computed in the first rank, in fp32; others wait.

    Args:
        encoder: ``LamerHubertEncoder``.
        sample: Speech to compare; ``None`` in all ranks but the first.
        layers: States to compare, see :class:`~.asr.upstream.Upstream`. The
            last one's figures go into ESPnet's log; ``forgetting.jsonl`` has all.
        output_dir: The experiment.
        epoch: The first epoch to come; lines of it and of later ones are dropped.
        updates: Updates that were made already.
        device: Where the model is.
        control: See :func:`~espnet2_lamer.train.curves.read_control`; used in
            the first rank only.

    Raises:
        RecipeError: There is no such layer.
    """

    def __init__(
        self,
        encoder: nn.Module,
        sample: Sample | None,
        layers: list[int],
        output_dir: Path,
        epoch: int,
        updates: int,
        device: str,
        control: ControlCurve | None = None,
    ) -> None:
        depth = encoder.architecture["encoder_num_layers"]
        self.layers = compared_layers(layers, depth, "monitor_layers")
        self.encoder = encoder
        self.sample = sample
        self.device = device
        self.control = control or {}
        self.path = output_dir / "forgetting.jsonl"
        self.start = output_dir / "forgetting_start.pt"
        self._base: dict[str, States] | None = None
        self._base_probe: dict[str, list[float]] = {}
        if sample is None:
            return
        _drop_lines_from(self.path, epoch)
        if encoder.lamer is None:
            self._start_states(updates)

    def measure(self, updates: int, reporter: Reporter) -> None:
        """Measure after a validation, write a line, and tell ESPnet's reporter.

        Its ``valid`` gets ``cka_<lang>`` and ``probe_<lang>`` (shares of 1) of the last
        layer, ``control_acc_m_<lang>`` and the control's other figures where it has
        that epoch, and ``monitor_time`` in seconds, in all ranks.

        Args:
            updates: Updates so far.
            reporter: Has the validation's other figures, and knows the epoch.
        """
        epoch = reporter.epoch
        control = self.control.get(epoch, {})
        figures = beside_control(reporter.stats[epoch]["valid"], control)
        found: list[Any] = [figures]
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
        line = {
            "epoch": epoch,
            "updates": updates,
            "utterances": {k: len(utts) for k, utts in self.sample.speech.items()},
            "layers": self.layers,
            "cka": cka,
            "probe": probe,
            "probe_of_base": self._base_probe,
            **{
                key: {x: figures[f"{key}_{x}"] for x in cka if f"{key}_{x}" in figures}
                for key in MASKED
            },
            "seconds": seconds,
        }
        append_text(self.path, json.dumps(line) + "\n")
        summary = {f"cka_{lang}": values[-1] for lang, values in cka.items()}
        summary |= {f"probe_{lang}": values[-1] for lang, values in probe.items()}
        masked = {
            f"{key}_{lang}": value
            for key in ("acc_m", "control_acc_m")
            for lang, value in line[key].items()
        }
        logging.info(
            "forgetting after epoch %d, layer %d: %s (%.1f s)",
            epoch,
            self.layers[-1],
            ", ".join(
                f"{key} {value:.3f}" for key, value in (summary | masked).items()
            ),
            seconds,
        )
        return summary | {"monitor_time": seconds}

    @torch.no_grad()
    def _states(self) -> dict[str, States]:
        was_training = self.encoder.training
        self.encoder.eval()
        found = {}
        for utts in self.sample.speech.values():
            for utt, speech in utts.items():
                states, _ = hidden_states(
                    self.encoder.wav2vec2,
                    speech[None].to(self.device),
                    None,
                    self.encoder.final_norm,
                )
                found[utt] = [states[k][0].float().cpu().numpy() for k in self.layers]
        self.encoder.train(was_training)
        return found

    def _start_states(self, updates: int) -> None:
        """Keep what the model gives before it trains, or read it back."""
        if updates == 0:
            self._base = self._states()
            tensors = {
                utt: [torch.from_numpy(x) for x in states]
                for utt, states in self._base.items()
            }
            with atomic_path(self.start) as temporary:
                torch.save({"layers": self.layers, "states": tensors}, temporary)
            return
        utts = {utt for utts in self.sample.speech.values() for utt in utts}
        try:
            kept = torch.load(self.start, map_location="cpu", weights_only=True)
            fits = kept["layers"] == self.layers and set(kept["states"]) == utts
            problem = "" if fits else "is of other layers or utterances"
        except Exception as error:  # a damaged file fails in many ways
            problem = f"cannot be read ({short_reason(error)})"
        if problem:
            logging.warning("%s %s: forgetting is not measured", self.start, problem)
            self.sample = None
            return
        self._base = {u: [x.numpy() for x in s] for u, s in kept["states"].items()}

    def _cka(self, states: dict[str, States]) -> dict[str, list[float]]:
        found = {}
        for lang, utts in self.sample.speech.items():
            found[lang] = []
            for index in range(len(self.layers)):
                cka = LinearCKA()
                for utt in utts:
                    cka.add(self._base[utt][index], states[utt][index])
                found[lang].append(cka.value())
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


def build_monitor(
    options: argparse.Namespace,
    encoder: nn.Module,
    valid_factory: Any,
    *,
    epoch: int,
    updates: int,
    device: str | torch.device,
    is_first: bool,
) -> ForgettingMonitor | None:
    """Build the monitor of a training that has resumed, if it has.

    Args:
        options: The training's.
        encoder: ``LamerHubertEncoder``.
        valid_factory: Makes the iterator over validation data.
        epoch: The epoch to come, from 1.
        updates: Updates done.
        device: Where the model is.
        is_first: Whether this is the first rank: it has the sample.

    Returns:
        ``None`` where it is off, or where there is nothing that can be forgotten.

    Raises:
        RecipeError: A layer that is not there, or validation data that cannot be read.
    """
    if options.monitor_utts <= 0 or epoch > options.max_epoch:
        return None
    if not any(p.requires_grad for p in encoder.wav2vec2.parameters()):
        logging.info("the head alone trains: the base cannot be forgotten")
        return None
    if encoder.lamer is None and not (
        options.encoder_conf.get("base") or options.init_param
    ):
        logging.info("training starts from nothing: there is nothing to forget")
        return None
    sample, control = None, {}
    if is_first:
        sample = monitor_sample(
            valid_factory,
            options.valid_data_path_and_name_and_type,
            options.langs,
            options.monitor_utts,
            options.seed,
        )
        if options.monitor_control:
            control = read_control(options.monitor_control)
    return ForgettingMonitor(
        encoder,
        sample,
        list(options.monitor_layers),
        Path(options.output_dir),
        epoch,
        updates,
        device,
        control,
    )


def _probe_accuracy(
    features: dict[str, NDArray[np.float32]], phones: Mapping[str, Phones]
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


def _drop_lines_from(path: Path, epoch: int) -> None:
    """Forget measurements that are made once more, and what another training left."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(x for x in lines if _epoch_of(x) < epoch))


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError):
        # The half of a line that a killed process left.
        return math.inf

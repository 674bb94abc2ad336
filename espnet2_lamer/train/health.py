"""The health check of a training: before its first update, and beside it.

It draws no random numbers and changes nothing that the training computes.
"""

import dataclasses
import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.torch_utils.device_funcs import to_device

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.system import size
from espnet2_lamer.hubert.statistics import is_distributed
from espnet2_lamer.train.batching import BucketIterFactory, rounded_length
from espnet2_lamer.train.labels import beside, check_labels
from espnet2_lamer.train.trial import Trial, try_batch
from espnet2_lamer.train.utterances import Languages

# Updates after which the pace is told.
FIRST_UPDATES = 20
# Updates that the mean duration is taken over.
WINDOW = 200
# Batches that are measured together.
_BATCHES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Shares:
    """Batches and utterances of an epoch, over all ranks; audio in seconds.

    ``passes`` are utterances as a multiple of those in the data, ``audio`` (also by
    language) is what crops leave, ``largest`` that of one rank's ``largest_batch``
    (counted from 0), padding included, ``data`` all there is, uncropped.
    """

    batches: int
    utterances: int
    passes: float
    audio: float
    cropped: float
    padding: float
    largest: float
    largest_batch: int
    languages: dict[str, float]
    data: float
    data_languages: dict[str, float]

    @property
    def padding_share(self) -> float:
        """Part of what is computed that is padding."""
        return self.padding / (self.audio + self.padding)

    @property
    def crop_loss(self) -> float:
        """Part of the batches' utterances that their crops leave out."""
        return self.cropped / (self.audio + self.cropped)

    def language_line(self, replay: Collection[str] = ()) -> str:
        """Say hours and share of each language, and of replay, beside the data's."""

        def shares(languages: Collection[str]) -> str:
            epoch = sum(self.languages[language] for language in languages)
            data = sum(self.data_languages[language] for language in languages)
            part, whole = 100 * epoch / self.audio, 100 * data / self.data
            return f"{part:.1f} %, data {whole:.1f} %"

        parts = [
            f"{language} {span(seconds)} ({shares([language])})"
            for language, seconds in self.languages.items()
        ]
        replayed = [language for language in self.languages if language in replay]
        if replayed:
            parts.append(f"replay ({', '.join(replayed)}) {shares(replayed)}")
        return "; ".join(parts)


def measure_shares(
    factory: BucketIterFactory,
    epoch: int,
    languages: Mapping[str, str] | Languages | None = None,
) -> Shares:
    """Measure an epoch's batches of all ranks, and of languages by utterance."""
    lengths, ranks = factory.lengths, factory.world_size
    collate, batches = factory.make_collate(epoch), factory.plan(epoch)
    known = None if languages is None else Languages.of(languages, lengths)
    rounding = collate.max_samples, collate.bucket
    sums, largest, own = np.zeros(4, np.int64), (0, 0), Counter()
    for first in range(0, len(batches), _BATCHES):
        block = batches[first : first + _BATCHES]
        size = block.ends - block.starts
        # Which batch each utterance is of, and which of its utterances.
        batch = np.repeat(np.arange(len(block)), size)
        place = np.arange(len(batch)) - np.repeat(np.cumsum(size) - size, size)
        utts = block.order[np.repeat(block.starts, size) + place]
        samples = lengths.samples[utts].astype(np.int64)
        cropped = np.minimum(samples, collate.max_samples)
        part, longest = batch * ranks + place % ranks, np.zeros(len(block) * ranks, int)
        np.maximum.at(longest, part, cropped)
        padded = np.bincount(part) * rounded_length(longest, *rounding)
        sums += len(utts), samples.sum(), cropped.sum(), padded.sum()
        largest = max(
            largest,
            (int(padded.max()), first + int(padded.argmax()) // ranks),
            key=itemgetter(0),
        )
        own.update(_by_language(utts, cropped, known))
    count, samples, cropped, padded = sums.tolist()
    return Shares(
        batches=len(batches),
        utterances=count,
        passes=count / len(lengths),
        audio=cropped / SAMPLE_RATE,
        cropped=(samples - cropped) / SAMPLE_RATE,
        padding=(padded - cropped) / SAMPLE_RATE,
        largest=largest[0] / SAMPLE_RATE,
        largest_batch=largest[1],
        languages=dict(own),
        data=int(lengths.samples.sum(dtype=np.int64)) / SAMPLE_RATE,
        data_languages=_by_language(slice(None), lengths.samples, known),
    )


def _by_language(
    utts: np.ndarray | slice, samples: np.ndarray, languages: Languages | None
) -> dict[str, float]:
    """Seconds of each language, in alphabetical order."""
    if languages is None:
        return {}
    names = languages.names
    sums = np.bincount(languages.codes[utts], weights=samples, minlength=len(names))
    seconds = (sums / SAMPLE_RATE).tolist()
    return dict(sorted(zip(names, seconds, strict=True)))


def span(seconds: float) -> str:
    """Say an amount of audio in hours, or in minutes where there is less than one."""
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.2f} min"


@dataclasses.dataclass
class Pace:
    """Times updates, and what lies between epochs.

    The pace is known after the ``first`` updates; ``epochs`` is the last epoch.
    """

    updates_per_epoch: int
    epochs: int
    first: int = 20
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=WINDOW)
        # Validation and the model's file take about the same time every epoch.
        self._between: float | None = None
        self._count = 0
        self._last: float | None = None

    def begin(self) -> None:
        """Note that an epoch's training begins."""
        now = self.clock()
        if self._last is not None:
            self._between = now - self._last
        self._last = now

    def update(self) -> bool:
        """Note that an update was made; whether that makes the pace known."""
        now = self.clock()
        self._count += 1
        # The process's first also starts loaders and chooses kernels.
        if self._count > 1:
            self._durations.append(now - self._last)
        self._last = now
        return self._count == self.first

    @property
    def seconds_per_update(self) -> float | None:
        """Mean of the last updates; ``None`` until there are enough."""
        if self._count < self.first or not self._durations:
            return None
        return sum(self._durations) / len(self._durations)

    def seconds_left(self, epoch: int, update: int) -> float | None:
        """Seconds to the end of the last epoch, ``update`` updates into ``epoch``."""
        seconds = self.seconds_per_update
        if seconds is None:
            return None
        epochs = self.epochs - epoch
        updates = epochs * self.updates_per_epoch + self.updates_per_epoch - update
        # The last epoch is followed by a validation, too.
        return updates * seconds + (epochs + 1) * (self._between or 0.0)

    def eta(self, epoch: int, update: int) -> str:
        """Say the time left and the end's date; empty until the pace is known."""
        left = self.seconds_left(epoch, update)
        if left is None:
            return ""
        end = datetime.now() + timedelta(seconds=left)
        note = "" if self._between is not None else ", validation not counted"
        return f"{timedelta(seconds=round(left))} ({end:%Y-%m-%d %H:%M}{note})"


@dataclasses.dataclass
class Health:
    """Checks labels, tries the largest batch, times updates; writes ``health.json``.

    Only the first rank reads files and writes; what it finds wrong stops all. The
    factories are those of ``train`` and ``valid``, the model is not wrapped.
    """

    model: torch.nn.Module
    factories: Mapping[str, Any]
    options: Any
    is_first: bool
    device: str

    def __post_init__(self) -> None:
        self.path = Path(self.options.output_dir) / "health.json"
        self.report: dict[str, Any] = {}
        # Of each part, see `baselines`.
        self.standards: dict[str, dict[str, dict[str, float]]] = {}
        self.languages: Languages | None = None
        self.pace: Pace | None = None
        self._shares: tuple[int, Shares] | None = None

    def start(self, epoch: int, updates: int) -> None:
        """Check what can be known before ``epoch``; others made ``updates``.

        A new training tries its first epoch's largest batch; one that goes on has done
        so, and says less.

        Raises:
            RecipeError: Labels do not fit the audio or the model, on every rank; or
                the largest batch does not fit into the GPU.
        """
        message: list[Any] = [None, {}]
        if self.is_first:
            if updates:
                # Gone or damaged, it is begun anew.
                with suppress(OSError, ValueError):
                    self.report = json.loads(self.path.read_text(encoding="utf-8"))
            try:
                self._check_labels(brief=updates > 0)
                message[1] = self.standards
            except RecipeError as error:
                message[0] = str(error)
        if is_distributed():
            torch.distributed.broadcast_object_list(message)
        problem, self.standards = message
        if problem is not None:
            raise RecipeError(problem)
        if self.is_first:
            self._plan(epoch, updates)
            # What is known is kept if the trial fails.
            write_json(self.path, self.report)
        if updates:
            return
        # Every rank its part.
        factory = self.factories["train"]
        largest = self._epoch_shares(epoch).largest_batch
        _, batch = factory.load(factory.plan(epoch)[largest], epoch)
        trial = try_batch(self.model, to_device(batch, self.device), self.device)
        if self.is_first:
            self._note_memory(trial)
            self._note_time(trial)
            write_json(self.path, self.report)

    def begin_epoch(self, epoch: int) -> None:
        """Say what the epoch's batches hold."""
        if not self.is_first:
            return
        self.pace.begin()
        shares = self._epoch_shares(epoch)
        languages = shares.language_line(self.options.replay_langs)
        logging.info(
            f"epoch {epoch}: {shares.batches} batches, {span(shares.audio)} of audio, "
            f"{shares.passes:.3f} passes over the data; padding "
            f"{100 * shares.padding_share:.1f} %, lost to crops "
            f"{100 * shares.crop_loss:.1f} %" + (languages and f"; {languages}")
        )

    def updated(self, epoch: int, batches: int) -> None:
        """Note an update, ``batches`` into ``epoch``; the first ones tell the pace."""
        if not (self.is_first and self.pace.update()):
            return
        seconds = self.pace.seconds_per_update
        eta = self.pace.eta(epoch, self._updates(batches))
        self.report["pace"] = {"seconds_per_update": seconds, "left": eta}
        write_json(self.path, self.report)
        logging.info("pace: %.3f s per update, %s left", seconds, eta)

    def eta(self, epoch: int, batches: int) -> str:
        """Say the time left as a figure of ESPnet's log line; empty if not known."""
        eta = self.pace and self.pace.eta(epoch, self._updates(batches))
        return f", eta={eta}" if eta else ""

    def with_baselines(self, part: str, figures: dict[str, Any]) -> dict[str, Any]:
        """Return an epoch's figures with the baselines of ``part`` beside them."""
        return beside(figures, self.standards.get(part, {}))

    def _check_labels(self, brief: bool) -> None:
        self.report["labels"] = {}
        for part, factory in self.factories.items():
            found = check_labels(part, factory.lengths, self.options, brief)
            report, standards, languages = found
            if part == "train":
                self.languages = languages
            if report:
                self.report["labels"][part] = report
                self.standards[part] = standards

    def _epoch_shares(self, epoch: int) -> Shares:
        if self._shares is None or self._shares[0] != epoch:
            shares = measure_shares(self.factories["train"], epoch, self.languages)
            self._shares = epoch, shares
        return self._shares[1]

    def _updates(self, batches: int) -> int:
        """Updates that so many batches of an epoch make, leftover ones included."""
        return math.ceil(batches / self.options.accum_grad)

    def _plan(self, epoch: int, updates: int) -> None:
        shares = self._epoch_shares(epoch)
        per_epoch = self._updates(shares.batches)
        total = per_epoch * self.options.max_epoch
        passes = shares.passes * self.options.max_epoch
        first = max(2, min(FIRST_UPDATES, total))
        self.pace = Pace(per_epoch, self.options.max_epoch, first)
        lost = {"padding_share": shares.padding_share, "crop_loss": shares.crop_loss}
        self.report["plan"] = {
            "updates": total,
            "updates_per_epoch": per_epoch,
            "seconds_per_update": shares.audio / per_epoch,
            "passes": passes,
            "hours": shares.data / 3600,
            "epoch": epoch,
            "batches": dataclasses.asdict(shares) | lost,
        }
        logging.info(
            f"plan: {total} updates in {self.options.max_epoch} epochs, {updates} "
            f"made; {shares.audio / per_epoch:.1f} s of audio per update; "
            f"{passes:.2f} passes over {span(shares.data)}"
        )

    def _note_memory(self, trial: Trial) -> None:
        found = {"peak": trial.peak, "largest_batch_seconds": trial.audio}
        self.report["memory"] = found
        batch = f"the largest batch ({trial.audio:.1f} s of audio, padding included)"
        if self.device == "cpu":
            found["measured"] = "resident memory of the process, its peak so far"
            logging.info(f"memory: {size(trial.peak)} at most so far, {batch} included")
            return
        found["measured"] = "torch.cuda.max_memory_allocated"
        found["device"] = torch.cuda.get_device_properties("cuda").total_memory
        logging.info(
            f"memory: {size(trial.peak)} of the GPU's {size(found['device'])} with "
            f"{batch}; the optimizer's state comes on top"
        )
        if trial.peak > 0.9 * found["device"]:
            logging.warning(
                "memory: this leaves less than 10 % of the GPU free; lower batch_bins "
                "and raise accum_grad by the same factor"
            )

    def _note_time(self, trial: Trial) -> None:
        plan, shares = self.report["plan"], self._shares[1]
        computed = shares.audio + shares.padding
        computed /= self.factories["train"].world_size * plan["updates_per_epoch"]
        seconds = trial.seconds * computed / trial.audio
        left = timedelta(seconds=round(seconds * plan["updates"]))
        end = f"{datetime.now() + left:%Y-%m-%d %H:%M}"
        estimate = {"seconds_per_update": seconds, "left": str(left), "end": end}
        self.report["estimate"] = estimate
        logging.info(
            f"time: about {seconds:.3f} s per update, forward and backward; about "
            f"{left}, until {end}, validation not counted; measured again after "
            f"{self.pace.first} updates"
        )

"""The health check of a training: before its first update, and beside it.

It draws no random numbers and changes nothing that the training computes.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.torch_utils.device_funcs import to_device

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.system import size
from espnet2_lamer.hubert.statistics import gather, is_distributed
from espnet2_lamer.train.labels import beside, check_labels
from espnet2_lamer.train.memory import (
    cuda_memory,
    device_bins,
    fit_memory,
    read_device_bins,
)
from espnet2_lamer.train.pace import Pace
from espnet2_lamer.train.shares import Shares, measure_shares, span
from espnet2_lamer.train.trial import DoesNotFit, Trial, try_batch
from espnet2_lamer.train.utterances import Languages

# Updates after which the pace is told.
FIRST_UPDATES = 20
# Of the time of updates: above it, waiting for audio is worth a warning.
SLOW_LOADING = 0.2
# Of updates in which ranks are idle; above it, too.
_STARVED = 0.01


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
        self._waits: list[float] = []
        self._seconds = 0.0
        self._is_new = self._said_waits = False

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
        factory, chosen = self.factories["train"], False
        if factory.update_bins and (not updates or factory.device_bins is None):
            chosen = True
            self._choose_device_bins()
        if self.is_first:
            self._plan(epoch, updates)
            # What is known is kept if the trial fails.
            write_json(self.path, self.report)
        if updates and not chosen:
            return
        trial = self._try_largest(epoch, updates)
        if self.is_first:
            self._note_memory(trial)
            self._note_time(trial)
            write_json(self.path, self.report)

    def begin_epoch(self, epoch: int) -> None:
        """Say what the epoch's batches hold."""
        self._waits, self._seconds = [], 0.0
        self._is_new, self._said_waits = True, False
        if not self.is_first:
            return
        self.pace.begin()
        shares = self._epoch_shares(epoch)
        languages = shares.language_line(self.options.replay_langs)
        share = 100 * shares.served / shares.audio
        logging.info(
            f"epoch {epoch}: {shares.batches} batches, {span(shares.audio)} of audio, "
            f"{shares.passes:.3f} passes over the data; padding "
            f"{100 * shares.padding_share:.1f} %, lost to crops "
            f"{100 * shares.crop_loss:.1f} %"
            + (shares.served and f"; {share:.1f} % from the feature cache" or "")
            + (languages and f"; {languages}")
        )

    def waited(self, waits: Sequence[float], seconds: float) -> None:
        """Note how long each rank waited for audio in an update of ``seconds``."""
        if self._is_new or not waits:
            # Loaders start with the epoch.
            self._is_new = False
            return
        before = self._waits or [0.0] * len(waits)
        self._waits = [one + other for one, other in zip(before, waits, strict=True)]
        self._seconds += seconds

    def check_waits(self) -> None:
        """Warn once an epoch if a rank waited long for audio since the last check."""
        waits, seconds = self._waits, self._seconds
        self._waits, self._seconds = [], 0.0
        if not (waits and seconds and self.is_first) or self._said_waits:
            return
        share = max(waits) / seconds
        if share > SLOW_LOADING:
            self._said_waits = True
            logging.warning(
                f"loading audio is slower than training: rank {waits.index(max(waits))}"
                f" waited {100 * share:.0f} % of the time since the last log line; "
                f"raise num_workers (found {self.factories['train'].num_workers})"
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
        self._warn_of_starving(shares, per_epoch)

    def _warn_of_starving(self, shares: Shares, updates: int) -> None:
        """Warn where updates are not what was asked for, or too small for the ranks."""
        factory = self.factories["train"]
        ranks = factory.world_size
        if factory.update_bins:
            audio = (shares.audio + shares.padding) / updates
            wanted = factory.update_bins / SAMPLE_RATE
            advice = "raise update_bins, or train with fewer processes"
        else:
            audio = (shares.audio + shares.padding) / shares.batches
            wanted = factory.batch_bins / SAMPLE_RATE
            advice = "raise batch_bins, or train with fewer processes"
            if ranks > 1 and audio > 1.02 * wanted:
                logging.warning(
                    f"batch_bins: batches hold {audio:.1f} s of audio instead of at "
                    f"most {wanted:.1f} s, since each of {ranks} processes needs an "
                    "utterance; update_bins keeps the audio of an update on any number"
                )
        for count, what in (
            (shares.idle, "has no utterance left, and computes a frame of silence"),
            (shares.unfair, "has less than half of the mean audio"),
        ):
            if ranks > 1 and count > _STARVED * shares.batches:
                logging.warning(
                    f"in {count} of {shares.batches} iterations one of {ranks} "
                    f"processes {what}, the others wait for nothing; {advice}"
                )

    def _choose_device_bins(self) -> None:
        """Let each rank find out what it holds at a time; all take the least of it."""
        factory = self.factories["train"]
        lengths = factory.lengths.samples
        longest = int(lengths.argmax())
        row = int(factory.rounded(np.array([longest]))[0])
        found: dict[str, Any] = {}
        problem, bins = None, read_device_bins(self.options.device_bins)
        if bins is not None:
            by = "device_bins"
        elif self.device == "cpu":
            # More at a time would not be faster.
            by, bins = "batch_bins", factory.batch_bins
        else:
            by = "the GPU's memory"
            name = factory.lengths.name(longest)

            def trial(rows: int) -> Trial:
                _, batch = factory.load([name] * rows)
                return try_batch(self.model, to_device(batch, self.device), self.device)

            memory = cuda_memory(self.model, factory.world_size)
            try:
                fit = fit_memory(trial, *memory)
                bins = device_bins(fit, row)
                found = {} if fit is None else dataclasses.asdict(fit)
            except DoesNotFit as error:
                problem = f"{error}; no shorter crop (max_sample_size) was tried"
            except ValueError as error:
                by, bins = f"batch_bins ({error})", factory.batch_bins
        every = gather((problem, bins))
        _raise_first(problem for problem, _ in every)
        factory.device_bins = min(bins for _, bins in every)
        found |= {"device_bins": factory.device_bins, "by": by}
        self.report["micro_batch"] = found
        logging.info(
            f"micro-batch: at most {factory.device_bins / SAMPLE_RATE:.1f} s of audio "
            f"per process, by {by}"
            + (
                f": {size(found['fixed'])} and {size(found['per_second'])} per second, "
                f"of {size(found['available'])}"
                if "fixed" in found
                else ""
            )
            + f"; --device_bins {factory.device_bins} does the same again"
        )

    def _try_largest(self, epoch: int, updates: int) -> Trial:
        """Try each rank's part of the largest micro-batch; smaller ones if need be."""
        factory = self.factories["train"]
        fixed = not factory.update_bins or read_device_bins(self.options.device_bins)
        while True:
            shares = self._epoch_shares(epoch)
            plan = factory.plan(epoch)
            utts = plan.numbers(shares.largest_batch)
            names = factory.parts(utts)[shares.largest_part]
            _, batch = factory.load(names, int(plan.draws[shares.largest_batch]))
            trial = problem = None
            try:
                trial = try_batch(
                    self.model, to_device(batch, self.device), self.device
                )
            except DoesNotFit as error:
                problem = f"the largest batch of the epoch: {error}; {self._advice()}"
            problems = gather(problem)
            if not any(problems):
                return trial
            largest = int(shares.largest * SAMPLE_RATE)
            if fixed or largest <= int(factory.rounded(utts).max()):
                _raise_first(problems)
            # Freed, so that other sizes find room.
            torch.cuda.empty_cache()
            factory.device_bins = largest // 2
            self._shares = None
            logging.warning(
                f"micro-batch: {shares.largest:.1f} s of audio did not fit into the "
                f"GPU's memory after all, trying {shares.largest / 2:.1f} s "
                f"(--device_bins {factory.device_bins}): more micro-batches per update"
            )
            if self.is_first:
                self.report["micro_batch"] |= {"device_bins": factory.device_bins}
                self._plan(epoch, updates)

    def _advice(self) -> str:
        if self.factories["train"].update_bins:
            return "lower device_bins, or max_sample_size for a single utterance"
        return "lower batch_bins and raise accum_grad by the same factor"

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
                f"memory: this leaves less than 10 % of the GPU free; {self._advice()}"
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


def _raise_first(problems: Iterable[str | None]) -> None:
    for problem in filter(None, problems):
        raise RecipeError(problem)

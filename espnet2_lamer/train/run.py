"""One training from its first update, or from its last checkpoint, to its end."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from espnet2.schedulers.abs_scheduler import (
    AbsEpochStepScheduler,
    AbsValEpochStepScheduler,
)
from espnet2.torch_utils.device_funcs import to_device
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.reporter import Reporter, SubReporter
from torch.nn.parallel import DistributedDataParallel

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import link
from espnet2_lamer.fileio.checksum import checked_file, remove_file
from espnet2_lamer.fileio.system import bytes_of, check_space
from espnet2_lamer.hubert.statistics import (
    figure_means,
    figure_sums,
    gather,
    global_sums,
    is_distributed,
    rank_and_ranks,
)
from espnet2_lamer.train import checkpoint
from espnet2_lamer.train.checkpoint import CheckpointStore
from espnet2_lamer.train.console import StopRequest, stop_on_signals
from espnet2_lamer.train.exchange import anyone_stops, say, stop_signal, waits
from espnet2_lamer.train.feature_cache import use_feature_cache
from espnet2_lamer.train.figures import Figures
from espnet2_lamer.train.health import Health
from espnet2_lamer.train.memory import read_device_bins
from espnet2_lamer.train.monitor import build_monitor
from espnet2_lamer.train.norms import NormLog, build_norms
from espnet2_lamer.train.update import Updater, load_optimizer

# Of the checkpoint's layout.
VERSION = 1


@dataclass
class TrainingRun:
    """Everything a training holds, and its loop over epochs.

    The model is not wrapped; the scheduler is stepped per update or per epoch, by its
    class; ``build_iter(epoch, start=n)`` of a factory gives the batches from number n.
    ``options`` are :class:`~espnet2_lamer.train.trainer.LamerTrainerOptions`.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    train_factory: Any
    valid_factory: Any
    options: Any
    distributed: Any

    def __post_init__(self) -> None:
        options, distributed = self.options, self.distributed
        self.is_first = not distributed.distributed or distributed.dist_rank == 0
        self.device = "cuda" if options.ngpu > 0 else "cpu"
        self.output_dir = Path(options.output_dir)
        self.interval = options.log_interval or 100
        self.store = CheckpointStore(self.output_dir / "checkpoints")
        self.reporter = Reporter()
        self.scaler = torch.amp.GradScaler("cuda", enabled=options.use_amp)
        factories = {"train": self.train_factory, "valid": self.valid_factory}
        self.health = Health(self.model, factories, options, self.is_first, self.device)
        self.updates = 0
        self.epoch = 1
        # Batches of the epoch that are behind us, and what the epoch collected.
        self.batches = 0
        self.resumed: dict[str, Any] | None = None
        # Learning rates of all updates, added up.
        self.rate_sum = 0.0
        self.norms: NormLog | None = None
        self.writers: dict[str, Any] = {}

    def run(self) -> None:
        """Train to the last epoch; see :meth:`LamerTrainer.run` for what it raises."""
        self._resume()
        self.model.keep_frozen()
        if self.is_first:
            self._check_space()
        if self.epoch <= self.options.max_epoch:
            factories = self.health.factories
            use_feature_cache(self.model, factories, self.options, self.device)
            self.health.start(self.epoch, self.updates)
        model = self.model
        if is_distributed():
            devices = [torch.cuda.current_device()] if self.device == "cuda" else None
            model = DistributedDataParallel(
                model,
                device_ids=devices,
                find_unused_parameters=self.options.unused_parameters,
                gradient_as_bucket_view=self.options.gradient_as_bucket_view,
            )
        if self.options.use_tensorboard and self.is_first:
            from torch.utils.tensorboard import SummaryWriter

            for part in ("train", "valid"):
                directory = self.output_dir / "tensorboard" / part
                self.writers[part] = SummaryWriter(str(directory))
        monitor = build_monitor(self)
        self.norms = build_norms(self)
        with stop_on_signals() as request:
            while self.epoch <= self.options.max_epoch:
                # ESPnet's wording: tools that follow its logs understand ours.
                epochs = f"{self.epoch}/{self.options.max_epoch}epoch"
                logging.info(f"{epochs} started{self.health.eta(self.epoch, 0)}")
                self._train_epoch(model, request)
                self._validate(model, request)
                if monitor is not None:
                    monitor.measure(self.updates, self.reporter)
                if self._end_epoch():
                    break
        if self.is_first:
            criteria, numbers = self.options.best_model_criterion, self._best_counts()
            checkpoint.average_best_models(
                self.reporter, self.output_dir, criteria, numbers
            )
        for writer in self.writers.values():
            writer.close()
        if is_distributed():
            # Nobody goes on to files that the first rank still writes.
            torch.distributed.barrier()

    def _best_counts(self) -> list[int]:
        numbers = self.options.keep_nbest_models
        return [numbers] if isinstance(numbers, int) else numbers

    def _check_space(self) -> None:
        """Refuse to begin what the disk cannot hold: checkpoints and models."""
        tensors = self.model.state_dict().values()
        model = sum(value.numel() * value.element_size() for value in tensors)
        # Two moments of every weight that trains; one checkpoint more while writing.
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        kept = max(self._best_counts()) + 2
        needed = (self.store.keep + 1) * (model + 8 * trained) + kept * model
        there = [*self.store.paths(), *self.output_dir.glob("*epoch.pth")]
        check_space(
            self.output_dir,
            needed - bytes_of(there),
            "checkpoints and models",
            "name another folder with --expdir (--output_dir)",
        )

    def state(self, reporter: SubReporter | None) -> dict[str, Any]:
        """Everything a later process needs to go on as if it were this one."""
        return {
            "version": VERSION,
            "fingerprint": self.options.fingerprint,
            "updates": self.updates,
            "epoch": self.epoch,
            "batches": self.batches,
            "device_bins": getattr(self.train_factory, "device_bins", None),
            "rate_sum": self.rate_sum,
            "model": self.model.state_dict(),
            "optimizers": [self.optimizer.state_dict()],
            "schedulers": [self.scheduler and self.scheduler.state_dict()],
            "scaler": self.scaler.state_dict() or None,
            "reporter": checkpoint.reporter_state(self.reporter),
            "collected": reporter and checkpoint.sub_reporter_state(reporter),
            "ranks": [self._rank_state()],
        }

    def _rank_state(self) -> dict[str, Any]:
        """What each rank has of its own; on the CPU, since another one writes it."""
        statistics = {
            "routing": self.model.routing_statistics.state(),
            "languages": self.model.language_statistics.state(),
        }
        randomness = checkpoint.random_state(self.device)
        return {"random": randomness, **to_device(statistics, "cpu")}

    def _save(self, reporter: SubReporter | None) -> None:
        state = self.state(reporter)
        state["ranks"] = gather(*state["ranks"])
        if self.is_first:
            self.store.save(state, self.updates)

    def _resume(self) -> None:
        if not self.options.resume:
            return
        # On the CPU: models and optimizers take theirs to where they are.
        state = self.store.load()
        if state is None:
            return
        if not isinstance(state, dict) or state.get("version") != VERSION:
            raise RecipeError(
                f"{self.store.directory}: found a checkpoint that is not of this "
                f"layout (version {VERSION}); move the folder away to train from the "
                "start"
            )
        checkpoint.check_fingerprint(
            state["fingerprint"],
            self.options.fingerprint,
            self.store.directory,
            self.options.allow_changed,
        )
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizers"][0])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["schedulers"][0])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        checkpoint.set_reporter_state(self.reporter, state["reporter"])
        rank, ranks = rank_and_ranks()
        # Ranks read their statistics together: as many as before, or none of them, go
        # on with theirs (their number may change with --allow_changed).
        own = state["ranks"][rank] if ranks == len(state["ranks"]) else {}
        routing, languages = (
            to_device(own.get(key, {}), self.device) for key in ("routing", "languages")
        )
        batches = int(self.model.training_batches)
        self.model.routing_statistics.set_state(routing, batches)
        self.model.language_statistics.set_state(languages)
        self.updates, self.epoch = state["updates"], state["epoch"]
        self.batches = self._batches_behind(state)
        self.rate_sum = state.get("rate_sum", 0.0)
        if "rate_sum" not in state:
            logging.warning("norms.jsonl: rate_sum counts from the resumed update on")
        self.resumed = {"collected": state["collected"], "random": own.get("random")}
        self.train_factory.device_bins = read_device_bins(
            self.options.device_bins
        ) or state.get("device_bins")
        logging.info(
            f"resumed after update {self.updates}, epoch {self.epoch}, batch "
            f"{self.batches}"
        )

    def _batches_behind(self, state: dict[str, Any]) -> int:
        """Batches of the epoch that are behind us, of as many as make an update now."""
        now, batches = self.options.accum_grad, state["batches"]
        before = int(state["fingerprint"].get("accum_grad", now))
        # Otherwise --allow_changed: as many updates are behind us.
        return batches if before == now else math.ceil(batches / before) * now

    def _train_epoch(self, model: torch.nn.Module, request: StopRequest) -> None:
        set_all_random_seed(self.options.seed + self.epoch)
        self.reporter.set_epoch(self.epoch)
        reporter = self.reporter.start_epoch("train")
        total = len(self.train_factory.plan(self.epoch))
        if self.resumed is not None:
            if self.resumed["collected"] is not None:
                checkpoint.set_sub_reporter_state(reporter, self.resumed["collected"])
            if self.batches and self.resumed["random"] is not None:
                checkpoint.set_random_state(self.resumed["random"], self.device)
            self.resumed = None
        model.train()
        updater = Updater(
            model, self.optimizer, self.scheduler, self.scaler, self.options
        )
        figures = Figures(reporter, self._log)
        last_saved, read, pending = self.updates, figures.count, 0
        self.health.begin_epoch(self.epoch)
        started, waited = time.perf_counter(), 0.0
        for seconds, (names, batch, whole) in self._loaded(self.batches):
            figures.took(iter_time=seconds)
            waited += seconds
            self.batches += whole
            pending += whole
            # An epoch's last update may have fewer batches: none is lost or kept.
            ends = pending == self.options.accum_grad or self.batches == total
            last = whole and ends
            batch = to_device(batch, self.device, non_blocking=True)
            updater.add(names, batch, figures, last)
            if last:
                updater.step(figures, say(request, waited))
                self.updates += 1
                self.rate_sum += updater.rate
                if self.norms is not None:
                    ends = self.batches == total
                    self.norms.updated(figures, updater.rate, ends)
                now = time.perf_counter()
                figures.register({"train_time": now - started})
                self.health.waited(waits(updater.said, waited), now - started)
                started, waited, pending = now, 0.0, 0
                self.health.updated(self.epoch, self.batches)
            if whole:
                if figures.count % self.interval == 0:
                    figures.register(self.model.language_statistics.read())
                figures.next()
            if not last:
                continue
            due = self.updates - last_saved >= self.options.checkpoint_interval
            due = due or self.batches == total
            logs = figures.count // self.interval > read // self.interval
            if due or logs:
                updater.settle()
            stop = stop_signal(request, updater.said)
            if stop or due or logs:
                updater.settle()
                figures.flush()
                read = figures.count
            if logs:
                self.health.check_waits()
            if stop or due:
                self._save(reporter)
                last_saved = self.updates
            if stop:
                self._leave(stop)
        self.reporter.finish_epoch(reporter)
        stats = self.reporter.stats[self.epoch]
        norms = self.norms.figures if self.norms else {}
        stats["train"] = self.health.with_baselines("train", stats["train"] | norms)

    def _loaded(self, start: int) -> Iterator[tuple[float, tuple]]:
        """Batches of the epoch, and seconds that each was waited for."""
        iterator = self.train_factory.iterate(self.epoch, start)
        while True:
            started = time.perf_counter()
            try:
                found = next(iterator, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise RecipeError(
                    f"epoch {self.epoch}, after batch {self.batches}: a process that "
                    f"loads audio died ({error}); it may have run out of memory: lower "
                    "--num_workers. Run again to go on from the last checkpoint"
                ) from error
            if found is None:
                return
            yield time.perf_counter() - started, found

    def _log(self, reporter: SubReporter) -> None:
        if reporter.count % self.interval or not self.is_first:
            return
        eta = self.health.eta(self.epoch, self.batches)
        logging.info(reporter.log_message(-self.interval) + eta)
        if "train" in self.writers:
            reporter.tensorboard_add_scalar(self.writers["train"], -self.interval)
        if self.options.use_wandb:
            reporter.wandb_log()

    def _leave(self, number: int) -> None:
        logging.warning(
            f"signal {number}: stopped after update {self.updates}, the checkpoint is "
            "written; run again to go on"
        )
        if is_distributed():
            torch.distributed.barrier()
        raise SystemExit(128 + number)

    @torch.no_grad()
    def _validate(self, model: torch.nn.Module, request: StopRequest) -> None:
        model.eval()
        # Those of an interval of training that the epoch's end cut short.
        self.model.language_statistics.read()
        with self.reporter.observe("valid") as reporter:
            found = Figures(reporter)
            for _, batch in self.valid_factory.build_iter(self.epoch):
                stop = anyone_stops(request, self.device)
                if stop:
                    # The checkpoint at the end of the epoch's training is there.
                    self._leave(stop)
                batch = to_device(batch, self.device, non_blocking=True)
                _, figures, weight = model(**batch)
                names, sums = figure_sums(figures, weight)
                (sums,) = global_sums([sums])
                found.slot("batch").fill(partial(figure_means, [names]), sums)
                found.next()
            found.flush()
            figures = self.model.language_statistics.read()
        stats = self.reporter.stats[self.epoch]
        stats["valid"] = self.health.with_baselines("valid", stats["valid"] | figures)

    def _end_epoch(self) -> bool:
        """Report, save and prune; whether training stops early."""
        options, reporter = self.options, self.reporter
        if isinstance(self.scheduler, AbsValEpochStepScheduler):
            self.scheduler.step(reporter.get_value(*options.val_scheduler_criterion))
        elif isinstance(self.scheduler, AbsEpochStepScheduler):
            self.scheduler.step()
        stop = options.patience is not None and reporter.check_early_stopping(
            options.patience, *options.early_stopping_criterion
        )
        if self.is_first:
            logging.info(reporter.log_message())
            for part, writer in self.writers.items():
                reporter.tensorboard_add_scalar(writer, key1=part)
            if options.use_matplotlib:
                reporter.matplotlib_plot(self.output_dir / "images")
            if options.use_wandb:
                reporter.wandb_log()
            self._write_epoch_model()
        self.epoch += 1
        self.batches = 0
        self._save(None)
        return stop

    def _write_epoch_model(self) -> None:
        path = self.output_dir / f"{self.epoch}epoch.pth"
        with checked_file(path) as stream:
            torch.save(self.model.state_dict(), stream)
        link(self.output_dir / "latest.pth", path.name)
        number = max(*self._best_counts(), 1)
        past = set(range(1, self.epoch))
        for part, key, mode in self.options.best_model_criterion:
            if not self.reporter.has(part, key):
                continue
            best = self.reporter.sort_epochs(part, key, mode)
            past -= set(best[:number])
            if best[0] == self.epoch:
                link(self.output_dir / f"{part}.{key}.best.pth", path.name)
                logging.info("best %s.%s so far", part, key)
        for epoch in past:
            remove_file(self.output_dir / f"{epoch}epoch.pth")

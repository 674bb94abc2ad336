"""One training from its first update, or from its last checkpoint, to its end."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
    average_figures,
    gather,
    is_distributed,
    rank_and_ranks,
    to_floats,
)
from espnet2_lamer.train import checkpoint
from espnet2_lamer.train.checkpoint import CheckpointStore
from espnet2_lamer.train.console import StopRequest, stop_on_signals
from espnet2_lamer.train.health import Health
from espnet2_lamer.train.monitor import build_monitor
from espnet2_lamer.train.update import Updater

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
        self.writers: dict[str, Any] = {}

    def run(self) -> None:
        """Train to the last epoch; see :meth:`LamerTrainer.run` for what it raises."""
        self._resume()
        self.model.keep_frozen()
        if self.is_first:
            self._check_space()
        if self.epoch <= self.options.max_epoch:
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
        self.optimizer.load_state_dict(state["optimizers"][0])
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
        self.batches = state["batches"]
        self.resumed = {"collected": state["collected"], "random": own.get("random")}
        logging.info(
            f"resumed after update {self.updates}, epoch {self.epoch}, batch "
            f"{self.batches}"
        )

    def _train_epoch(self, model: torch.nn.Module, request: StopRequest) -> None:
        set_all_random_seed(self.options.seed + self.epoch)
        self.reporter.set_epoch(self.epoch)
        reporter = self.reporter.start_epoch("train")
        iterator = self.train_factory.build_iter(self.epoch, start=self.batches)
        total = self.batches + len(iterator)
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
        last_saved = self.updates
        self.health.begin_epoch(self.epoch)
        started = time.perf_counter()
        for names, batch in self._loaded(iterator, reporter):
            self.batches += 1
            # An epoch's last update may have fewer batches: none is lost or kept.
            last = updater.pending + 1 == self.options.accum_grad
            last = last or self.batches == total
            updater.add(names, to_device(batch, self.device), reporter, last)
            if last:
                updater.step(reporter)
                self.updates += 1
                now = time.perf_counter()
                rates = {
                    f"optim0_lr{index}": group["lr"]
                    for index, group in enumerate(self.optimizer.param_groups)
                }
                reporter.register(rates | {"train_time": now - started})
                started = now
                self.health.updated(self.epoch, self.batches)
            if reporter.count % self.interval == 0:
                reporter.register(self.model.language_statistics.read())
            reporter.next()
            self._log(reporter)
            if not last:
                continue
            stop = self._anyone_stops(request)
            due = self.updates - last_saved >= self.options.checkpoint_interval
            if stop or due or self.batches == total:
                self._save(reporter)
                last_saved = self.updates
            if stop:
                self._leave(stop)
        self.reporter.finish_epoch(reporter)
        stats = self.reporter.stats[self.epoch]
        stats["train"] = self.health.with_baselines("train", stats["train"])

    def _loaded(self, iterator: Any, reporter: SubReporter) -> Iterator:
        try:
            yield from reporter.measure_iter_time(iterator, "iter_time")
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RecipeError(
                f"epoch {self.epoch}, after batch {self.batches}: a process that loads "
                f"audio died ({error}); it may have run out of memory: lower "
                "--num_workers. Run again to go on from the last checkpoint"
            ) from error

    def _log(self, reporter: SubReporter) -> None:
        if reporter.count % self.interval or not self.is_first:
            return
        eta = self.health.eta(self.epoch, self.batches)
        logging.info(reporter.log_message(-self.interval) + eta)
        if "train" in self.writers:
            reporter.tensorboard_add_scalar(self.writers["train"], -self.interval)
        if self.options.use_wandb:
            reporter.wandb_log()

    def _anyone_stops(self, request: StopRequest) -> int:
        if not is_distributed():
            return request.signal
        flag = torch.tensor(request.signal, device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(flag)

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
            for _, batch in self.valid_factory.build_iter(self.epoch):
                stop = self._anyone_stops(request)
                if stop:
                    # The checkpoint at the end of the epoch's training is there.
                    self._leave(stop)
                _, figures, weight = model(**to_device(batch, self.device))
                means, total = average_figures(figures, weight)
                values = to_floats(means | {"": total})
                reporter.register(values, values.pop(""))
                reporter.next()
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

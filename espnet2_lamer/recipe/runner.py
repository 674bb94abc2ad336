"""Run stages once: skip what is done, go on with what was killed, name what changed."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import rename_old, write_json
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.locks import WHOLE, exclusive
from espnet2_lamer.fileio.prints import sharing
from espnet2_lamer.fileio.system import LogFile, system_message
from espnet2_lamer.recipe.agreement import check_agreement
from espnet2_lamer.recipe.audio_prints import AudioPrints
from espnet2_lamer.recipe.stage import Command, Options, Stage


def chosen_stages(stages: Sequence[Stage], options: Options) -> list[Stage]:
    """Return the stages that the options ask for."""
    return [
        stage
        for stage in stages
        if options.stage <= stage.number <= options.stop_stage
        and stage.number not in options.skip_stages
    ]


class HashCache:
    """SHA-256 of files, recomputed only when size or modification time changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list] = _read_json(path) or {}

    def __call__(self, path: Path) -> str:
        """Return the hex digest of ``path``."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self.known.get(str(path))
        if entry is None or entry[:2] != stamp:
            entry = [*stamp, sha256_file(path)]
            self.known[str(path)] = entry
        return entry[2]

    def save(self) -> None:
        """Write what is known."""
        write_json(self.path, self.known)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@dataclass
class Runner:
    """Runs a range of stages and remembers in ``<expdir>/stages`` what was done.

    ``by_hand`` returns the commands that do a stage's work; without it none are said.
    """

    stages: Sequence[Stage]
    options: Options
    by_hand: Callable[[Stage], Sequence[Command]] = lambda stage: ()

    def __post_init__(self) -> None:
        """Read what is known of files."""
        self.directory = self.options.expdir / "stages"
        self.hashes = HashCache(self.directory / "hashes.json")
        self.audio = AudioPrints(self.directory / "audio")
        # Locks of folders, and whether nobody else may work there.
        self.folders, self._alone = ExitStack(), None

    def check_options(self, chosen: Sequence[Stage]) -> None:
        """Refuse options that stages which are not chosen were not run with."""
        last = max((stage.number for stage in chosen), default=-1)

        def state(stage: Stage) -> dict[str, Any]:
            return _read_json(self._state_file(stage)) or {}

        for stage in self.stages:
            begun = stage not in chosen and state(stage).get("status") == "running"
            if begun and stage.number < last:
                text = (
                    "stage %d (%s) was begun and has not ended; this run leaves it out"
                )
                logging.warning(text, stage.number, stage.title)
        check_agreement(
            self.stages,
            chosen,
            self.options,
            lambda stage: state(stage).get("fingerprint", {}).get("options", {}),
            lambda stage: not self._differing(state(stage).get("outputs", {})),
        )

    @contextmanager
    def locked(self, stage: Stage) -> Iterator[None]:
        """Let no other process do a stage, or change the files that it reads.

        What comes before all pretrainings is made by one run alone; then runs may stand
        side by side, each with stages of its own. Folders stay locked until ``folders``
        is left.

        Raises:
            Busy: Naming the process that works there.
        """
        prepared = [s for s in self.stages if s.number <= stage.number]
        alone, options = all(s.shared for s in prepared), self.options
        if alone is not self._alone:
            self.folders.close()
            for folder in (options.expdir, options.dumpdir):
                lock = exclusive(folder / WHOLE, wait=False, shared=not alone)
                self.folders.enter_context(lock)
            self._alone = alone
        with ExitStack() as stack:
            for files, reads in ((stage.outputs, False), (stage.inputs, True)):
                if any(options.datadir in path.parents for path in files(options)):
                    lock = exclusive(options.datadir / WHOLE, shared=reads)
                    stack.enter_context(lock)
            if not alone and not stage.together:
                # What all use may be made by another run: it is done then.
                lock = exclusive(self._state_file(stage), wait=stage.shared)
                stack.enter_context(lock)
            yield

    def run(self) -> None:
        """Run the stages asked for.

        Raises:
            RecipeError: A stage's input is missing, or the stage failed.
        """
        started = time.perf_counter()
        chosen = chosen_stages(self.stages, self.options)
        with self.folders, sharing(self.audio.prints):
            seconds = [self._run_stage(stage) for stage in chosen]
            for stage in self.stages:
                if stage not in chosen:
                    self._warn_outdated(stage)
        self._save()
        for stage, took in zip(chosen, seconds, strict=True):
            if took is not None:
                logging.info("stage %2d: %6.1f s  %s", stage.number, took, stage.title)
        logging.info("total: %.1f s", time.perf_counter() - started)

    def _save(self) -> None:
        self.hashes.save()
        records = (path.read_text("utf-8") for path in self.directory.glob("*.json"))
        self.audio.save("".join(records))

    def _state_file(self, stage: Stage) -> Path:
        name = f"{stage.number:02d}{stage.variant(self.options)}.json"
        return self.directory / name

    def _how_to_make(self, path: Path) -> str | None:
        for stage in self.stages:
            if path in stage.outputs(self.options):
                only = {"stage": stage.number, "stop_stage": stage.number}
                return f"it is made by stage {stage.number} ({stage.title}): " + (
                    self.options.command(**only, skip_stages=None, sanity=None)
                )
        return None

    @contextmanager
    def _naming_makers(self) -> Iterator[None]:
        """Say of a file that is not found which stage makes it: only we know."""
        try:
            yield
        except RecipeError as error:
            path, found, _ = str(error).partition(": file not found")
            hint = self._how_to_make(Path(path)) if found else None
            if hint is None:
                raise
            raise RecipeError(f"{error}; {hint}") from error

    def _fingerprint(self, stage: Stage) -> dict[str, dict[str, Any]]:
        inputs = {}
        for path in stage.inputs(self.options):
            if not path.is_file():
                hint = self._how_to_make(path) or "check the option that names it"
                raise RecipeError(
                    f"stage {stage.number} ({stage.title}) needs {path}: file not "
                    f"found; {hint}"
                )
            inputs[str(path)] = self.hashes(path)
        added = filter(Path.is_file, stage.added(self.options))
        inputs |= {str(path): self.hashes(path) for path in added}
        options = {name: getattr(self.options, name) for name in stage.options}
        # As it will be read back: paths as text, tuples as lists.
        found = {"options": options, "inputs": inputs}
        found["audio"] = self._digests(stage.audio(self.options))
        return json.loads(json.dumps(found, default=str))

    def _digests(self, tables: Sequence[Path]) -> dict[str, str]:
        return {str(table): self.audio(table) for table in tables if table.exists()}

    def _heard(self, before: Mapping[str, str]) -> list[str]:
        """What happened to the audio of tables that are still there."""
        now = self._digests([Path(table) for table in before])
        pairs = ((table, before[table], now[table]) for table in now)
        return [self.audio.change(*pair) for pair in pairs if pair[1] != pair[2]]

    def _differing(self, digests: Mapping[str, str]) -> dict[str, str]:
        """What happened to files that are not as they were."""
        return {
            path: "changed" if Path(path).is_file() else "is gone"
            for path, digest in digests.items()
            if not Path(path).is_file() or self.hashes(Path(path)) != digest
        }

    def _status(
        self, stage: Stage
    ) -> tuple[dict[str, Any], dict[str, Any] | None, list[str], str]:
        """Say what a stage is made from, its record, what changed, and why it runs.

        Where it need not run the last is empty.
        """
        fingerprint = self._fingerprint(stage)
        state = _read_json(self._state_file(stage))
        if state is None:
            return fingerprint, state, [], "starts"
        self._fill_in(stage, state, fingerprint["inputs"])
        changes = _changes(state["fingerprint"], fingerprint)
        changes += self._heard(state["fingerprint"].get("audio", {}))
        done = state["status"] == "done"
        damage = self._differing(state["outputs"]) if done else {}
        reasons = changes or [f"{path} {what}" for path, what in damage.items()]
        reasons = reasons or self._heard(state.get("audio", {}))
        why = "" if done else "goes on where it stopped"
        if reasons:
            why = f"runs again: {'; '.join(reasons[:5])}"
        elif done and stage.repeat(self.options):
            why = "runs again, as asked"
        return fingerprint, state, changes, why

    def _run_stage(self, stage: Stage) -> float | None:
        """Return the seconds that the stage took, if it was not done already."""
        # What is missing, another run may be making just now.
        with suppress(RecipeError):
            if self._is_done(stage):
                return None
        with self.locked(stage):
            return None if self._is_done(stage) else self._work(stage)

    def _is_done(self, stage: Stage) -> bool:
        fingerprint, state, _, why = self._status(stage)
        if why:
            return False
        known = {"fingerprint": fingerprint}
        known["audio"] = self._digests(stage.audio_after(self.options))
        if state != state | known:  # the record of an earlier version knows less
            write_json(self._state_file(stage), state | known)
        logging.info("stage %d: %s: done, nothing changed", stage.number, stage.title)
        return True

    def _work(self, stage: Stage) -> float:
        label = f"stage {stage.number}: {stage.title}"
        record = {"stage": stage.number, "title": stage.title}
        record["fingerprint"], state, changes, why = self._status(stage)
        logging.info("%s: %s", label, why)
        for kept in stage.keep(self.options) if changes else ():
            with exclusive(kept, wait=False):
                if kept.exists():
                    target = rename_old(kept, sha256_value(state["fingerprint"])[:8])
                    logging.info("kept the earlier %s as %s", kept, target)
        write_json(self._state_file(stage), record | {"status": "running"})
        self._save()
        started = time.perf_counter()
        for command in self.by_hand(stage):
            logging.info("by hand: %s", command.text(self.options.python))
        with stage_log(self.options.expdir, stage.number), self._naming_makers():
            for command in stage.run(self.options) or ():
                command.run()
        self.audio.forget()
        outputs = stage.outputs(self.options)
        missing = [path for path in outputs if not path.is_file()]
        if missing:
            raise RecipeError(
                f"{label}: ended without {missing[0]}; see its log under "
                f"{self.options.expdir / 'logs'}"
            )
        seconds = time.perf_counter() - started
        record |= {
            "status": "done",
            "outputs": {str(path): self.hashes(path) for path in outputs},
            "audio": self._digests(stage.audio_after(self.options)),
            "seconds": round(seconds, 1),
            "finished": datetime.now().isoformat(timespec="seconds"),
        }
        write_json(self._state_file(stage), record)
        self._save()
        logging.info("%s: done in %.1f s", label, seconds)
        return seconds

    def _fill_in(self, stage: Stage, state: dict, inputs: dict[str, str]) -> None:
        """Add to an earlier version's record what that version did not look at."""
        known = state["fingerprint"]["inputs"]
        added = {str(path) for path in stage.added(self.options)} & inputs.keys()
        if added and added.isdisjoint(known):
            known |= {path: inputs[path] for path in added}
            write_json(self._state_file(stage), state)

    def _warn_outdated(self, stage: Stage) -> None:
        state = _read_json(self._state_file(stage))
        if state is None or state["status"] != "done":
            return
        changed = list(self._differing(state["fingerprint"]["inputs"]))
        changed += self._heard(state["fingerprint"].get("audio", {}))
        if changed:
            label = f"stage {stage.number} ({stage.title})"
            text = "%s is out of date: its inputs changed: %s"
            logging.warning(text, label, ", ".join(changed[:3]))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    changes = []
    # What an earlier version did not record is not known, and no reason to run.
    for name in sorted({*old["options"]} & {*new["options"]}):
        before, after = old["options"][name], new["options"][name]
        if before != after:
            changes.append(f"--{name} {before} -> {after}")
    for path in sorted({*old["inputs"], *new["inputs"]}):
        if old["inputs"].get(path) != new["inputs"].get(path):
            changes.append(f"{path} changed")
    return changes


@contextmanager
def stage_log(expdir: Path, number: int) -> Iterator[None]:
    """Send everything that is logged inside the block to ``logs/stage_NN.log`` too."""
    path = expdir / "logs" / f"stage_{number:02d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except Exception as error:
        # The reason belongs in the stage's log as well as on the terminal; only what
        # the user cannot mend comes with a traceback.
        known = system_message(error)
        trace = None if known else sys.exc_info()
        text = f"stage {number} failed: {known or error}"
        place = (__name__, logging.ERROR, __file__, 0)
        handler.handle(logging.LogRecord(*place, text, None, trace))
        raise
    finally:
        root.removeHandler(handler)
        handler.close()

"""Run stages once: skip what is done, go on with what was killed, name what changed."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import rename_old, write_json
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.system import LogFile, system_message
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


class Runner:
    """Runs a range of stages and remembers in ``<expdir>/stages`` what was done.

    Args:
        stages: All stages, in order.
        options: The recipe's options.
        by_hand: Returns the commands that do a stage's work; without it none are said.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        options: Options,
        by_hand: Callable[[Stage], Sequence[Command]] = lambda stage: (),
    ) -> None:
        self.stages = stages
        self.options = options
        self.by_hand = by_hand
        self.directory = options.expdir / "stages"
        self.hashes = HashCache(self.directory / "hashes.json")
        self.seconds: dict[int, float] = {}

    def run(self) -> None:
        """Run the stages asked for.

        Raises:
            RecipeError: A stage's input is missing, or the stage failed.
        """
        started = time.perf_counter()
        chosen = chosen_stages(self.stages, self.options)
        for stage in chosen:
            self._run_stage(stage)
        self.hashes.save()
        self._warn_outdated([s for s in self.stages if s not in chosen])
        for stage in chosen:
            if stage.number in self.seconds:
                seconds = self.seconds[stage.number]
                logging.info(
                    "stage %2d: %6.1f s  %s", stage.number, seconds, stage.title
                )
        logging.info("total: %.1f s", time.perf_counter() - started)

    def _state_file(self, stage: Stage) -> Path:
        name = f"{stage.number:02d}{stage.variant(self.options)}.json"
        return self.directory / name

    def _maker(self, path: Path) -> Stage | None:
        for stage in self.stages:
            if path in stage.outputs(self.options):
                return stage
        return None

    @contextmanager
    def _naming_makers(self) -> Iterator[None]:
        """Say of a file that is not found which stage makes it: only we know."""
        try:
            yield
        except RecipeError as error:
            path, found, _ = str(error).partition(": file not found")
            maker = self._maker(Path(path)) if found else None
            if maker is None:
                raise
            raise RecipeError(f"{error}; {_how_to_make(maker)}") from error

    def _fingerprint(self, stage: Stage) -> dict[str, Any]:
        options = {}
        for name in stage.options:
            value = getattr(self.options, name)
            options[name] = str(value) if isinstance(value, Path) else value
        inputs = {}
        for path in stage.inputs(self.options):
            if not path.is_file():
                maker = self._maker(path)
                hint = "check the option that names it"
                if maker is not None:
                    hint = _how_to_make(maker)
                raise RecipeError(
                    f"stage {stage.number} ({stage.title}) needs {path}: file not "
                    f"found; {hint}"
                )
            inputs[str(path)] = self.hashes(path)
        return {"options": options, "inputs": inputs}

    def _changes(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        changes = []
        for name in sorted({*old["options"], *new["options"]}):
            before, after = old["options"].get(name), new["options"].get(name)
            if before != after:
                changes.append(f"--{name} {before} -> {after}")
        for path in sorted({*old["inputs"], *new["inputs"]}):
            if old["inputs"].get(path) != new["inputs"].get(path):
                changes.append(f"{path} changed")
        return changes

    def _damaged(self, state: dict[str, Any]) -> list[str]:
        """Outputs that are gone or no longer what the stage wrote."""
        return [
            f"{path} {'changed' if Path(path).is_file() else 'is gone'}"
            for path, digest in state["outputs"].items()
            if not Path(path).is_file() or self.hashes(Path(path)) != digest
        ]

    def _run_stage(self, stage: Stage) -> None:
        label = f"stage {stage.number}: {stage.title}"
        fingerprint = self._fingerprint(stage)
        # JSON turns tuples into lists; compare what will be read back.
        fingerprint = json.loads(json.dumps(fingerprint))
        state = _read_json(self._state_file(stage))
        if state is not None:
            changes = self._changes(state["fingerprint"], fingerprint)
            done = state["status"] == "done"
            damage = self._damaged(state) if done else []
            again = stage.repeat(self.options)
            if done and not changes and not damage and not again:
                logging.info("%s: done, nothing changed", label)
                return
            if changes:
                logging.info("%s: runs again: %s", label, "; ".join(changes[:5]))
                self._put_aside(stage, state)
            elif damage:
                logging.info("%s: runs again: %s", label, "; ".join(damage[:5]))
            elif done:
                logging.info("%s: runs again, as asked", label)
            else:
                logging.info("%s: goes on where it stopped", label)
        else:
            logging.info("%s: starts", label)
        record = {"stage": stage.number, "title": stage.title}
        record["fingerprint"] = fingerprint
        write_json(self._state_file(stage), record | {"status": "running"})
        started = time.perf_counter()
        for command in self.by_hand(stage):
            logging.info("by hand: %s", command.text(self.options.python))
        with stage_log(self.options.expdir, stage.number), self._naming_makers():
            for command in stage.run(self.options) or ():
                command.run()
        missing = [p for p in stage.outputs(self.options) if not p.is_file()]
        if missing:
            raise RecipeError(
                f"{label}: ended without {missing[0]}; see its log under "
                f"{self.options.expdir / 'logs'}"
            )
        seconds = time.perf_counter() - started
        self.seconds[stage.number] = seconds
        outputs = {str(p): self.hashes(p) for p in stage.outputs(self.options)}
        write_json(
            self._state_file(stage),
            record
            | {
                "status": "done",
                "outputs": outputs,
                "seconds": round(seconds, 1),
                "finished": datetime.now().isoformat(timespec="seconds"),
            },
        )
        self.hashes.save()
        logging.info("%s: done in %.1f s", label, seconds)

    def _put_aside(self, stage: Stage, state: dict[str, Any]) -> None:
        tag = sha256_value(state["fingerprint"])[:8]
        for directory in stage.keep(self.options):
            if not directory.exists():
                continue
            target = rename_old(directory, tag)
            logging.info("kept the earlier %s as %s", directory, target)

    def _warn_outdated(self, stages: list[Stage]) -> None:
        for stage in stages:
            state = _read_json(self._state_file(stage))
            if state is None or state["status"] != "done":
                continue
            changed = [
                path
                for path, digest in state["fingerprint"]["inputs"].items()
                if not Path(path).is_file() or self.hashes(Path(path)) != digest
            ]
            if changed:
                logging.warning(
                    "stage %d (%s) is out of date: its inputs changed: %s",
                    stage.number,
                    stage.title,
                    ", ".join(changed[:3]),
                )


def _how_to_make(stage: Stage) -> str:
    number = stage.number
    return (
        f"it is made by stage {number} ({stage.title}): ./run.sh --stage {number} "
        f"--stop_stage {number}"
    )


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
        handler.handle(
            logging.LogRecord(
                __name__,
                logging.ERROR,
                __file__,
                0,
                "stage %d failed: %s",
                (number, known or error),
                None if known else sys.exc_info(),
            )
        )
        raise
    finally:
        root.removeHandler(handler)
        handler.close()

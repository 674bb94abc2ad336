"""Makes updates of one checkout when told to; ``benchmarks.update`` starts it.

It is run by its path, with the checkout first on ``PYTHONPATH``, so it imports nothing
of ``benchmarks`` and only what every version of the package has: the task's parser,
model, collate function and optimizer. It answers each line of its input with one of
its output.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def batches(
    task: Any, args: Any, seconds: float, model: Any = None
) -> list[dict[str, Any]]:
    """Collate noise: long, middling and short utterances, each batch as large.

    With a ``model`` utterances have its features in place of audio, where a training
    has them.
    """
    generator = np.random.default_rng(0)
    collate = task.build_collate_fn(args, train=True)
    total = int(seconds * 16000)
    made = []
    for share in (1.0, 0.75, 0.5):
        longest = min(int(share * collate.max_samples), total)
        utterances = []
        for row in range(max(1, total // longest)):
            # As in a bucket, lengths differ a little.
            samples = longest - longest // 50 * (row % 4)
            units = generator.integers(
                args.num_classes, size=(samples - 400) // 320 + 1
            )
            speech = 0.1 * generator.standard_normal(samples, np.float32)
            utterances.append((f"u{row}", {"speech": speech, "text": units}))
        if model is not None:
            utterances = [*stored(utterances, collate, model)]
        made.append(collate(utterances)[1])
    return made


def stored(utterances: list, collate: Any, model: Any) -> Iterator[tuple[str, dict]]:
    """Replace the audio of those that fill their batch, as the feature cache does."""
    import torch

    from espnet2_lamer.precision import AMP_DTYPES
    from espnet2_lamer.train.batching import rounded_length

    samples = [len(data["speech"]) for _, data in utterances]
    padded = rounded_length(np.array(samples), collate.max_samples, collate.bucket)
    for (name, data), count, own in zip(utterances, samples, padded, strict=True):
        if own < padded.max():
            yield name, data
            continue
        wave = torch.zeros(1, int(own))
        wave[0, :count] = torch.from_numpy(data["speech"])
        given = [(wave, torch.tensor([count]))]
        (features,) = model.encoder.features(given, AMP_DTYPES[model.amp_dtype])
        frames = (count - 400) // 320 + 1
        there = {"features": features[0, :frames].clone(), "samples": count}
        yield name, {"text": data["text"], **there}


class Worker:
    """A model with its optimizer, and batches that it is trained on in turns."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        from espnet2_lamer import parallel
        from espnet2_lamer.tasks.hubert import LamerHubertTask as task

        # What a training does before it begins, where the checkout knows it.
        getattr(parallel, "keep_freed_memory", bool)()

        self.torch = torch
        units = options["units"]
        command = ["--config", options["config"], "--num_classes", str(units)]
        args = task.get_parser().parse_args([*command, "--ngpu", "0"])
        args.token_list = [*map(str, range(units)), "<unk>", "<sos/eos>"]
        if options["base"]:
            args.encoder_conf["base"] = options["base"]
        if options["amp_dtype"]:
            args.amp_dtype = options["amp_dtype"]
        torch.manual_seed(0)
        self.model = task.build_model(args).train()
        if hasattr(self.model, "keep_frozen"):
            # As a training does, where it is known.
            self.model.keep_frozen()
        (self.optimizer,) = task.build_optimizers(args, self.model)
        self.clip = args.grad_clip
        cached = self.model if options.get("feature_cache") else None
        self.batches = batches(task, args, options["seconds"], cached)

    def update(self, number: int) -> float:
        """Make one update; returns its loss."""
        batch = self.batches[number % len(self.batches)]
        loss, _, _ = self.model(**batch)
        loss.backward()
        trained = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.torch.nn.utils.clip_grad_norm_(trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)

    def run(self, updates: int) -> dict[str, float]:
        """Make updates; returns seconds and CPU seconds of all, and the first loss."""
        start, cpu = time.perf_counter(), time.process_time()
        losses = [self.update(number) for number in range(updates)]
        return {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "loss": losses[0],
        }


def main() -> None:
    """Read options, then answer every number of updates with a measurement."""
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w")
    # ESPnet prints when it is imported.
    os.dup2(2, 1)
    options = json.loads(sys.stdin.readline())
    worker = Worker(options)
    import espnet2_lamer

    first = worker.run(len(worker.batches))
    hello = {
        "package": str(Path(espnet2_lamer.__file__).resolve().parent),
        "amp_dtype": worker.model.amp_dtype,
        "loss": first["loss"],
    }
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.run(int(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

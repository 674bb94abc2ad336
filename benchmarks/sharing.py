"""Section ``sharing``: what a second job on the same cores costs a training."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Timings
from benchmarks.options import option
from benchmarks.report import Table, verdict

TITLE = "a training beside another one on the same cores"
DEVICES = ("cpu",)
# How threads that have nothing to do wait. Spinning for ever (`active`) is left out: a
# busy machine does not come to an end with it.
POLICIES = {
    "asleep (`OMP_WAIT_POLICY=passive`, ours)": "passive",
    "as OpenMP does by itself": None,
}
# Two jobs that shared the cores without loss would each take twice as long.
LIMIT = 2.5


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are the mini preset's."""

    layers: int = option(4, "transformer layers, a multiple of 4")
    dim: int = option(192, "width of the model")
    inner: int = option(768, "width inside the FFN")
    heads: int = option(4, "attention heads")
    channels: int = option(64, "channels of the convolutions")
    rank: int = option(12, "rank of an expert")
    batch: int = option(5, "utterances")
    seconds: float = option(5.0, "seconds per utterance")
    updates: int = option(10, "updates of a timed run")
    rounds: int = option(5, "timed rounds")


QUICK = Options(
    dim=32,
    inner=64,
    heads=2,
    channels=8,
    rank=2,
    batch=1,
    seconds=0.5,
    updates=2,
    rounds=1,
)


class Job:
    """A process that makes updates when it is told to, with all its threads.

    Args:
        options: Sizes.
        policy: ``OMP_WAIT_POLICY``; ``None`` leaves it unset.
    """

    def __init__(self, options: Options, policy: str | None) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        if policy is not None:
            environment["OMP_WAIT_POLICY"] = policy
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sharing"],
            cwd=Path(__file__).parent.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(json.dumps(dataclasses.asdict(options)))
        self._answer()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def run(self) -> float:
        """Make the updates; returns seconds per update."""
        self._say("go")
        return float(self._answer())

    def _say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a job ended with code {self.process.wait()}")
        return line


def work() -> None:
    """Be a job: read sizes, then one line per run; answer with seconds."""
    # No more than this: a quick run starts four jobs.
    import torch

    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.layers import LamerConfig, add_lamer

    options = Options(**json.loads(sys.stdin.readline()))
    torch.manual_seed(0)
    channels = options.channels
    model = build_hubert(
        {
            "extractor_conv_layer_config": [[channels, 10, 5]]
            + [[channels, 3, 2]] * 4
            + [[channels, 2, 2]] * 2,
            "encoder_embed_dim": options.dim,
            "encoder_num_layers": options.layers,
            "encoder_num_heads": options.heads,
            "encoder_ff_interm_features": options.inner,
        }
    )
    add_lamer(model, LamerConfig(allocation="2,4,6,8", rank=options.rank))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    speech = torch.randn(options.batch, int(options.seconds * 16000))

    def update() -> None:
        model(speech)[0].square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    update()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(options.updates):
            update()
        print((time.perf_counter() - started) / options.updates, flush=True)


def run(options: Options, device: str) -> list[str | Table]:
    """Time updates alone and beside a second job; returns text and a table."""
    timings = Timings({})
    with ExitStack() as stack:
        pairs = {
            name: [stack.enter_context(Job(options, policy)) for _ in range(2)]
            for name, policy in POLICIES.items()
        }
        pool = stack.enter_context(ThreadPoolExecutor(2))
        for _ in range(options.rounds):
            for name, jobs in pairs.items():
                alone = jobs[0].run()
                together = list(pool.map(Job.run, jobs))
                for key, seconds in (
                    (f"{name}, alone", alone),
                    (f"{name}, beside", sum(together) / 2),
                ):
                    timings.seconds.setdefault(key, []).append(seconds)
    ours = next(iter(POLICIES))
    table = Table(
        f"{options.batch} x {options.seconds:g} s, {options.layers} layers x "
        f"{options.dim}, fp32, seconds per update",
        ["threads wait", "alone", "beside", "beside / alone", "alone / ours", "target"],
    )
    for name in POLICIES:
        ratio = timings.ratio(f"{name}, beside", f"{name}, alone")
        table.rows.append(
            [
                name,
                f"{timings.median(f'{name}, alone'):.3f}",
                f"{timings.median(f'{name}, beside'):.3f}",
                str(ratio),
                str(timings.ratio(f"{name}, alone", f"{ours}, alone")),
                verdict(ratio.median, "<=", LIMIT) if name == ours else "",
            ]
        )
    explanation = (
        "Updates of Lamer 2/4/6/8 at the mini preset's size, without its loss, each "
        "process with as many threads as there are cores, alone and beside another "
        f"process that does the same; {options.rounds} rounds of {options.updates} "
        "updates. A factor of two is what sharing the cores costs by itself. The "
        "commands of this package let their threads wait asleep unless "
        "`OMP_WAIT_POLICY` is set."
    )
    return [explanation, table]


if __name__ == "__main__":
    work()

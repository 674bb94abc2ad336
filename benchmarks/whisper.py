"""Section ``whisper``: greedy decoding, keys written in place against growing ones."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import Timings
from benchmarks.options import option
from benchmarks.report import Table, verdict

TITLE = "Whisper's decoder, keys in memory that is taken once"
DEVICES = ("cpu", "cuda")
IN_PLACE = "written in place (ours)"
GROWING = "`torch.cat` per token"
LIMIT = 1.0


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are Whisper base's decoder."""

    layers: int = option(6, "blocks of the decoder")
    dim: int = option(512, "width")
    heads: int = option(8, "attention heads")
    frames: int = option(400, "frames of the audio, 20 ms each")
    batch: tuple[int, ...] = option((1, 8), "utterances at a time")
    tokens: int = option(120, "tokens of a text")
    rounds: int = option(5, "timed rounds")


QUICK = Options(layers=1, dim=16, heads=2, frames=8, batch=(2,), tokens=4, rounds=1)


def _caches() -> dict[str, type]:
    from espnet2_lamer.whisper.cache import BlockCache, DecoderCache

    class Growing(BlockCache):
        """Appends by copying all that is there."""

        past = None

        def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            if self.past is not None:
                pairs = zip(self.past, (keys, values), strict=True)
                keys, values = (torch.cat(pair, 2) for pair in pairs)
            self.past, self.length = (keys, values), keys.shape[2]
            return self.past

    class GrowingCache(DecoderCache):
        """A :class:`Growing` for each block."""

        def __init__(self, blocks: int, size: int) -> None:
            super().__init__(blocks, size)
            self.blocks = [Growing(size) for _ in range(blocks)]

    return {IN_PLACE: DecoderCache, GROWING: GrowingCache}


@torch.no_grad()
def decode(
    blocks: torch.nn.ModuleList, cache: type, x: Tensor, memory: Tensor, tokens: int
) -> Tensor:
    """Run the blocks token by token; returns the last output ``[B, 1, D]``."""
    from espnet2_lamer.whisper.blocks import decoder_block

    kept = cache(len(blocks), tokens)
    for _ in range(tokens):
        y = x
        for block, of_block in zip(blocks, kept.blocks, strict=True):
            y = decoder_block(block, y, memory, None, None, of_block)
    return y


def run(options: Options, device: str) -> list[str | Table]:
    """Time both forms in turns; returns text and a table."""
    from whisper.model import TextDecoder

    torch.manual_seed(0)
    sizes = (10, options.tokens, options.dim, options.heads, options.layers)
    blocks = TextDecoder(*sizes).blocks.to(device).eval()
    table = Table(
        f"{options.layers} blocks x {options.dim}, {options.tokens} tokens, float32",
        [
            "utterances at a time",
            "keys",
            "ms per utterance",
            "ours / growing",
            "target",
        ],
    )
    for batch in options.batch:
        x = torch.randn(batch, 1, options.dim, device=device)
        memory = torch.randn(batch, options.frames, options.dim, device=device)
        forms = _caches()
        timings = Timings({name: [] for name in forms})
        outputs = []
        for _ in range(options.rounds + 1):
            for name, cache in forms.items():
                if device == "cuda":
                    torch.cuda.synchronize()
                # CPU seconds do not depend on what else the machine does.
                clock = time.perf_counter if device == "cuda" else time.process_time
                started = clock()
                outputs.append(decode(blocks, cache, x, memory, options.tokens))
                if device == "cuda":
                    torch.cuda.synchronize()
                timings.seconds[name].append((clock() - started) / batch)
        for seconds in timings.seconds.values():
            del seconds[0]  # warm-up
        torch.testing.assert_close(outputs[0], outputs[1])
        ratio = timings.ratio(IN_PLACE, GROWING)
        for name in forms:
            ours = name == IN_PLACE
            table.rows.append(
                [
                    str(batch),
                    name,
                    f"{1e3 * timings.median(name):.1f}",
                    str(ratio) if ours else "",
                    verdict(ratio.median, "<=", LIMIT) if ours else "",
                ]
            )
    explanation = (
        "Greedy decoding through all blocks of the decoder, without its embedding and "
        "logits, which both forms share; the audio's keys are computed once. Seconds "
        "are CPU seconds on a CPU, of the clock on a GPU."
    )
    return [explanation, table]

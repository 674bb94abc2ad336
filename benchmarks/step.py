"""Section ``step``: one whole step of continual pretraining of HuBERT-Large."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks.harness import Case, interleave, synchronizer
from benchmarks.memory import saved_bytes
from benchmarks.options import option
from benchmarks.preset import PAPER, prepare
from benchmarks.preset_step import Sizes, report
from benchmarks.report import Table, megabytes, verdict
from espnet2_lamer.constants import num_frames
from espnet2_lamer.layers import LamerConfig, add_lamer, parameter_report

TITLE = "one step of continual pretraining, HuBERT-Large"
DEVICES = ("cpu", "cuda")
# Dense bf16 peak of a GPU in FLOP/s, by a part of its name (the makers' data sheets,
# SXM versions).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are HuBERT-Large and the paper's experts."""

    layers: int = option(24, "transformer layers, a multiple of 4")
    dim: int = option(1024, "width of the model")
    inner: int = option(4096, "width inside the FFN")
    heads: int = option(16, "attention heads")
    channels: int = option(512, "channels of the convolutions")
    rank: int = option(12, "rank of an expert; HuBERT-LoRA has twice this")
    units: int = option(1000, "classes K")
    batch: int | None = option(None, "utterances; 2 on a CPU, 16 on a GPU", int)
    seconds: float | None = option(
        None, "seconds per utterance; 5 on a CPU, on a GPU the paper's 15.625", float
    )
    dtype: str = option("bf16", "bf16 (autocast) or fp32")
    rounds: int = option(7, "timed rounds")
    config: str = option(
        PAPER, "training config that a GPU runs as it is; none: only the comparison"
    )
    updates: int = option(8, "timed updates of the config")


QUICK = Options(
    layers=4,
    dim=32,
    inner=64,
    heads=2,
    channels=8,
    rank=2,
    units=10,
    batch=1,
    seconds=0.5,
    rounds=2,
)


def variants(rank: int) -> dict[str, LamerConfig]:
    """What is compared, the reference first."""
    return {
        f"HuBERT-LoRA, rank {2 * rank}": LamerConfig(allocation=1, rank=2 * rank),
        "Lamer 2/4/6/8, top-2": LamerConfig(allocation="2,4,6,8", rank=rank),
        "uniform 5, top-2": LamerConfig(allocation=5, rank=rank),
        "MiLorE 5, soft": LamerConfig(
            allocation=5, rank=rank, top_k=None, balance="none"
        ),
    }


def build_backbone(options: Options) -> nn.Module:
    """Build the ESPnet model with a frozen random backbone and no experts."""
    from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
    from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel

    torch.manual_seed(0)
    channels = options.channels
    encoder = LamerHubertEncoder(
        num_classes=options.units,
        lamer={"allocation": 0},
        extractor_conv_layer_config=[[channels, 10, 5]]
        + [[channels, 3, 2]] * 4
        + [[channels, 2, 2]] * 2,
        encoder_embed_dim=options.dim,
        encoder_num_layers=options.layers,
        encoder_num_heads=options.heads,
        encoder_ff_interm_features=options.inner,
    )
    tokens = [*map(str, range(options.units)), "<unk>", "<sos/eos>"]
    amp_dtype = "bf16" if options.dtype == "bf16" else "none"
    return LamerHubertPretrainModel(encoder, tokens, amp_dtype=amp_dtype)


def with_experts(backbone: nn.Module, config: LamerConfig) -> nn.Module:
    """Copy a model, sharing what is frozen, and put experts into the copy."""
    frozen = [p for p in backbone.parameters() if not p.requires_grad]
    # A tensor that deepcopy finds in its memo is used as it is.
    shared = {id(tensor): tensor for tensor in (*frozen, *backbone.buffers())}
    model = copy.deepcopy(backbone, shared)
    add_lamer(model.encoder.wav2vec2, config)
    model.encoder.lamer = config
    return model


def synthetic_batch(options: Options, device: str) -> dict[str, Tensor]:
    """Collate noise with random units as training does, without extra padding."""
    from espnet2_lamer.train.batching import LamerCollate

    generator = np.random.default_rng(0)
    samples = int(options.seconds * 16000)
    collate = LamerCollate(samples, 1, 0.8, 10, seed=0, draw=1, train=True)
    frames = num_frames(samples)
    utterances = [
        (
            f"utt{number}",
            {
                "speech": 0.1 * generator.standard_normal(samples, np.float32),
                "text": generator.integers(options.units, size=frames),
            },
        )
        for number in range(options.batch)
    ]
    _, batch = collate(utterances)
    return {key: value.to(device) for key, value in batch.items()}


class Step:
    """Forward, loss, backward, clipping and AdamW update of one model.

    Args:
        model: An ESPnet model.
        batch: Its input.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.model = model.train()
        self.batch = batch
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=1e-5,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
        )

    def __call__(self) -> None:
        """Make one update as ESPnet's trainer does."""
        loss, _, _ = self.model(**self.batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise RuntimeError(f"the gradient norm is {norm}")
        self.optimizer.step()
        self.optimizer.zero_grad()

    def flops(self) -> int:
        """Floating-point operations of the matrix products of one step."""
        aten = torch.ops.aten
        # torch's own table lacks the CPU's attention kernels.
        extra = {
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
        }
        with FlopCounterMode(display=False, custom_mapping=extra) as counter:
            self()
        return counter.get_total_flops()

    def kept(self) -> int:
        """Bytes kept for the backward pass."""
        known = [*self.batch.values(), *self.model.parameters(), *self.model.buffers()]
        for module in self.model.modules():
            # Frozen weights that were made ready.
            known += getattr(module, "folded", None) or getattr(module, "fused", ())
        return saved_bytes(lambda: self.model(**self.batch)[0], known)


def _attention(query, key, value, *args: Any, out_shape=None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_back(
    gradient, query, key, value, *args: Any, out_shape=None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def gpu_peak(step: Step) -> int:
    """Peak of allocated GPU memory during one step, all variants' weights included."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def utilisation(flops: int, seconds: float, device: str, dtype: str) -> str:
    """Achieved TFLOP/s and, on a GPU that we know, the share of its peak."""
    text = f"{flops / seconds / 1e12:.2f}"
    if device == "cuda" and dtype == "bf16":
        peak = peak_flops(torch.cuda.get_device_name())
        return text if peak is None else f"{text} ({flops / seconds / peak:.1%})"
    return text


def peak_flops(gpu: str) -> float | None:
    """Dense bf16 peak of a GPU by its name, in FLOP/s; ``None`` where unknown."""
    return next((p for part, p in PEAK_FLOPS.items() if part in gpu), None)


def of_config(options: Options, device: str) -> list[str | Table]:
    """Run a training config as it is; on a GPU only, and unless it is ``none``."""
    if device != "cuda" or options.config == "none":
        return []
    gpu = torch.cuda.get_device_name()
    sizes = Sizes(options.config, options.units, options.updates)
    return report(sizes, device, gpu, peak_flops(gpu))


def run(options: Options, device: str) -> list[str | Table]:
    """Measure all variants in turns; returns text and a table."""
    on_gpu = device == "cuda"
    options = dataclasses.replace(
        options,
        batch=options.batch or (16 if on_gpu else 2),
        seconds=options.seconds or (15.625 if on_gpu else 5.0),
    )
    backbone = build_backbone(options).to(device)
    batch = synthetic_batch(options, device)
    models = {
        name: with_experts(backbone, config).to(device)
        for name, config in variants(options.rank).items()
    }
    prepare(models.values())
    steps = {name: Step(model, batch) for name, model in models.items()}
    reference = next(iter(steps))
    for step in steps.values():
        # Before B moves from zero, part of the gradients is zero.
        step()
    flops = {name: step.flops() for name, step in steps.items()}
    memory = {
        name: gpu_peak(step) if on_gpu else step.kept() for name, step in steps.items()
    }
    timings = interleave(
        {name: Case(step) for name, step in steps.items()},
        options.rounds,
        synchronize=synchronizer(device),
        description=f"step {device}",
    )
    audio = options.batch * options.seconds
    table = Table(
        f"{options.batch} x {options.seconds:g} s, {options.dtype}",
        [
            "model",
            "trained parameters (M)",
            "s per step",
            f"time / {reference}",
            "audio s per s",
            "TFLOP per step",
            "TFLOP/s (share of peak)",
            "peak GPU MB" if on_gpu else "MB kept for backward",
            "target",
        ],
    )
    for name, step in steps.items():
        seconds = timings.median(name)
        ratio = timings.ratio(name, reference)
        is_lamer = name.startswith("Lamer")
        table.rows.append(
            [
                name,
                f"{parameter_report(step.model)['trainable'] / 1e6:.2f}",
                f"{seconds:.3f}",
                str(ratio),
                f"{audio / seconds:.2f}",
                f"{flops[name] / 1e12:.3f}",
                utilisation(flops[name], seconds, device, options.dtype),
                megabytes(memory[name]),
                verdict(ratio.median, "<=", 1.10) if is_lamer else "",
            ]
        )
    explanation = (
        f"`LamerHubertPretrainModel`, {options.layers} layers x "
        f"{options.dim}/{options.inner}, random weights, K = {options.units}; forward, "
        "masked-prediction and balance loss, backward, clipping, AdamW; "
        f"{options.rounds} rounds. The backbone is frozen and one set of its weights "
        "serves all rows. Operations are those of matrix products and convolutions as "
        "they run, forward and backward."
    )
    return [explanation, table, *of_config(options, device)]

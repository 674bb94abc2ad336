"""Section ``peers``: transformers with PEFT's adapters against ours, in one run."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.harness import DTYPES, Case, interleave, synchronizer
from benchmarks.launches import Operations
from benchmarks.options import option
from benchmarks.peers_setup import (
    HuggingFacePretrainModel,
    hugging_face,
    in_bf16,
    with_arrow,
    with_lora,
)
from benchmarks.preset import noise, prepare
from benchmarks.report import Table, megabytes, verdict
from benchmarks.step import Options as StepOptions
from benchmarks.step import Step, build_backbone, gpu_peak, with_experts
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import short_reason
from espnet2_lamer.layers import LamerConfig, parameter_report
from espnet2_lamer.precision import AMP_DTYPES, native_bf16

TITLE = "transformers + PEFT against ours, one update"
DEVICES = ("cpu", "cuda")
# Of the extra ``bench``.
PACKAGES = ("peft",)
OURS_ONE, PEFT_LORA = "ours, N = 1", "transformers + PEFT LoRA"
OURS_TOP, OURS_SOFT = "ours, N = 4, top-2", "ours, N = 4, soft"
PEFT_ARROW = "transformers + PEFT Arrow, N = 4, top-2"
EXPERTS, TOP_K = 4, 2
# The same form whose convolution stack, which is frozen, was computed before.
CACHED = ", with feature cache"
# Theirs in bf16 without autocast: nothing is cast but what enters the LoRAs.
LOADED = ", loaded in bf16"
# Ours over theirs: at most so much of the time of an update.
TARGETS = {OURS_ONE: (PEFT_LORA, 0.9), OURS_TOP: (PEFT_ARROW, 0.7)}
# The same sums in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    """Sizes; HuBERT-Large's width."""

    layers: int = option(4, "transformer layers")
    deep: int = option(24, "transformer layers of a second comparison; 0: none")
    dim: int = option(1024, "width of the model")
    inner: int = option(4096, "width inside the FFN")
    heads: int = option(16, "attention heads")
    channels: int = option(512, "channels of the convolutions")
    rank: int = option(24, "rank of the one LoRA; each of 4 experts has half of it")
    units: int = option(1000, "classes K")
    batch: int = option(1, "utterances; the last of several is 6 % shorter")
    seconds: float = option(4.0, "seconds per utterance")
    dtypes: tuple[str, ...] = option(
        ("auto",), "fp32 and bf16; auto: fp32, and bf16 where the device computes it"
    )
    rounds: int = option(9, "timed rounds")


QUICK = Options(
    layers=2,
    deep=0,
    dim=32,
    inner=64,
    heads=2,
    channels=8,
    rank=4,
    units=10,
    batch=2,
    seconds=0.5,
    dtypes=("fp32",),
    rounds=2,
)


def build_models(options: Options, dtype: str) -> dict[str, nn.Module]:
    """Build every form around one random backbone; ours first."""
    backbone = build_backbone(
        StepOptions(
            layers=options.layers,
            dim=options.dim,
            inner=options.inner,
            heads=options.heads,
            channels=options.channels,
            units=options.units,
            dtype=dtype,
        )
    )
    # What a trained base has, and what both sides then start from.
    mask = backbone.encoder.hubert_pretrain_model.mask_generator.mask_embedding
    mask.requires_grad_(False)
    one, each = options.rank, max(options.rank // 2, 1)
    top = LamerConfig(allocation=EXPERTS, rank=each, top_k=TOP_K)
    soft = dataclasses.replace(top, top_k=None, balance="none")
    models = {
        OURS_ONE: with_experts(backbone, LamerConfig(allocation=1, rank=one)),
        OURS_TOP: with_experts(backbone, top),
        OURS_SOFT: with_experts(backbone, soft),
    }
    models |= {
        OURS_ONE + CACHED: with_experts(backbone, LamerConfig(allocation=1, rank=one)),
        OURS_TOP + CACHED: with_experts(backbone, top),
    }
    ours = list(models)
    theirs = hugging_face(backbone)
    head = backbone.encoder.hubert_pretrain_model.logit_generator
    for name, hubert in (
        (PEFT_LORA, with_lora(copy.deepcopy(theirs), one)),
        (PEFT_ARROW, with_arrow(theirs, EXPERTS, each, TOP_K)),
    ):
        if dtype == "bf16":
            loaded = in_bf16(copy.deepcopy(hubert))
            models[name + LOADED] = HuggingFacePretrainModel(
                loaded, head, DTYPES[dtype], loaded=True
            )
        models[name] = HuggingFacePretrainModel(hubert, head, DTYPES[dtype])
    prepare(models[name] for name in ours)
    return models


def make_batch(options: Options, device: str) -> dict[str, Tensor]:
    """Collate noise with random units as training does."""
    from espnet2_lamer.train.batching import LamerCollate

    samples = int(options.seconds * SAMPLE_RATE)
    lengths = [samples] * options.batch
    if options.batch > 1:
        lengths[-1] -= samples // 16
    collate = LamerCollate(samples, 1, 0.8, 10, seed=0, draw=1, train=True)
    _, batch = collate(noise(lengths, options.units))
    return {key: value.to(device) for key, value in batch.items()}


def with_features(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch as a training has it whose cache serves every utterance."""
    given = batch["speech"], batch["speech_lengths"]
    features = next(model.encoder.features([given], AMP_DTYPES[model.amp_dtype]))
    places = torch.arange(len(features), device=features.device)
    stored = {"features": features.clone(), "feature_places": places}
    return batch | stored | {"speech": batch["speech"][:0]}


def batches_of(
    models: dict[str, nn.Module], batch: dict[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """What each form hears: the batch, or features in place of its audio."""
    return {
        name: with_features(model, batch) if name.endswith(CACHED) else batch
        for name, model in models.items()
    }


def disagreement(models: dict[str, nn.Module], batch: dict[str, Tensor]) -> float:
    """Largest relative difference of loss and head gradient between the forms.

    Every B is 0, so all compute the frozen base. The gradient of the head's projection
    is a product with every masked hidden state.

    Raises:
        RuntimeError: The forms do not compute the same.
    """
    found = {}
    for name, own in batches_of(models, batch).items():
        model = models[name]
        _, figures, _ = model.train()(**own)
        # The balance loss, which only ours has, is not in it.
        loss = figures["loss_m"].float().reshape(1)
        model(**own)[0].backward()
        gradient = _projection(model).weight.grad.float().flatten()
        model.zero_grad()
        found[name] = (loss, gradient)
    reference = found[OURS_ONE]
    worst = 0.0
    for name, values in found.items():
        for value, expected in zip(values, reference, strict=True):
            difference = float((value - expected).norm() / expected.norm())
            worst = max(worst, difference)
            if difference > TOLERANCE:
                raise RuntimeError(
                    f"{name} differs from {OURS_ONE} by {difference:.2e}, at most "
                    f"{TOLERANCE:g} expected: the forms do not compute the same"
                )
    return worst


def _projection(model: nn.Module) -> nn.Linear:
    if isinstance(model, HuggingFacePretrainModel):
        return model.head.final_proj
    return model.encoder.hubert_pretrain_model.logit_generator.final_proj


def adapter_parameters(model: nn.Module) -> int:
    """Trained parameters beside the head's."""
    head = {id(p) for p in _projection(model).parameters()}
    if not isinstance(model, HuggingFacePretrainModel):
        report = parameter_report(model)
        return report["lora"] + report["router"]
    head = {id(p) for p in model.head.parameters()}
    return sum(
        p.numel() for p in model.parameters() if p.requires_grad and id(p) not in head
    )


def measure(options: Options, dtype: str, device: str) -> Table:
    """Compare all forms in one precision."""
    mine = {
        theirs + form: (ours, limit)
        for ours, (theirs, limit) in TARGETS.items()
        for form in ("", LOADED)
    }
    models = {n: m.to(device) for n, m in build_models(options, dtype).items()}
    batch = make_batch(options, device)
    if dtype == "fp32":
        disagreement(models, batch)
    batches = batches_of(models, batch)
    steps = {name: Step(model, batches[name]) for name, model in models.items()}
    operations = {}
    failed = {}
    for name, step in list(steps.items()):
        try:
            # Before B moves from zero, part of the gradients is zero.
            step()
        except RuntimeError as error:
            if name not in mine:
                raise
            failed[name] = short_reason(error)
            del steps[name]
            continue
        with Operations() as counter:
            step()
        operations[name] = counter.count
    products = {name: step.flops() / 1e9 for name, step in steps.items()}
    kept = {
        name: gpu_peak(step) if device == "cuda" else step.kept()
        for name, step in steps.items()
    }
    timings = interleave(
        {name: Case(step) for name, step in steps.items()},
        options.rounds,
        synchronize=synchronizer(device),
        description=f"peers {device} {dtype}",
    )
    table = Table(
        f"{options.layers} layers, {dtype}, {options.batch} x {options.seconds:g} s",
        [
            "form",
            "adapters and routers (M)",
            "ms per update",
            "CPU ms per update",
            "time / ours",
            "CPU time / ours",
            "operators",
            "GFLOP",
            "peak GPU MB" if device == "cuda" else "MB kept for backward",
            "target: ours of its time",
        ],
    )
    for name in steps:
        ours, limit = mine.get(name, (OURS_ONE, None))
        target = ""
        # On a CPU others use the cores, too; its own seconds tell less of that.
        clock = timings if device == "cuda" else timings.of_cpu()
        if name.endswith(CACHED):
            ours = name.removesuffix(CACHED)
            theirs = TARGETS[ours][0]
            if theirs in steps:
                share = clock.ratio(name, theirs).median
                target = f"{share:.2f} of {theirs}, which computes the stack"
        if limit is not None:
            target = verdict(clock.ratio(ours, name).median, "<=", limit)
            target = f"{clock.ratio(ours, name).median:.2f} {target}"
        table.rows.append(
            [
                name,
                f"{adapter_parameters(models[name]) / 1e6:.2f}",
                f"{1e3 * timings.median(name):.0f}",
                f"{1e3 * timings.of_cpu().median(name):.0f}",
                f"{timings.ratio(name, ours)}",
                f"{timings.of_cpu().ratio(name, ours)}",
                str(operations[name]),
                f"{products[name]:.4g}",
                megabytes(kept[name]),
                target,
            ]
        )
    for name, reason in failed.items():
        cells = [name, *["-"] * (len(table.header) - 2), f"does not run: {reason}"]
        table.rows.append(cells)
    return table


def run(options: Options, device: str) -> list[str | Table]:
    """Measure every precision; returns text and tables."""
    dtypes = options.dtypes
    if dtypes == ("auto",):
        dtypes = ("fp32", "bf16") if native_bf16(device)[0] else ("fp32",)
    sizes = [dataclasses.replace(options, layers=options.deep)] * (options.deep > 0)
    tables = [
        measure(size, dtype, device) for size in (options, *sizes) for dtype in dtypes
    ]
    import peft
    import transformers

    each = max(options.rank // 2, 1)
    explanation = (
        f"transformers {transformers.__version__} (`HubertModel`, sdpa) with peft "
        f"{peft.__version__} against ours: one random backbone of width "
        f"{options.dim}/{options.inner}, the same head and loss (ours), the "
        "same batch and masks (`mask_time_indices`), extractor frozen on both sides; "
        "forward, backward, clipping, AdamW. LoRAs on both FFN Linears, scale 1: one "
        f"of rank {options.rank}, or 4 of rank {each}. In float32 it is checked before "
        "the measurement that all forms give the same loss and the same gradient of "
        f"the head (to {TOLERANCE:g}). Arrow: `create_arrow_model` over 4 saved LoRAs; "
        "its prototypes are computed once, from LoRAs whose B is 0, and stay; its "
        "LoRAs are set to train, which PEFT itself does not do; it has no router that "
        "trains and no balance loss. `with feature cache`: the output of the frozen "
        "extractor is at hand, as with `feature_cache_gb`, whose one pass through it "
        "before the first update is not timed; PEFT's side has no such cache, so these "
        "rows are no part of the targets. `loaded in bf16`: without autocast, as "
        "`from_pretrained(dtype=torch.bfloat16)` leaves it, so that its residual "
        "stream and norms are bf16, too, which ours keeps in float32; its LoRAs stay "
        "float32. GFLOP are of matrix products and "
        "convolutions, forward and backward: their ratio is what a device can gain "
        "that does nothing but them. "
        "`time / ours` compares with the form of ours that "
        f"the target names (N = 4 for Arrow), others with `{OURS_ONE}`; each form is "
        "timed in every round, in an order that changes."
    )
    return [explanation, *tables]

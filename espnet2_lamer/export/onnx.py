r"""A model for ONNX runtimes: waveforms in, every state out, checked against torch.

The graph is the dense form: all experts of a layer are two matrix products, and gates
of 0 leave out those that the router did not choose, so nothing depends on data but
values. Gates of one language, or of a model with one expert per layer, may be merged
into the weights before (:mod:`espnet2_lamer.export.dense`); the graph then has no
routers at all.

torch's exporter is the one over ``torch.export`` (``dynamo=True``, which needs
onnxscript): the older one, over TorchScript, is on its way out of torch and does not
know the experts' fused product.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.errors import RecipeError, require
from espnet2_lamer.export.card import Origin, onnx_card
from espnet2_lamer.export.huggingface import refuse_other_content
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.layers import Router

OPSET = 18
MODEL, INT8, REPORT = "model.onnx", "model_int8.onnx", "report.json"
#: Largest error of a frame, relative to the frame's length.
TOLERANCE = 1e-4
#: Where two experts are as likely, rounding decides: so many frames may differ by that.
NEAR_TIES = 0.01
# ONNX files end at 2 GiB; larger weights lie beside.
_LARGE = 1.5e9
_ROUNDS = 5
#: Utterances to compare with.
MOST_SPEECH = 8
# Waveforms of nothing in particular, where no speech is given: samples of each batch.
_LENGTHS = ((RECEPTIVE_FIELD,), (16000,), (48000, 20001, RECEPTIVE_FIELD), (719, 16319))


def is_routed(upstream: Upstream) -> bool:
    """Whether some layer chooses among experts."""
    return any(isinstance(module, Router) for module in upstream.modules())


def can_be_merged(upstream: Upstream) -> bool:
    """Whether its experts fit into the weights exactly: one a layer, of Linears."""
    lamer = upstream.lamer
    return (
        lamer is not None
        and not is_routed(upstream)
        and "ffn" not in (lamer["targets"])
    )


class StatesGraph(nn.Module):
    """What ``Upstream.extract_features`` computes, without questions to the values.

    Padding is masked by ``where``, and convolutions are the runtime's own.
    """

    def __init__(self, upstream: Upstream, last: int) -> None:
        super().__init__()
        self.wav2vec2 = deepcopy(upstream.wav2vec2).float()
        self.wav2vec2.feature_extractor.frame_major = False
        transformer = self.wav2vec2.encoder.transformer
        transformer.pos_conv_embed.fold(None)
        whole = last == upstream.num_layers
        # torchaudio stores the negation: this is the pre-norm stack.
        pre_norm = not transformer.layer_norm_first
        self.normed = whole and upstream.final_norm and pre_norm
        del transformer.layers[last:]

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Map ``[B, n]`` and samples ``[B]`` to states ``[B, T, D]`` and frames."""
        encoder = self.wav2vec2.encoder
        features, frames = self.wav2vec2.feature_extractor(waveforms, lengths)
        x = encoder.feature_projection(features)
        mask = None
        if frames is not None:
            positions = torch.arange(x.shape[1], device=x.device)
            padding = positions[None] >= frames[:, None]
            x = x.masked_fill(padding[..., None], 0.0)
            # As torchaudio's encoder has it.
            mask = padding[:, None, None, :].to(x.dtype) * -10000.0
            mask = mask.expand(x.shape[0], 1, x.shape[1], x.shape[1])
        x = encoder.transformer._preprocess(x)
        states, bias = [x], None
        for layer in encoder.transformer.layers:
            # The first block of a WavLM returns the position bias of all.
            x, bias = layer(x, mask, bias)
            states.append(x)
        if self.normed:
            states[-1] = encoder.transformer.layer_norm(x)
        return (*states,) if frames is None else (*states, frames)


def write_onnx(
    upstream: Upstream,
    directory: str | Path,
    *,
    speech: Sequence[np.ndarray] = (),
    last: int | None = None,
    int8: bool = True,
    origin: Origin | None = None,
    about: str = "",
) -> dict[str, Any]:
    """Write ``model.onnx``, its int8 form, and what they were measured to be.

    Inputs are ``waveforms [B, n]`` (float32, 16 kHz, normalised inside where the model
    wants it) and ``lengths [B]`` (int64, samples); outputs ``state_0`` to ``state_L``
    and ``frames``. A group-norm model has no ``lengths``, since its statistics would
    see the padding: waveforms of a batch are equally long.

    Args:
        upstream: What ``load_model`` returns.
        directory: A new or empty one, or an earlier export.
        speech: Waveforms ``[n]`` to compare and time with; without, noise.
        last: The last state in the file; ``None``: all.
        int8: Whether to write the weights of matrix products as 8-bit integers, too
            (dynamic quantisation; routers stay float32).
        origin: For the card.
        about: A sentence on what was merged.

    Returns:
        The content of ``report.json``.

    Raises:
        RecipeError: The states are not those of torch; nothing is written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "--kind onnx")
    directory = Path(directory)
    refuse_other_content(directory, MODEL)
    last = upstream.num_layers if last is None else last
    if not 0 <= last <= upstream.num_layers:
        raise RecipeError(
            f"--layer: found {last}, expected 0 (transformer input) to "
            f"{upstream.num_layers}, the depth of this model"
        )
    upstream = deepcopy(upstream).cpu().float()
    padded = not upstream.wav2vec2.hears_padding
    batches = _batches(speech, padded)
    routed = is_routed(upstream)
    with atomic_dir(directory) as temporary:
        _export(upstream, last, padded, temporary / MODEL)
        sizes = {"torch float32": _megabytes(upstream)}
        runs = {"torch float32": lambda *batch: _torch(upstream, last, *batch)}
        files = {"ONNX float32": MODEL}
        if int8:
            files["ONNX int8"] = INT8
            _quantise(temporary / MODEL, temporary / INT8)
        for name, file in files.items():
            sizes[name] = (
                sum(path.stat().st_size for path in temporary.glob(f"{file}*")) / 1e6
            )
            runs[name] = _session(temporary / file, padded)
        errors = {
            name: _errors(runs["torch float32"], run, batches)
            for name, run in runs.items()
        }
        found = errors["ONNX float32"]
        if found["share"] > (NEAR_TIES if routed else 0.0):
            raise RecipeError(
                f"{directory}: {100 * found['share']:.2f} % of the frames differ from "
                f"torch's by more than {TOLERANCE:g} of their length, the most by "
                f"{found['largest']:.2g}: this torch ({torch.__version__}) exports the "
                "model wrongly; try another version"
            )
        times = _times(runs, batches, padded)
        report = {
            "inputs": ["waveforms", *(["lengths"] if padded else [])],
            "states": last + 1,
            "routers": routed,
            "languages": list(upstream.languages),
            "compared_on": "speech" if speech else "noise",
            "torch": str(torch.__version__),
            "onnxruntime": _version(),
            "opset": OPSET,
            "threads": torch.get_num_threads(),
            "forms": {
                name: {"mb": sizes[name], "real_time": times[name], **errors[name]}
                for name in runs
            },
        }
        write_json(temporary / REPORT, report)
        table = report_table(report)
        card = onnx_card(directory, origin, report["inputs"], last, about, table)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    logging.info("%s:\n%s", directory, table)
    return report


def report_table(report: Mapping[str, Any]) -> str:
    """Size, error and speed of every form as a Markdown table."""
    lines = [
        "| form | MB | error of the last state | times torch's speed |",
        "|---|---|---|---|",
    ]
    slowest = report["forms"]["torch float32"]["real_time"]
    for name, form in report["forms"].items():
        ratio = slowest / form["real_time"]
        error = "-" if name.startswith("torch") else f"{form['error']:.2g}"
        lines.append(f"| {name} | {form['mb']:.1f} | {error} | {ratio:.2f} |")
    return "\n".join(lines)


def _batches(speech: Sequence[np.ndarray], padded: bool) -> list[tuple[Tensor, Tensor]]:
    """Waveforms one by one, and padded together where the graph has lengths."""
    if speech:
        waves = [torch.from_numpy(np.asarray(wave, np.float32)) for wave in speech]
        groups = [[wave] for wave in waves] + [waves[:3]]
    else:
        generator = torch.Generator().manual_seed(0)
        groups = [
            [0.1 * torch.randn(n, generator=generator) for n in lengths]
            for lengths in _LENGTHS
        ]
    if not padded:
        groups = [[wave] for group in groups for wave in group]
    return [
        (
            nn.utils.rnn.pad_sequence(group, batch_first=True),
            torch.tensor([len(wave) for wave in group]),
        )
        for group in groups
    ]


def _export(upstream: Upstream, last: int, padded: bool, path: Path) -> None:
    graph = StatesGraph(upstream, last).eval()
    # More than one of each, and not equal: a size of 1 would become a constant.
    example = (torch.zeros(2, 4000), torch.tensor([4000, 2500]))
    batch = torch.export.Dim("batch", min=1, max=4096)
    samples = torch.export.Dim("samples", min=RECEPTIVE_FIELD, max=2**28)
    shapes: tuple[dict[int, Any], ...] = ({0: batch, 1: samples}, {0: batch})
    count = 2 if padded else 1
    outputs = [f"state_{k}" for k in range(last + 1)] + ["frames"] * padded
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            example[:count],
            dynamo=True,
            dynamic_shapes=shapes[:count],
            input_names=["waveforms", "lengths"][:count],
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    program.save(str(path), external_data=_megabytes(upstream) * 1e6 > _LARGE)


def _quantise(source: Path, target: Path) -> None:
    """Write weights of matrix products as int8, scales of inputs found at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = any(source.parent.glob(f"{source.name}.*"))
    routers = _router_products(onnx.load(source, load_external_data=False))
    with _quiet():
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=routers,
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=large,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporter and quantiser say of every tensor; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _router_products(model: Any) -> list[str]:
    """Names of the products of routers, whose rounding would choose other experts.

    They are those with a weight whose result goes straight to a softmax: attention's
    have none.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    makes = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        before = makes.get(node.input[0]) if node.op_type == "Softmax" else None
        if before is None or before.op_type not in ("MatMul", "Gemm"):
            continue
        source = before.input[1]
        transposed = makes.get(source)
        if transposed is not None and transposed.op_type == "Transpose":
            source = transposed.input[0]
        if source in weights:
            found.append(before.name)
    return found


def _session(path: Path, padded: bool) -> Callable[[Tensor, Tensor], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )

    def run(waves: Tensor, lengths: Tensor) -> list[Tensor]:
        given = {"waveforms": waves.numpy()}
        given |= {"lengths": lengths.numpy()} if padded else {}
        outputs = session.run(None, given)
        return [torch.from_numpy(array) for array in outputs]

    return run


def _torch(
    upstream: Upstream, last: int, waves: Tensor, lengths: Tensor
) -> list[Tensor]:
    states, frames = upstream.extract_features(waves, lengths, up_to=last)
    return [*states, frames]


def _errors(
    reference: Callable[..., list[Tensor]],
    run: Callable[..., list[Tensor]],
    batches: Sequence[tuple[Tensor, Tensor]],
) -> dict[str, float]:
    """Compare states on real frames.

    ``error`` is that of the last state, ``||a - b|| / ||b||`` over all frames;
    ``largest`` the largest of a frame of any state, ``share`` that of the frames above
    the tolerance in any state.
    """
    largest = above = count = 0.0
    squares = np.zeros(2)
    for waves, lengths in batches:
        expected = reference(waves, lengths)
        found, frames = run(waves, lengths), expected[-1]
        for row, valid in enumerate(frames.tolist()):
            pairs = [
                (a[row, :valid].double(), b[row, :valid].double())
                for a, b in zip(found, expected[:-1], strict=False)
            ]
            relative = [(a - b).norm(dim=-1) / b.norm(dim=-1) for a, b in pairs]
            worst = torch.stack(relative).amax(0)
            largest = max(largest, float(worst.max()))
            above += float((worst > TOLERANCE).sum())
            count += valid
            a, b = pairs[-1]
            squares += [float((a - b).square().sum()), float(b.square().sum())]
    error = float(np.sqrt(squares[0] / squares[1]))
    return {"error": error, "largest": largest, "share": above / count}


def _times(
    runs: Mapping[str, Callable[..., Any]],
    batches: Sequence[tuple[Tensor, Tensor]],
    padded: bool,
) -> dict[str, float]:
    """Seconds that each form takes for a second of audio: medians, taken in turns."""
    waves = max((waves for waves, _ in batches), key=lambda waves: waves.shape[1])[:1]
    lengths = torch.tensor([waves.shape[1]])
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(waves, lengths)
            if number:  # the first one warms up
                taken[name].append(time.perf_counter() - start)
    seconds = waves.shape[1] / SAMPLE_RATE
    return {name: float(np.median(values)) / seconds for name, values in taken.items()}


def _megabytes(model: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6


def _version() -> str:
    import onnxruntime

    return onnxruntime.__version__

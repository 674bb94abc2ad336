"""A Whisper with one LoRA merged into it: openai-whisper, transformers, CTranslate2.

What was added to a Linear, :math:`W_0 x + s B A x`, is one matrix: the written models
are plain Whispers that need nothing of this package. They pad audio to 30 s, as Whisper
does; the models of this package do not.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from espnet2_lamer.convert.espnet_experiment import CONFIG, model_file, read_config
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.errors import RecipeError, require
from espnet2_lamer.export.card import Origin, whisper_card
from espnet2_lamer.export.huggingface import refuse_other_content
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.checksum import checked_file
from espnet2_lamer.tasks.asr import load_whisper_model
from espnet2_lamer.whisper.config import MULTILINGUAL, STUDENT
from espnet2_lamer.whisper.lora import expert_linears
from espnet2_lamer.whisper.text import language_codes, token_list, tokenizer_of

# openai-whisper's names, and what they are to transformers.
_NAMES = (
    ("blocks", "layers"),
    ("cross_attn_ln", "encoder_attn_layer_norm"),
    ("cross_attn", "encoder_attn"),
    ("attn_ln", "self_attn_layer_norm"),
    ("attn", "self_attn"),
    ("query", "q_proj"),
    ("key", "k_proj"),
    ("value", "v_proj"),
    ("out", "out_proj"),
    ("mlp_ln", "final_layer_norm"),
    (r"mlp\.0", "fc1"),
    (r"mlp\.2", "fc2"),
    ("ln_post|ln", "layer_norm"),
    ("token_embedding", "embed_tokens"),
    ("positional_embedding", "embed_positions.weight"),
)


def merged_whisper(
    config: str | Path, checkpoint: str | Path | None, language: str | None
) -> tuple[dict[str, Any], list[int]]:
    """Return an openai-whisper checkpoint of one LoRA, and the prompt it is used with.

    Config and checkpoint are as for
    :func:`~espnet2_lamer.tasks.asr.load_whisper_model`; ``language`` chooses among
    experts, and the prompt of others. A prompt vector of the language's own takes the
    place of the token that it started from.

    Raises:
        RecipeError: A mixture, which no plain Whisper can be; or not one LoRA is named.
    """
    model = load_whisper_model(config, checkpoint)
    method, known = model.config.method, model.config.languages
    if method == "mole":
        raise RecipeError(
            f"{config}: method mole chooses an expert for each utterance, which no "
            "plain Whisper does; give the experts, exp/experts, and --language"
        )
    if language is None and len(known) == 1:
        language = known[0]
    if language not in known and (language or method == "experts"):
        raise RecipeError(
            f"--language: found {language!r}, expected one of {', '.join(known)}"
        )
    name = {"multilingual": MULTILINGUAL, "student": STUDENT}.get(method, language)
    prompts, new = model.decoder.prompts, model.decoder.new_tokens
    state = {
        f"{half.side}.{key}": value
        for half in (model.encoder, model.decoder)
        for key, value in _merged(half.whisper, name).items()
    }
    if method == "student":
        prompt = prompts.for_student(1, torch.device("cpu"))[0].tolist()
    elif language is None:
        prompt = []
    else:
        prompt = prompts.for_languages([language], torch.device("cpu"))[0].tolist()
        if language in new:
            prompt[1] = prompts.spoken[language]
            state["decoder.token_embedding.weight"][prompt[1]] = new[language]
    if not prompt and new:
        raise RecipeError(
            f"--language: found none, expected one of {', '.join(known)}: "
            "languages with a prompt vector of their own are written one by one"
        )
    return {"dims": model.encoder.dims, "model_state_dict": state}, prompt


@torch.no_grad()
def _merged(half: nn.Module, name: str | None) -> dict[str, Tensor]:
    """Tensors of a plain half: ``W_0 + s B A`` in float64, rounded once."""
    state = {
        key.replace(".base.", "."): value.clone()
        for key, value in half.state_dict().items()
        if ".experts." not in key
    }
    for path, linear in expert_linears(half).items():
        expert = linear.experts[name]
        update = expert.lora_B.double() @ expert.lora_A[0].double()
        weight = linear.base.weight
        merged = weight.double() + expert.scale * update
        state[f"{path}.weight"] = merged.to(weight.dtype)
    return state


def write_whisper(
    kind: str,
    experiment: Path,
    output: Path,
    origin: Origin,
    epoch_file: str | None = None,
    language: str | None = None,
) -> None:
    """Write a merged Whisper: ``openai`` is one file, the others are directories.

    Args:
        kind: ``"openai"``, ``"hf"`` (transformers) or ``"ctranslate2"``, which needs
            the package of that name.
        experiment: One of the recipe, or its packed zip.
        output: What is written; a directory of an earlier export is replaced.
        origin: For the card.
        epoch_file: Weights of the experiment; default: its best model's.
        language: As for :func:`merged_whisper`.

    Raises:
        RecipeError: As :func:`merged_whisper`, or ``output`` holds something else.
    """
    if kind == "ctranslate2":
        require("ctranslate2", "--kind ctranslate2")
    if kind == "openai" and output.suffix != ".pt":
        raise RecipeError(f"--output {output}: expected a name that ends in .pt")
    if kind != "openai":
        refuse_other_content(output, "preprocessor_config.json")
    with _files(experiment, epoch_file) as files:
        checkpoint, prompt = merged_whisper(*files, language)
    if kind == "openai":
        with checked_file(output) as stream:
            torch.save(checkpoint, stream)
        return
    with tempfile.TemporaryDirectory() as scratch, atomic_dir(output) as directory:
        folder = directory if kind == "hf" else Path(scratch, "hf")
        _write_transformers(checkpoint, prompt, folder)
        if kind == "ctranslate2":
            from ctranslate2.converters import TransformersConverter

            copied = ["tokenizer.json", "preprocessor_config.json"]
            converter = TransformersConverter(str(folder), copy_files=copied)
            converter.convert(str(directory), force=True)
        tokens = token_list(checkpoint["dims"]["n_vocab"])
        words = "".join(tokens[number] for number in prompt)
        card = whisper_card(kind, output, origin, words or "of its language")
        (directory / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def _files(
    experiment: Path, epoch_file: str | None
) -> Iterator[tuple[Path, Path | None]]:
    """Config and weights of an experiment or a zip; experts as such have no weights."""
    if experiment.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            members = unpack_model(experiment, scratch)
            names = "asr_train_config", "asr_model_file"
            yield tuple(Path(members.get(name, "")) for name in names)
        return
    config, weights = read_config(experiment), None
    # Experts as such are built from files of their own.
    if epoch_file or not (config.get("model_conf") or {}).get("experts"):
        weights = model_file(experiment, config, epoch_file)
    elif (experiment / "model.pth").is_file():
        weights = experiment / "model.pth"
    yield experiment / CONFIG, weights


def _write_transformers(
    checkpoint: dict[str, Any], prompt: list[int], directory: Path
) -> None:
    """Write model, generation settings, tokenizer and feature extractor."""
    dims = checkpoint["dims"]
    tokenizer = tokenizer_of(dims["n_vocab"])
    special = tokenizer.special_tokens
    end, start = tokenizer.eot, tokenizer.sot
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    ends |= {"decoder_start_token_id": start}
    width = dims["n_audio_state"]
    config = transformers.WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        d_model=width,
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        encoder_ffn_dim=4 * width,
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        decoder_ffn_dim=4 * width,
        max_source_positions=dims["n_audio_ctx"],
        max_target_positions=dims["n_text_ctx"],
        **ends,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    state = {
        "model." + _theirs(k): v for k, v in checkpoint["model_state_dict"].items()
    }
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    timed = tokenizer.timestamp_begin
    codes = language_codes(dims["n_vocab"])
    generation = {
        **ends,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": special[f"<|{code}|>"] for code in codes},
        "task_to_id": {
            "transcribe": tokenizer.transcribe,
            "translate": tokenizer.translate,
        },
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.sot_prev,
        "begin_suppress_tokens": [*tokenizer.encode(" "), end],
        "suppress_tokens": [n for n in special.values() if end < n < timed],
        "max_length": dims["n_text_ctx"],
        "return_timestamps": False,
    }
    if len(prompt) == 4:
        names = {number: name for name, number in special.items()}
        generation |= {"language": names[prompt[1]], "task": "transcribe"}
    model.generation_config = transformers.GenerationConfig(**generation)
    model.save_pretrained(directory)
    tokens = token_list(dims["n_vocab"])
    written = transformers.WhisperTokenizer(
        vocab={token: number for number, token in enumerate(tokens[:end])},
        merges=_merges(tokenizer.encoding, tokens[:end]),
    )
    by_id = sorted(special.items(), key=lambda item: item[1])
    added = [
        transformers.AddedToken(token, normalized=False, special=number < timed)
        for token, number in by_id
    ]
    written.add_tokens(added)
    written.save_pretrained(directory)
    transformers.WhisperFeatureExtractor(dims["n_mels"]).save_pretrained(directory)


def _theirs(key: str) -> str:
    for ours, theirs in _NAMES:
        key = re.sub(rf"(?<=\.)({ours})(?=\.|$)", theirs, key)
    return key


def _merges(encoding: Any, tokens: tuple[str, ...]) -> list[tuple[str, str]]:
    """Find the two pieces that each token was merged from, in the order of the ids."""
    ranks = {encoding.decode_single_token_bytes(n): n for n in range(len(tokens))}
    merges = []
    for whole in ranks:
        parts = [whole[place : place + 1] for place in range(len(whole))]
        while len(parts) > 2:
            pairs = [a + b for a, b in zip(parts, parts[1:], strict=False)]
            first = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            place = pairs.index(first)
            parts[place : place + 2] = [first]
        if len(parts) == 2:
            merges.append(tuple(tokens[ranks[part]] for part in parts))
    return merges

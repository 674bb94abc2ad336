"""What ESPnet would be sent: the core change and the recipe, each in a folder."""

import logging
import re
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.espnet_tree import (
    CHANGES,
    CORPUS,
    Content,
    check_places,
    digest_at,
    digest_of,
    put,
    recipe_files,
)
from espnet2_lamer.fileio.atomic import atomic_dir

TASK_FILE = "espnet2/tasks/hubert.py"
# What ESPnet has already; nothing is ever taken out of it.
_CHANGED = (TASK_FILE, *CHANGES)
# New lines of it, and the line that each follows.
_ENTRIES = (
    (
        "    TorchAudioHuBERTPretrainEncoder,\n)\n",
        "from espnet2.asr.encoder.lamer_hubert_encoder import "
        "LamerHubertPretrainEncoder\n",
    ),
    (
        "    TorchAudioHubertPretrainModel,\n)\n",
        "from espnet2.hubert.lamer_espnet_model import LamerHubertPretrainModel\n",
    ),
    (
        "        torchaudio_hubert=TorchAudioHuBERTPretrainEncoder,\n",
        "        lamer_hubert=LamerHubertPretrainEncoder,\n",
    ),
    (
        "        torchaudio=TorchAudioHubertPretrainModel,\n",
        "        lamer=LamerHubertPretrainModel,\n",
    ),
)
# This package's modules that become ESPnet's, and what they lose or change.
_LAYERS: dict[str, tuple[tuple[str, str], ...]] = {
    # Merged experts and a rank per layer stay out, so that it can be read.
    "config": (
        ("from espnet2_lamer.errors import RecipeError\n\n", ""),
        (
            r"wrong value among (.*)\n\n    Raises:\n        RecipeError: .*\n +",
            r"wrong one of \1",
        ),
        (r"(?s), in the forms of ``allocation``: one number,.*?per layer\.\n", ".\n"),
        (r"rank: int \| str \| Sequence\[int\]", "rank: int"),
        (
            r"(?s)        numbers = _numbers\(self.rank\).*?\"lamer.\", row\)\n",
            "",
        ),
        (
            r"(            \(\"top_k\", used, used is None or)",
            r'            ("rank", self.rank, self.rank >= 1, "1 or more"),\n\1',
        ),
        (
            r"(?s)    return _by_layer\(\"alloc.*?numbers = _numbers\(value\)",
            "    numbers = _numbers(allocation)",
        ),
        (
            r"(?s)    if not numbers and.*?(?=    if num_layers %)",
            "    if not numbers or min(numbers) < 0:\n        raise ValueError(\n"
            '            f"allocation {allocation!r}: expected counts of 0 or more, "'
            "\n            \"e.g. '2,4,6,8'\"\n        )\n",
        ),
        (
            r"\{name\} \{value!r\} (.*) layers \"\n +f\"cannot be split into ",
            r'allocation {allocation!r} \1 "\n            f"layers are not ',
        ),
        (r"MERGES = .*\n", ""),
        (r"(?s)        merge: ``.*?to balance\.\n", ""),
        (r"    merge: str = .*\n", ""),
        (r"            \(\"merge\", .*\n", ""),
        (r"(?s)        if self\.merges:.*?return self\.merge != .*?\n", ""),
    ),
    # What they take from two modules that are for speed, the core has in short.
    "experts": (
        (r"    def adapter_parameters.*\n.*\n.*\n\n", ""),
        (
            r"import \(\n    (\w+),\n    (\w+),\n    (\w+),\n    merged,\n\)",
            r"import \1, \2, \3",
        ),
        (r"(?s)    With ``merges`` their.*?in all of its frames\.\n\n", ""),
        (r"        merges: bool = False,\n", ""),
        (r"        self.merges = merges\n", ""),
        (r"        combine = .*\n", ""),
        (r"combine\(z", "gated(z"),
        (r", (self\.)?merges\b", ""),
        # Weights have one type; autocast copies them.
        (r"from espnet2_lamer.layers.working import .*\n", ""),
        (r"        dtype = autocast_type\(x\)\n", ""),
        (r"in_type\((self\.\w+(\.\w+)?), dtype\)", r"\1"),
        (r"_stacked\((dtype|autocast_type\(x\))\)", "_stacked()"),
        (r"self, dtype: torch.dtype\)", "self)"),
        (r"(reshape\(-1, x.shape\[-1\]\)).to\(dtype\)", r"\1"),
        (
            r"        with .*\n    (        given = .*\n)    (        y = .*\n)",
            r"\1\2",
        ),
    ),
    "feed_forward": (
        (r"from espnet2_lamer.layers.(packing|working) import .*\n", ""),
        (r" linear\(module, x\)", " module(x)"),
        (r"(?s)    def rows_of.*?(?=    def by_expert)", ""),
        (r"        self.packing: Packing \| None = None\n", ""),
        (
            r"(?s)        \"\"\"Yield what.*?yield one\n",
            "        return iter(self._routings.values())\n",
        ),
        (r" A network\n    that computes real .* which those are\.\n", "\n"),
        (
            r"(?s)config import \(\n    LINEARS,.*?\n\)",
            "config import LINEARS, LamerConfig, parse_allocation",
        ),
        (r" ``config.rank`` is one number.*; ``layer``\n    n", " ``layer`` n"),
        (r"        \(rank,\) = .*\n", ""),
        (r"num_experts, rank,", "num_experts, config.rank,"),
        (r"    ranks = .*\n", ""),
        (r"    sizes = zip.*\n", ""),
        (
            r"layer, count, rank\) in enumerate\(sizes\)",
            "layer, count) in enumerate(zip(layers, counts, strict=True))",
        ),
        (r"            own = .*\n", ""),
        (r"count, own,", "count, config,"),
        (r"Allocation or ranks do not", "The allocation does not"),
        (r"(?s)\n    Where ``config.merge`` is.*?all are\.\n", ""),
        (r"        self.merges = .*\n        self.real: .*\n", ""),
        (r", like, merges\)", ", first.weight)"),
        (r"            like = .*\n", ""),
        (r", merges\)", ")"),
        (r"        if self.merges:\n.*\n", ""),
        (r"(?s)    def _utterance_means.*?(?=    def _linear)", ""),
        (r"(?s)\(\n        (self, x: Tensor), rows: .*?\n    \)", r"(\1)"),
        (r"\(\n        (self, name.*), packing: .*\n    \)", r"(\1)"),
        (r", packing: Packing \| None\)", ")"),
        (r", packing\)", ")"),
        (r" Where experts are merged, blocks\n.*\n", "\n"),
        (r"            if config.merges:\n.*\n.*\n", ""),
        (r"(?s)\n\ndef _tell_real.*", ""),
        (r"from typing import Any\n", ""),
        (r"(?s)\n\n        With positions ``rows.*?        (?=\"\"\")", ""),
        (r"(?s)        if rows is not None:.*?(?=        h = F.gelu)", ""),
    ),
    "balance": (
        (
            r"(?s)        packing = record.packing\n.*?(?=        # Where f is)",
            "        self.frames = real.sum().float()\n",
        ),
        (r" if packing is None else None\n", "\n"),
    ),
}
# The recipe's files, of those that are laid into a checkout: the pretraining of the
# paper and of the mini preset, their heads, and what stage 0 trains from nothing.
RECIPE = (
    "README.md run.sh cmd.sh path.sh db.sh utils local/path.sh "
    "conf/presets/mini.sh conf/presets/paper.sh conf/decode_asr_mlsuperb.yaml "
    "conf/tuning/train_ssl_lamer.yaml conf/tuning/train_ssl_lamer_mini.yaml "
    "conf/tuning/train_ssl_mini_base.yaml "
    "conf/tuning/train_asr_mlsuperb.yaml conf/tuning/train_lid_mlsuperb.yaml "
    "conf/tuning/train_asr_mlsuperb_mini.yaml conf/tuning/train_lid_mlsuperb_mini.yaml"
).split()
# The head of several languages has the values of that of LID.
ONE_HEAD = (b"train_multi_asr_mlsuperb.yaml", b"train_lid_mlsuperb.yaml")
# Lines of presets that name what stays out: recognisers beyond heads, and how far runs
# lie apart.
_LEFT_OUT = re.compile(rb"(?m)^(finetune_config|lm_config|spread)=.*\n")


def write_pull_request(
    repository: str | Path, checkout: str | Path, output: str | Path
) -> list[Path]:
    """Write ``<output>/core`` and ``<output>/recipe``; return what was written.

    Paths below them are ESPnet's. Files that ESPnet has already are its own of
    ``checkout``, with the new lines; ``checkout`` itself is left alone. A folder that
    holds something else is not touched.

    Raises:
        RecipeError: Such a folder, no ESPnet checkout, or one whose files are not as
            expected; then nothing was written.
    """
    repository, checkout, output = Path(repository), Path(checkout), Path(output)
    check_places(repository, checkout, TASK_FILE)
    recipe, left_out = _recipe(repository, checkout)
    parts = {"core": _core(repository, checkout), "recipe": recipe}
    there = {name: _found(output / name) for name in parts}
    for name, files in parts.items():
        wanted = {path: digest_of(content) for path, content in files.items()}
        if there[name] not in ({}, wanted):
            raise RecipeError(
                f"{output / name}: holds other files than this program would write; "
                "remove it, or name another folder"
            )
    written: list[Path] = []
    for name, files in parts.items():
        if not there[name]:
            with atomic_dir(output / name) as place:
                for path, content in files.items():
                    put(place / path, content)
                    if path in _CHANGED:
                        (place / path).chmod((checkout / path).stat().st_mode)
            written += [output / name / path for path in files]
        new = sum(
            _lines(content)
            - (_lines((checkout / path).read_bytes()) if path in _CHANGED else 0)
            for path, content in files.items()
        )
        logging.info("%s: %d files, %d new lines", output / name, len(files), new)
    for folder, names in left_out.items():
        logging.info("not in it, but laid by espnet_tree: %s: %s", folder, names)
    return written


def _found(folder: Path) -> dict[str, str | None]:
    return {
        path.relative_to(folder).as_posix(): digest_at(path)
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _lines(content: Content) -> int:
    return 1 if isinstance(content, str) else content.count(b"\n")


def _recipe(
    repository: Path, checkout: Path
) -> tuple[dict[str, Content], dict[str, str]]:
    """The files, and what of the laid recipes is none of them, by folder."""
    files: dict[str, Content] = {}
    for path, change in CHANGES.items():
        files[path] = change((checkout / path).read_text(encoding="utf-8")).encode()
    laid = dict(recipe_files(repository, checkout, "ssl1"))
    for name in RECIPE:
        if name in laid:
            files[f"egs2/{CORPUS}/ssl1/{name}"] = laid.pop(name)
        else:
            raise RecipeError(
                f"{repository}: makes no {name} for ESPnet's tree; {__name__} must "
                "follow"
            )
    presets = f"egs2/{CORPUS}/ssl1/conf/presets"
    for name in (f"{presets}/mini.sh", f"{presets}/paper.sh"):
        files[name] = _LEFT_OUT.sub(b"", files[name])
    files[f"{presets}/paper.sh"] = files[f"{presets}/paper.sh"].replace(*ONE_HEAD)
    left_out = {"asr1": "all of it"}
    for name in laid:
        folder, _, name = f"ssl1/{name}".rpartition("/")
        left_out[folder] = f"{left_out.get(folder, '')} {name}".strip()
    return files, left_out


def _core(repository: Path, checkout: Path) -> dict[str, Content]:
    own = repository / "egs2" / CORPUS / "espnet" / "core"
    files: dict[str, Content] = {
        path.relative_to(own).as_posix(): path.read_bytes()
        for path in sorted(own.glob("*/**/*.py"))
    }
    for name, changes in _LAYERS.items():
        path = repository / "espnet2_lamer" / "layers" / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            text, times = re.subn(old, new, text)
            if not times:
                raise RecipeError(f"{path}: found no {old!r}; {__name__} must follow")
        # Users of ESPnet know no class of ours.
        text = text.replace("RecipeError", "ValueError")
        text = text.replace("espnet2_lamer.layers", "espnet2.layers.lamer")
        files[f"espnet2/layers/lamer/{name}.py"] = text.encode()
    text = (checkout / TASK_FILE).read_text(encoding="utf-8")
    for line, entry in _ENTRIES:
        if text.count(line) != 1:
            raise RecipeError(
                f"{checkout / TASK_FILE}: found {line.strip()!r} {text.count(line)} "
                f"times, expected once, to add {entry.strip()!r} after it; this ESPnet "
                f"is not one that {__name__} knows"
            )
        text = text.replace(line, line + entry)
    return files | {TASK_FILE: text.encode()}

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
    "config": (("from espnet2_lamer.errors import RecipeError\n\n", ""),),
    # What they take from two modules that are for speed, the core has in short.
    "experts": (
        (r"    def adapter_parameters.*\n.*\n.*\n\n", ""),
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
        (r", rows: Tensor \| None = None\) -> Tensor:", ") -> Tensor:"),
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
# Lines of presets on recognisers beyond heads, whose configs stay out.
_RECOGNISERS = re.compile(rb"(?m)^(finetune|lm)_config=.*\n")


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
        files[name] = _RECOGNISERS.sub(b"", files[name])
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

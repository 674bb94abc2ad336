"""The folder that ML-SUPERB 2.0's challenge runs: model, code, and what they need.

It has this package's source instead of asking for it: the server has no network, the
package is on no index, and a head needs the code that it was written with. What others
made comes from ``requirements.txt``, in the versions that the folder was tried with.
"""

import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from espnet2_lamer.convert.espnet_experiment import CONFIG
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.joint_head import LONGEST, JointHead
from espnet2_lamer.evaluation.recogniser_files import extra_files
from espnet2_lamer.export.card import Origin
from espnet2_lamer.export.challenge_code.check import waveforms
from espnet2_lamer.export.huggingface import refuse_other_content
from espnet2_lamer.export.zoo import packed_settings
from espnet2_lamer.fileio.atomic import atomic_dir, write_text
from espnet2_lamer.fileio.checksum import sidecar

CODE = Path(__file__).parent / "challenge_code"
PACKAGE = Path(__file__).parents[1]
_FILES = ("model.py", "check.py", "dynabench.py")
_LICENCES = ("LICENSE", "NOTICE")
_NAME = "espnet2-lamer"
_README = """\
# A submission to ML-SUPERB 2.0's challenge

`API(waveform, true_lid=None)` in `model.py` returns `(pred_lid, pred_asr)`: the ISO
639-3 code of the language and the text of 16 kHz speech. This folder needs nothing
beside it but Python {python} and the packages of `requirements.txt`, and no network:

```bash
python{python} -m venv env && env/bin/pip install -r requirements.txt
env/bin/python check.py speech.wav     # or without a file, on noise
```

`check.py` calls the function as the server does and prints time and memory.

| here | what it is |
|---|---|
| `model.py` | the function |
| `check.py` | the check |
| `head/` | config and weights, upstream included |
| `espnet2_lamer/` | the code that runs them, Apache-2.0 |
| `dynabench.py` | the function as the challenge's server wants it |

For the server: copy this folder's content into `app/resources/` of the organisers'
template, `dynabench.py` over `app/domain/model.py`, add the lines of `requirements.txt`
to theirs, and let their Dockerfile begin with `FROM python:{python}`. This folder was
tried as below; the server was not at hand.

- languages ({count}): {languages}
- with `true_lid` the text is decoded as of that language, which is returned; a language
  that is not in the list is not used, which is logged
- more than {longest:g} s are recognised in pieces, cut at quiet places
- loading {loading:.1f} s, real-time factor {factor:.4f}, peak memory {ram:.2f} GB, of
  a GPU {gpu:.2f} of 24 GB, on {device} of the machine that wrote this
- weights: {licence}
{notes}"""


def write_challenge(
    experiment: str | Path,
    output: str | Path,
    origin: Origin | None = None,
    audio: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the folder, after it was run alone and answered as the head does.

    It is run by this interpreter, isolated (``-I``): no environment variable, working
    directory or user's folder decides what is imported.

    Args:
        experiment: Directory of a head of track ``asr_lid``, or its ``final``.
        output: The folder; an earlier one is replaced.
        audio: Files that are recognised, too.

    Returns:
        What ``check.py`` found.

    Raises:
        RecipeError: No such head, the folder does not run, or it answers otherwise.
    """
    final, output = Path(experiment), Path(output)
    final = final / "final" if (final / "final" / CONFIG).is_file() else final
    for path in (final / CONFIG, final / "model.pth"):
        if not path.is_file():
            raise RecipeError(f"{path}: file not found; expected a trained head")
    refuse_other_content(output, "check.py")
    head = JointHead(final)
    with atomic_dir(output) as folder:
        for name in _FILES:
            shutil.copyfile(CODE / name, folder / name)
        skip = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=skip)
        for path in _licences():
            shutil.copyfile(path, folder / PACKAGE.name / path.name)
        _copy_head(final, folder / "head")
        found = _run(folder, audio)
        if found["device"] != "cpu":
            # Where sums are added in the same order.
            head = JointHead(final, found["device"])
        _compare(head, found["rows"], audio)
        write_text(folder / "requirements.txt", _requirements(found["modules"]))
        write_text(folder / "README.md", _readme(found, origin or Origin()))
    figures = found["real_time_factor"], found["process_gb"], found["gpu_gb"]
    text = "%s: %d calls; real-time factor %.4f, peak memory %.2f GB, GPU %.2f GB"
    logging.info(text, output, len(found["rows"]), *figures)
    return found


def _copy_head(final: Path, target: Path) -> None:
    target.mkdir()
    files = {path.name: path for path in extra_files(final)}
    settings = packed_settings("asr", final / CONFIG, files)
    text = yaml.safe_dump(settings, sort_keys=True, allow_unicode=True)
    write_text(target / CONFIG, text)
    weights = final / "model.pth"
    for path in (weights, sidecar(weights), *files.values()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _licences() -> list[Path]:
    """Find the texts of the package's licence: of a checkout, or installed with it."""
    # Beside an installed package lie those of others.
    checkout = (PACKAGE.parent / "setup.cfg").is_file()
    places = [PACKAGE.parent / name for name in _LICENCES if checkout]
    try:
        installed = importlib.metadata.files(_NAME) or []
        places += [Path(f.locate()) for f in installed if f.name in _LICENCES]
    except importlib.metadata.PackageNotFoundError:
        pass
    found = {path.name: path for path in places if path.is_file()}
    return [*found.values()]


def _run(folder: Path, audio: Sequence[str]) -> dict[str, Any]:
    """Run ``check.py`` in a process that knows nothing but the folder."""
    with tempfile.TemporaryDirectory() as elsewhere:
        report = Path(elsewhere) / "found.json"
        command = [sys.executable, "-I", "-B", str(folder.absolute() / "check.py")]
        command += ["--json", str(report), *(os.path.abspath(path) for path in audio)]
        done = subprocess.run(
            command, cwd=elsewhere, capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            logging.info("check.py: %s", line)
        if done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[-15:])
            raise RecipeError(
                f"{folder / 'check.py'}: exit code {done.returncode}; the folder does "
                f"not run alone and was not written:\n{said}"
            )
        return json.loads(report.read_text(encoding="utf-8"))


def _compare(head: JointHead, rows: Sequence[list], audio: Sequence[str]) -> None:
    samples = dict(waveforms(audio))
    for name, _, _, given, lang, text in rows:
        expected = head(samples[name], given)
        if expected != (lang, text):
            raise RecipeError(
                f"{name}, true_lid {given}: the folder answers {(lang, text)!r}, the "
                f"head itself {expected!r}; the folder was not written: try again"
            )


def _requirements(modules: Sequence[str]) -> str:
    """Return a line per package that was imported and is needed, in its version.

    Needed is what this package asks for, and what that asks for in turn: others are
    imported where they happen to be installed.
    """
    owners = importlib.metadata.packages_distributions()
    imported = {canonicalize_name(n) for m in modules for n in owners.get(m, ())}
    needed: set[str] = set()
    waiting = [_NAME]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += _asks_for(name)
    # Not installed but on the path: nobody says what it asks for.
    kept = imported & needed if len(needed) > 1 else imported
    # "+cu130" says where a build comes from, and no index has it.
    versions = {
        name: importlib.metadata.version(name).partition("+")[0]
        for name in kept - {_NAME}
    }
    return "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))


def _asks_for(name: str) -> list[str]:
    try:
        asked = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = map(Requirement, asked)
    return [
        canonicalize_name(requirement.name)
        for requirement in found
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def _readme(found: Mapping[str, Any], origin: Origin) -> str:
    return _README.format(
        python=".".join(map(str, sys.version_info[:2])),
        count=len(found["languages"]),
        languages=" ".join(found["languages"]),
        longest=LONGEST,
        loading=found["loading"],
        factor=found["real_time_factor"],
        ram=found["process_gb"],
        gpu=found["gpu_gb"],
        device="a GPU" if found["device"] == "cuda" else "the CPU",
        licence=origin.licence,
        notes="".join(f"- {note}\n" for note in origin.notes),
    )

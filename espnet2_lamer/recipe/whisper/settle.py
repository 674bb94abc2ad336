"""What options of asr1 mean together: checked before anything runs."""

from espnet2_lamer.data.languages import language_code
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.whisper.options import WhisperOptions


def settle(options: WhisperOptions) -> None:
    """Check what the options say together; order the prompts as the languages.

    Raises:
        RecipeError: Naming the option, what was found and what is expected.
    """
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
    options.prompts = _prompts(options.prompts, options.langs)
    trained = [name for name in options.systems if name != "frozen"]
    lost = [name for name in options.pack if name not in trained]
    if lost:
        raise RecipeError(
            f"--pack: found {lost[0]}, expected some of the systems that are trained: "
            f"{' '.join(trained) or 'none'}"
        )


def _prompts(given: dict[str, str], langs: list[str]) -> dict[str, str]:
    """Return the language token that stands for each language."""
    for lang, token in given.items():
        if not lang or not token:
            found = f"{lang}={token}" if token else lang
            raise RecipeError(
                f"--prompts: found {found!r}, expected LANG=TOKEN such as yue=zh"
            )
    missing = [lang for lang in langs if lang not in given]
    if missing:
        raise RecipeError(
            f"--prompts: nothing for {missing[0]}; every language of --langs needs a "
            f"prompt token of Whisper, such as {missing[0]}=en"
        )
    return {lang: given[lang] for lang in langs}

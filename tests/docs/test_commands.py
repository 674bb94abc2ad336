"""Every command that the manual and the READMEs show has options that exist."""

import argparse
import importlib
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("egs2/*/*/README.md"),
        *ROOT.glob("egs2/*/*/*/README.md"),
        *ROOT.glob("conf/**/*.yaml"),
    ]
)
# Launchers may stand before a command, variables and redirections behind it.
_START = re.compile(
    r"(\./run\.sh|python3? -m [\w.]+|python3? local/\w+\.py|-m espnet2_)"
)


def commands(page):
    """Return ``(recipe, words)`` of every command that a page shows."""
    text = page.read_text(encoding="utf-8")
    found = []
    if page.suffix == ".yaml":
        header = re.findall(r"^# ?(.*)$", text, re.MULTILINE)
        blocks = ["\n".join(header)]
    else:
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
        # Before the blocks, in which a `cd` leads from one recipe to another.
        blocks = inline + blocks
    whisper = "asr1" in page.as_posix() or "whisper" in page.stem
    recipe = "asr1" if whisper else "ssl1"
    for block in blocks:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if changed := re.search(r"cd egs2/lamer_ssl/(\w+)", line):
                recipe = changed[1]
            for part in re.split(r"&&|;|\|(?=\s)", line):
                if start := _START.search(part):
                    words = shlex.split(part[start.start() :], comments=True)
                    found.append((recipe, words))
    return found


#: What each recipe's run.sh calls.
RUN_SH = {"ssl1": "recipe", "asr1": "whisper_recipe"}


@cache
def parser_options(module, path=None):
    if path is None:
        loaded = importlib.import_module(module)
    else:
        spec = importlib.util.spec_from_file_location(module, path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return set(option_names(loaded.get_parser()))


def option_names(parser):
    """Yield the names of a parser's options, those of its commands included."""
    yield from (name.lstrip("-") for name in parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from option_names(command)


def known_options(recipe, words):
    """Return the options of the command that the words begin with."""
    if words[0] == "./run.sh":
        return parser_options(f"espnet2_lamer.bin.{RUN_SH[recipe]}")
    if words[1] == "-m" or words[0] == "-m":
        module = words[words.index("-m") + 1]
        if module == "benchmarks":
            from benchmarks.__main__ import get_parser

            return set(option_names(get_parser()))
        if not module.startswith("espnet2_lamer.bin.") or module.endswith(".NAME"):
            return None
        return parser_options(module)
    return parser_options(Path(words[1]).stem, ROOT / words[1])


def problems_of(recipe, words):
    """Return what is wrong with a command."""
    known = known_options(recipe, words)
    if known is None:
        return []
    wrong = []
    for word in words[1:]:
        if word.startswith("--"):
            name = word.removeprefix("--").partition("=")[0]
            if name and name not in known:
                wrong.append(f"no option --{name}")
        if re.fullmatch(r"(conf|local)/[\w./-]+\.(yaml|py|sh)", word):
            if not (ROOT / word).is_file():
                wrong.append(f"no file {word}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_of_a_page_has_options_that_exist(page):
    found = {
        shlex.join(words): wrong
        for recipe, words in commands(page)
        if (wrong := problems_of(recipe, words))
    }
    assert not found


def test_commands_are_found_and_mistakes_in_them_too(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Run `./run.sh --stage 1 --nosuch x` first.\n"
        "```bash\n"
        "cd egs2/lamer_ssl/ssl1 && ./run.sh --stage 7 \\\n"
        "    --ssl_config conf/nowhere.yaml   # --not_an_option\n"
        'python -m espnet2_lamer.bin.score --ref a --hpy "b c"\n'
        "srun ./run.sh --ngpu=4\n"
        "```\n"
    )
    assert [problems_of(*command) for command in commands(page)] == [
        ["no option --nosuch"],
        ["no file conf/nowhere.yaml"],
        ["no option --hpy"],
        [],
    ]


def test_pages_show_commands_at_all():
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) > 40
    assert {words[0] for _, words in found} >= {"./run.sh", "python"}

"""Console command: ``lamer NAME`` is ``python -m espnet2_lamer.bin.NAME``."""

import ast
import importlib
import sys
from pathlib import Path

from espnet2_lamer.bin.common import run_main

# Parts of the others, no commands.
_NOT_COMMANDS = {"__init__", "__main__", "common"}


def commands() -> dict[str, str]:
    """Return the first line of every command's docstring, by name; none is imported."""
    return {
        path.stem: ast.get_docstring(ast.parse(path.read_text("utf-8"))).split("\n")[0]
        for path in sorted(Path(__file__).parent.glob("*.py"))
        if path.stem not in _NOT_COMMANDS
    }


def main() -> None:
    """Run the command that the first word names, with the words after it."""
    known = commands()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: lamer NAME [--help] ...\n")
        for command, line in known.items():
            print(f"  {command:16} {line}")
        return
    if name not in known:
        print(f"lamer: no command {name!r}, expected one of {', '.join(known)}")
        sys.exit(2)
    # What argparse, logs and processes started from here show and repeat.
    sys.argv = [f"lamer {name}", *words]
    run_main(lambda: importlib.import_module(f"espnet2_lamer.bin.{name}").main(words))


if __name__ == "__main__":
    main()

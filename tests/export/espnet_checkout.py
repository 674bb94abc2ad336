"""A stand-in for an ESPnet checkout: files of ours in the form of version 202611."""

import importlib.util
import shutil
from pathlib import Path

# The table of recipes: rows of any width, and the newest after the last letter.
INDEX = """\
# Recipes

| Directory name          | Corpus name  | Task    | Language | URL | Note |
|-------------------------|--------------|-------- | -------- | --- | ---- |
| aishell                 | AISHELL-1    | ASR     | CMN      | x   |      |
| catslu               \t  | Maps         | SLU     | CMN      | x   |      |
| l3das22                | Audio         | SE      | ENG      | x   |      |
| laborotv                | Television   | ASR     | JPN      | x   |      |
| libriheavy_medium             | Books  | ASR     | ENG      | x   |      |
| librispeech             | LibriSpeech  | ASR     | ENG      | x   |      |
| Hi-Fi TTS             | a row that is out of order | TTS | ENG | x |   |
| zeroth_korean           | Korean       | ASR     | KOR      | x   |      |
| gtsinger            | Singing          | SVS     | CMN      | x   |      |
|galaxy            | Speech              | ASR | ENG          | x   |      |

Below the table: [a link](aishell/asr1).
"""
# Corpora, some with comments of several lines, two blank lines, then single sites.
DB = """\
# Where corpora are
# "downloads" is what a recipe fetches

AISHELL=/corpora/aishell
AISHELL3=downloads
CSJVER=dvd  ## a format
            ## Usage    :
            ##
            ## Case one
COMMONVOICE=downloads
FLEURS=downloads
MLSUPERB=
THCHS30=downloads
NOISE=  # a local path


# For only one site
if [[ "$(hostname)" == site* ]]; then
    AISHELL=/x
fi

# For only another site
if [[ "$(hostname -d)" == another.site ]]; then
    FLEURS=

fi
"""
CMD = """\
# Which program runs a job
cmd_backend='local'

if [ "${cmd_backend}" = local ]; then

    export train_cmd="run.pl"
    export cuda_cmd="run.pl"

else
    echo "$0: Error: Unknown cmd_backend=${cmd_backend}" 1>&2
    return 1
fi
"""
PATH = """\
MAIN_ROOT=$PWD/../../..

export PATH=$PWD/utils/:$PATH
export LC_ALL=C

if [ -f "${MAIN_ROOT}"/tools/activate_python.sh ]; then
    . "${MAIN_ROOT}"/tools/activate_python.sh
else
    echo "[INFO] "${MAIN_ROOT}"/tools/activate_python.sh is not present"
fi
. "${MAIN_ROOT}"/tools/extra_path.sh

export OMP_NUM_THREADS=1
export PYTHONIOENCODING=UTF-8

# Last, so that it may change any of this
. local/path.sh
"""
# Options with a value each, a log file, the command: it goes to bash as one line, its
# output to the log alone, and all that the terminal hears is that it failed.
RUN_PL = r"""#!/usr/bin/env perl
use strict;
use warnings;
use File::Basename;
while ($ARGV[0] =~ /^-/) { splice @ARGV, 0, 2; }
my $log = shift @ARGV;
my $line = join " ", map { /^\S+$/ ? $_ : /"/ ? "'$_'" : "\"$_\"" } @ARGV;
system "mkdir", "-p", dirname($log);
open my $file, ">", $log or die;
print $file "# $line\n# Started at some time\n#\n";
close $file;
open my $shell, "|-", "bash" or die;
print $shell "( $line ) 2>>$log >> $log";
close $shell;
my $code = $? >> 8;
open $file, ">>", $log or die;
print $file "# Accounting: time=1 threads=1\n# Ended (code $code) at some time\n";
close $file;
if ($code) { print STDERR "run.pl: job failed, log is in $log\n"; exit 1; }
"""
# What it says of recipes, and how it checks Python files.
IGNORED = "__pycache__/\n*.pyc\n# recipe related\n" + "".join(
    f"egs*/*/*/{name}\n" for name in ("data*", "downloads", "dump", "exp")
)
SETUP = """\
[pycodestyle]
ignore = H102,H103,W503,H238,E203,H301,H306,E231
max-line-length = 88

[isort]
profile = black
"""
TEMPLATE = {
    "cmd.sh": CMD,
    "path.sh": PATH,
    "db.sh": DB,
    "conf/slurm.conf": "command sbatch\n",
    "conf/queue.conf": "command qsub\n",
    "conf/pbs.conf": "command qsub -v\n",
    "utils/run.pl": RUN_PL,
}


def write_checkout(root: Path) -> Path:
    """Write what the recipes link to, copy or change."""
    for name, text in TEMPLATE.items():
        path = root / "egs2/TEMPLATE/asr1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("db.sh", "utils/run.pl"):
        (root / "egs2/TEMPLATE/asr1" / name).chmod(0o755)
    for name in ("scripts", "pyscripts", "steps"):
        (root / "egs2/TEMPLATE/asr1" / name).mkdir()
    (root / "egs2/TEMPLATE/ssl1").mkdir()
    (root / "egs2/TEMPLATE/ssl1/path.sh").symlink_to("../asr1/path.sh")
    (root / "egs2/README.md").write_text(INDEX)
    (root / "tools").mkdir()
    (root / "tools/extra_path.sh").write_text("export TOOLS=found\n")
    (root / ".gitignore").write_text(IGNORED)
    (root / "setup.cfg").write_text(SETUP)
    (root / ".git").mkdir()
    return root


def copy_espnet2(root: Path) -> None:
    """Copy the installed package."""
    found = importlib.util.find_spec("espnet2").submodule_search_locations[0]
    shutil.copytree(found, root / "espnet2", ignore=shutil.ignore_patterns("*.pyc"))

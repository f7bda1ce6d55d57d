"""The command line; an unknown option or command gets one line with a suggestion."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import List, NoReturn, Optional

COMMANDS = ("passwd", "verify")
_OPTIONS = ("--cfg", "--check", "--fix", "--help", "--version")
# Names from other programs.
_MEANT = {
    **dict.fromkeys(
        ("-c", "-f", "-C", "--conf", "--config", "--config-file", "--configuration", "--file"), "--cfg FILE"
    ),
    **dict.fromkeys(("-t", "-n", "--test", "--validate", "--dry-run", "--check-config"), "--check"),
    **dict.fromkeys(("-v", "-V"), "--version"),
    **dict.fromkeys(("check", "test", "validate"), "--check"),
    **dict.fromkeys(("--verify", "--fsck"), "verify"),
    **dict.fromkeys(("--passwd", "--password"), "passwd USER"),
    **dict.fromkeys(("-d", "-D", "--daemon", "start", "run", "serve", "--start"), "dduct.py without it, which serves"),
    "help": "--help",
    "version": "--version",
}


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line, like all of dduct's."""

    def error(self, message: str) -> NoReturn:
        print(f"dduct: {message}; --help says what there is", file=sys.stderr)
        sys.exit(2)


def parse(arguments: Optional[List[str]], home: Path, version: str) -> argparse.Namespace:
    """Parse the command line; an error ends the process with status 2."""
    parser = _Parser(
        prog="dduct",
        description="HTTP(S) man-in-the-middle caching proxy for clusters, CI and labs.",
    )
    parser.add_argument(
        "--cfg",
        metavar="FILE",
        nargs="?",
        const=str(home / "dduct.toml"),
        help="configuration file (without FILE: dduct.toml beside the program)",
    )
    parser.add_argument("--fix", action="store_true", help="with verify: remove what is damaged")
    parser.add_argument("--check", action="store_true", help="validate the configuration, print it and exit")
    parser.add_argument(
        "command",
        nargs="?",
        metavar="{passwd,verify}",
        help="passwd USER: ask for a password, print USER's line of an auth_file; "
        "verify: compare every stored object with its hash (with --fix: and remove the damaged ones)",
    )
    parser.add_argument("user", metavar="USER", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"dduct {version}")
    given = sys.argv[1:] if arguments is None else arguments
    problem = _misunderstood(given)
    if problem:
        parser.error(problem)
    options = parser.parse_args(given)
    problem = _mismatched(options)
    if problem:
        parser.error(problem)
    return options


def _misunderstood(given: List[str]) -> str:
    """The error that argparse would miss or explain badly; else empty."""
    for position, argument in enumerate(given):
        if argument == "--":
            return ""
        name, equals, value = argument.partition("=")
        if name == "--cfg":
            value = value if equals else (given[position + 1] if position + 1 < len(given) else "")
            if value in (*COMMANDS, *_MEANT) and not value.startswith("-") and not os.path.exists(value):
                meant = value if value in COMMANDS else _MEANT[value]
                return f"--cfg {value}: {value} is no file; write {meant} first and --cfg FILE after it"
        elif name.startswith("-") and len(name) > 1 and not _is_known(name):
            meant = _MEANT.get(name) or next(iter(difflib.get_close_matches(name, _OPTIONS, 1, 0.6)), "")
            return f"there is no option {name[:100]}" + (f"; did you mean {meant}?" if meant else "")
    return ""


def _is_known(name: str) -> bool:
    return name == "-h" or any(option.startswith(name) for option in _OPTIONS if len(name) > 3)


def _mismatched(options: argparse.Namespace) -> str:
    command = options.command
    if command is not None and command not in COMMANDS:
        meant = _MEANT.get(command) or next(iter(difflib.get_close_matches(command, COMMANDS, 1, 0.6)), "")
        if not meant and (command.endswith(".toml") or os.path.exists(command)):
            meant = f"--cfg {command[:100]}"
        return f"there is no command {command[:100]}" + (f"; did you mean {meant}?" if meant else "")
    if command == "verify" and options.user is not None:
        return f"verify takes no {options.user[:100]}; it looks at misc.file_dir of the configuration (--cfg FILE)"
    if options.fix and command != "verify":
        return "--fix goes with verify; did you mean verify --fix?"
    if options.check and command is not None:
        return f"--check does not go with {command}: one at a time"
    return ""

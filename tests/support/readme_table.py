"""README's table of configuration keys, made from their declarations. `make readme` writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from server.config_keys import KEYS, RULE_KEYS  # noqa: E402 - the path is set above

README = ROOT / "README.md"
HEADING = "| key | default | meaning |\n|---|---|---|\n"


def table() -> str:
    """The rows, one for each key."""
    rows = (
        (key, key.declared.shown or f"`{_toml(key.declared.default)}`", key.declared.meaning)
        for key in (*KEYS, *RULE_KEYS)
    )
    return "".join(f"| `{key}` | {default} | {meaning} |\n" for key, default, meaning in rows)


def written(text: str) -> str:
    """The rows that README's text has."""
    return text.partition(HEADING)[2].partition("\n\n")[0] + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f"'{value}'" if isinstance(value, str) else str(value).lower()


if __name__ == "__main__":
    before = README.read_text("utf-8")
    assert HEADING in before
    README.write_text(before.replace(HEADING + written(before), HEADING + table()), "utf-8")

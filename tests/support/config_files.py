"""Configuration files, and the line that refuses one."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import config, config_keys
from server.config import ConfigError

KEYS = [str(key) for key in config_keys.KEYS]
RULE_KEYS = [str(key) for key in config_keys.RULE_KEYS]


def load(tmp_path: Path, text: str) -> config_keys.Config:
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, tmp_path / "home")


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000 and str(tmp_path / "some.toml") in line
    return line.partition("some.toml: ")[2]

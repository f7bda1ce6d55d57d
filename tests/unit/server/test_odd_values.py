"""Values that no key expects: each is printed back, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.config_files import KEYS, load
from support.effort import LONG

from server import config
from server.config import ConfigError

# What no key expects, and what some may take: written as TOML.
ODD = [
    *("0", "-1", "true", "1.5", "nan", "inf", "-inf", "1e400", "1e-320", "9223372036854775807", "9223372036854775808"),
    *("9" * 400, "0x" + "f" * 5000, "[]", "{}", "{a = 1}", "[[]]", "[{}]", "1979-05-27", "07:32:00"),
    *("''", "'.'", "'/'", "'~root'", "'~nobody-at-all'", '"a\\u0000b"', '"\\n"', '"\\uFFFF"', "'é'", f"'{'x' * 300}'"),
    *(f"'/{'x/' * 3000}'", f"'{'9' * 400}'", f"'{'9' * 400}T'", "'8388608T'", "'8388607T'", "'5\u212a'", "'5\u0663'"),
    *("'\u0663s'", f"'0.{'0' * 400}1s'", "'0.0000001s'", "'0.1s'", "'30d'", "'1234567s'"),
    *("'a..b:1'", "'.a:1'", f"'{'a' * 64}:1'", f"'{'ü' * 70}:1'", "'ü:1'", "'*:1'", "'[::1%25eth0]:1'", "'a:\u0663'"),
    *("'http://a..b:80'", f"'http://{'a' * 64}:80'", "'http://ü:80'", "'http://%00:%0a@a:80'", "'http://a:99999'"),
    *(f"['{opening * 3000}{closing * 3000}']" for opening, closing in (("(", ")"), ("(?:", ")"))),
    *("['a{99999999999}']", f"['(?({'9' * 5000})a)']", "['(?au)']", "['(?L)']", "['(?<=a*)']", f"['{'(' * 500}']"),
    *(f"['(?P<sha256_{'9' * 300}>a)']", "['(?P<1>a)']", f"['{'a?' * 5000}']", f"['{'a.' * 126}']", f"['{'1' * 5000}']"),
    *("['fe80::1%eth0']", "['fe80::%eth0/64']", f"['10.0.0.0/{'9' * 5000}']", "['0/0']", "['*.']", "['.']", "['ü']"),
]


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_a_key_is_printed_back_or_a_one_line_error(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    # A short run tries each value with an eighth of the keys.
    for value in ODD if LONG else ODD[KEYS.index(key) % 8 :: 8]:
        try:
            loaded = load(tmp_path, f"[{section}]\n{name} = {value}\n")
        except ConfigError as error:
            line = str(error).partition("some.toml: ")[2]
            assert key in line and "\n" not in line and len(line) < 1000, value[:80]
            continue
        if key != "certs.p12_pass" and "@" not in value:  # those are not printed
            again = load(tmp_path, config.describe(loaded))
            assert getattr(getattr(again, section), name) == getattr(getattr(loaded, section), name), value[:80]

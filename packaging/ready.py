"""Whether this Python can run dduct as it is; the exit status says so."""

import importlib.util
import sys

NEEDED = ["cryptography"] + (["tomli"] if sys.version_info < (3, 11) else [])

sys.exit(sys.version_info < (3, 9) or not all(importlib.util.find_spec(name) for name in NEEDED))

"""Print the share of branches that the tests cover in each folder, from coverage's JSON; fail below the floors."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Counter as Counted
from typing import Dict

# Percent of branches. Those with a floor hold users' bytes and decide who gets them.
FLOORS = {"protocol": 90, "storage": 90, "transfers": 90, "fetching": 90, "proxy": 90}


def shares(report: Dict[str, Dict[str, Dict[str, Dict[str, int]]]]) -> Dict[str, float]:
    """Percent of branches that are covered, by top-level folder or module."""
    branches: Counted[str] = Counter()
    covered: Counted[str] = Counter()
    for path, file in report["files"].items():
        folder = path.partition("/")[0]
        branches[folder] += file["summary"]["num_branches"]
        covered[folder] += file["summary"]["covered_branches"]
    return {folder: 100 * covered[folder] / count for folder, count in sorted(branches.items()) if count}


def main() -> int:
    """The exit status: 1 where a folder is below its floor."""
    found = shares(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    for folder, share in found.items():
        floor = FLOORS.get(folder)
        print(f"{folder:14} {share:5.1f} % of branches{'' if floor is None else f', at least {floor}'}")
    low = [folder for folder, floor in FLOORS.items() if found.get(folder, 0.0) < floor]
    if low:
        print(f"too low: {', '.join(low)}", file=sys.stderr)
    return bool(low)


if __name__ == "__main__":
    sys.exit(main())

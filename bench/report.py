"""The results as a page and as a chart."""

from __future__ import annotations

import contextlib
import os
import platform
import ssl
import statistics
import subprocess
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from cases import Case


class Report:
    """Medians and their ratios, as a page and as a chart."""

    def __init__(
        self,
        cases: Sequence[Case],
        found: Dict[str, Dict[str, List[float]]],
        figures: Sequence[Tuple[str, str]],
        rounds: int,
    ) -> None:
        self._figures = figures
        self._rounds = rounds
        self._medians = {
            name: {who: statistics.median(values) for who, values in by.items()} for name, by in found.items()
        }
        self._cases = sorted(cases, key=self._worst_first)

    def _worst_first(self, case: Case) -> float:
        ratio = self.ratio(case, "straight")
        return float("inf") if ratio is None else ratio

    def ratio(self, case: Case, other: str) -> Optional[float]:
        """How many times as fast as `other` dduct is; None where that was not measured."""
        medians = self._medians[case.name]
        if other not in medians:
            return None
        ratio = medians["dduct"] / medians[other]
        return 1 / ratio if case.lower_is_better else ratio

    def table(self) -> str:
        """The table of all cases, in Markdown."""
        lines = [
            "| case | unit | straight (nginx) | Squid | dduct | × nginx | × Squid |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for case in self._cases:
            medians = self._medians[case.name]
            cells = [f"{medians[who]:,.1f}" if who in medians else "–" for who in ("straight", "Squid", "dduct")]
            ratios = [self.ratio(case, other) for other in ("straight", "Squid")]
            cells += ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            lines.append(f"| {case.name} | {case.unit} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def figures(self) -> str:
        """The figures of dduct alone, in Markdown."""
        rows = [f"| {name} | {value} |" for name, value in self._figures]
        return "\n".join(["| dduct alone | |", "|---|---|", *rows]) if rows else ""

    def page(self) -> str:
        """The content of RESULTS.md."""
        how = (
            f"Written by `make bench`: medians of {self._rounds} interleaved rounds, all on one machine, client and\n"
            "origin included. A ratio above 1 says that dduct is faster, whatever the unit. Compare ratios of one\n"
            "run, and nothing else. The worst cases come first. A validated hit is compared with nginx's plain hits,\n"
            "which ask nobody. Squid takes minutes for crowds, and has done each of them once."
        )
        return "\n\n".join(["# Results", how, machine(), self.table(), self.figures(), "![ratios](results.svg)\n"])

    def plot(self) -> str:
        """An SVG bar chart: how many times as fast as nginx and as Squid dduct is."""
        rows, y = [], 30
        for case in self._cases:
            rows.append(f'<text x="10" y="{y + 14}">{case.name}</text>')
            for other, colour in (("straight", "#4a78a8"), ("Squid", "#c8813a")):
                ratio = self.ratio(case, other)
                if ratio is not None:
                    width = min(400.0, 80 * ratio)
                    rows.append(f'<rect x="390" y="{y}" width="{width:.0f}" height="14" fill="{colour}"/>')
                    rows.append(f'<text x="{396 + width:.0f}" y="{y + 12}">{ratio:.2f}</text>')
                    y += 18
            y += 12
        parts = (("#4a78a8", "× nginx"), ("#c8813a", "× Squid"))
        key = " ".join(f'<tspan fill="{colour}">{text}</tspan>' for colour, text in parts)
        key = f'<text x="390" y="18">{key}</text>'
        line = f'<line x1="470" y1="24" x2="470" y2="{y}" stroke="#999" stroke-dasharray="3"/>'
        size = f'width="860" height="{y + 10}" font-family="sans-serif" font-size="12"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', key, line, *rows, "</svg>\n"])


def machine() -> str:
    model = "unknown processor"
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    versions = [f"Python {platform.python_version()}", ssl.OPENSSL_VERSION, f"Linux {platform.release()}"]
    for command in (["nginx", "-v"], ["squid", "-v"]):
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True)
            versions.append((done.stdout + done.stderr).splitlines()[0])
    return f"{os.cpu_count()} × {model}; {'; '.join(versions)}."

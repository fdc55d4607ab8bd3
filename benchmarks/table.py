"""Runs every benchmark that this machine can run, and prints one table of what they found against their targets.

    python benchmarks/table.py [--only decode shards ...] [--json]

The table goes to docs/results/table.md. A benchmark that is run by itself, and longer, writes a page of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULT = FOLDER.parent / "docs" / "results" / "table.md"
# Name, and what keeps it short here; all of them together take under 20 minutes on two cores.
BENCHMARKS: dict[str, list[str]] = {
    "decode": ["--rounds", "3", "--images", "256"],
    "shards": ["--images", "1000", "--rounds", "3"],
    "end_to_end": ["--rounds", "4"],
    "step": ["--rounds", "5"],
    "overhead": [],
    "start": ["--repeats", "3"],
}


def row(
    what: str, ours: float, theirs: float, unit: str, *, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """A line of the table: the ratio is ours over theirs, and is to be at least or at most the target."""
    target = least if least is not None else most
    assert target is not None
    ratio = ours / theirs
    return {
        "what": what, "ours": ours, "theirs": theirs, "unit": unit, "ratio": ratio, "target": target,
        "bound": "at least" if least is not None else "at most",
        "reached": ratio >= target if least is not None else ratio <= target,
    }  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table in Markdown."""
    found = ["| what | ours | theirs | ratio | target | |", "|---|---:|---:|---:|---:|---|"]
    for item in rows:
        found.append(
            f"| {item['what']} | {item['ours']:,.4g} {item['unit']} | {item['theirs']:,.4g} {item['unit']} | "
            f"{item['ratio']:.3f} | {item['bound']} {item['target']:g} | {'reached' if item['reached'] else 'missed'} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    began = time.monotonic()
    for name in arguments.only:
        print(f"{name}: {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)
        command = [sys.executable, str(FOLDER / f"{name}.py"), *BENCHMARKS[name], "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        rows += found["table"]
        if "left_out" in found:
            left_out[name] = found["left_out"]
            print(f"{name}: {found['left_out']}", file=sys.stderr, flush=True)
    measured = {
        "at": datetime.now(UTC).date().isoformat(), "seconds": time.monotonic() - began, "cores": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(), "load": os.getloadavg()[1], "rows": rows,
        "left_out": left_out,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(measured))
        return
    page = [
        "# What was measured, against the targets", "", "`make bench`", "", *lines(rows), "",
        f"{measured['at']}; {measured['cores']} cores ({measured['machine']}), Python {measured['python']}; "
        f"{measured['seconds']:.0f} s in all, load {measured['load']:.1f} at the end. Each has a page of its own.", "",
        *(f"Not measured: {name} ({why})." for name, why in left_out.items()), *([""] if left_out else []),
    ]  # fmt: skip
    print("\n".join(page))
    if set(arguments.only) == set(BENCHMARKS):
        RESULT.write_text("\n".join(page))


if __name__ == "__main__":
    main()

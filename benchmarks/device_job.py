"""``benchmarks.device``: the checks, then row after row while there is time; printed and written as they come."""

import gc
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import BenchmarkArgs
from benchmarks.device_checks import checks_of
from benchmarks.device_plan import GOALS, Goal, Row, rows_to_measure
from benchmarks.device_rows import Values, measure
from runtime.command import short_reason
from runtime.device import describe_machine, exact_float32, pick_device
from runtime.errors import UserError
from runtime.files import move_aside, write_json

# Heading, width, name of the value, and how it is shown.
COLUMNS = (
    ("warm-up s", 11, "warm_up_seconds", "{:.1f}"),
    ("drawing s", 11, "drawing_seconds", "{:.3f}"),
    ("decoding s", 12, "decoding_seconds", "{:.3f}"),
    ("drawn/s", 10, "drawn_images_a_second", "{:.1f}"),
    ("images/s", 10, "images_a_second", "{:.1f}"),
    ("s an image", 12, "seconds_an_image", "{:.4f}"),
    ("kernels", 9, "kernels", "{}"),
    ("idle", 7, "idle", "{:.0%}"),
    ("peak GB", 9, "peak_bytes", "{:.2f}"),
    ("of peak", 9, "share_of_peak", "{:.0%}"),
)
NAME = "{:<10}{:<16}{:>5}{:>10}{:>10}"
FIRST_GUESS = {"eager": 10.0, "compiled": 60.0}  # seconds of a row, before one was measured


class Report:
    """What was found so far, and the file that it is written to."""

    def __init__(self, path: Path, **about: Any) -> None:
        self.path, self.about = path, about
        self.checks: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.seconds: dict[Row, float] = {}  # that rows took, warming up included

    def write(self) -> None:
        goals = [{"goal": goal.text, "found": best_of(self.rows, goal)} for goal in GOALS]
        write_json(self.path, {**self.about, "checks": self.checks, "rows": self.rows, "goals": goals})

    def expected(self, row: Row) -> float:
        """Seconds that a row may take: as the longest of its mode and, if there is one, of its model."""
        alike = {other: seconds for other, seconds in self.seconds.items() if other.mode == row.mode}
        nearest = [seconds for other, seconds in alike.items() if other.model == row.model]
        return max(nearest or alike.values(), default=FIRST_GUESS[row.mode])

    @property
    def is_good(self) -> bool:
        """Whether all checks passed, and no row failed but for want of memory."""
        return all(check["passed"] for check in self.checks) and not any("failed" in row for row in self.rows)


def run_all(args: BenchmarkArgs) -> bool:
    """Check and measure all that there is time for; whether nothing failed."""
    end = time.monotonic() + 60 * args.minutes
    device, path = pick_device(args.device), Path(args.output)
    if path.suffix != ".json":
        raise UserError(f"output is {path}; name a file that ends in .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    move_aside(path)
    machine = describe_machine(device)
    report = Report(path, machine=machine, date=time.strftime("%Y-%m-%d"), **asdict(args))
    print(f"{machine}{'; tiny models' if args.small else ''}")
    with exact_float32():
        check_all(report, device, args.compiled)
    print(NAME.format("work", "model", "batch", "dtype", "mode") + "".join(f"{c[0]:>{c[1]}}" for c in COLUMNS))
    for row in rows_to_measure(args.small, args.compiled):
        left, expected = max(0.0, end - time.monotonic()), report.expected(row)
        if left > expected:
            found = try_row(row, args.small, device, report)
        else:
            found = {"skipped": f"it may take {expected:.0f} s, and {left:.0f} s are left"}
        report.rows.append(asdict(row) | found)
        report.write()
        print(line_of(row, found), flush=True)
    conclude(report, args)
    return report.is_good


def check_all(report: Report, device: torch.device, compiled: bool) -> None:
    """Run and print every check."""
    for check in checks_of(device, compiled):
        try:
            difference, reason = check.difference(), ""
        except Exception as error:  # whatever a check meets, the others are still of use
            difference, reason = math.nan, f" ({short_reason(error)})"
        passed = difference <= check.tolerance
        entry = {"name": check.name, "passed": passed, "difference": None if math.isnan(difference) else difference}
        report.checks.append(entry | {"tolerance": check.tolerance})
        report.write()
        said = f"{difference:.1e}, at most {check.tolerance:.0e}{reason}"
        print(f"{'pass' if passed else 'FAIL'}  {check.name:<55}{said}", flush=True)


def try_row(row: Row, small: bool, device: torch.device, report: Report) -> dict[str, Any]:
    """What is measured of a row, or why it could not be; its memory is given back in any case."""
    start = time.monotonic()
    try:
        found: dict[str, Any] = measure(row, small, device)
    except Exception as error:  # whatever a row meets, the others are still of use
        lacks_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error)
        found = {"out_of_memory" if lacks_memory else "failed": short_reason(error)}
    report.seconds[row] = time.monotonic() - start
    if row.mode == "compiled":
        torch._dynamo.reset()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return found


def line_of(row: Row, found: dict[str, Any]) -> str:
    name = NAME.format(row.work, row.model, row.batch, row.dtype, row.mode)
    for kind in ("skipped", "out_of_memory", "failed"):
        if kind in found:
            return f"{name}  {kind.replace('_', ' ')}: {found[kind]}"
    return name + "".join(f"{_cell(found, value, shown):>{width}}" for _, width, value, shown in COLUMNS)


def _cell(found: Values, value: str, shown: str) -> str:
    if value not in found:
        return "-"
    return shown.format(found[value] / 1e9 if value == "peak_bytes" else found[value])


def conclude(report: Report, args: BenchmarkArgs) -> None:
    """Print the goals, what was left out, and where the file is."""
    for goal in () if args.small else GOALS:
        best = best_of(report.rows, goal)
        verdict = "not measured"
        if best is not None:
            met = best >= goal.bound if goal.is_least else best <= goal.bound
            verdict = f"{best:.3g}, {'met' if met else 'missed'}"
        print(f"goal on one H100: {goal.text}: {verdict}")
    skipped = sum("skipped" in row for row in report.rows)
    if skipped:
        print(
            f"{skipped} of {len(report.rows)} rows were skipped, for the time was up; raise --minutes to measure them"
        )
    failed = [check["name"] for check in report.checks if not check["passed"]]
    if failed:
        print(f"{len(failed)} of {len(report.checks)} checks failed: {', '.join(failed)}")
    print(f"all of it is in {report.path}")


def best_of(rows: list[dict[str, Any]], goal: Goal) -> float | None:
    """The best value that a goal is about; None if no row has it."""
    alike = (row for row in rows if row["work"] == "sampling" and row["model"] == "L" and row["batch"] == goal.batch)
    values = [row[goal.value] for row in alike if row["dtype"] in goal.dtypes and goal.value in row]
    return (max if goal.is_least else min)(values, default=None)

"""What rfc2544 says: lines as it goes, a page with tables, and plots where matplotlib is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..errors import Error

Result = dict[str, Any]  # of one frame size


def line(result: Result) -> str:
    """One size's figures in a line."""
    parts = [f"{result['mix']:>6}"]
    if "throughput" in result:
        found = result["throughput"]
        parts.append(f"{found['pps']:>10.0f} pps  {found['gbps']:7.3f} Gb/s  ({found['limit']})")
    for load in result.get("latency", []):
        at = load["latency_us"]
        parts.append(f"{load['load']} %: p50 {at.get('p50', 0):.1f} p99 {at.get('p99', 0):.1f} us")
    if "loss" in result:
        parts.append(f"{result['loss'][0]['loss_percent']:.2f} % lost at the top")
    if "back_to_back" in result:
        parts.append(f"burst of {_burst(result['back_to_back'])}")
    return "  ".join(parts)


def _burst(found: Result) -> str:
    return f"{found['frames']}{' or more' if found['limit'] == 'interrupted' else ''}"


def page(results: Result) -> str:
    """Markdown."""
    rows = results["sizes"]
    lines = [
        "# RFC 2544",
        "",
        f"From {results['tx']} to {results['rx']}; {results['settings']}.",
        "",
    ]
    if ended := "interrupted" if results.get("interrupted") else results.get("error"):
        lines += [f"It ended early: {ended}.", ""]
    if any("throughput" in one for one in rows):
        lines += ["| size | frames a second | Gb/s | held back by |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {one['mix']} | {one['throughput']['pps']:.0f} | {one['throughput']['gbps']:.3f} "
            f"| {one['throughput']['limit']} |"
            for one in rows
            if "throughput" in one
        ]
    if any("latency" in one for one in rows):
        names = ("min", "p50", "p90", "p99", "p99.9", "max", "jitter")
        lines += ["", f"| size | load | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
        lines += [
            f"| {one['mix']} | {load['load']} % | "
            + " | ".join(f"{load['latency_us'].get(name, 0):.1f}" for name in names)
            + " |"
            for one in rows
            for load in one.get("latency", [])
        ]
        lines += ["", "Latencies in microseconds."]
    if any("loss" in one for one in rows):
        lines += ["", "| size | frames a second | lost, % |", "| --- | --- | --- |"]
        lines += [
            f"| {one['mix']} | {at['pps']:.0f} | {at['loss_percent']:.3f} |"
            for one in rows
            for at in one.get("loss", [])
        ]
    if any("back_to_back" in one for one in rows):
        lines += ["", "| size | longest burst without loss |", "| --- | --- |"]
        lines += [
            f"| {one['mix']} | {_burst(one['back_to_back'])} |"
            for one in rows
            if "back_to_back" in one
        ]
    return "\n".join(lines) + "\n"


def prepare(folder: Path) -> None:
    """Makes the folder. Raises Error where it can't be had, or takes no file."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def write(folder: Path, results: Result) -> list[Path]:
    """The page, and its plots; the files written. Raises Error where that fails."""
    with _writing(folder):
        drawn = _plots(folder, results)
        text = page(results) + "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
        (folder / "report.md").write_text(text)
    return [folder / "report.md", *drawn]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Error(f"cannot write to {folder}", str(error.strerror), f"ls -ld {folder}") from None


def _plots(folder: Path, results: Result) -> list[Path]:
    try:
        import matplotlib  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found,import-untyped,unused-ignore]

    drawn = []
    for name, label, points in (
        ("throughput", "frames a second", _throughput),
        ("latency", "latency, us", _latency),
        ("loss", "lost, %", _loss),
    ):
        curves = points(results["sizes"])
        if curves:
            figure, axes = pyplot.subplots(figsize=(7, 4))
            for title, xs, ys in curves:
                axes.plot(xs, ys, marker="o", label=title)
            axes.set(ylabel=label, xlabel="frames a second" if name == "loss" else "frame size")
            most = max(y for _, _, ys in curves for y in ys)
            axes.set_ylim(0, 1.05 * most or 1)  # a level line is seen
            axes.grid(True, alpha=0.3)
            axes.legend()
            figure.tight_layout()
            figure.savefig(folder / f"{name}.png", dpi=100)
            pyplot.close(figure)
            drawn.append(folder / f"{name}.png")
    return drawn


Curve = tuple[str, list[float], list[float]]


def _throughput(rows: list[Result]) -> list[Curve]:
    have = [one for one in rows if "throughput" in one]
    found = [one["throughput"]["pps"] for one in have]
    return [("throughput", [one["size"] for one in have], found)] if have else []


def _latency(rows: list[Result]) -> list[Curve]:
    have = [one for one in rows if one.get("latency")]
    sizes = [one["size"] for one in have]
    return [
        (name, sizes, [one["latency"][-1]["latency_us"].get(name, 0.0) for one in have])
        for name in ("p50", "p99", "p99.9")
        if have
    ]


def _loss(rows: list[Result]) -> list[Curve]:
    return [
        (
            f"{one['mix']} bytes",
            [at["pps"] for at in one["loss"]],
            [at["loss_percent"] for at in one["loss"]],
        )
        for one in rows
        if "loss" in one
    ]

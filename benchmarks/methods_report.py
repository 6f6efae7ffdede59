"""The tables of methods_table.py in Markdown, from its results alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from methods_table import DEA, DIAL_METHODS, DIALS, FEDAVG, LOCAL, SENDING, interval

Results = Mapping[str, Any]

PREFACE = """# Methods on small scenes

Made by `python benchmarks/methods_table.py` from `methods.json`; change neither by hand. Δm in percent against Local of
the same seed, mean ± half of the 95 % interval over *n* seeds (Student's t; not corrected for the number of
comparisons). A difference is taken seed by seed. *lr* is the rate that the tuning seeds chose from {rates}.

What this is not: tuning seeds and reported seeds differ in weights, shards and order, but are measured on the same 60
pictures, so intervals say nothing of other pictures. Only learning rates are tuned, on one seed, or on two where it is
close and for Local, FedAvg and FedDEA; μ, c, α, the server's rate and the like are those of `experiments/methods/`.
*With DEA* takes the method's own rate, ρ and rescalings take FedDEA's, and server steps FedAvg's, though step and rate
trade off. With equal numbers of AdamW steps FedNova is FedAvg. Central training has all pictures, eight times as many
steps a client, and as one model all labels too.
"""


def report(results: Results) -> str:
    """All tables of the rows that were run."""
    rows = results["rows"]
    parts = [
        PREFACE.format(rates=", ".join(f"{rate:g}" for rate in results["rates"])),
        methods(rows),
        bounds(rows),
        ablation("The share ρ", rows, [FEDAVG, DEA, *(row for row in rows if row.startswith("FedDEA, ρ"))]),
        ablation("What kept entries are multiplied by, and which are kept (ρ = 0.2)", rows,
                 [DEA, *(row for row in rows if row.startswith("ρ = 0.2"))]),
        ablation("FedAvg with other server steps", rows,
                 [FEDAVG, *(row for row in rows if row.startswith("FedAvg, server step"))]),
        ablation("Other members of DEA's family (ρ = 0.2 where not said)", rows, [DEA, *family(rows)]),
        dial(rows),
        tuning(results),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def family(rows: Results) -> list[str]:
    """Rows of DEA's family."""
    names = ("scheduled", "adaptive", "by layer", "by block", "error feedback", "encoder and heads")
    return [row for row in rows if row.startswith(names)]


def methods(rows: Results) -> str:
    """Each method alone and with DEA."""
    body = []
    for name in (LOCAL, *SENDING, "DARE"):
        if name not in rows:
            continue
        other = DEA if name == FEDAVG else f"{name} + DEA"
        cells = [name, f"{rows[name]['rate']:g}", change(rows, name) if name != LOCAL else "0"]
        if other in rows:
            cells += [change(rows, other), difference(rows, other, name)]
        else:
            cells += ["–"] * 2
        against = difference(rows, name, FEDAVG) if name not in (LOCAL, FEDAVG) else "–"
        body.append([*cells, against, str(len(rows[name]["seeds"]))])
    heads = ["method", "lr", "Δm alone", "Δm with DEA", "DEA − alone", "alone − FedAvg", "n"]
    return section("Methods, alone and with DEA (ρ = 0.2, 1/ρ)", heads, body)


def bounds(rows: Results) -> str:
    """Bounds, with every task's metric."""
    body = []
    tasks = list(next(iter(rows[LOCAL]["seeds"].values()))["metrics"])
    for name in (LOCAL, FEDAVG, DEA, "Central, one model per task", "Central, one model"):
        if name in rows:
            runs = [run["metrics"] for run in rows[name]["seeds"].values() if run["metrics"]]
            means = [f"{sum(run[task] for run in runs) / len(runs):.3g}" if runs else "failed" for task in tasks]
            body.append([name, *means, change(rows, name) if name != LOCAL else "0", str(len(rows[name]["seeds"]))])
    return section("Bounds, and each task's metric (mean over seeds)", ["", *tasks, "Δm", "n"], body)


def ablation(title: str, rows: Results, names: Sequence[str]) -> str:
    """Rows against FedAvg and FedDEA."""
    body = [
        [
            name,
            change(rows, name),
            difference(rows, name, FEDAVG) if name != FEDAVG else "–",
            difference(rows, name, DEA) if name != DEA else "–",
            str(len(rows[name]["seeds"])),
        ]
        for name in names
        if name in rows
    ]
    return section(title, ["", "Δm", "− FedAvg", "− FedDEA (ρ = 0.2)", "n"], body) if len(body) > 1 else ""


def dial(rows: Results) -> str:
    """The stress test."""
    names = [name for name in DIAL_METHODS if name != "Local"]
    body = []
    for value in DIALS:
        if f"FedAvg at {value:+}" not in rows:
            continue
        measured = [
            diagnostic(rows, f"FedAvg at {value:+}", key)
            for key in ("cosine within", "cosine across", "sign_conflict across")
        ]
        measured.append(diagnostic(rows, f"FedDEA at {value:+}", "mask_overlap across"))
        body.append([f"{value:+}", *(change(rows, f"{name} at {value:+}") for name in names), *measured])
    heads = ["correlation", *(f"Δm {name}" for name in names)]
    heads += ["cosine within a task", "cosine across tasks", "sign conflicts across", "mask overlap across (FedDEA)"]
    return section("The stress test: depth, and a task whose correlation with it is set", heads, body)


def diagnostic(rows: Results, name: str, key: str) -> str:
    """Mean over seeds of a number of the diagnostics."""
    numbers = [run["diag"].get(key, math.nan) for run in rows[name]["seeds"].values()] if name in rows else [math.nan]
    mean = sum(numbers) / len(numbers)
    return f"{mean:.3f}" if math.isfinite(mean) else "–"


def tuning(results: Results) -> str:
    """Δm of every rate on the tuning seeds."""
    body = [
        [name, *("failed" if change is None else f"{change:+.1f}" for change in found["delta_m"].values())]
        for name, found in results["tuned"].items()
    ]
    heads = ["Δm on the tuning seeds at lr", *(f"{rate:g}" for rate in results["rates"])]
    return section("Learning rates", heads, body)


def change(rows: Results, name: str) -> str:
    """Δm of a row over its seeds."""
    numbers = [run["delta_m"] for run in rows[name]["seeds"].values()]
    return spread(numbers)


def difference(rows: Results, one: str, other: str) -> str:
    """Difference of two rows' Δm over the seeds that both have."""
    if one not in rows or other not in rows:
        return "–"
    first, second = rows[one]["seeds"], rows[other]["seeds"]
    pairs = [(first[seed]["delta_m"], second[seed]["delta_m"]) for seed in first if seed in second]
    return spread([None if None in pair else pair[0] - pair[1] for pair in pairs])


def spread(numbers: Sequence[float | None]) -> str:
    """Mean ± half of the interval; failed runs are counted, not averaged."""
    finite = [number for number in numbers if number is not None]
    failed = f" ({len(numbers) - len(finite)} failed)" if len(finite) < len(numbers) else ""
    if not finite:
        return "failed"
    mean, half = interval(finite)
    return f"{mean:+.1f}" + (f" ± {half:.1f}" if math.isfinite(half) else "") + failed


def section(title: str, heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A heading and a table."""
    if not body:
        return ""
    lines = [f"## {title}\n", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)]) + "\n"

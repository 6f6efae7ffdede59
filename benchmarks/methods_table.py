"""Compares all methods on small scenes, each with a learning rate of its own, and writes the tables of docs/results.

    python benchmarks/methods_table.py --jobs 2

Every row is experiments/base/small.yaml with files of experiments/methods on top and a few words. The learning rate of
each method, and of FedDEA, is chosen from one grid by its Δm on tuning seeds; other rows take the rate of the row that
they vary. They are then measured on other seeds and compared seed by seed. What words are said of (`CLAIMED`) has more
seeds than the rest. Runs that are finished are not run again: after a change of code or configurations give another
--out. All numbers go to docs/results/methods.json, the tables
to docs/results/methods.md; both are made from the runs' results.json alone.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
RESULTS = ROOT / "docs" / "results"

RATES = (1e-3, 3e-3, 1e-2)
LOCAL, FEDAVG, DEA = "Local (no federation)", "FedAvg", "FedDEA"


@dataclass(frozen=True)
class Row:
    """A row of the tables: configuration files of experiments/methods, words on top, and where its rate comes from."""

    files: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    rate_of: str | None = None  # the row whose learning rate it takes; None chooses its own
    base: str = "small"
    baseline: str = LOCAL


def upload(**arguments: object) -> tuple[str, ...]:
    """Words for one `DEA` transform."""
    return ("--upload", json.dumps([{"class_path": "fedmtl.aggregation.DEA", "init_args": arguments}]))


# methods that send updates, and so go with DEA: name -> files
SENDING: dict[str, tuple[str, ...]] = {
    FEDAVG: ("fedavg",),
    "FedProx": ("fedprox",),
    "SCAFFOLD": ("scaffold",),
    "FedNova": ("fednova",),
    "FedDyn": ("feddyn",),
    "FedAvgM": ("fedavgm",),
    "FedAdam": ("fedadam",),
    "FedYogi": ("fedyogi",),
    "FedAdagrad": ("fedadagrad",),
    "Task arithmetic": ("task_arithmetic",),
    "TIES": ("ties",),
    "PCGrad": ("pcgrad",),
    "CAGrad": ("cagrad",),
    "Median": ("median",),
    "Trimmed mean": ("trimmed_mean",),
    "Multi-Krum": ("krum",),
    "Norm clipping": ("norm_clipping",),
    "FedPer": ("fedper",),
    "FedRep": ("fedrep",),
    "Ditto": ("ditto",),
    "FedAMP": ("fedamp",),
    "MaT-FL": ("matfl",),
    "FedHCA2": ("fedhca2",),
}
METHODS: dict[str, Row] = {
    LOCAL: Row(("local",)),
    **{name: Row(files) for name, files in SENDING.items()},
    "DARE": Row(("dare",)),
    "Central, one model per task": Row(("central_single",)),
    "Central, one model": Row(words=("--clients", json.dumps([{"tasks": ["semseg", "depth", "normals", "saliency"]}]))),
}
WITH_DEA: dict[str, Row] = {
    DEA: Row(("fedavg", "dea")),
    **{f"{name} + DEA": Row((*files, "dea"), rate_of=name) for name, files in SENDING.items() if name != FEDAVG},
}
SWEEP = {f"FedDEA, ρ = {rho}": Row(words=upload(rho=rho), rate_of=DEA) for rho in (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1)}
RESCALES: dict[str, Row] = {
    **{f"ρ = 0.2, {r}": Row(words=upload(rho=0.2, rescale=r), rate_of=DEA) for r in ("none", "norm", "overlap")},
    "ρ = 0.2, random mask": Row(("dea_random",), rate_of=DEA),
    "ρ = 0.2, random mask, none": Row(words=upload(rho=0.2, select="random", rescale="none"), rate_of=DEA),
}
STEPS = {
    f"FedAvg, server step {step}": Row(
        words=("--server.optimizer", json.dumps({"class_path": "torch.optim.SGD", "init_args": {"lr": step}})),
        rate_of=FEDAVG,
    )
    for step in (0.5, 2.0, 5.0)
}
FAMILY = {
    "scheduled 0.2 to 1": Row(("dea_scheduled",), rate_of=DEA),
    "adaptive, 80 % of the energy": Row(("dea_energy",), rate_of=DEA),
    "by layer": Row(("dea_layer",), rate_of=DEA),
    "by block": Row(("dea_block",), rate_of=DEA),
    "error feedback, none": Row(("dea_feedback",), rate_of=DEA),
    "encoder and heads": Row(("dea_model",), rate_of=DEA),
}
DIALS = (1.0, 0.5, 0.0, -0.5, -1.0)
DIAL_METHODS = {"Local": ("local",), "FedAvg": ("fedavg",), "FedDEA": ("dea",), "Overlap mean": ("overlap",)}
DIAL = {
    f"{name} at {dial:+}": Row(
        (*files, *(["diagnosed"] if name != "Local" else [])),
        ("--data.init_args.dials.far.correlation", str(dial)),
        rate_of={"Local": LOCAL, "FedAvg": FEDAVG}.get(name, DEA),
        base="dial",
        baseline=f"Local at {dial:+}",
    )
    for dial in DIALS
    for name, files in DIAL_METHODS.items()
}
GROUPS = {
    "methods": METHODS,
    "with_dea": WITH_DEA,
    "sweep": SWEEP,
    "rescales": RESCALES,
    "steps": STEPS,
    "family": FAMILY,
    "dial": DIAL,
}
ROWS: dict[str, Row] = {name: row for group in GROUPS.values() for name, row in group.items()}
CLAIMED = (LOCAL, FEDAVG, DEA, *SWEEP, *RESCALES, *STEPS, *DIAL)  # rows with all seeds; others have 3, and 1 to tune
CLOSE = 2.0  # points of Δm: a method whose two best rates are nearer is tuned on all tuning seeds


def run_name(row: str, rate: float, seed: int) -> str:
    """Name of a run's folder."""
    plain = "".join(c if c.isalnum() or c in "+-." else "_" for c in row)
    return f"{plain}_lr{rate:g}_s{seed}"


def fit(job: tuple[str, float, int], out: Path, overlay: Sequence[str]) -> None:
    """Runs a row with a learning rate and a seed, unless that is done; a run that fails leaves its reason."""
    row, rate, seed = job
    name = run_name(*job)
    folder = out / name
    if (folder / "results.json").is_file() or (out / f"{name}.failed").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    with open(out / f"{name}.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        from fedmtl.commands.fit import main
        from fedmtl.errors import UserError

        files = [EXPERIMENTS / "base" / f"{ROWS[row].base}.yaml"]
        files += [EXPERIMENTS / "methods" / f"{file}.yaml" for file in ROWS[row].files]
        words = [word for file in [*files, *overlay] for word in ("--config", str(file))]
        words += [*ROWS[row].words, "--local.optimizer.init_args.lr", str(rate)]
        try:
            main([*words, "--seed", str(seed), "--name", name, "--out", str(out)])
        except UserError as error:
            (out / f"{name}.failed").write_text(str(error))
        except Exception:
            (out / f"{name}.failed").write_text(traceback.format_exc())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    shutil.rmtree(folder / "unified", ignore_errors=True)


def values(out: Path, job: tuple[str, float, int]) -> dict[str, Any] | None:
    """Primary metrics of a run by task, and what they are; None for a run that failed or is not finite."""
    path = out / run_name(*job) / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    metrics = {task: results["last"]["metrics"][task][p["metric"]] for task, p in results["primary"].items()}
    if any(value is None or not math.isfinite(value) for value in metrics.values()):
        return None
    return {"metrics": metrics, "primary": results["primary"]}


def delta(found: dict[str, Any] | None, base: dict[str, Any] | None) -> float:
    """Δm of a run against another one."""
    from fedmtl.delta_m import Primary, delta_m

    if found is None or base is None:
        return -math.inf
    primary = {task: Primary(**p) for task, p in base["primary"].items()}
    changes = delta_m(found["metrics"], base["metrics"], primary)
    return statistics.fmean(changes.values()) if changes else -math.inf


def best_rates(out: Path, seeds: dict[str, Sequence[int]], rates: Sequence[float]) -> dict[str, Any]:
    """For each row that chooses: its Δm at each rate, against Local at the middle one, and the best rate."""
    middle = rates[len(rates) // 2]
    chosen: dict[str, Any] = {}
    for row, own in seeds.items():
        base = {seed: values(out, (LOCAL, middle, seed)) for seed in own}
        means = {
            rate: statistics.fmean(delta(values(out, (row, rate, seed)), base[seed]) for seed in own) for rate in rates
        }
        best = max(rates, key=lambda rate: means[rate])
        finite = {rate: mean if math.isfinite(mean) else None for rate, mean in means.items()}
        chosen[row] = {"rate": best, "delta_m": finite, "seeds": list(own)}
    return chosen


def is_close(found: dict[str, Any]) -> bool:
    """Whether the two best rates differ by less than `CLOSE` points."""
    best = sorted((mean for mean in found["delta_m"].values() if mean is not None), reverse=True)
    return len(best) > 1 and best[0] - best[1] < CLOSE


def interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    if len(numbers) < 2:
        return statistics.fmean(numbers), math.nan
    half = float(t.ppf(0.975, len(numbers) - 1)) * statistics.stdev(numbers) / math.sqrt(len(numbers))
    return statistics.fmean(numbers), half


def collect(out: Path, rows: Sequence[str], rates: dict[str, float], seeds: dict[str, Sequence[int]]) -> dict[str, Any]:
    """Metrics and Δm of every row and seed."""
    found: dict[str, Any] = {}
    for row in rows:
        runs: dict[str, Any] = {}
        for seed in seeds[row]:
            run = values(out, (row, rates[row], seed))
            base = ROWS[row].baseline
            change = delta(run, values(out, (base, rates[base], seed)))
            runs[str(seed)] = {
                "metrics": run["metrics"] if run else None,
                "delta_m": change if math.isfinite(change) else None,
                "diag": diagnostics(out / run_name(row, rates[row], seed)) if "diagnosed" in ROWS[row].files else {},
            }
        found[row] = {
            "configs": [f"base/{ROWS[row].base}.yaml", *(f"methods/{file}.yaml" for file in ROWS[row].files)],
            "words": list(ROWS[row].words),
            "rate": rates[row],
            "seeds": runs,
        }
    return found


def diagnostics(folder: Path) -> dict[str, float]:
    """Mean over rounds of how the updates of clients of the two tasks meet."""
    sums: dict[str, list[float]] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        for key, value in json.loads(line).items():
            kind, _, pair = key.removeprefix("diag/").partition("/")
            if key.startswith("diag/") and "~" in pair and value is not None:
                one, other = (name.split("-")[0] for name in pair.split("~"))
                sums.setdefault(f"{kind} {'within' if one == other else 'across'}", []).append(value)
    return {key: statistics.fmean(numbers) for key, numbers in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="these rows only, and those that they need")
    parser.add_argument("--overlay", nargs="*", default=[], help="configuration files on top of every run's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each uses one thread")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "methods_table")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for methods.json and methods.md")
    own = parser.parse_args()
    own.out = own.out.resolve()
    own.out.mkdir(parents=True, exist_ok=True)
    wanted = {LOCAL, *(own.rows or [row for group in own.groups for row in GROUPS[group]])}
    while more := {r for row in wanted for r in (ROWS[row].rate_of, ROWS[row].baseline) if r} - wanted:
        wanted |= more
    rows = [row for row in ROWS if row in wanted]

    import fedmtl.commands.fit  # noqa: F401 - once, for all runs: they are forked from here

    def run_all(jobs: list[tuple[str, float, int]]) -> None:
        context = multiprocessing.get_context("fork")
        with context.Pool(own.jobs, maxtasksperchild=1) as pool:
            todo = pool.imap_unordered(partial(fit, out=own.out, overlay=own.overlay), jobs, chunksize=1)
            for done, _ in enumerate(todo, start=1):
                print(f"\r{done}/{len(jobs)} runs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    def tune(seeds: dict[str, Sequence[int]]) -> dict[str, Any]:
        run_all([(row, rate, seed) for row, some in seeds.items() for seed in some for rate in own.rates])
        return best_rates(own.out, seeds, own.rates)

    choosing = [row for row in rows if ROWS[row].rate_of is None]
    first = tune({row: own.tuning_seeds if row in CLAIMED else own.tuning_seeds[:1] for row in choosing})
    more = [row for row in choosing if row in CLAIMED or (row in SENDING and is_close(first[row]))]
    tuned = tune({row: own.tuning_seeds if row in more else own.tuning_seeds[:1] for row in choosing})
    rates = {row: tuned[ROWS[row].rate_of or row]["rate"] for row in rows}
    seeds = {row: own.seeds if row in CLAIMED else own.seeds[:3] for row in rows}
    run_all([(row, rates[row], seed) for row in rows for seed in seeds[row]])
    results: dict[str, Any] = {"rates": own.rates, "tuned": tuned}
    results["rows"] = collect(own.out, rows, rates, seeds)
    own.results.mkdir(parents=True, exist_ok=True)
    (own.results / "methods.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    from methods_report import report

    text = report(json.loads(json.dumps(results)))
    (own.results / "methods.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

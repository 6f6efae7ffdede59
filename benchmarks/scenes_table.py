"""Runs Local, FedAvg and FedDEA on the built-in scenes over several seeds and makes the README's table of them.

    python benchmarks/scenes_table.py --jobs 2

Runs that are finished are not run again. The numbers of every run go to docs/results/scenes.json, the table to
docs/results/scenes.md; both are made from the runs' results.json alone. Δm compares runs of the same seed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "scenes.json"
TABLE = ROOT / "docs" / "results" / "scenes.md"

BASELINE = "Local (no federation)"

# name of the row -> experiment file and what the command line adds
METHODS: dict[str, tuple[str, list[str]]] = {
    BASELINE: ("scenes_local", []),
    "FedAvg": ("scenes_fedavg", []),
    "FedDEA, ρ = 0.5": ("scenes_dea", []),
    "FedDEA, ρ = 0.2": ("scenes_dea", ["--upload.init_args.rho", "0.2"]),
    "FedDEA, ρ = 0.2, overlap": (
        "scenes_dea",
        ["--upload.init_args.rho", "0.2", "--upload.init_args.rescale", "overlap"],
    ),
}


def run_name(method: str, seed: int) -> str:
    experiment, words = METHODS[method]
    return "_".join([experiment, *words[1::2], f"s{seed}"])


def fit(method: str, seed: int, out: Path) -> Path:
    """Runs one method with one seed, unless that is done, and returns its folder."""
    experiment, words = METHODS[method]
    name = run_name(method, seed)
    if method != BASELINE:
        words = [*words, "--baseline", str(out / run_name(BASELINE, seed))]
    command = [sys.executable, "-m", "fedmtl", "fit", "--config", f"experiments/{experiment}.yaml", *words]
    command += ["--seed", str(seed), "--name", name, "--out", str(out), "--resume", "auto"]
    with open(out / f"{name}.log", "w") as log:
        done = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "160"}
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed, see {log.name}")
    print("done:", name, flush=True)
    return out / name


def collect(out: Path, seeds: list[int]) -> dict[str, object]:
    """Last metrics and Δm of every run, by method and seed."""
    runs: dict[str, dict[str, object]] = {}
    for method in METHODS:
        for seed in seeds:
            results = json.loads((out / run_name(method, seed) / "results.json").read_text())
            values = {task: results["last"]["metrics"][task][p["metric"]] for task, p in results["primary"].items()}
            delta = results["last"]["delta_m"]
            runs.setdefault(method, {})[str(seed)] = {"metrics": values, "delta_m": delta["mean"] if delta else 0.0}
    return {"primary": results["primary"], "rounds": results["rounds"], "runs": runs}


def table(results: dict) -> str:
    """Mean ± standard deviation over seeds, in Markdown."""
    primary = results["primary"]
    heads = [f"{task} {p['metric']} {'↑' if p['higher_is_better'] else '↓'}" for task, p in primary.items()]
    lines = ["| | " + " | ".join([*heads, "Δm % ↑"]) + " |", "|---" * (len(heads) + 2) + "|"]
    for method, seeds in results["runs"].items():
        cells = []
        for task in primary:
            values = [run["metrics"][task] for run in seeds.values()]
            cells.append(spread(values, 3 if max(values) < 10 else 1))
        cells.append(spread([run["delta_m"] for run in seeds.values()], 1) if method != BASELINE else "0")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each uses one thread")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scenes_table")
    own = parser.parse_args()
    own.out = own.out.resolve()
    own.out.mkdir(parents=True, exist_ok=True)
    others = [method for method in METHODS if method != BASELINE]
    with ThreadPoolExecutor(own.jobs) as pool:
        list(pool.map(lambda seed: fit(BASELINE, seed, own.out), own.seeds))
        list(pool.map(lambda job: fit(*job, own.out), [(method, seed) for seed in own.seeds for method in others]))
    results = collect(own.out, own.seeds)
    text = table(results)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

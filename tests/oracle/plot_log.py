#!/usr/bin/python3
"""Draw the loss curve of a training run.

    plot_log.py RUN_DIR OUT.svg      (needs python3-matplotlib)
"""
import json
import os
import sys

import matplotlib
import numpy as np

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "loss"       # the same run gives the same file
from matplotlib import pyplot  # noqa: E402


def smooth(values, width=20):
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def main():
    run, out = sys.argv[1:]
    with open(os.path.join(run, "log.jsonl")) as f:
        steps = {entry["step"]: entry for entry in map(json.loads, f)}      # the last of each step counts
    log = [steps[s] for s in sorted(steps)]
    tokens = np.array([entry["tokens"] for entry in log]) / 1e6
    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    for key, label in (("loss", "next token"), ("draft", "token after next, MTP head")):
        axis.plot(tokens, smooth([entry[key] for entry in log]), label=label)
    for key, label in (("select", "indexer selects"), ("rounded", "release's roundings")):
        begin = next((entry["tokens"] / 1e6 for entry in log if entry[key]), None)
        if begin is not None:
            axis.axvline(begin, color="grey", linestyle=":")
            axis.text(begin, axis.get_ylim()[1], " " + label, rotation=90, va="top", fontsize=8)
    axis.set_xlabel("million tokens")
    axis.set_ylabel("nats per token (mean over 20 steps)")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()

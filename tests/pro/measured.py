#!/usr/bin/python3
"""Run a command in a control group of its own and say what it took.

    measured.py [--limit BYTES] [--devices loop0,vda] -- COMMAND...

Afterwards a line of JSON on stderr: wall and processor seconds, the largest resident set (VmHWM) of
the command, the peak of its control group where there is a memory controller (version 1 or 2; with
--limit that group may have no more, and whoever needs more is killed), and the bytes that each
device was read by anybody meanwhile (/proc/diskstats).
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time


def read_bytes(devices):
    counts = {}
    for line in open("/proc/diskstats"):
        fields = line.split()
        if fields[2] in devices:
            counts[fields[2]] = int(fields[5]) * 512  # sectors
    return counts


class Group:
    """A control group for one command; without a controller it does nothing."""

    def __init__(self, limit):
        self.folder = None
        for top, limit_file, peak_file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
                                           ("/sys/fs/cgroup", "memory.max", "memory.peak")):
            folder = os.path.join(top, f"sluice-measured-{os.getpid()}")
            try:
                os.mkdir(folder)
            except OSError:
                continue
            if not os.path.exists(os.path.join(folder, limit_file)):
                os.rmdir(folder)
                continue
            self.folder, self.peak_file = folder, os.path.join(folder, peak_file)
            if limit:
                with open(os.path.join(folder, limit_file), "w") as f:
                    f.write(str(limit))
            return
        if limit:
            sys.exit("measured.py: no memory controller here, so --limit cannot hold")

    def enter(self):
        if self.folder:
            with open(os.path.join(self.folder, "cgroup.procs"), "w") as f:
                f.write("0")

    def close(self):
        if not self.folder:
            return None
        peak = int(open(self.peak_file).read()) if os.path.exists(self.peak_file) else None
        os.rmdir(self.folder)
        return peak


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--limit", type=int)
    ap.add_argument("--devices", default="")
    ap.add_argument("command", nargs="+")
    args = ap.parse_args()
    devices = [d for d in args.devices.split(",") if d]
    group = Group(args.limit)
    before, start = read_bytes(devices), time.monotonic()
    status = subprocess.Popen(args.command, preexec_fn=group.enter).wait()
    seconds, after = time.monotonic() - start, read_bytes(devices)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"status": status, "wall_s": round(seconds, 2), "user_s": round(used.ru_utime, 2),
                      "sys_s": round(used.ru_stime, 2), "resident_peak_bytes": used.ru_maxrss * 1024,
                      "group_peak_bytes": group.close(),
                      "read_bytes": {d: after[d] - before[d] for d in before}}), file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())

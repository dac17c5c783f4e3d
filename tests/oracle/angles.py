#!/usr/bin/env python3
"""Compares an engine's rotary angles with the oracle's, position by position.

Standard input has a line for each kind of layer (0: window alone, 1: compressed), position and
pair: their numbers, cosine and sine (tests/test_rope.c prints them). The oracle rotates the pair
(1, 0), in its `exact` numerics. Prints the largest difference, and \"ok\" if nothing is missing and
all agree to float32's last digits. The angle itself is a float32 product, as in the released code:
at a million tokens its last bit is 0.06, so that whoever rounds it differently is far off.
"""
import argparse
import json
import sys

import numpy as np

import v4ref

TOLERANCE = 5e-7


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("config")
    ap.add_argument("positions", nargs="+", type=int)
    args = ap.parse_args()
    cfg = json.load(open(args.config))
    pairs = cfg["qk_rope_head_dim"] // 2
    given = {}
    for line in sys.stdin:
        kind, position, pair, cosine, sine = line.split()
        given[int(kind), int(position), int(pair)] = float(cosine), float(sine)
    unit = np.zeros((len(args.positions), 2 * pairs))
    unit[:, 0::2] = 1
    worst = 0
    for kind in range(2):
        rotated = v4ref.rotate(unit, args.positions, v4ref.rope_frequencies(cfg, kind == 1))
        for at, position in enumerate(args.positions):
            for pair in range(pairs):
                cosine, sine = given.pop((kind, position, pair))
                worst = max(worst, abs(cosine - rotated[at, 2 * pair]),
                            abs(sine - rotated[at, 2 * pair + 1]))
    print(f"largest difference {worst:.2g}")
    print("ok" if not given and worst <= TOLERANCE else "differs")


if __name__ == "__main__":
    main()

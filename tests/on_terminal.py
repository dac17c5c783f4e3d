#!/usr/bin/env python3
"""Runs a command with its standard error on a pseudo-terminal.

    on_terminal.py [--columns N] [--term NAME] [--signal NAME [--then NAME] --when REGEX [--ignored]]
        COMMAND...

Prints as JSON what came out of the terminal, what came on standard output, and how the command
ended: a negative number is the signal that it died of. With --signal, sends the signal as soon as
what REGEX describes has appeared on the terminal, and that of --then, another one, right after it;
with --ignored the command was started so that it ignores it.
"""
import argparse
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--term", default="xterm")
    parser.add_argument("--signal")
    parser.add_argument("--then")
    parser.add_argument("--when")
    parser.add_argument("--ignored", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, args.columns, 0, 0))
    if args.ignored:  # the command inherits it
        signal.signal(getattr(signal, args.signal), signal.SIG_IGN)
    process = subprocess.Popen(args.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=theirs, env={**os.environ, "TERM": args.term})
    os.close(theirs)
    printed = []
    reader = threading.Thread(target=lambda: printed.append(process.stdout.read()))
    reader.start()
    shown = b""
    sent = not args.signal
    while select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
        if not sent and re.search(args.when.encode(), shown):
            process.send_signal(getattr(signal, args.signal))
            if args.then:
                process.send_signal(getattr(signal, args.then))
            sent = True
    else:
        process.kill()
    reader.join()
    json.dump({"terminal": shown.decode(errors="replace"),
               "stdout": printed[0].decode(errors="replace"), "status": process.wait()}, sys.stdout)


if __name__ == "__main__":
    main()

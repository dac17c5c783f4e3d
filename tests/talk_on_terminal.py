#!/usr/bin/env python3
"""Talks with a command on a pseudo-terminal, as a person would.

    talk_on_terminal.py SCRIPT COMMAND...

SCRIPT is a JSON list of [TEXT, KEYS]: when TEXT has appeared, after all that was typed before, KEYS
are typed; "^C" and "^D" stand for the keys. A "^D" at the end is typed again every five seconds: one
that comes before the terminal has left its line mode is lost. Prints what was on the screen, and ends with the
command's status, or with 99 where something did not appear within a minute.
"""
import json
import os
import pty
import select
import sys


def main():
    script, command = json.loads(sys.argv[1]), sys.argv[2:]
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm"
        os.execvp(command[0], command)
    screen, seen, step, silent = b"", 0, 0, 0
    while True:
        if not select.select([terminal], [], [], 5)[0]:
            silent += 5
            if silent >= 60:
                missing = script[step][0] if step < len(script) else "the end"
                print(screen.decode(errors="replace"), "\nnever seen:", missing)
                os.kill(process, 9)
                sys.exit(99)
            if step == len(script) and script[-1][1] == "^D":
                os.write(terminal, b"\x04")
            continue
        silent = 0
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the command has ended
            break
        screen += data
        if step < len(script) and script[step][0].encode() in screen[seen:]:
            keys = script[step][1].replace("^C", "\x03").replace("^D", "\x04")
            seen, step = len(screen), step + 1
            os.write(terminal, keys.encode())
    print(screen.decode(errors="replace"))
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) if step == len(script) else 99)


if __name__ == "__main__":
    main()

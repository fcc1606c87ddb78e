#!/usr/bin/env bash
# The manual page and --help name the same commands and options, with the same arguments, choices and defaults.
set -euo pipefail
python3 - "${DECANT_PROGRAM:?}" "${DECANT_TEST_SOURCE:?}/launch/decant.1" <<'PY'
import re, subprocess, sys

program, manual = sys.argv[1], open(sys.argv[2]).read()
help_text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
complaints = []

# What the page says of each option: the names of its item, and the text up to the next item.
described, together = {}, []
for item in re.split(r"^\.It ", manual, flags=re.M)[1:]:
    head, _, body = item.partition("\n")
    for name in re.findall(r"Fl -([a-z-]+)", head):
        described[name] = head + "\n" + body
        together.append(name)
    if body.strip():  # names that stand together are described together
        for name in together:
            described[name] += body
        together = []

options = re.findall(r"^  --([a-z-]+) ?(\S*) +(.*)$", help_text, flags=re.M)
commands = re.findall(r"^  decant ([a-z-]+)", help_text, flags=re.M)
if len(options) < 40 or len(commands) < 8:
    complaints.append(f"only {len(options)} options and {len(commands)} commands were found in --help")
for name, argument, text in options:
    if name not in described:
        complaints.append(f"--{name} is not in the manual page")
        continue
    words = set(re.findall(r"[\w.]+(?:[-,:%][\w.]+)*%?", described[name]))
    wanted = argument.split("|") if "|" in argument and argument == argument.lower() else []
    wanted += re.findall(r"^[A-Z]+$", argument)
    default = re.search(r"\(([^() ]+)\)$", text)
    if default:
        wanted.append(default[1].rstrip("%"))
    for word in wanted:
        if word not in {w.rstrip(".%") for w in words}:
            complaints.append(f"--{name}: '{word}' is not in the manual page")
for name in sorted(described.keys() - {name for name, _, _ in options}):
    complaints.append(f"--{name} is in the manual page alone")
for command in commands:
    if not re.search(rf"^\.It Cm {command}$", manual, flags=re.M):
        complaints.append(f"the command {command} is not in the manual page")
for command in re.findall(r"^\.Cm ([a-z-]+)(?: Ar .*)?$", manual.split(".Sh DESCRIPTION")[0], flags=re.M):
    if command not in commands:
        complaints.append(f"the command {command} is in the manual page alone")

print("\n".join(complaints) or f"{len(options)} options and {len(commands)} commands are as the manual page says")
sys.exit(bool(complaints))
PY

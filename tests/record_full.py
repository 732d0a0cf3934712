"""Runs the whole suite and writes what came of it to tests/FULL.md."""

import datetime
import pathlib
import re
import subprocess
import sys

RECORD = pathlib.Path(__file__).parent / "FULL.md"


def main() -> int:
  git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
  commit = subprocess.run(
      git, capture_output=True, text=True, check=True).stdout.strip()
  suite = subprocess.Popen(
      [sys.executable, "-m", "pytest", "tests", "--full", "-n", "2",
       "--dist", "loadfile"],
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  last = ""
  for line in suite.stdout:
    print(line, end="", flush=True)
    if re.search(r"\d+ (passed|failed|error)", line):
      last = line.strip(" =\n")
  status = suite.wait()
  day = datetime.date.today().isoformat()
  RECORD.write_text(
      "# The last run of `make test-full`\n\n"
      f"- commit: {commit}\n- day: {day}\n- result: {last}\n"
      f"- exit status: {status}\n", encoding="utf-8")
  return status


if __name__ == "__main__":
  sys.exit(main())

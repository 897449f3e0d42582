"""A dozen kills at random moments: scripts/kill_test.py, which also does hundreds.

Alone: python3 -m pytest -s tests/e2e/test_kill.py
"""
import re
import subprocess
import sys

from conftest import BINARY, ROOT


def test_a_dozen_kills():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "kill_test.py"), "--kills", "12", "--seed", "5",
         "--requests", "300", "--build", str(BINARY.parent)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=280)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"# (\d+) kills survived", done.stdout).group(1)) >= 12
    assert "finished requests computed again: 0\n" in done.stdout
    assert "more than that and a fsync interval: 0;" in done.stdout

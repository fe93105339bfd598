"""Check that ``import lightning_gaudi`` costs little beyond ``import lightning``.

python checks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

LIMIT_S = 0.5
ROUNDS = 5
# Processor time, so that other work on the machine does not count.
PROGRAM = """
import time
import lightning
start = time.process_time()
import lightning_gaudi
print(time.process_time() - start)
"""


def main() -> int:
    """Measure; returns 1 where the limit is passed."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    times = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(ROUNDS)
    ]
    seconds = statistics.median(times)
    print(f"import lightning_gaudi: {seconds:.2f} s beyond import lightning (limit {LIMIT_S} s)")
    return 1 if seconds > LIMIT_S else 0


if __name__ == "__main__":
    sys.exit(main())

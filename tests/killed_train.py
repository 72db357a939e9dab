"""`train.py`, killed (SIGKILL, as a batch system does it) when the state of step KILLED_AT is on disk.

From outside the moment cannot be met: on a slow machine a run may end between two looks at its folder.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

import train  # noqa: E402
from spillover import resume  # noqa: E402

last, write = int(os.environ["KILLED_AT"]), resume.Store.write


def write_and_die(store: resume.Store, state: resume.State) -> None:
    write(store, state)
    if state.step == last:
        os.kill(os.getpid(), signal.SIGKILL)


resume.Store.write = write_and_die
if __name__ == "__main__":
    train.main()

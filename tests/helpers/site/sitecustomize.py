"""For every Python that a command of the tests starts: what it starts in turn is warm, and may have to be killed."""

import os
import sys
from pathlib import Path

if "HEADSTART_WARM_PYTHON" in os.environ:
    sys.executable = os.environ["HEADSTART_WARM_PYTHON"]  # as the workers that a launcher's processes start
if "HEADSTART_KILL" in os.environ:
    sys.path.append(str(Path(__file__).parent.parent.parent.parent))
    from tests.helpers.kill_points import plant

    plant()

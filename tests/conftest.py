"""What every test may count on: an environment that does not speak to turbort or to the width of its tables."""

import os

# pytest-xdist gives its workers the width of the terminal, and a developer may have plugins of their own set.
for name in [name for name in os.environ if name in ("COLUMNS", "LINES") or name.startswith("TURBORT_")]:
    del os.environ[name]

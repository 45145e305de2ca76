"""`python -m progc`: the same as `progc`."""

from __future__ import annotations

import os
import sys

# `python -m` puts the current folder first; a file there must not stand in for a library that we import.
if not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from progc.cli import main

if __name__ == "__main__":
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of a process group can abort the interpreter while it shuts down, which would cost the exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

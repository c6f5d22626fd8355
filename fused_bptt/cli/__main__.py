"""``python -m fused_bptt.cli``: the ``fused-bptt`` command."""

import sys

from fused_bptt.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m wm_rllib`."""

import sys

from wm_rllib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

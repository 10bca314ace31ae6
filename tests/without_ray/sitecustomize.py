"""Python imports this first where this folder is in PYTHONPATH: there is no Ray, and so nothing that needs it."""

import sys

sys.modules["ray"] = None

"""``python -m t2ictl`` is the command line."""

import sys

from t2ictl.cli.app import main

sys.exit(main())

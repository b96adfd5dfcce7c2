"""python -m hotplate.bench: the same as `hotplate bench`."""

import sys

from hotplate.bench.commands.bench import main

sys.exit(main(sys.argv[1:]))

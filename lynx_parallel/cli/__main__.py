"""``python -m lynx_parallel.cli`` is ``lynx-render``."""

from lynx_parallel.cli import main

main()

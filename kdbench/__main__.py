"""`python -m kdbench`"""

from kdbench.cli.main import main

main()

"""The command line, `luthier`: a client of a server, the parts of a server, and a trainer without one.

`root` knows the commands by name and imports the module of the one that was called, so that a machine with
only the client's packages has the client's commands.
"""

from luthier.cli.root import app, main

__all__ = ["app", "main"]

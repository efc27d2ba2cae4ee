"""How torch runs inside the tests' own process; read when it is imported, so it must be said before."""

import os

# As in the engine's process: threads that spin while they wait take ten times as long on a machine that is shared.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

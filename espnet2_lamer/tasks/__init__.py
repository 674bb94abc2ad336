"""ESPnet tasks with our classes among the choices."""

from espnet2_lamer.compat import before_espnet

# Before any module of this package imports an ESPnet task.
before_espnet()

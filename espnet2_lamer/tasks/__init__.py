"""ESPnet tasks with our classes among the choices."""

from espnet2_lamer.compat import quiet_nltk

# Before any module of this package imports an ESPnet task.
quiet_nltk()

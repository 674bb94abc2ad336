"""ESPnet tasks with our classes among the choices."""

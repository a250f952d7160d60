"""Real processes, real sockets, kill -9. A package: its fixtures of package scope end with it."""

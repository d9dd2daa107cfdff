"""What a quantised run is worth: image, temporal and per-op measures against the unquantised run, and their gates."""

"""What a plugin looks like whose vendor library does not load on this machine."""

raise OSError("libtoychip.so.2: cannot open shared object file")

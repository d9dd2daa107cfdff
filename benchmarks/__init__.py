"""One command per published number; each writes its results as JSON with device, versions and commit."""

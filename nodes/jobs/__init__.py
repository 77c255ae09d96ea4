"""Training jobs: exported by a node, trained by a command without the page."""

"""Adapters: what a training adds to frozen layers, one module a kind."""

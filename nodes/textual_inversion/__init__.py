"""Textual inversion nodes: learn, save, apply and inspect a word."""

"""Crops around masks: cut out and scaled for the model, and put back exactly where they came from."""

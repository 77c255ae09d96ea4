"""Pictures side by side, and what each way of making them took."""

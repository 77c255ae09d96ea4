"""The evidence card: one picture at the end of a run that says which step to use and why, and the LoRA's thumbnail."""

"""Adding several LoRAs into one."""

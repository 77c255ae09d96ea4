"""These tests import what imports ComfyUI, so it starts before they are collected."""

import inprocess

inprocess.start_comfyui()

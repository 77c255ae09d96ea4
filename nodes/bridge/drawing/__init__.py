"""Pictures that nodes draw: fonts, text layout, palettes, heatmaps."""

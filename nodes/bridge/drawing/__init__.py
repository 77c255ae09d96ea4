"""Pictures that nodes draw with Pillow: colours, fonts, text layout, image conversion, heatmaps and plots."""

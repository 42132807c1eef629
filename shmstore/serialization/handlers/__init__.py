"""One module per library: how its types become headers and frames. Loaded when first needed."""

"""Models: specs of the families, the decoder that reads them, and loading."""

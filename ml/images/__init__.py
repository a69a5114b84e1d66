"""Images: decoding and its limits, resizing, and heat maps."""

"""Parts that several architectures share: augmentation, noise, an optimizer, novelty."""

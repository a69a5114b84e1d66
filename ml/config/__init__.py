"""The configuration: `nightscore.yaml`, its schema, and the options of architectures."""

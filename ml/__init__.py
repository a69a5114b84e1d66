"""Nightscore: nightly batch scoring of images."""

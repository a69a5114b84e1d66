"""Exported programs: their files, their conversion for OpenVINO, and what runs them."""

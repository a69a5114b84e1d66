"""The formats of images that are decoded (`ml.images.decoding`), and the names of their files."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

"""The local stack: real servers from Python wheels, under one folder, on 127.0.0.1."""

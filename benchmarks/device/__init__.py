"""`evenflow bench device`: whether everything is right on a CUDA device, and how fast, part by part."""

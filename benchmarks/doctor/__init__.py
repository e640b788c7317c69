"""`evenflow doctor`: what happens to the gradient of one task or controller on its way back, and what to try."""

"""Other tools that compute what we do, beside which benchmarks time ours: one file each, listed in table.py.

peer.py       what a peer is, and what peers share
table.py      all of them
cart_pole.py, tasks.py, particles.py   what they compute, as expressions
"""

"""`evenflow bench scale`: what a step of a particle system and of its adjoint costs, against N and against the horizon.

settings.py   what a study measures
cases.py      the systems: one entry each
peers.py      the same steps in JAX and in torch eager
worker.py     one measurement, in a process of its own
limits.py     processes that are stopped at a time or a memory limit
study.py      all measurements of a study, each taken once
report.py     fits, goals, tables, figures
"""

"""`evenflow bench scale`: what a step of a particle system and of its adjoint costs, against N and against the horizon.

settings.py   what a study measures
cases.py      the systems: one entry each
worker.py     one measurement, in a process of its own
study.py      all measurements of a study, each taken once
report.py     fits, goals, tables, figures
"""

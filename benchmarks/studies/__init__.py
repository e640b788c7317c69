"""Many trainings compared: studies, their statistics, reports, pages and pictures."""

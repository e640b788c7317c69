"""`evenflow bench speed --peers`: one training, many, and particles beside every peer that is installed."""

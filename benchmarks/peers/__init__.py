"""The same update and the same step in other tools."""

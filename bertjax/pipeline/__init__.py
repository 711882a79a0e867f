"""A run from settings to report: its stages, its sweep and what a person sees of it."""

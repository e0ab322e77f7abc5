"""Recipes, optimisers and schedules; the state of a run; its history."""

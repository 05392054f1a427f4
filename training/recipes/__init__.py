"""Whole trainings of several stages, each with one command."""

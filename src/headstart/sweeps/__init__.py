"""Sweeps: many jobs from one command, of which none that has finished is ever lost or run again."""

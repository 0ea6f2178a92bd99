"""Outer synchronisation: ranks or hosts train some steps alone, and merge what they have learned (CC-24)."""

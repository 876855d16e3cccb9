"""Minimizing an objective: one compiled driver, and solvers that are interchangeable."""

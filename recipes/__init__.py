"""Recipes: end-to-end examples that make data for, train and judge small models."""

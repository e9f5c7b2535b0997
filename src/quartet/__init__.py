"""Quartet: four model families on real data, composed by Hydra, trained by Lightning."""

__version__ = "0.1.0"

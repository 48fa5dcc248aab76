"""The hotpatch file: manifest model, container, reading, writing, signature."""

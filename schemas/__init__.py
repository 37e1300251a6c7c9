"""The base layer: plain data, its rules and its bytes. Imports no other package of the project."""

"""Width: finds a size for every axis, plans the growth, edits graphs and literals, and finds factors for contractions.

Imports only floors below the transforms.
"""

"""This machine: where Midflight keeps things, and who can change them. A floor like ``midflight.errors``: every room
may import it, and it imports nothing else of ours. Standard library alone.

    places       the folders, by system and user
    ownership    who can change a file or folder; making folders that others cannot change
    sids         the same on Windows: owners, access control lists
"""

"""The valid content of a network.json, checked before anything is allocated."""
